import hashlib
import json
import shutil
import subprocess

import pytest
import yaml
from toys import REAL, ROOT, invented, ships

from fmseg import catalogue, claims, ledger, pipeline, report, tables, verify, zoo_pipeline
from fmseg.records import path_of, run_key, write_record
from fmseg.settings import load


@pytest.fixture
def committed(settings, monkeypatch):
    """A toy project whose results are complete: records, table, ledger, dvc.yaml. Its zoo ships nothing."""
    ships(monkeypatch)
    for module in (catalogue, verify, pipeline):
        monkeypatch.setattr(module, "EXPERIMENTS", {REAL.id: REAL})
    for record in invented(settings, REAL, code=verify.closure("fmseg.toy", settings.root)):
        write_record({**record, "versions": {"python": "3.11.0", "torch": "2.0.0"}}, REAL.folder(settings))
    records = [json.loads(p.read_text()) for p in REAL.folder(settings).iterdir()]
    by_key = {r["key"]: r for r in records}
    ordered = [by_key[run_key(c)] for c in REAL.configs(settings)]
    tables.write(REAL.table(settings, ordered), settings.results / "tables")
    ledger.write(catalogue.judge_all(settings), settings.results, "mini")
    report.write(settings)
    (settings.root / "notebooks").mkdir()
    (settings.root / "README.md").write_text("nothing\n")
    (settings.root / "dvc.yaml").write_text(pipeline.text(settings.root))
    (settings.root / "realdata").mkdir()
    (settings.root / "realdata/dvc.yaml").write_text(pipeline.realdata_text(settings.root))
    (settings.root / "zoo").mkdir(exist_ok=True)
    (settings.root / "zoo/dvc.yaml").write_text(zoo_pipeline.text(settings.root))
    monkeypatch.setenv("FMSEG_ZOO", str(settings.root / "zoo/weights"))  # none
    return settings


def failures(settings):
    return verify.verify(settings, dvc=False).failed


def test_a_comment_is_free_and_a_constant_is_named(committed):
    assert failures(committed) == []
    toy = committed.root / "fmseg/toy.py"
    toy.write_text(toy.read_text().replace("# a constant of a kernel", "# reworded"))
    assert failures(committed) == []
    toy.write_text(toy.read_text().replace("OFFSET = 0.0", "OFFSET = 0.1"))
    found = failures(committed)
    assert len(found) == len(REAL.configs(committed))
    assert all("does not belong to this code: fmseg.toy was changed" in f for f in found)


def test_another_environment_is_remarked_not_failed(committed):
    found = verify.verify(committed, dvc=False)
    assert any("records were made with torch 2.0.0" in remark for remark in found.remarks)
    expected = {"records": len(REAL.configs(committed)), "tables": 2, "claims": len(claims.load(ROOT / "claims.yaml"))}
    assert found.checked == expected


def test_what_was_edited_missing_or_left_over_is_named(committed):
    folder = REAL.folder(committed)
    path = sorted(folder.iterdir())[0]
    good = path.read_text()
    path.write_text(good[:200])
    assert any(f"{path.name} is not a complete run record" in f for f in failures(committed))
    path.unlink()
    assert any(f"{path.name}: there is no such record" in f for f in failures(committed))
    path.write_text(good)
    record = json.loads(good)
    record["result"]["iou"][0] += 0.1
    write_record(record, folder)
    assert any("freemask-real.json does not follow from its records" in f for f in failures(committed))
    path.write_text(good)
    stray = json.loads(good)
    stray["config"]["seed"] = 77
    stray["key"] = run_key(stray["config"])
    write_record(stray, folder)
    name = path_of(folder, stray["config"]).name
    assert [f.split(": ", 1) for f in failures(committed)] == [
        [f"results/mini/runs/freemask-real/{name}", "no table asks for this run any more; delete it"]
    ]


def test_an_edited_table_or_ledger_or_rule_is_named(committed):
    path = committed.results / "ledger.json"
    path.write_text(path.read_text().replace('"verdict": "not tested"', '"verdict": "supported"', 1))
    (failure,) = failures(committed)
    assert failure.startswith("results/mini/ledger.json does not follow from the tables and the rules in claims.yaml")
    shutil.copy(ROOT / "claims.yaml", committed.root)
    ledger.write(catalogue.judge_all(committed), committed.results, "mini")
    (committed.results / "ledger.md").write_text("nothing\n")
    (failure,) = failures(committed)
    assert failure.startswith("results/mini/ledger.md does not follow from ledger.json and report.md")
    report.write(committed)
    assert failures(committed) == []
    rules = committed.root / "claims.yaml"
    rules.write_text(rules.read_text().replace("minimal_effect: 1.0", "minimal_effect: 0.5", 1))
    assert "rules in claims.yaml" in failures(committed)[0]
    (committed.results / "tables/freemask-real.md").unlink()
    assert any("freemask-real.md is missing" in f for f in failures(committed))


def test_typed_numbers_and_another_dvc_yaml_are_found(committed):
    (committed.root / "README.md").write_text("We reach 41.3.\n")
    (committed.root / "dvc.yaml").write_text("stages: {}\n")
    found = failures(committed)
    assert len(found) == 2 and "run `make pipeline`" in found[0] and "'41.3' is typed" in found[1]


def test_dvc_lock_forgives_comments_alone(tmp_path):
    """DVC compares bytes; the version that dvc.lock means is found in git's history."""

    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words], check=True)

    file = tmp_path / "fmseg/kernel.py"
    file.parent.mkdir()
    text = "RATE = 0.1  # first\n"
    file.write_text(text)
    md5 = hashlib.md5(text.encode()).hexdigest()
    lock = {"stages": {"01": {"deps": [{"path": "fmseg/kernel.py", "md5": md5}]}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    git("init", "-q")
    assert not verify.only_reworded("fmseg/kernel.py", tmp_path), "no version is known"
    git("add", ".")
    git("commit", "-qm", "one")
    file.write_text("RATE = 0.1  # reworded\n")
    assert verify.only_reworded("fmseg/kernel.py", tmp_path)
    git("commit", "-qam", "two")
    assert verify.only_reworded("fmseg/kernel.py", tmp_path), "older versions are looked through"
    file.write_text("RATE = 0.2  # first\n")
    assert not verify.only_reworded("fmseg/kernel.py", tmp_path)
    assert not verify.only_reworded("params.yaml", tmp_path)


def test_this_checkout_is_in_order():
    """`make verify`, on the committed results themselves."""
    assert verify.verify(load("mini", ROOT)).failed == []
