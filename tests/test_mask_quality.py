"""Precision, recall and IoU of masks, by hand and by merging."""

import numpy as np
import pytest
import torch

from fmseg.mask_quality import MaskQuality, of_localizer, one_hot


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


def test_a_localizer_is_judged_by_its_best_channel_among_what_is_there(monkeypatch):
    from fmseg.segmenters import build
    from fmseg.step_models import grow
    from fmseg.wilson_step import WilsonStep

    old = build("deeplabv3", num_classes=3, image_size=32, seed=1).eval()
    step = WilsonStep(grow(old, 2, seed=2), old, seed=3).train()
    truth = np.zeros((2, 32, 32), np.uint8)
    truth[0, :16], truth[1, 16:] = 3, 4
    said = torch.zeros(2, 5, 8, 8)  # a grid of 8x8
    said[0, 3, :4], said[1, 4, 4:], said[:, 0] = 5.0, 5.0, 1.0
    said[:, 1], said[0, 4], said[1, 3] = 9.0, 9.0, 9.0  # an old class, and a new one that is not in the picture
    monkeypatch.setattr(step.localizer, "guess", lambda features: said)
    images, tags = np.zeros((2, 32, 32, 3), np.uint8), np.array([[True, False], [False, True]])
    assert of_localizer(step, images, tags, truth).means() == {"precision": 1.0, "recall": 1.0, "iou": 1.0}
    assert step.training, "the mode is put back"
    none = of_localizer(step, images, np.zeros((2, 2), bool), truth).means()
    assert none["iou"] == 0.0, "without words nothing new is there"
