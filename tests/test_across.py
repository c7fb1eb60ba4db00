"""Runs across the papers: each puts one thing in another's place, and nothing else changes."""

import json
import math

import numpy as np
import pytest
import torch
from smallzoo import config, write_zoo

from fmseg import (
    across_configs,
    across_experts,
    across_filter,
    across_pairs,
    across_step,
    fmwiss,
    freemask,
    freemask_runs,
    incremental_data,
    incremental_runs,
    parts,
)
from fmseg.datasets import IGNORE, get_draw
from fmseg.experts import Experts
from fmseg.grounded_pictures import ask
from fmseg.incremental_data import STEP
from fmseg.labelmaps import unpack
from fmseg.provenance import closure
from fmseg.settings import load
from fmseg.step_models import generator_of_step

ADE = get_draw("ade").classes


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """A zoo of random weights, and a folder of shared parts that nobody else sees."""
    monkeypatch.setenv("FMSEG_ZOO", str(write_zoo(tmp_path / "zoo")))
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / "parts"))
    return tmp_path


def usual(**options):
    return config("fmwiss", protocol="mini/15-5/overlap", train={"steps": 4}, warmup=0.25, **options)


# -- pairs -----------------------------------------------------------------------------------------------------------


def test_what_is_no_thing_gets_the_ground_of_the_prompt():
    classes = ["striped star", "plain disc"]
    labels = np.array([[[0, 2], [1, 2]], [[2, IGNORE], [2, 1]]], np.uint8)
    prompts = ["a photo of a striped star on grass", "a photo of a plain disc on sea"]
    made = across_pairs.in_draw(labels, prompts, classes, ADE)
    star, disc, grass, sea = (ADE.index(name) for name in (*classes, "grass", "sea"))
    assert made.tolist() == [[[star, grass], [disc, grass]], [[sea, IGNORE], [sea, disc]]]


def test_rich_prompts_end_with_a_ground_and_others_are_refused():
    labels = np.full((1, 2, 2), 1, np.uint8)
    for index in range(20):
        wanted = ask("two", ADE[:5], "test", index, rich=True)
        assert across_pairs.in_draw(np.full((1, 2, 2), 5, np.uint8), [wanted.prompt], ADE[:5], ADE).min() >= 40
    with pytest.raises(ValueError, match="must end with 'on' and a ground of the draw; got 'a photo of a cat'"):
        across_pairs.in_draw(labels, ["a photo of a cat"], ADE[:1], ADE)
    with pytest.raises(ValueError, match="`classes` must be among the draw's; it has no 'zigzag arch'"):
        across_pairs.in_draw(labels, ["x on sea"], ["zigzag arch"], ADE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"paradigm": "pretrain"}, "`paradigm` must be one of real, synthetic, joint; got 'pretrain'"),
        ({"pairs": {"kinds": {}}}, "lacks classes, head, alpha, quality"),
        ({"generator": {}}, "unknown key of a run's configuration 'generator'"),
    ],
)
def test_a_run_on_pairs_that_does_not_fit_is_refused(changed, message):
    settings = load("smoke")
    with pytest.raises(ValueError, match=message):
        across_pairs.run(across_configs.pairs(settings, "joint", 100, None) | changed)


def test_pairs_stand_where_freemasks_pictures_stood(monkeypatch):
    """Real images, repeats and training are FreeMask's; the labels are those of the pairs."""
    rng = np.random.default_rng(0)
    made = freemask.SyntheticSet(
        rng.integers(0, 256, (40, 64, 64, 3)).astype(np.uint8), rng.integers(0, 48, (40, 64, 64)).astype(np.uint8),
        np.array([[k, n] for k in (0, 1) for n in range(20)]), np.ones(48),
    )  # fmt: skip
    seen = {}

    def run(given, **how):
        seen["sources"], seen["facts"] = freemask_runs.sources(given)
        return {"result": {"synthetic": dict(seen["facts"])}}

    monkeypatch.setattr(across_pairs, "pairs_set", lambda given: made)
    monkeypatch.setattr(across_pairs, "oracle_miou", lambda images, labels: float(len(images)))
    monkeypatch.setattr(freemask_runs, "run", run)
    wanted = across_configs.pairs(load("smoke"), "joint", 100, None)
    found = across_pairs.run(wanted)["result"]["synthetic"]
    real, pictures = seen["sources"]
    assert pictures.images is made.images and real.repeat == found["repeat"] == 2 and len(real) == wanted["images"]
    assert found["oracle"] == 2 * wanted["pairs"]["quality"], "so many of each kind"
    assert np.array_equal(unpack(found["examples"]), made.labels[20:26]), "of the last kind"
    assert freemask.synthetic_set is not None and "pairs" in wanted


