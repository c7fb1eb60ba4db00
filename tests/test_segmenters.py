"""The four segmenters: what they promise the training loop, parity with mmsegmentation, and their error messages."""

import copy

import numpy as np
import pytest
import torch

from fmseg import segmenters
from fmseg.segmenters import CONFIGS, build

NAMES = sorted(CONFIGS)
CLASSES = 6


def batch(count=2, size=64, classes=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    blocks = torch.randint(0, classes, (count, size // 16, size // 16), generator=generator)
    return images, blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)


@pytest.fixture(scope="module")
def built():
    models = {name: build(name, num_classes=CLASSES, seed=1).eval() for name in NAMES}
    return {name: (lambda model=model: copy.deepcopy(model)) for name, model in models.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_pixel_gets_a_distribution_over_the_classes(built, name):
    model, (images, _) = built[name](), batch()
    with torch.no_grad():
        assert model.logits(images).shape == (2, CLASSES, 64, 64)
        total = model.log_probabilities(images).exp().sum(1)
        assert min(model.grid_logits(images).shape[-2:]) >= 16
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_rank_the_classes_as_logits_do(built, name):
    model, (images, _) = built[name](), batch()
    with torch.no_grad():
        assert torch.equal(model.logits(images).argmax(1), model.log_probabilities(images).argmax(1))


@pytest.mark.parametrize("name", NAMES)
def test_four_images_can_be_learned_by_heart(built, name):
    model, (images, labels) = built[name]().train(), batch(4)
    torch.manual_seed(0)
    rate = 1e-3 if name == "segmenter" else 3e-3  # a plain transformer, without warm-up
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    losses = []
    for _ in range(25):
        loss = model.loss(images, labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_trains_and_reaches_every_parameter(built, name):
    model, (images, labels) = built[name]().train(), batch(1)
    model.loss(images, labels).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_weights_and_leave_the_callers_random_state_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, three = (build(name, num_classes=3, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    first, same, other = ([p.detach() for p in m.parameters()] for m in (one, two, three))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_uint8_and_float_images_are_the_same_to_the_model(built, name):
    model, (images, _) = built[name](), batch(1)
    with torch.no_grad():
        assert torch.equal(model.logits(images), model.logits(images.float()))


@pytest.mark.parametrize("name", NAMES)
def test_images_may_be_larger_than_those_of_training(built, name):
    model, (images, labels) = built[name](), batch(1, size=96)
    with torch.no_grad():
        assert model.logits(images).shape == (1, CLASSES, 96, 96)
        assert torch.isfinite(model.loss(images, labels))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "mask2former"])
def test_a_batch_without_labels_costs_nothing_and_moves_nothing(built, name):
    model, (images, _) = built[name]().train(), batch(2)
    loss = model.loss(images, torch.full((2, 64, 64), 255))
    loss.backward()
    assert loss.item() == 0.0
    assert all(not p.grad.any() for p in model.parameters())


def test_mask2former_without_labels_only_learns_no_object(built):
    model, (images, _) = built["mask2former"]().train(), batch(2)
    loss = model.loss(images, torch.full((2, 64, 64), 255))
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def samples_of(labels):
    from fmseg._mmseg import PixelData, SegDataSample

    samples = [SegDataSample(metainfo={"img_shape": tuple(label.shape)}) for label in labels]
    for sample, label in zip(samples, labels, strict=True):
        sample.gt_sem_seg = PixelData(data=label[None])
    return samples


@pytest.mark.parametrize("name", ["segformer", "segmenter", "deeplabv3"])
def test_loss_equals_the_heads_own_when_that_leaves_ignored_pixels_out(built, name):
    model, (images, labels) = built[name]().train(), batch(3)
    labels[0, :20] = 255
    head = model.model.decode_head
    head.loss_decode.avg_non_ignore = True
    features = model.model.extract_feat(model._normalised(images))
    theirs = head.loss(features, samples_of(labels), None)["loss_ce"]
    assert model.loss(images, labels).item() == pytest.approx(theirs.item(), rel=1e-5)
    head.loss_decode.avg_non_ignore = False  # mmsegmentation's default: smaller by the share of valid pixels
    share = (labels != 255).float().mean().item()
    default = head.loss(features, samples_of(labels), None)["loss_ce"].item()
    assert default == pytest.approx(theirs.item() * share, rel=1e-5)


def test_mask2formers_batched_matching_equals_mmdetections(built):
    from fmseg._mmseg import Mask2FormerHead

    model, (images, labels) = built["mask2former"]().train(), batch(4)
    labels[1] = 255  # an image without any label
    labels[2, :30] = 255
    features, head = model._features(images), model.model.decode_head
    torch.manual_seed(7)
    ours = head.loss(features, samples_of(labels), None)
    head.__class__ = Mask2FormerHead
    torch.manual_seed(7)
    theirs = head.loss(features, samples_of(labels), None)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].item() == pytest.approx(value.item(), rel=1e-4), key


def test_mask2formers_scores_equal_mmsegmentations_prediction(built):
    model, (images, _) = built["mask2former"](), batch(2)
    with torch.no_grad():
        theirs = model.model.decode_head.predict(model._features(images), [{"img_shape": (64, 64)}] * 2, None)
        assert torch.allclose(model.logits(images), theirs, atol=1e-5)


def test_fused_attention_equals_the_attention_that_keeps_its_maps(built):
    model, (images, _) = built["segmenter"](), batch(2)
    with torch.no_grad():
        ours = model.logits(images)
        for module in model.modules():
            if isinstance(module, torch.nn.MultiheadAttention):
                module.__class__ = torch.nn.MultiheadAttention
        assert torch.allclose(model.logits(images), ours, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_no_synchronised_batch_norm_and_no_drop_out(built, name):
    modules = list(built[name]().modules())
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in modules)
    assert not any(isinstance(m, torch.nn.Dropout | torch.nn.Dropout2d) and m.p > 0 for m in modules)


def test_building_is_silent(capfd):
    build("mask2former", num_classes=2).logits(batch(1)[0])
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_errors_say_what_came_and_what_to_do(built):
    model, (images, labels) = built["segformer"](), batch(1)
    with pytest.raises(ValueError, match="must be one of segformer, segmenter, mask2former, deeplabv3; got 'unet'"):
        build("unet", num_classes=3)
    with pytest.raises(ValueError, match="`size` of segformer must be one of .*mini.*; got 'huge'"):
        build("segformer", "huge", num_classes=3)
    with pytest.raises(ValueError, match="at least 2"):
        build("segformer", num_classes=1)
    with pytest.raises(ValueError, match="multiple of 16 pixels, got 50"):
        build("segformer", num_classes=3, image_size=50)
    with pytest.raises(ValueError, match="segformer takes images whose sides are multiples of 16 pixels, got 60x60"):
        model.logits(images[:, :, :60, :60])
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(3, 64, 64\)"):
        model.logits(images[0])
    with pytest.raises(TypeError, match="uint8, or float in 0..255; got torch.int64"):
        model.logits(images.long())
    with pytest.raises(ValueError, match=r"in \[0, 6\) or 255.*found 9"):
        model.loss(images, torch.full_like(labels, 9))
    with pytest.raises(ValueError, match=r"\(B, H, W\) integers"):
        model.loss(images, labels[:, :32])


def test_configurations_stay_as_they_are_when_models_are_built():
    before = copy.deepcopy(segmenters.CONFIGS)
    build("mask2former", num_classes=3)
    assert segmenters.CONFIGS == before
