"""Causes taken away: the truth in the marks' place, old classes bounded, and what is said of new things, by hand."""

import json

import numpy as np
import pytest
import torch
from made_records import complete
from smallzoo import config, write_cards, write_zoo
from torch import nn
from toys import ROOT

from fmseg import (
    claims,
    fmwiss,
    fmwiss_bounded_table,
    fmwiss_causes,
    fmwiss_causes_table,
    fmwiss_tables,
    incremental,
    incremental_data,
    incremental_runs,
)
from fmseg.estimand import parse
from fmseg.fmwiss_causes import EXPERTS, FATES, OLD, TRUTH, said
from fmseg.fmwiss_tables import COLUMNS
from fmseg.incremental_configs import SETTINGS
from fmseg.provenance import closure
from fmseg.records import run_key
from fmseg.settings import load
from fmseg.step_models import Reading, generator_of_step


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_ZOO", str(write_zoo(tmp_path / "zoo")))


def usual(marks=EXPERTS, bound="background", **options):
    made = config("fmwiss", protocol="mini/10-10/disjoint", train={"steps": 4}, warmup=0.25, **options)
    return made | {"causes": {"marks": marks, "bound": bound}}


def test_with_nothing_taken_away_it_is_fmwiss_to_the_bit(zoo):
    asked = usual()
    bare = {key: value for key, value in asked.items() if key != "causes"}
    one, plain, alone = fmwiss_causes.run(asked), incremental_runs.run(bare), fmwiss_causes.run(bare)
    assert {k: v for k, v in one["result"].items() if k != "said"} == plain["result"] == alone["result"]
    assert json.loads(json.dumps(one["result"]["said"])) == one["result"]["said"]
    assert set(one["result"]["said"]) == {"teacher", "student"}


TAKEN = [{"marks": TRUTH}, {"bound": OLD}, {"marks": TRUTH, "bound": OLD, "teacher": False}]


@pytest.mark.parametrize("taken", TAKEN)
def test_what_is_taken_away_changes_the_run_and_is_put_back_afterwards(taken, zoo):
    before = incremental_runs.prepared, fmwiss.FmwissStep, fmwiss.old_targets, fmwiss.student_targets
    usually, otherwise = fmwiss_causes.run(usual())["result"], fmwiss_causes.run(usual(**taken))["result"]
    assert otherwise["weights"] != usually["weights"] and otherwise["base_iou"] == usually["base_iou"]
    assert set(otherwise["said"]) == ({"student"} if "teacher" in taken else {"teacher", "student"})
    assert before == (incremental_runs.prepared, fmwiss.FmwissStep, fmwiss.old_targets, fmwiss.student_targets)


def told_step(asked):
    """A step that is told the truth, its source, and the data."""
    data = incremental_data.load(asked)
    old, _ = incremental_runs.base_of(asked, data)
    with pytest.MonkeyPatch.context() as planted:
        planted.setattr(fmwiss, "FmwissStep", fmwiss_causes.ToldStep)
        step, source, _ = fmwiss_causes._told({k: v for k, v in asked.items() if k != "causes"}, data, old)
    return step, source, data


def test_the_marks_are_the_truth_on_the_grid_and_nobody_else_is_asked(zoo):
    step, source, data = told_step(usual(capacity=0))
    step.experts = None  # who is asked is missed
    images = torch.from_numpy(source.images[:4]).permute(0, 3, 1, 2)
    labels, tags = torch.from_numpy(source.labels[:4]), torch.from_numpy(source.tags[:4])
    assert torch.isfinite(step.loss(images, labels, tags))
    _, _, masks = step.prepare(images, tags, generator_of_step())
    cell, first = labels.shape[1] // masks.shape[2], step.old_classes
    assert masks.any()
    for b, c, y, x in np.ndindex(*masks.shape):
        block = labels[b, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]
        assert masks[b, c, y, x] == ((block == first + c).float().mean() >= 0.5)
    assert step.experts is None