# -- the filter ------------------------------------------------------------------------------------------------------


def test_dropped_is_what_costs_more_than_the_margin_times_the_mean_of_its_class():
    generator = torch.Generator().manual_seed(0)
    loss, masks = torch.rand(3, 2, 4, 5, generator=generator) * 3, torch.rand(3, 2, 4, 5, generator=generator) < 0.4
    means = np.array([1.0, 0.5])
    gone = across_filter.dropped_by(loss, masks, means, 1.25)
    for at in np.ndindex(*loss.shape):
        assert bool(gone[at]) == (bool(masks[at]) and float(loss[at]) > 1.25 * means[at[1]])
    assert not across_filter.dropped_by(loss, masks, means, math.inf).any()


class Scores(torch.nn.Module):
    """A judge whose scores at a cell are what the picture holds there."""

    def grid_logits(self, images):
        return images[:, :, ::32, ::32].float() / 50 - 2


class Marks:
    """Experts who mark the upper row of two cells for every class that is there."""

    def masks(self, images, present, grid, generator):
        made = torch.zeros(len(images), present.shape[1], *grid, dtype=torch.bool)
        made[:, :, 0] = True
        return made & present[:, :, None, None]


def test_class_means_are_taken_on_the_marked_cells_alone():
    rng = np.random.default_rng(0)
    images, tags = rng.integers(0, 256, (5, 64, 64, 3)).astype(np.uint8), rng.random((5, 2)) < 0.6
    means = across_filter.means_of(Scores(), Marks(), images, tags, 0)
    for k in range(2):
        cells = [images[n, 0, x, 1 + k] for n in range(5) for x in (0, 32) if tags[n, k]]
        wanted = np.mean([math.log1p(math.exp(-(float(v) / 50 - 2))) for v in cells])
        assert means[k] == pytest.approx(wanted, rel=1e-4)


def test_what_is_measured_of_a_filter_is_counted_by_hand():
    images = np.zeros((2, 64, 64, 3), np.uint8)
    images[0, :32, :32] = 200  # the judge believes the first cell of the first picture, and no other
    tags, truth = np.array([[True], [True]]), np.zeros((2, 64, 64), np.uint8)
    truth[0, :32] = 7  # both marked cells of the first picture are right, none of the second
    drop = across_filter.by_loss(Scores(), np.array([1.0]), 1.0)
    found = across_filter.measured(Scores(), Marks(), drop, images, tags, truth, range(7, 8), 0)
    assert found["shares"] == [0.75] and found["wrong"] == pytest.approx(2 / 3, abs=1e-6) and found["found"] == 1.0
    assert found["masks"]["before"] == {"precision": 0.5, "recall": 1.0, "iou": 0.5}
    assert found["masks"]["after"] == {"precision": 1.0, "recall": 0.5, "iou": 0.5}


def test_the_control_drops_as_large_a_share_of_each_class():
    masks, generator = torch.ones(4, 2, 64, 64, dtype=torch.bool), torch.Generator().manual_seed(0)
    gone = across_filter.at_random(np.array([0.25, 0.0]))(torch.zeros(4, 3, 8, 8), masks, generator)
    assert float(gone[:, 0].float().mean()) == pytest.approx(0.25, abs=0.02) and not gone[:, 1].any()
    with pytest.raises(ValueError, match="`drop` must be one of by loss, at random; got 'all'"):
        across_filter.made_by("all", Scores(), Marks(), np.zeros((1, 64, 64, 3), np.uint8), np.ones((1, 1), bool), 1, 0)


def test_without_a_label_there_is_neither_loss_nor_gradient():
    scores = torch.randn(2, 3, 4, 4, requires_grad=True)
    targets, silent = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4) < 0.5
    loss = fmwiss.binary_loss(*across_filter.without(scores, targets, silent))
    loss.backward()
    each = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    assert float(loss.detach()) == pytest.approx(float(each[~silent].sum()) / scores.numel(), rel=1e-5)
    assert not scores.grad[silent].any() and scores.grad[~silent].all()


