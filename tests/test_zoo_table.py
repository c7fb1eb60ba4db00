"""Table `zoo`: measurements as runs, their records, and the table that follows from them."""

from dataclasses import replace
from pathlib import Path

import pytest
from toys import ships

from fmseg import tables, zoo, zoo_measures, zoo_table
from fmseg.records import run_key
from fmseg.settings import load
from fmseg.zoo_train import MODULES

ROOT = Path(__file__).parent.parent


@pytest.fixture
def settings(monkeypatch):
    ships(monkeypatch, *MODULES)
    values = {"seeds": [0, 1, 2], "zoo": {"real": 20, "generated": 5}}
    return replace(load("mini", ROOT), values=values)


def records(settings, change=0.0):
    made = []
    for config in zoo_table.run_configs(settings):
        keys = [key for _, key, _ in zoo_measures.MEASURES[config["method"]][2]]
        values = {key: 40.0 + k + config["seed"] + change for k, key in enumerate(keys)}
        result = {"values": values, "miou": values[keys[0]], "weights": "x"}
        made.append({"key": run_key(config), "config": config, "code": {}, "result": result})
    return made


def test_every_measurement_is_a_row_and_every_row_has_one_measurement():
    labels = [label for _, _, lines in zoo_measures.MEASURES.values() for label, _, _ in lines]
    assert len(labels) == len(set(labels)) and set(zoo_table.targets()) <= set(labels)
    assert not [label for label in labels if set("[],/|") & set(label)]  # formulas and citations use these
    assert all(low < high for low, high in zoo_table.targets().values())
    assert set(zoo_table.GENERATING) <= set(zoo_measures.MEASURES)


def test_the_table_follows_from_the_records(settings):
    there = records(settings)
    table = zoo_table.build_table(settings, there)
    tables.validate(table)
    cells = {row["label"]: row["cells"]["measured"] for row in table["rows"]}
    assert cells["CLIP recall on voc"]["values"] == {"0": 40.0, "1": 41.0, "2": 42.0}
    assert cells["CLIP recall on voc one thing"]["mean"] == 42.0
    without = [None if r["config"]["method"] == "probe-mim" else r for r in there]
    left = {row["label"]: row["cells"]["measured"] for row in zoo_table.build_table(settings, without)["rows"]}
    assert left["mim mask tells the shape"]["status"] == "not run: no record of it"
    assert left["dino mask tells the shape"] == cells["dino mask tells the shape"]


def test_other_weights_are_other_runs(settings, monkeypatch):
    before = {run_key(c) for c in zoo_table.run_configs(settings)}
    monkeypatch.setattr(zoo, "weights_hash", lambda name: "new" if name == "mim" else f"hash-of-{name}")
    after = zoo_table.run_configs(settings)
    changed = {c["method"] for c in after if run_key(c) not in before}
    assert changed == {"attention-mim", "probe-mim"}


def test_a_measurement_refuses_other_weights_than_its_configuration_names(settings, monkeypatch):
    config = next(c for c in zoo_table.run_configs(settings) if c["method"] == "clip-recall-voc")
    measured = {"all": 12.34567, "single": 50.0}
    lines = zoo_measures.MEASURES["clip-recall-voc"][2]
    monkeypatch.setitem(zoo_measures.MEASURES, "clip-recall-voc", (("clip",), lambda seed, count: measured, lines))
    done = zoo_measures.run(config)
    assert done["result"]["miou"] == 12.3457 and done["result"]["values"]["single"] == 50.0
    assert done["result"]["weights"] == zoo_measures.run(config)["result"]["weights"]
    with pytest.raises(ValueError, match="does not hold the hashes of the shipped clip"):
        zoo_measures.run({**config, "zoo": {"clip": "other"}})
    with pytest.raises(ValueError, match="`method` must be one of clip-recall-voc, .*; got 'clip'"):
        zoo_measures.run({**config, "method": "clip"})
    with pytest.raises(ValueError, match="lacks zoo"):
        zoo_measures.run({k: v for k, v in config.items() if k != "zoo"})


def test_what_is_not_shipped_is_said_and_the_rest_is_measured(settings, monkeypatch):
    whole = zoo_table.run_configs(settings)
    assert {c["method"] for c in whole} == set(zoo_measures.MEASURES) and len(whole) == 3 * len(zoo_measures.MEASURES)
    ships(monkeypatch, "clip", "mim")
    part = zoo_table.run_configs(settings)
    assert {c["method"] for c in part} == {
        "clip-recall-voc", "clip-recall-coco", "clip-recall-web", "attention-mim", "probe-mim", "probe-truth"
    }  # fmt: skip
    assert all(c in whole for c in part), "what is measured now stays when the rest is shipped"
    cells = {r["label"]: r["cells"]["measured"] for r in zoo_table.build_table(settings, records(settings))["rows"]}
    assert cells["mim attention IoU"]["n"] == cells["true mask tells the shape"]["n"] == 3
    assert cells["dino attention IoU"]["status"] == "not run: the zoo has no dino yet"
    assert cells["one prompted found by the judge"]["status"] == "not run: the zoo has no diffusion, oracle, judge yet"
    assert len(cells) == len([line for _, _, lines in zoo_measures.MEASURES.values() for line in lines])
    paper = load("paper", ROOT)
    assert zoo_table.run_configs(paper) == []
    assert {r["cells"]["measured"]["status"] for r in zoo_table.build_table(paper, [])["rows"]} == {
        "not run: measured in the mini world"
    }


def test_a_value_that_no_picture_gave_is_left_out(settings, monkeypatch):
    config = next(c for c in zoo_table.run_configs(settings) if c["method"] == "real-singles")
    lines = zoo_measures.MEASURES["real-singles"][2]
    measured = {"single, oracle": float("nan"), "pair, oracle": 12.5, "single, judge": 30.0}
    monkeypatch.setitem(zoo_measures.MEASURES, "real-singles", (("oracle", "judge"), lambda *_: measured, lines))
    result = zoo_measures.run(config)["result"]
    assert result["values"]["single, oracle"] is None and result["miou"] == 12.5
    record = {"key": run_key(config), "config": config, "code": {}, "result": result}
    cells = {r["label"]: r["cells"]["measured"] for r in zoo_table.build_table(settings, [record])["rows"]}
    assert cells["one real thing found by the oracle"]["n"] == 0
    assert cells["two real things both found by the oracle"]["mean"] == 12.5
