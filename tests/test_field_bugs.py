"""Planted mistakes: each does the wrong thing that it says, and nothing else."""

import math

import numpy as np
import pytest
import torch
from smallzoo import config, write_zoo

from fmseg import field_bug_runs, field_bugs, field_bugs_table, fmwiss, freemask, incremental_runs, supervised
from fmseg.contrast import contrast, sample_points
from fmseg.datasets import IGNORE
from fmseg.evaluation import predict, weights_hash
from fmseg.field_bugs import (
    InTrainMode,
    learn_rim,
    mean_of_pictures,
    miou_of,
    supcon,
    with_rim,
    without_statistics,
)
from fmseg.provenance import closure
from fmseg.records import run_key
from fmseg.segmenters import build
from fmseg.settings import load

SEGMENTER = {
    "method": "deeplabv3", "backbone": "scratch", "seed": 100, "draw": "voc", "split": "train", "images": 8,
    "validation": 4, "size": 32, "rim": 1, "mistake": None,
    "train": {"steps": 2, "batch_size": 4, "lr": 0.01, "eval_every": 1},
}  # fmt: skip


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0, 1, 2])
def test_a_rim_is_what_lies_beside_another_id(width):
    labels = np.random.default_rng(0).integers(0, 3, (2, 6, 7)).repeat(2, 1).repeat(2, 2).astype(np.uint8)
    made = with_rim(labels, width)
    for n, y, x in np.ndindex(labels.shape):
        near = [(y + d, x) for d in range(-width, width + 1)] + [(y, x + d) for d in range(-width, width + 1)]
        near = [labels[n, a, b] for a, b in near if 0 <= a < labels.shape[1] and 0 <= b < labels.shape[2]]
        assert made[n, y, x] == (IGNORE if set(near) != {labels[n, y, x]} else labels[n, y, x])


def test_learned_rims_are_one_class_and_the_rest_stays():
    labels = np.array([[[3, IGNORE, 0, 1]]], np.uint8)
    assert learn_rim(labels, "as background", 5).tolist() == [[[3, 0, 0, 1]]]
    assert learn_rim(labels, "as the last class", 5).tolist() == [[[3, 4, 0, 1]]]
    with pytest.raises(ValueError, match="`how` must be one of as background, as the last class; got 'not'"):
        learn_rim(labels, "not", 5)


# -- evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    done = field_bug_runs.run(SEGMENTER)
    _, held_out = supervised.sources({k: v for k, v in SEGMENTER.items() if k not in ("rim", "mistake")})
    return done, held_out


def test_batch_statistics_are_those_of_the_pictures_and_leave_the_model_alone(trained):
    model, images = trained[0]["model"], trained[1].images
    before = weights_hash(model)
    wrong = InTrainMode(model)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        got = wrong.logits(batch)
        again = InTrainMode(model).logits(batch)
        other = torch.cat([wrong.logits(batch[:2]), wrong.logits(batch[2:])])
    assert torch.equal(got, again) and not torch.allclose(got, other), "they depend on the company"
    by_hand = build("deeplabv3", num_classes=21, image_size=32, seed=0)
    by_hand.load_state_dict(model.state_dict())
    by_hand.train()
    for module in by_hand.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.eval()
    with torch.no_grad():
        assert torch.allclose(by_hand.logits(batch), got, atol=1e-5)
    assert weights_hash(model) == before


def test_without_statistics_parameters_stay_and_statistics_are_fresh(trained):
    model = trained[0]["model"]
    made = without_statistics(model)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), model.parameters(), strict=True))
    statistics = {name: b for name, b in made.named_buffers() if "running" in name}
    assert statistics and all(bool((b == ("var" in name)).all()) for name, b in statistics.items())
    assert any(not torch.equal(b, statistics[n]) for n, b in model.named_buffers() if n in statistics)


