"""A second oracle and nameless answers on painted test pictures: by hand on a toy, and the chain on random weights."""

import grounded_toys as toys
import numpy as np
import pytest
import torch

from fmseg import grounded_doubts as doubts
from fmseg import grounded_runs, grounded_sets
from fmseg.generation import text_to_image
from fmseg.grounded_figures import doubts as figure_of
from fmseg.grounded_scores import columns_of, scores
from fmseg.grounded_sets import Triplets
from fmseg.oracle import Instance


def strip(first, last):
    return (torch.arange(8) >= first) & (torch.arange(8) < last)


def toy():
    """A picture of one thing, and one of two that share no pixel; a row of eight pixels each."""
    none = strip(0, 0)
    masks = torch.stack([torch.stack([strip(0, 4), none]), torch.stack([strip(0, 4), strip(4, 8)])])[:, :, None]
    named = torch.tensor([[0, -1], [0, 1]])
    data = Triplets({}, named, masks, named >= 0, ("a", "b"), torch.zeros(2, 1), np.zeros((2, 1, 8, 3), np.uint8))
    return grounded_runs.TestSet(None, data, columns_of(data, ("a", "b")))


def test_an_answer_that_knows_the_place_but_not_the_name():
    test = toy()
    everything = torch.ones_like(test.data.masks) & test.data.present[..., None, None]
    wrong = test.data.masks.flip(1) & test.data.present[..., None, None]
    one, two = doubts.compared(test, {"all": everything})
    assert one["column"] == "one seen" and one["IoU (%)"] == 50 and one["of the other (%)"] is None
    assert two["IoU (%)"] == two["of the other (%)"] == 50 and two["marks nothing (%)"] == 0
    one, two = doubts.compared(test, {"swapped": wrong})
    assert (one["IoU (%)"], one["marks nothing (%)"]) == (0, 100)
    assert (two["IoU (%)"], two["of the other (%)"]) == (0, 100)
    half = test.data.masks.clone()
    half[1, 1] = False
    assert doubts.compared(test, {"half": half})[1]["marks nothing (%)"] == 50


def test_the_oracle_s_own_masks_are_right_and_their_order_does_not_matter():
    test = toy()
    own = doubts.compared(test, {"oracle": test.data.masks})
    assert [row["IoU (%)"] for row in own] == [100, 100] and own[1]["of the other (%)"] == 0
    turned = grounded_runs.TestSet(None, test.data.subset([1, 0]), test.groups[::-1])
    assert doubts.compared(turned, {"oracle": turned.data.masks}) == own
    figure, rows = figure_of(own, "toy")
    assert rows == own and len(figure.axes) == 1


def test_labels_against_an_oracle(monkeypatch):
    known = ("plain disc", "plain star", "sky")
    at = np.array([[True, True, False, False]])
    found = [[Instance(0, 0.9, at)], [Instance(1, 0.9, ~at)]]
    monkeypatch.setattr(grounded_sets, "load_oracle", lambda name: (None, known))
    monkeypatch.setattr(grounded_sets, "seen_by", lambda oracle, pictures: found)
    labels = np.array([[[1, 1, 1, 2]], [[1, 0, 0, 2]]], np.uint8)  # of star and disc: 1 is the disc
    said = doubts.of_labels(labels, [None] * 2, ("plain star", "plain disc"))
    # first picture: two pixels of the disc right, one ground; second: ground, ground, one star right
    assert said == {"the same thing": 50, "another thing": 0, "ground": 50, "nothing labelled": 0}
    swapped = doubts.of_labels(labels, [None] * 2, ("plain disc", "plain star"))
    assert swapped == {"the same thing": 0, "another thing": 50, "ground": 50, "nothing labelled": 0}
    labels[1] = 2
    assert doubts.of_labels(labels, [None] * 2, ("plain star", "plain disc"))["nothing labelled"] == 50
    with pytest.raises(ValueError, match="name a thing in at least one pixel"):
        doubts.of_labels(np.full_like(labels, 2), [None] * 2, ("plain star", "plain disc"))
    with pytest.raises(ValueError, match="2 maps of 1 pictures"):
        doubts.of_labels(labels, [None], ("plain star", "plain disc"))
    with pytest.raises(ValueError, match="does not know the class 'zigzag arrow'"):
        doubts.of_labels(labels, [None] * 2, ("plain star", "zigzag arrow"))


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    toys.make_zoo(tmp_path / "zoo")
    toys.install(tmp_path / "zoo", monkeypatch)
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / "parts"))
    yield
    text_to_image.cache_clear()


def test_the_chain_on_random_weights(zoo):
    config = toys.config()
    test, masks = doubts.opinions(config)
    assert set(masks) == {doubts.SECOND, doubts.ANYTHING, doubts.DAAM, doubts.HEAD}
    absent = ~test.data.present
    for who, answers in masks.items():
        assert answers.shape == test.data.masks.shape and answers.dtype == torch.bool, who
        assert not answers[absent].any(), f"{who} marks a class that is not asked for"
    named = masks[doubts.ANYTHING] | ~test.data.masks
    assert named.all(), "what the oracle says of a name is part of what it calls a thing"
    as_scored = toys.run()["result"]["scores"]["painted"]
    head = {row["column"]: row["IoU (%)"] for row in doubts.compared(test, {"head": masks[doubts.HEAD]})}
    assert head == {column: round(found["miou"], 2) for column, found in as_scored.items()}, "the run's own answers"
    assert scores(masks[doubts.DAAM], test.data, test.groups)