def steps_of(apart, drop, **options):
    """The losses of one step of FMWISS and of its filtered form, with the same draws."""
    wanted = usual(**options)
    data = incremental_data.load(wanted)
    old, _ = incremental_runs.base_of(wanted, data)
    images = torch.from_numpy(data.step.images[:4]).permute(0, 3, 1, 2).contiguous()
    tags = torch.from_numpy(data.weak_source().tags[:4])
    found = []
    for make in (fmwiss.FmwissStep, lambda *given, **rest: across_filter.FilteredStep(*given, drop=drop, **rest)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(fmwiss, "FmwissStep", make)
            step, _, _ = incremental_runs.prepared(wanted, data, old)
        torch.manual_seed(0)
        step.train().at_step(3, 4)
        found.append({k: float(v) for k, v in step.losses(images, tags, generator_of_step()).items()})
    return found


def test_a_filter_that_drops_nothing_is_fmwiss_to_the_bit(apart):
    plain, none = steps_of(apart, lambda images, masks, generator: torch.zeros_like(masks))
    assert plain == none and set(plain) == {"new", "old", "dcl", "student"}
    plain, everything = steps_of(apart, lambda images, masks, generator: masks)
    assert everything["new"] < plain["new"] and everything["old"] < plain["old"]


def test_a_filter_needs_a_teacher(apart):
    with pytest.raises(ValueError, match="`options` must have a teacher"):
        steps_of(apart, None, teacher=False)


# -- runs of a step --------------------------------------------------------------------------------------------------


def test_co_segmentation_is_fmwiss_and_leaves_the_judge_of_the_filtered_runs(apart, monkeypatch):
    plain = usual()
    right = incremental_runs.run(plain)["result"]
    done = across_step.run({**plain, "masks": {"by": "co-segmentation"}})
    assert {k: v for k, v in done["result"].items() if k != "marks"} == right
    judge, seconds = across_step.judge_of(plain, incremental_data.load(plain))
    learned = done["model"].state_dict()
    assert all(torch.equal(v, learned[k]) for k, v in judge.state_dict().items()) and not judge.training
    monkeypatch.setattr(parts, "_write", None)  # it is there, nobody trains it again
    for drop in across_filter.HOW:
        wanted = {"by": "filtered co-segmentation", "drop": drop, "alpha": 0.5}
        filtered = across_step.run({**plain, "masks": wanted})
        result = filtered["result"]
        assert filtered["seconds"] > seconds > 0, "a judge is part of what it costs"
        assert result["weights"] != right["weights"] and result["base_iou"] == right["base_iou"]
        assert max(result["filter"]["shares"]) > 0 and len(result["filter"]["means"]) == 5
    nothing = {"by": "filtered co-segmentation", "drop": "by loss", "alpha": math.inf}
    assert across_step.run({**plain, "masks": nothing})["result"]["weights"] == right["weights"]


def test_a_judge_is_trained_where_there_is_none_and_nothing_is_left_behind(apart):
    plain = usual()
    alone = {"by": "filtered co-segmentation", "drop": "by loss", "alpha": 0.5}
    first = across_step.run({**plain, "masks": alone}, checkpoint=apart / "runs" / "a.pt")["result"]
    assert not list((apart / "runs").glob("*judge*")) and len(list((apart / "runs" / "bases").glob("*.pt"))) == 1
    assert across_step.run({**plain, "masks": alone})["result"] == first, "the judge that was kept is the same"


def test_answers_are_found_by_picture_and_mirror_image_on_any_grid():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (3, 8, 8, 3)).astype(np.uint8), np.full((3, 8, 8), 2, np.uint8)
    labels[1, :4, :6] = 1
    experts = across_experts.told(images, labels, 2)
    assert isinstance(experts, Experts)
    shown = torch.from_numpy(images).permute(0, 3, 1, 2)
    present = torch.ones(3, 2, dtype=torch.bool)
    found = experts.masks(shown, present, (2, 2), torch.Generator())
    assert found[1].tolist() == [[[False, False], [False, False]], [[True, True], [False, False]]]
    assert not found[[0, 2]].any()
    mirrored = experts.masks(shown.flip(-1).contiguous(), present, (4, 4), torch.Generator())
    assert torch.equal(mirrored, experts.masks(shown, present, (4, 4), torch.Generator()).flip(-1))
    absent = present.clone()
    absent[1, 1] = False
    assert not experts.masks(shown, absent, (2, 2), torch.Generator()).any()
    assert experts.co_segment(shown, present, torch.Generator()).mask.shape == (3, 2, 16, 16)
    with pytest.raises(ValueError, match="take no other augmentation than 'flip'"):
        experts.masks(shown.float(), present, (2, 2), torch.Generator())