def test_the_mean_of_pictures_is_another_number():
    truth = np.array([[[0, 0]], [[0, 1]]], np.uint8)
    pred = np.array([[[0, 0]], [[0, 0]]], np.uint8)
    assert mean_of_pictures(pred, truth, 2) == pytest.approx(100 * (1.0 + (0.5 + 0.0) / 2) / 2)
    assert mean_of_pictures(truth, truth, 2) == 100


# -- SupCon ----------------------------------------------------------------------------------------------------------


def maps(classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (2, 4, 4), generator=generator)
    labels[0, 0] = IGNORE
    return torch.randn(2, 5, 4, 4, generator=generator, dtype=torch.float64), labels


def test_supcon_is_its_formula():
    features, labels = maps()
    got = supcon(features, labels, torch.Generator().manual_seed(3), points=4, temperature=0.2)
    at = sample_points(labels, 4, torch.Generator().manual_seed(3))
    points = features.permute(0, 2, 3, 1).reshape(-1, 5)[at]
    points, ids = points / points.norm(dim=1, keepdim=True), labels.flatten()[at]
    total = 0.0
    for i in range(len(at)):
        others = [a for a in range(len(at)) if a != i]
        below = sum(math.exp(float(points[i] @ points[a]) / 0.2) for a in others)
        same = [a for a in others if ids[a] == ids[i]]
        each = [-math.log(math.exp(float(points[i] @ points[p]) / 0.2) / below) for p in same]
        total += sum(each) / len(each) if each else 0.0
    assert float(got) == pytest.approx(total / len(at), rel=1e-5)


def test_supcon_is_the_dense_contrastive_loss_with_one_positive_an_anchor_and_only_then():
    features, labels = maps()

    def both(points):
        at = sample_points(labels, points, torch.Generator().manual_seed(1))
        drawn = features.permute(0, 2, 3, 1).reshape(-1, 5)[at]
        return (
            float(supcon(features, labels, torch.Generator().manual_seed(1), points=points)),
            float(contrast(drawn, labels.flatten()[at])),
        )

    assert both(2)[0] == pytest.approx(both(2)[1], rel=1e-4)
    assert both(4)[0] != pytest.approx(both(4)[1], rel=1e-2)


def test_supcon_of_nothing_is_nothing():
    features, labels = maps()
    features.requires_grad_(True)
    loss = supcon(features, torch.full_like(labels, IGNORE), torch.Generator())
    loss.backward()
    assert float(loss.detach()) == 0 and not features.grad.any()


# -- runs ------------------------------------------------------------------------------------------------------------


def test_a_right_run_is_also_evaluated_wrongly(trained):
    done, held_out = trained
    found = done["result"]["measured"]
    assert set(found) == {"statistics of 2", "statistics of 8", "no statistics", "mean of pictures"}
    model = done["model"]
    right = miou_of(model, held_out.images, held_out.labels, 21)
    assert done["result"]["miou"] == pytest.approx(right, abs=1e-3)
    assert found["statistics of 2"] == pytest.approx(
        miou_of(InTrainMode(model), held_out.images, held_out.labels, 21, 2), abs=1e-3
    )
    per_picture = mean_of_pictures(predict(model, held_out.images), held_out.labels, 21)
    assert found["mean of pictures"] == pytest.approx(per_picture, abs=1e-3)


def test_a_mistake_changes_what_is_learned(trained):
    hashes = {trained[0]["result"]["weights"]}
    for mistake in field_bugs.LEARNED_RIMS:
        result = field_bug_runs.run({**SEGMENTER, "mistake": mistake})["result"]
        assert "measured" not in result
        hashes.add(result["weights"])
    assert len(hashes) == 3


def test_supcon_is_planted_in_fmwiss_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_ZOO", str(write_zoo(tmp_path / "zoo")))
    usual = config("fmwiss")
    right = incremental_runs.run(usual)["result"]
    assert field_bug_runs.run({**usual, "mistake": None})["result"] == right
    wrong = field_bug_runs.run({**usual, "mistake": "SupCon"})["result"]
    assert wrong["weights"] != right["weights"] and wrong["base_iou"] == right["base_iou"]
    assert fmwiss.dense_contrast is not supcon, "what is planted is taken out again"


