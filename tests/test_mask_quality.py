"""Precision, recall and IoU of masks, by hand and by merging."""

import numpy as np
import pytest
import torch

from fmseg.mask_quality import MaskQuality, one_hot


def square(*rows):
    return torch.tensor(rows).bool()[None, None]


def test_by_hand():
    found = MaskQuality(1).update(square([1, 1, 0], [1, 0, 0]), square([1, 0, 0], [1, 1, 1])).compute()
    assert (found["precision"][0], found["recall"][0], found["iou"][0]) == (2 / 3, 2 / 4, 2 / 5)


def test_shards_add_up_and_order_does_not_matter():
    rng = torch.Generator().manual_seed(0)
    masks, truth = (torch.rand(6, 3, 4, 4, generator=rng) > 0.5 for _ in range(2))
    whole = MaskQuality(3).update(masks, truth)
    parts = MaskQuality(3).update(masks[4:], truth[4:]).merge(MaskQuality(3).update(masks[:4], truth[:4]))
    assert whole.means() == parts.means()
    assert MaskQuality(3).update(truth, truth).means() == {"precision": 1.0, "recall": 1.0, "iou": 1.0}


def test_a_class_that_was_missed_counts_as_zero_and_an_absent_one_not_at_all():
    truth, masks = torch.zeros(1, 3, 2, 2).bool(), torch.zeros(1, 3, 2, 2).bool()
    truth[:, 0] = masks[:, 0] = True  # found
    truth[:, 1, 0] = True  # missed
    masks[:, 2, 0] = True  # not there
    quality = MaskQuality(3).update(masks, truth)
    assert quality.means() == {"precision": 0.5, "recall": 0.5, "iou": 0.5}
    assert np.isnan(quality.compute()["precision"][1]) and np.isnan(quality.compute()["recall"][2])
    assert MaskQuality(2).means() == {"precision": None, "recall": None, "iou": None}


def test_labels_become_one_mask_a_class():
    labels = torch.tensor([[[0, 7], [8, 255]]])
    assert one_hot(labels, [7, 8])[0].tolist() == [[[False, True], [False, False]], [[False, False], [True, False]]]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"must be \(B, 2, H, W\) bool"):
        MaskQuality(2).update(torch.zeros(1, 3, 2, 2).bool(), torch.zeros(1, 3, 2, 2).bool())
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\) bool"):
        MaskQuality(1).update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).bool())
    with pytest.raises(ValueError, match="`other` must count 1 classes; got 2"):
        MaskQuality(1).merge(MaskQuality(2))
    with pytest.raises(ValueError, match="`classes` must be an integer >= 1"):
        MaskQuality(0)
