"""FMWISS's tables in the catalogue: `fmseg train`, `fmseg plan` and the pipeline know them."""

import types

import pytest
from made_records import FAMILY, STAGED
from paper_trees import small_paper, write_coco, write_voc, write_weights
from smallzoo import write_cards
from toys import ROOT

from fmseg import catalogue, experiment, pipeline, plan, train_table
from fmseg.settings import load

COST = plan.Cost(step=2.0, picture=0.5, prepare=7.0, memory=10**9, checkpoint=10**6, device="made up")


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The catalogue with the family in it."""
    for id, one in STAGED.items():
        monkeypatch.setitem(catalogue.EXPERIMENTS, id, one)


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """`paper`, made small, on trees of a few pictures."""
    home = tmp_path / "paper"
    write_voc(write_coco(home / "data"))
    write_weights(home / "weights")
    for name in ("FMSEG_VOC", "FMSEG_COCO", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FMSEG_DATA", str(home / "data"))
    monkeypatch.setenv("FMSEG_WEIGHTS", str(home / "weights"))
    for part in ("fmseg", "claims.yaml", "notebooks", "zoo"):
        (tmp_path / part).symlink_to(ROOT / part)
    settings = small_paper(tmp_path)
    for module in (train_table, plan):
        monkeypatch.setattr(module, "load", lambda profile: settings)
    return settings


def test_the_catalogue_has_them():
    module = types.ModuleType("catalogue")  # as it is in the file, without the fixture's help
    exec((ROOT / "fmseg/catalogue.py").read_text(), module.__dict__)
    assert set(STAGED) < set(module.EXPERIMENTS) and all(e.id == id for id, e in module.EXPERIMENTS.items())


def test_train_leaves_records_from_which_the_notebook_makes_the_table(paper, capsys):
    words = ["fmwiss-t2", "--only", "protocol=voc/10-10/disjoint"]
    for method in ("fmwiss", "wilson"):
        assert train_table.main([*words, "--only", f"method={method}"]) == 0, capsys.readouterr().err
        assert f"run 1 of 1: {method} on voc/10-10/disjoint, 2 steps" in capsys.readouterr().out
    one = FAMILY["fmwiss-t2"]
    assert len(train_table.waiting(one, paper)) == len(one.configs(paper)) - 2
    outcome = experiment.perform(one, paper, "one", progress=False)
    assert (outcome.from_records, outcome.trained, outcome.compared) == (2, 0, [])
    cells = {row["label"]: row["cells"] for row in outcome.table["rows"]}
    assert cells["FMWISS"]["disjoint all"]["n"] == cells["WILSON"]["disjoint 11-20"]["n"] == 1
    assert cells["sigmoid base model"]["disjoint 1-10"]["n"] == 1 and not cells["FT"]["overlap all"]["n"]
    bases = list((paper.root / "build/runs/bases").glob("*.pt"))
    assert len(bases) == 1, "both methods began with the same base model"
    assert experiment.perform(one, paper, "missing", progress=False).trained == 0, "a notebook trains nothing so large"
    assert train_table.main(["fmwiss-t2", "--only", "method=cam"]) == 1
    assert "`only` method=cam: the runs of fmwiss-t2 have fmwiss, ft, ilt" in capsys.readouterr().err
    assert train_table.main(["fmwiss-ab-seeds"]) == 0, "on real data there is nothing to train"


def test_plan_covers_them_and_says_how_to_start(paper, monkeypatch, capsys):
    monkeypatch.setattr(plan, "calibrate", lambda config: COST)
    assert plan.main(["15_fmwiss_t1", "18_fmwiss_ablations"]) == 0
    said = capsys.readouterr().out
    assert "15_fmwiss_t1 / fmwiss-t1: 19 of 19 runs to train" in said, "joint training is one for both settings"
    assert "torchrun --standalone --nproc-per-node 8 -m fmseg train fmwiss-t1 --profile paper" in said
    assert "18_fmwiss_ablations: no training" in said


def test_what_the_whole_family_costs_in_miniature(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FMSEG_ZOO", str(write_cards(tmp_path_factory.mktemp("zoo"))))
    settings = load("mini", ROOT)
    costs = {plan.kind_of(c): COST for e in FAMILY.values() for c in e.configs(settings)}
    text = plan.report(FAMILY["fmwiss-ab-seeds"], settings, costs, workers=2)
    assert "runs to train" in text and "make repro" in text
    stages = {e.stage for e in STAGED.values()}
    assert {id for stage in stages for id in pipeline.made_by(stage)} == set(STAGED)