def test_no_old_class_is_likelier_than_the_new_ones_leave_room_for():
    generator = torch.Generator().manual_seed(0)
    old, masks = 3 * torch.randn(2, 3, 4, 4, generator=generator), torch.rand(2, 2, 4, 4, generator=generator) < 0.3
    cells = torch.full((2, 4, 4), 255)
    cells[0, 0, 0], masks[0, :, 0, 0] = 2, False
    found, usually = (m.old_targets(old, cells, masks) for m in (fmwiss_causes, incremental))
    marked = masks.any(1, keepdim=True).expand_as(found)
    assert (found[marked] == 0).all() and (usually[:, 1:][marked[:, 1:]] > 0).any()
    torch.testing.assert_close(found[~marked], usually[~marked], rtol=0, atol=0)
    assert found[0, :, 0, 0].tolist() == [0, 0, 1], "what was pasted is certain"
    assert torch.equal(fmwiss_causes.old_targets(old, cells), incremental.old_targets(old, cells))

    teacher, present = 3 * torch.randn(2, 5, 4, 4, generator=generator), torch.tensor([[True, False], [True, True]])
    options = {"alpha": 0.5, "beta": 0.9}
    found, usually = (m.student_targets(teacher, old, present, **options) for m in (fmwiss_causes, incremental))
    torch.testing.assert_close(found[:, 3:], usually[:, 3:], rtol=0, atol=0)
    for b, y, x in np.ndindex(2, 4, 4):
        most = 1 - float(usually[b, 3:, y, x].max())
        assert found[b, :3, y, x].tolist() == pytest.approx([min(float(v), most) for v in usually[b, :3, y, x]])


class Says(nn.Module):
    """A step whose student and teacher give fixed scores: background, two old classes, two new ones."""

    old_classes, num_classes, teacher = 3, 5, None

    def __init__(self, scores):
        super().__init__()
        self.student, self.scores = None, scores


def test_what_is_said_of_new_things_is_counted_by_hand(monkeypatch):
    scores = torch.full((1, 5, 2, 2), -1.0)
    scores[0, 3, 0, 0] = 2.0  # right
    scores[0, 1, 0, 1] = 3.0  # an old class; without old ones: background, a tie's first
    scores[0, 0, 1, 0] = 1.0  # background
    scores[0, 4, 1, 1] = 9.0  # a class that the image label lacks, so the first of what ties: background
    step = Says(scores)
    monkeypatch.setattr(fmwiss_causes, "read", lambda *_: Reading((), None, None, step.scores))
    truth = np.kron(np.array([[3, 3], [3, 0]], np.uint8), np.ones((4, 4), np.uint8))[None]
    step.train()
    found = said(step, np.zeros((1, 8, 8, 3), np.uint8), np.array([[True, False]]), truth)["student"]
    assert step.training
    assert list(found["called"].values()) == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=1e-6)
    of_thing = torch.sigmoid(torch.tensor([2.0, -1.0, -1.0])).mean()
    assert found["score"] == pytest.approx(float(of_thing), abs=1e-6)
    assert found["masks"] == pytest.approx({"precision": 1.0, "recall": 1 / 3, "iou": 1 / 3}, abs=1e-6)
    assert tuple(found["called"]) == FATES