def head_config(data, **changes):
    masks = {"by": "grounding head", "learns": across_experts.LEARNS[1], "head": {"seen": list(data.old_names())}}
    plain = usual()
    options = {k: v for k, v in plain["options"].items() if k == "capacity"}
    return plain | {"options": options, "masks": masks | changes}


def test_a_head_is_asked_for_the_image_labels_alone_and_its_answers_are_what_is_learned(apart, monkeypatch):
    data = incremental_data.load(usual())
    truth = data.new_truth()
    first, seen = data.protocol.new(STEP).start, {}

    def labelled(head, pictures, features, classes):
        seen["asked"], seen["classes"] = [a.names for a in pictures.asks], classes
        return np.where(truth >= first, truth - first, len(classes)).astype(np.uint8)

    def real(images, names, steps, truth=None):
        return type("Shown", (), {"asks": [type("Asked", (), {"names": n}) for n in names]})

    monkeypatch.setattr(across_experts, "of_base", lambda config, data: "a head")
    monkeypatch.setattr(across_experts, "labelled_by", labelled)
    monkeypatch.setattr(across_experts, "real", real)
    monkeypatch.setattr(across_experts, "features", lambda pictures, step: None)
    wanted = head_config(data)
    wanted["masks"]["head"] |= {"sampling": {"steps": 2}, "step": 1}
    result = across_step.run(wanted)["result"]
    tags = data.weak_source().tags
    assert seen["asked"] == [tuple(n for n, t in zip(data.new_names(), row, strict=True) if t) for row in tags]
    assert result["masks"]["union"] == result["masks"]["clip"] and result["masks"]["union"]["precision"] > 0.8
    kept, shown = unpack(result["marks"]), truth[: across_step.EXAMPLES]
    assert np.mean(kept == np.where(shown >= first, shown.astype(int) - first + 1, 0)) > 0.95


def test_a_head_must_have_seen_the_old_classes_and_no_others(apart):
    data = incremental_data.load(usual())
    wanted = head_config(data)
    wanted["masks"]["head"]["seen"] = list(data.new_names())
    with pytest.raises(ValueError, match="`head` must have seen the 15 old classes and no others; it has seen"):
        across_step.run(wanted)
    with pytest.raises(ValueError, match="`learns` must be one of 2 known names; got 'nothing'"):
        across_step.run(head_config(data, learns="nothing"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"masks": {}}, "`masks` must say `by` whom, one of co-segmentation, filtered co-segmentation, grounding head"),
        ({"masks": {"by": "co-segmentation", "alpha": 1}}, "unknown key of a run's configuration 'alpha'"),
        ({"masks": {"by": "filtered co-segmentation"}}, "lacks drop, alpha"),
        ({"masks": {"by": "co-segmentation"}, "method": "wilson"}, "`method` must be 'fmwiss'.*got 'wilson'"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        across_step.run({**usual(), **changed})


def test_old_and_new_classes_of_the_step_are_the_heads_seen_and_unseen_ones():
    assert across_configs.same_classes()


def test_runs_rest_on_what_they_may_train_and_not_on_tables():
    root = load("mini").root
    pairs, step = (set(closure(f"fmseg.across_{name}", root)) for name in ("pairs", "step"))
    assert {"fmseg.freemask_runs", "fmseg.zero_shot_sets", "fmseg.grounded_runs"} <= pairs
    assert {"fmseg.fmwiss", "fmseg.across_filter", "fmseg.across_experts", "fmseg.grounded_inverted"} <= step
    assert not {"fmseg.across_tables", "fmseg.across_configs"} & (pairs | step)
    for module in ("fmseg.supervised", "fmseg.freemask_runs", "fmseg.incremental_runs", "fmseg.zero_shot"):
        assert not any("across" in name for name in closure(module, root))


def test_configurations_are_plain_values():
    settings = load("smoke")
    for made in (
        across_configs.real(settings, 0), across_configs.pairs(settings, "joint", 0, 1.25),
        across_configs.marked(settings, 0), across_configs.filtered(settings, 0), across_configs.headed(settings, 0),
    ):  # fmt: skip
        assert json.loads(json.dumps(made)) == made
