import numpy as np
import pytest
import torch
from torch import nn

from fmseg import segmenters
from fmseg.datasets import Example
from fmseg.evaluation import evaluate
from fmseg.inference import TestTime, evaluate_pictures, segment, shown

RNG = np.random.default_rng(4)


class Colours(nn.Module):
    """Scores: the colours of a pixel themselves; remembers the sizes it was shown."""

    num_classes, divisor = 3, 8

    def __init__(self):
        super().__init__()
        self.seen = []

    def logits(self, images):
        self.seen.append(tuple(images.shape[-2:]))
        assert not self.training and images.shape[-1] % 8 == 0 and images.shape[-2] % 8 == 0
        return images.float()


def picture(height, width):
    labels = RNG.integers(0, 3, (height, width)).astype(np.uint8)
    image = np.zeros((height, width, 3), np.uint8)
    np.put_along_axis(image, labels[..., None].astype(int), 200, axis=2)
    return Example(image, labels, "made")


def test_any_size_is_padded_to_the_divisor_and_cut_back():
    model, made = Colours(), picture(21, 35)
    assert np.array_equal(segment(model, made.image), made.labels)
    assert model.seen == [(24, 40)] and model.training


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (33, 50), (10, 70)])
def test_windows_cover_every_pixel(size):
    model, made = Colours(), picture(*size)
    assert np.array_equal(segment(model, made.image, TestTime(window=24, stride=16)), made.labels)
    assert max(max(seen) for seen in model.seen) <= 24


def test_windows_are_mmsegmentations_slide_inference():
    model = segmenters.build("segformer", num_classes=5, image_size=64, seed=1)
    model.eval()
    image = RNG.integers(0, 256, (112, 144, 3)).astype(np.uint8)
    how = TestTime(window=64, stride=48)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    model.model.test_cfg.update(mode="slide", crop_size=(64, 64), stride=(48, 48))
    with torch.no_grad():
        theirs = model.model.slide_inference(model._normalised(x), [{"img_shape": (112, 144)}])
    from fmseg.inference import _in_windows

    with torch.no_grad():
        ours = _in_windows(model, x, how)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_picture_is_resized_and_its_scores_back():
    model, made = Colours(), picture(20, 40)
    result = segment(model, np.full((20, 40, 3), 9, np.uint8), TestTime(scale=(64, 48)))
    assert model.seen == [(32, 64)] and result.shape == (20, 40)
    model.seen.clear()
    segment(model, made.image, TestTime(scale=(200, 16)))
    assert model.seen == [(16, 32)]


def test_wilsons_central_square():
    made = picture(30, 50)
    image, labels = shown(made.image, made.labels, TestTime(centre_crop=60))
    assert image.shape == (60, 60, 3) and np.array_equal(labels, np.kron(made.labels, np.ones((2, 2)))[:, 20:80])
    same = shown(made.image, made.labels, TestTime(centre_crop=30))
    assert np.array_equal(same[0], made.image[:, 10:40]) and np.array_equal(same[1], made.labels[:, 10:40])
    assert shown(made.image, made.labels, TestTime())[0] is made.image


def test_the_central_square_is_torchvisions():
    import torchvision.transforms.functional as F
    from PIL import Image

    for size in ((37, 53), (60, 41), (50, 50)):
        made = picture(*size)
        theirs = [
            np.asarray(F.center_crop(F.resize(Image.fromarray(array), 32, mode), 32))
            for array, mode in ((made.image, F.InterpolationMode.BILINEAR), (made.labels, F.InterpolationMode.NEAREST))
        ]
        ours = shown(made.image, made.labels, TestTime(centre_crop=32))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_evaluation_equals_that_of_equal_sizes_and_parts_merge():
    model = segmenters.build("segformer", num_classes=3, seed=2)
    made = [picture(64, 64) for _ in range(5)]
    images, labels = np.stack([p.image for p in made]), np.stack([p.labels for p in made])
    whole = evaluate_pictures(model, made, TestTime())
    assert np.array_equal(whole.matrix, evaluate(model, images, labels, 3).matrix)
    parts = [evaluate_pictures(model, made, TestTime(), part=slice(r, None, 2)) for r in (0, 1)]
    assert np.array_equal(parts[0].merge(parts[1]).matrix, whole.matrix)


def test_a_table_relabels_the_truth():
    table = np.full(256, 255, np.uint8)
    table[0] = 0
    confusion = evaluate_pictures(Colours(), [picture(8, 8)], TestTime(), table=table)
    assert confusion.matrix[1:].sum() == 0 and confusion.matrix[0, 0] == confusion.matrix.sum() > 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`image` must be \(H, W, 3\) uint8, got \(3, 8, 8\) uint8"):
        segment(Colours(), np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"`window` \(None\) needs a `stride` \(3\)"):
        TestTime(stride=3)
    with pytest.raises(ValueError, match=r"`window` \(4\) needs a `stride` \(8\) of at most its size"):
        TestTime(window=4, stride=8)
    with pytest.raises(ValueError, match="`scale` must be"):
        TestTime(scale=(1, 2, 3))
    with pytest.raises(ValueError, match="`centre_crop` must hold whole numbers >= 1, got 0"):
        TestTime(centre_crop=0)
    with pytest.raises(ValueError, match="exclude each other"):
        TestTime(scale=(8, 8), centre_crop=8)
    model = segmenters.build("segformer", num_classes=3)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        segment(model, np.zeros((32, 32, 3), np.uint8))