def test_of_pictures_without_a_new_thing_nothing_is_said(monkeypatch):
    step = Says(torch.zeros(1, 5, 2, 2))
    monkeypatch.setattr(fmwiss_causes, "read", lambda *_: Reading((), None, None, step.scores))
    nothing = np.zeros((1, 8, 8), np.uint8)
    found = said(step, np.zeros((1, 8, 8, 3), np.uint8), np.array([[False, False]]), nothing)["student"]
    assert found["score"] is None and set(found["called"].values()) == {None}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"causes": {"marks": "nobody", "bound": OLD}}, "`causes.marks` must be one of co-segmentation, truth"),
        ({"causes": {"marks": TRUTH, "bound": "none"}}, "`causes.bound` must be one of background, all old classes"),
        ({"causes": {"marks": TRUTH}}, "lacks bound"),
        ({"causes": {"marks": TRUTH, "bound": OLD, "more": 1}}, "more"),
        ({"method": "wilson"}, "`method` must be 'fmwiss'"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(changed, message, zoo):
    with pytest.raises(ValueError, match=message):
        fmwiss_causes.run(usual() | changed)


# -- the table -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mini(tmp_path, monkeypatch):
    write_cards(tmp_path / "zoo")
    monkeypatch.setenv("FMSEG_ZOO", str(tmp_path / "zoo"))
    return load("mini", ROOT)


@pytest.mark.parametrize("id", fmwiss_causes_table.TABLES)
def test_cells_are_those_of_their_own_runs(mini, id):
    made, (setting, rows) = fmwiss_causes_table.EXPERIMENTS[id], fmwiss_causes_table.TABLES[id]
    found = {r["label"]: r["cells"] for r in made.table(mini, complete(made, mini))["rows"]}
    assert list(found) == [cause.label for cause in rows]
    protocols = {config["protocol"] for config in made.configs(mini)}
    assert protocols == {f"mini/{setting.replace(' ', '/')}"}
    for cause in rows:
        cells = found[cause.label]
        assert cells["new"]["n"] == mini.get(f"incremental.seeds.{'judged' if cause.judged else 'ablations'}")
        student = cause.method == "fmwiss"
        teacher = student and cause.changes.get("teacher", True)
        assert cells["teacher's score"]["mean"] == (25 if teacher else None)
        assert cells["teacher's masks"]["mean"] == cells["old classes left out"]["mean"] == (30 if teacher else None)
        assert cells["called old"]["mean"] == (30 if student else None)
    empty = made.table(mini, [None] * len(made.configs(mini)))
    assert not any(cell["n"] for r in empty["rows"] for cell in r["cells"].values())


def test_rows_differ_by_what_they_say_and_rest_on_what_trains_them(mini):
    for setting, rows in fmwiss_causes_table.TABLES.values():
        assert len({run_key(fmwiss_causes_table.config_of(mini, cause, 0, setting)) for cause in rows}) == len(rows)
    code = set(closure(fmwiss_causes_table.MODULE, mini.root))
    assert {"fmseg.fmwiss", "fmseg.incremental_runs", "fmseg.wilson_step"} <= code
    assert not any("table" in name or "ablations" in name for name in code)


def test_a_setting_is_a_row_and_what_was_known_is_borrowed(mini):
    made = fmwiss_bounded_table.EXPERIMENT
    table = made.table(mini, complete(made, mini))
    rows = {r["label"]: r["cells"] for r in table["rows"]}
    assert list(rows) == ["15-5 disjoint", "15-5 overlap", "10-10 disjoint", "10-10 overlap", "COCO-to-VOC"]
    assert all(cell["n"] == 5 for cells in rows.values() for cell in cells.values())
    assert rows["COCO-to-VOC"]["called background"]["mean"] == 20
    asked = {run_key(config) for config in made.configs(mini)}
    family = {made.id: made, **fmwiss_causes_table.EXPERIMENTS}
    for id in fmwiss_causes_table.TABLES:
        known = {run_key(config) for config in family[id].configs(mini)}
        assert len(asked) == 25 and len(asked & known) == 5
    assert all({id, *one.lenders} == set(family) for id, one in family.items()), "each names all the others"
    assert set(rows) - set(fmwiss_bounded_table.LATER) == {fmwiss_causes_table.SETTING}


def test_what_bounding_adds_is_paired_by_setting_and_seed():
    def of(value):
        return {"values": {"0": value, "1": value + 1}}

    def like(row, value):
        cells = {names["new"]: of(value + k) for k, names in enumerate(COLUMNS[id].values())}
        return {"label": row, "cells": cells}

    others = {}
    for step, id in enumerate(COLUMNS):
        others[id] = {"rows": [like("FMWISS", 10 * step), like("WILSON", 10 * step + 5)]}
    bounded = {"rows": [{"label": name, "cells": {"new": of(100)}} for name in SETTINGS]}
    bounded["rows"][0]["cells"]["new"]["values"].pop("1")
    found = dict(fmwiss_bounded_table.less(bounded, others, "new"))
    assert len(found) == 10 and found["15-5 disjoint, less FMWISS"] == {"0": 100}
    assert found["15-5 overlap, less WILSON"] == {"0": 94, "1": 94}
    assert found["COCO-to-VOC, less FMWISS"] == {"0": 80, "1": 80}


def test_claims_leave_out_the_setting_in_which_it_was_found(mini):
    made = [fmwiss_bounded_table.EXPERIMENT, *fmwiss_tables.EXPERIMENTS.values()]
    found = {e.id: e.table(mini, complete(e, mini)) for e in made}
    listed = [c for c in claims.load(ROOT / "claims.yaml") if c["id"].startswith("across.bounded.")]
    assert len(listed) == 4 and all(c["note"].startswith("Of no paper") for c in listed)
    for claim in listed:
        formula = parse(claim["estimand"])
        assert {row for id, row, _ in formula.cells if id == "fmwiss-bounded"} == set(fmwiss_bounded_table.LATER)
        for id, label, column in formula.cells:
            line = next(line for line in found[id]["rows"] if line["label"] == label)
            assert line["cells"][column]["n"] == 5