def test_another_draw_has_the_same_counts():
    masks = np.random.default_rng(0).integers(0, 4, (6, 8, 8)).astype(np.uint8)
    means = np.array([0.1, 0.4, 0.2, 0.9])
    right = freemask.plan(masks, 4, means, 8, 0)
    wrong = field_bug_runs._drawn_elsewhere(masks, 4, means, 8, 0)
    assert right.shape == wrong.shape and (right[:, 0] == wrong[:, 0]).all() and (right[:, 1] != wrong[:, 1]).any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mistake": "SupCon"}, "must be None or one of as background, as the last class; got 'SupCon'"),
        ({"protocol": "x", "mistake": "as background"}, "must be None or one of SupCon; got 'as background'"),
        ({"paradigm": "joint", "mistake": "SupCon"}, "must be None or one of another draw; got 'SupCon'"),
        ({"rimm": 1}, "unknown key of a run's configuration 'rimm'"),
    ],
)
def test_a_mistake_that_does_not_belong_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        field_bug_runs.run({**SEGMENTER, **changed})


# -- the table -------------------------------------------------------------------------------------------------------


def test_rows_are_differences_of_the_same_seeds(monkeypatch):
    settings = load("mini")
    monkeypatch.setattr(field_bugs_table, "lacking", lambda settings, make: None)
    records = []
    for made in field_bugs_table.run_configs(settings):
        seed, mistake = made["seed"], made["mistake"]
        score = 40.0 + seed - (5.0 if mistake else 0.0)
        result = {"miou": score, "iou": [score / 100] * 21, "base_iou": [0.5] * 11}
        result["measured"] = {
            "statistics of 2": 1.0, "statistics of 8": 2.0, "no statistics": 3.0, "mean of pictures": score + 4,
        }  # fmt: skip
        records.append(
            {"key": run_key(made), "config": made, "result": result, "curve": [[1, 50.0], [2, score]], "code": {}}
        )
    made = field_bugs_table.build(settings, records)
    moved = {line["label"]: line["cells"]["moved by"]["values"] for line in made["rows"]}
    seeds = [str(seed) for seed in settings.get("seeds")]
    assert moved["ignored rims learned as background"] == dict.fromkeys(seeds, -5.0)
    assert moved["SupCon for the dense contrastive loss: new"] == dict.fromkeys(seeds, -5.0)
    assert moved["re-sampling drawn again"] == dict.fromkeys(seeds, -5.0)
    assert moved["mean of each picture's mIoU"] == dict.fromkeys(seeds, 4.0)
    assert moved["batch statistics of 2 pictures at inference"]["1"] == -40.0
    assert moved["best step chosen on the validation set"]["2"] == 8.0
    few = field_bugs_table.build(settings, records[:1])
    assert few["rows"][0]["cells"]["right"]["status"] == "not run: no record of its runs"
    cells = {field_bugs_table.cell_of(r["config"]) for r in records}
    assert len(cells) == 3 + 2 + 2


def test_on_real_data_there_are_no_such_runs():
    settings = load("paper")
    assert field_bugs_table.run_configs(settings) == []
    cells = [c for line in field_bugs_table.build(settings, [])["rows"] for c in line["cells"].values()]
    assert {c["status"] for c in cells} == {"not run: its runs are those of the mini world"}


def test_a_run_rests_on_all_that_it_may_train():
    names = set(closure("fmseg.field_bug_runs", load("mini").root))
    assert {"fmseg.fmwiss", "fmseg.freemask", "fmseg.supervised", "fmseg.field_bugs"} <= names
    assert not {"fmseg.tables", "fmseg.field_bugs_table"} & names
