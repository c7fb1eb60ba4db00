"""Pixel-adaptive mask refinement: by loops, by properties, against WILSON's copy of the official code."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg.pamr import affinity, refine

FIXTURE = Path(__file__).parent / "fixtures/pamr.npz"
few = settings(max_examples=8, deadline=None)


@st.composite
def scenes(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    batch, height, width = draw(st.integers(1, 2)), draw(st.integers(2, 5)), draw(st.integers(2, 5))
    images = torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)
    masks = torch.rand(batch, 2, height, width, generator=generator, dtype=torch.float64)
    return images, masks / masks.sum(1, keepdim=True), draw(st.sampled_from([(1,), (1, 2), (3, 1)]))


def loop_affinity(image, dilations):
    """One image (3, H, W): (P, H, W)."""
    height, width = image.shape[1:]
    out = torch.zeros(8 * len(dilations), height, width, dtype=image.dtype)
    for i, j in np.ndindex(height, width):
        around, spread_of = [], []
        for d in dilations:
            for y in (-d, 0, d):
                for x in (-d, 0, d):
                    value = image[:, min(max(i + y, 0), height - 1), min(max(j + x, 0), width - 1)]
                    spread_of.append(value)
                    if (y, x) != (0, 0):
                        around.append(value)
        spread = torch.stack(spread_of).std(0)
        scores = [-float(((v - image[:, i, j]).abs() / (0.1 * spread + 1e-8)).mean()) for v in around]
        weights = [math.exp(s - max(scores)) for s in scores]
        out[:, i, j] = torch.tensor([w / sum(weights) for w in weights], dtype=image.dtype)
    return out


def loop_step(mask, weights, dilations):
    height, width = mask.shape[1:]
    moved, places = torch.zeros_like(mask), [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    for i, j in np.ndindex(height, width):
        for k, (d, (y, x)) in enumerate([(d, place) for d in dilations for place in places]):
            neighbour = mask[:, min(max(i + d * y, 0), height - 1), min(max(j + d * x, 0), width - 1)]
            moved[:, i, j] += weights[k, i, j] * neighbour
    return moved


@few
@given(scenes())
def test_affinity_and_refinement_equal_the_loop(scene):
    images, masks, dilations = scene
    weights = affinity(images, dilations)
    expected = torch.stack([loop_affinity(image, dilations) for image in images])
    torch.testing.assert_close(weights, expected)
    step = torch.stack([loop_step(m, w, dilations) for m, w in zip(masks, expected, strict=True)])
    step = torch.stack([loop_step(m, w, dilations) for m, w in zip(step, expected, strict=True)])
    torch.testing.assert_close(refine(images, masks, iterations=2, dilations=dilations), step)


@few
@given(scenes())
def test_shares_stay_shares_and_inside_their_range(scene):
    images, masks, dilations = scene
    refined = refine(images, masks, dilations=dilations)
    torch.testing.assert_close(refined.sum(1), torch.ones_like(refined[:, 0]))
    assert (refined.amax((2, 3)) <= masks.amax((2, 3)) + 1e-9).all()
    assert (refined.amin((2, 3)) >= masks.amin((2, 3)) - 1e-9).all()
    assert torch.equal(refine(images, masks, iterations=0), masks)


@few
@given(scenes())
def test_normalisation_of_the_image_does_not_matter(scene):
    images, masks, dilations = scene
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ([0.4, 0.5, 0.1], [0.2, 3.0, 0.7]))
    other = refine((images - mean) / std, masks, dilations=dilations)
    torch.testing.assert_close(other, refine(images, masks, dilations=dilations), rtol=0, atol=1e-5)


@few
@given(scenes())
def test_images_classes_and_directions_do_not_mix(scene):
    images, masks, dilations = scene
    refined = refine(images, masks, dilations=dilations)
    for k in range(len(images)):
        alone = refine(images[k : k + 1], masks[k : k + 1, :1], dilations=dilations)
        torch.testing.assert_close(alone, refined[k : k + 1, :1])
    torch.testing.assert_close(refine(images.flip(3), masks.flip(3), dilations=dilations), refined.flip(3))
    torch.testing.assert_close(refine(images.mT, masks.mT, dilations=dilations), refined.mT)


def test_a_mask_stops_at_the_edge_of_an_object():
    """Left half dark, right half bright: a spot on the left fills the left and leaves the right."""
    images = torch.zeros(1, 3, 12, 12)
    images[..., 6:] = 1
    masks = torch.zeros(1, 1, 12, 12)
    masks[..., 3:9, 1:4] = 1
    refined = refine(images, masks)[0, 0]
    assert refined[:, :6].min() > 0.05 and refined[:, 6:].max() < 1e-6
    flat = refine(torch.full_like(images, 0.5), masks)[0, 0]
    assert flat[:, 6:].min() > 0.01 and flat.isfinite().all()


def test_masks_of_another_size_are_resized():
    images, masks = torch.rand(2, 3, 8, 6), torch.rand(2, 4, 4, 3)
    whole = torch.nn.functional.interpolate(masks, (8, 6), mode="bilinear", align_corners=True)
    assert torch.equal(refine(images, masks), refine(images, whole))


def test_no_gradient_and_no_change_of_the_arguments():
    images, masks = torch.rand(1, 3, 4, 4), torch.rand(1, 2, 4, 4, requires_grad=True)
    kept = images.clone(), masks.detach().clone()
    assert not refine(images, masks).requires_grad
    assert torch.equal(images, kept[0]) and torch.equal(masks, kept[1])


def test_equals_the_official_code_on_recorded_inputs():
    r = {k: torch.from_numpy(v) for k, v in np.load(FIXTURE).items()}
    torch.testing.assert_close(refine(r["images"], r["masks"]), r["refined"], rtol=0, atol=1e-5)
    wide = refine(r["images"], r["masks"], iterations=3, dilations=(1, 2, 4, 8, 12, 24))
    torch.testing.assert_close(wide, r["refined24"], rtol=0, atol=1e-5)


def test_errors_name_the_argument():
    images, masks = torch.rand(1, 3, 4, 4), torch.rand(1, 2, 4, 4)
    with pytest.raises(ValueError, match="`masks` must have the batch of `images`, 1; got 2"):
        refine(images, torch.cat([masks, masks]))
    with pytest.raises(ValueError, match="`iterations` must be an integer >= 0; got -1"):
        refine(images, masks, iterations=-1)
    for dilations in ((), (0,), (1.0,)):
        with pytest.raises(ValueError, match="`dilations` must be integers >= 1"):
            refine(images, masks, dilations=dilations)
    with pytest.raises(ValueError, match="`images` must be finite; found nan"):
        refine(images * math.nan, masks)
    with pytest.raises(TypeError, match="`images` must be a tensor of floats; got torch.uint8"):
        affinity(images.byte())
