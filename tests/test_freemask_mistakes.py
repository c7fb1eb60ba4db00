"""What went wrong in painted pictures: boxes, kinds of faults of things, on maps small enough to check by hand."""

import numpy as np
import pytest

from fmseg import freemask_mistakes as mistakes
from fmseg.datasets import get_draw

CLASSES = get_draw("ade").classes


def wrong(*places, side=10):
    made = np.zeros((side, side), bool)
    for rows, columns in places:
        made[rows, columns] = True
    return made


def test_boxes_come_by_pixels_and_small_regions_are_passed_over():
    made = wrong((slice(0, 2), slice(0, 2)), (slice(4, 9), slice(3, 5)), (9, 9))
    assert mistakes.fault_boxes(made, least=1) == [(4, 3, 9, 5), (0, 0, 2, 2), (9, 9, 10, 10)]
    assert mistakes.fault_boxes(made, least=4) == [(4, 3, 9, 5), (0, 0, 2, 2)]
    assert mistakes.fault_boxes(np.zeros((4, 4), bool)) == []


def test_pixels_that_touch_by_a_corner_are_two_regions():
    assert len(mistakes.fault_boxes(np.eye(3, dtype=bool), least=1)) == 3


@pytest.mark.parametrize("given", [np.zeros((4, 4)), np.zeros((1, 4, 4), bool), [[True]]])
def test_boxes_are_asked_of_a_map_of_truths(given):
    with pytest.raises(TypeError, match=r"`wrong` must be \(H, W\) bool"):
        mistakes.fault_boxes(given)


def test_kinds_of_faults_go_by_words():
    kinds = {seen: mistakes.kind_of_fault("striped star", seen) for seen in
             ("striped star", "plain star", "striped ring", "dotted heart", "snow")}  # fmt: skip
    assert tuple(kinds.values()) == mistakes.KINDS


def test_every_thing_is_called_by_what_most_of_its_pixels_are_read_as():
    star, plain, snow = (CLASSES.index(name) for name in ("striped star", "plain star", "snow"))
    labels = np.full((2, 8, 8), snow, np.uint8)
    labels[0, :4, :4] = star
    labels[1, 0, :3] = star  # too small
    labels[1, 4:, 4:] = 255
    seen = np.full((2, 8, 8), snow)
    seen[0, :3, :4] = plain
    found = mistakes.faults_of_things(labels, seen, CLASSES)
    first = {"picture": 0, "meant": "striped star", "seen": "plain star", "kind": mistakes.PATTERN, "pixels": 16}
    assert found == [first]
    seen[0, :2] = snow
    assert mistakes.faults_of_things(labels, seen, CLASSES)[0]["kind"] == mistakes.GROUND
    with pytest.raises(ValueError, match="`seen` must have the masks' shape"):
        mistakes.faults_of_things(labels, seen[:1], CLASSES)


def test_shares_add_up_and_nothing_has_none():
    found = [{"kind": mistakes.RIGHT}] * 3 + [{"kind": mistakes.GROUND}]
    made = mistakes.shares(found)
    assert made[mistakes.RIGHT] == 75 and made[mistakes.GROUND] == 25 and sum(made.values()) == 100
    assert all(np.isnan(v) for v in mistakes.shares([]).values())


def test_pictures_of_a_notebook_are_those_of_runs(monkeypatch):
    """The same noise for the same mask and number, whoever paints it."""
    from fmseg.synthetic import noise_seed

    asked = {}

    def from_layouts(labels, classes, seeds, name, **options):
        asked.update(seeds=seeds, name=name, **options)
        return np.zeros((*labels.shape, 3), np.uint8)

    monkeypatch.setattr(mistakes, "from_layouts", from_layouts)
    masks = np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4)
    mistakes.painted(masks, CLASSES, 3, "layout-ade", steps=2, guidance=1.5)
    assert asked["seeds"] == [noise_seed(mask, 3) for mask in masks] and asked["steps"] == 2
