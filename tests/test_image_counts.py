"""Counts of each validation image: a loop oracle, the confusion matrix they sum to, their way through a record."""

import json

import numpy as np
import pytest

from fmseg import image_counts
from fmseg.metrics import Confusion


def made(n=5, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (n, 6, 7)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    return rng.integers(0, classes, truth.shape).astype(np.uint8), truth


def test_counts_are_those_of_a_loop():
    pred, truth = made()
    found = image_counts.count(pred, truth, 4)
    for k in range(5):
        for c in range(4):
            seen = [(p, t) for p, t in zip(pred[k].flat, truth[k].flat, strict=True) if t != 255]
            right = sum(p == c == t for p, t in seen)
            assert found[k, c].tolist() == [right, sum(t == c for _, t in seen), sum(p == c for p, _ in seen)]


def test_the_iou_of_all_rows_is_the_confusion_matrix_s():
    pred, truth = made()
    truth[truth == 3] = 0  # class 3 is predicted and occurs nowhere
    found = image_counts.iou(image_counts.count(pred, truth, 4))
    np.testing.assert_array_equal(found, Confusion(4).update(pred, truth).compute())
    assert np.isnan(found[3])


def test_images_may_be_resampled_in_any_order():
    pred, truth = made()
    order = [4, 0, 0, 2]
    counts = image_counts.count(pred, truth, 4)
    again = image_counts.iou(image_counts.count(pred[order], truth[order], 4))
    np.testing.assert_array_equal(image_counts.iou(counts[order]), again)


def test_more_images_than_rows_share_them_in_turn(monkeypatch):
    monkeypatch.setattr(image_counts, "BLOCKS", 3)
    pred, truth = made()
    counts = image_counts.count(pred, truth, 4)
    assert counts.shape == (3, 4, 3)
    parts = [image_counts.count(pred[k::3], truth[k::3], 4).sum(0) for k in range(3)]
    np.testing.assert_array_equal(counts, parts)
    np.testing.assert_array_equal(image_counts.iou(counts), Confusion(4).update(pred, truth).compute())


def test_a_record_holds_them():
    counts = np.random.default_rng(0).integers(0, 2**32, (3, 2, 3))
    packed = json.loads(json.dumps(image_counts.pack(counts)))
    np.testing.assert_array_equal(image_counts.unpack(packed), counts)


def test_what_cannot_be_counted_or_packed_is_refused():
    pred, truth = made()
    with pytest.raises(ValueError, match="`target` must hold at least one image, got none"):
        image_counts.count(pred[:0], truth[:0], 4)
    with pytest.raises(ValueError, match="as many images; got 5 and 4"):
        image_counts.count(pred, truth[:4], 4)
    with pytest.raises(ValueError, match=r"integers \(B, C, 3\), got float64 \(1, 2, 3\)"):
        image_counts.pack(np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match=r"in \[0, 2\*\*32\), got -1 to 0"):
        image_counts.pack(np.array([[[0, 0, -1]]]))
    with pytest.raises(ValueError, match="what fmseg.image_counts.pack returns"):
        image_counts.unpack({"shape": [1, 2, 3], "zlib": "?"})
