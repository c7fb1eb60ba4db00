"""Tables of a paper lend each other runs: a record of the same configuration and code is copied, not trained again."""

from dataclasses import replace

from toys import REAL

from fmseg import claims
from fmseg.experiment import rules
from fmseg.pool import obtain
from fmseg.records import path_of, write_record


def test_a_run_that_another_table_holds_is_not_trained_again(settings):
    runs = settings.results / "runs"
    config = REAL.configs(settings)[0]
    where = {"module": "fmseg.toy", "scratch": settings.root / "scratch", "root": settings.root, "progress": False}
    record = obtain([config], folder=runs / "one", claims={"a.1": "sha256:then"}, **where).records
    (key,) = record
    marked = record[key] | {"result": record[key]["result"] | {"miou": 99.0}}
    write_record(marked, runs / "one")
    second = obtain([config], folder=runs / "two", claims={"a.1": "sha256:now"}, **where).records[key]
    assert second["result"]["miou"] == 99.0 and second["claims"] == {"a.1": "sha256:then"}
    assert path_of(runs / "two", config).read_bytes() == path_of(runs / "one", config).read_bytes()
    assert obtain([config], folder=runs / "three", borrow=False, **where).records[key]["result"]["miou"] < 99
    again = obtain([config], folder=runs / "two", ignore_records=True, **where).records[key]
    assert again["result"]["miou"] < 99
    write_record(marked | {"code": {"fmseg.toy": "0" * 16}}, runs / "one")
    write_record(marked | {"code": {"fmseg.toy": "0" * 16}}, runs / "two")
    path_of(runs / "three", config).unlink()
    assert obtain([config], folder=runs / "four", **where).records[key]["result"]["miou"] < 99  # other code


def test_a_record_keeps_the_rules_of_all_tables_of_its_paper(settings):
    listed = claims.load(settings.root / "claims.yaml")
    kept = rules(REAL, settings)
    mine = {c["id"]: claims.rule_hash(c) for c in listed if c["estimand"].startswith("freemask-")}
    assert kept == mine and kept
    assert rules(replace(REAL, id="camvid-real"), settings) == {}
