"""Mask2Former with and without ignored pixels in its mask losses."""

import copy

import pytest
import torch

from fmseg.segmenters import build

CLASSES = 5


def batch():
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    blocks = torch.randint(0, CLASSES, (2, 4, 4), generator=generator)
    return images, blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)


def pair():
    """The two forms with equal weights."""
    official = build("mask2former", num_classes=CLASSES, seed=1)
    excluding = build("mask2former", num_classes=CLASSES, seed=1, exclude_ignored=True)
    excluding.load_state_dict(official.state_dict())
    return official, excluding


def loss(model, images, labels, seed=0):
    torch.manual_seed(seed)
    return model.loss(images, labels)


def gradient(model, labels):
    """Gradient of the mask losses by the scores of the masks, (B, queries, H, W), with all points drawn evenly."""
    from fmseg._mmseg import PixelData, SegDataSample

    head, samples = model.model.decode_head, []
    for label in labels:
        samples.append(SegDataSample(metainfo={"img_shape": tuple(label.shape)}))
        samples[-1].gt_sem_seg = PixelData(data=label[None])
    generator = torch.Generator().manual_seed(7)
    masks = torch.randn(1, 2, head.num_queries, 64, 64, generator=generator, requires_grad=True)
    classes = torch.randn(1, 2, head.num_queries, CLASSES + 1, generator=generator)
    truths, metas = head._seg_data_to_instance_data(samples)
    torch.manual_seed(0)
    parts = head.loss_by_feat(classes, masks, truths, metas)
    (found,) = torch.autograd.grad(parts["loss_mask"] + parts["loss_dice"], masks)
    return found[0]


def test_without_ignored_pixels_both_are_the_same():
    official, excluding = pair()
    images, labels = batch()
    assert torch.equal(loss(official, images, labels), loss(excluding, images, labels))
    assert official.state_dict().keys() == excluding.state_dict().keys()


def test_ignored_pixels_teach_the_masks_nothing_where_they_are_excluded():
    official, excluding = pair()
    labels = batch()[1]
    labels[:, 32:] = 255
    inside = slice(34, None)  # a point next to the border is interpolated from both sides
    there, here = gradient(official, labels), gradient(excluding, labels)
    assert there[:, :, inside].abs().sum() > 0 and here[:, :, inside].abs().sum() == 0
    assert here[:, :, :30].abs().sum() > 0 and torch.isfinite(here).all()


def test_a_picture_without_any_label_has_a_finite_loss_and_trains():
    _, model = pair()
    images, labels = batch()
    labels[0] = 255
    value = loss(model, images, labels)
    value.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert torch.isfinite(value) and grads and all(torch.isfinite(g).all() for g in grads)


def test_it_is_an_option_of_mask2former_alone():
    with pytest.raises(ValueError, match="`exclude_ignored` is an option of the mini Mask2Former; this head is Segf"):
        build("segformer", num_classes=CLASSES, exclude_ignored=True)
    _, model = pair()
    again = copy.deepcopy(model)
    assert torch.equal(loss(model, *batch()), loss(again, *batch()))
