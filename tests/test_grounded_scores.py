"""Protocol I by hand: columns, overlaps, means over classes, DAAM's sweep, ceilings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fmseg import grounded_images, image_counts
from fmseg import grounded_scores as scored
from fmseg.grounded_pictures import Ask, Pictures
from fmseg.grounded_sets import Triplets, drawn_by, only_of, oracle_masks, together, with_any_mask
from fmseg.oracle import Instance

CLASSES = ("plain disc", "striped star", "plain bar", "dotted ring")


def square(side, at=(0, 0), size=8):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[at[0] : at[0] + side, at[1] : at[1] + side] = True
    return mask


def data(named, masks, detected=None):
    named = torch.tensor(named)
    masks = torch.stack([torch.stack(row) for row in masks])
    detected = named >= 0 if detected is None else torch.tensor(detected)
    features = {"low": torch.arange(len(named)).float()[:, None, None, None]}
    images = np.arange(len(named), dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    return Triplets(features, named, masks, detected, CLASSES, torch.zeros(4, 2), images)


NONE = torch.zeros(8, 8, dtype=torch.bool)


def test_a_picture_s_column_is_how_many_and_which_classes_it_names():
    both = data([[0, -1], [3, -1], [0, 1], [3, 0], [2, 3]], [[NONE, NONE]] * 5)
    assert scored.columns_of(both, CLASSES[:2]) == list(scored.COLUMNS)


def test_miou_is_the_mean_over_classes_of_their_pictures_means():
    truth = data([[0], [0], [1]], [[square(4)], [square(2)], [square(4)]])
    answers = torch.stack([square(4), square(2, (4, 4)), square(4, (0, 2))])[:, None]
    found = scored.scores(answers, truth, ["all"] * 3)["all"]
    assert found["miou"] == pytest.approx(100 * np.mean([np.mean([1, 0]), 8 / 24]), abs=1e-3)
    assert found["pooled"] == pytest.approx(100 * np.mean([16 / 24, 8 / 24]), abs=1e-3)  # class 0: 16 of 16 + 4 + 4
    assert (found["pictures"], found["classes"]) == (3, 2)


def test_a_picture_counts_only_if_every_named_class_was_found():
    truth = data([[0, 1], [0, -1]], [[square(2), NONE], [square(2), NONE]], [[True, False], [True, False]])
    assert scored.complete(truth).tolist() == [False, True]
    found = scored.scores(truth.masks, truth, ["a", None])
    assert found == {}
    assert scored.scores(truth.masks, truth, ["a", "b"])["b"]["miou"] == 100.0


def test_what_each_picture_adds_makes_the_scores():
    named = [[0, -1], [0, -1], [1, -1], [0, 1], [2, 1], [3, -1]]
    truth = data(named, [[square(4), NONE], [square(2), NONE], [square(4), NONE], [square(3), square(2, (4, 4))],
                         [square(2), square(2, (5, 5))], [square(2), NONE]])  # fmt: skip
    truth.detected[5, 0] = False
    answers = torch.roll(truth.masks, 1, 3)
    groups = ["one seen", "one seen", "one seen", "two seen", None, "one unseen"]
    wanted = scored.scores(answers, truth, groups)
    kept = grounded_images.counted(answers, truth, groups, scored.COLUMNS)
    sums = image_counts.unpack(kept["counts"]).sum(0)
    found = grounded_images.mean_over_classes(kept["columns"], sums)
    assert {c for c, v in found.items() if not np.isnan(v)} == set(wanted) == {"one seen", "two seen"}
    for column, scores in wanted.items():
        assert found[column] == pytest.approx(scores["miou"], abs=1e-3)
    both = np.stack([sums, 3 * sums])  # pictures drawn three times change no mean
    assert np.allclose(*grounded_images.mean_over_classes(kept["columns"], both)["one seen"])


def test_wrong_shapes_are_refused():
    truth = data([[0]], [[square(2)]])
    with pytest.raises(ValueError, match=r"`masks` must be bool \(1, 1, 8, 8\) with a group a picture; got"):
        scored.scores(truth.masks.float(), truth, ["a"])
    with pytest.raises(ValueError, match="0 groups"):
        scored.scores(truth.masks, truth, [])


def pictures(heat):
    names = tuple(Ask((CLASSES[0],), "", 0) for _ in heat)
    none = np.zeros((len(heat), 0))
    return Pictures(names, none, none, np.stack(heat)[:, None], none, {})


def test_the_sweep_finds_the_threshold_that_separates():
    heat = np.full((8, 8), 0.0, np.float32)
    heat[:4, :4], heat[4:, 4:] = 1.0, 0.5  # at 0.4 both, above 0.5 the first alone
    truth = data([[0]], [[square(4)]])
    found = scored.swept(pictures([heat]), truth, ["one seen"])
    assert found["fixed"]["one seen"]["miou"] == 50.0
    assert found["best"]["one seen"]["miou"] == 100.0 and found["best"]["one seen"]["threshold"] >= 0.5
    assert set(found["curve"]) == {f"{t:g}" for t in scored.THRESHOLDS} and found["curve"]["0.4"]["one seen"] == 50.0


def test_a_ceiling_keeps_what_the_grid_can_hold():
    aligned, thin = square(4)[None, None], torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    thin[..., 3] = True
    assert torch.equal(scored.through_grid(aligned, 8), aligned)
    assert not scored.through_grid(thin, 2).any()


def found_instances():
    small, large = square(2).numpy(), square(4, (4, 4)).numpy()
    return [Instance(0, 0.9, small), Instance(0, 0.6, large), Instance(2, 0.4, large)]


def test_fragments_are_no_instances_below_the_least_area():
    asks = [Ask(("plain disc", "plain bar"), "", 0)]
    masks, detected = oracle_masks([found_instances()], asks, CLASSES, (8, 8), area=1)
    assert detected.tolist() == [[True, True]] and masks[0, 0].sum() == 4  # the best score, however small
    masks, _ = oracle_masks([found_instances()], asks, CLASSES, (8, 8), area=10)
    assert masks[0, 0].sum() == 16
    _, detected = oracle_masks([found_instances()], asks, CLASSES, (8, 8), area=17)
    assert not detected.any()
    masks, _ = oracle_masks([found_instances()], asks, CLASSES, (8, 8), area=1, rule="union")
    assert masks[0, 0].sum() == 20
    with pytest.raises(ValueError, match="the oracle does not know the class 'zigzag arrow'; ask another"):
        oracle_masks([[]], [Ask(("zigzag arrow",), "", 0)], CLASSES, (8, 8))


def test_sets_are_filtered_by_name_by_mask_and_by_seed():
    whole = data([[0, -1], [0, 3], [1, -1], [2, 1]], [[square(2), NONE]] * 4, [[True, False]] * 2 + [[False] * 2] * 2)
    assert only_of(whole, CLASSES[:2]).images[:, 0, 0, 0].tolist() == [0, 2]
    assert with_any_mask(whole).images[:, 0, 0, 0].tolist() == [0, 1]
    assert with_any_mask(whole).features["low"][:, 0, 0, 0].tolist() == [0, 1]
    picked = [tuple(drawn_by(whole, seed, 0.5).images[:, 0, 0, 0]) for seed in range(8)]
    assert all(len(p) == 2 for p in picked) and len(set(picked)) > 1
    assert picked[0] == tuple(drawn_by(whole, 0, 0.5).images[:, 0, 0, 0])
    with pytest.raises(ValueError, match=r"`share` must be in \(0, 1\]"):
        drawn_by(whole, 0, 0.0)


def test_sets_with_fewer_names_are_widened():
    one = data([[0]], [[square(2)]])
    two = data([[0, 1]], [[square(2), square(3)]])
    both = together([one, two])
    assert both.named.tolist() == [[0, -1], [0, 1]] and both.masks.shape == (2, 2, 8, 8)
    assert both.present.tolist() == [[True, False], [True, True]]
    with pytest.raises(ValueError, match="all of the same classes"):
        together([one, replace(two, classes=CLASSES[:2])])
