"""The fused full-resolution loss: against torch's two-step form, by hand, and at its edges."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg.pixel_loss import check_labels, resize_scores, upsampled_cross_entropy


def two_steps(grid, labels, ignore_index=255):
    z = F.interpolate(grid, labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(z, labels, ignore_index=ignore_index)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9),
    st.integers(0, 10**6),
)  # fmt: skip
def test_equals_interpolation_then_cross_entropy_with_gradient(batch, classes, h, w, height, width, seed):
    torch.manual_seed(seed)
    grid = torch.randn(batch, classes, h, w, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, classes, (batch, height, width))
    labels[torch.rand(labels.shape) < 0.2] = 255
    labels[0, 0, 0] = 0  # at least one valid pixel
    expected = two_steps(grid, labels)
    (gradient,) = torch.autograd.grad(expected, grid)
    ours = upsampled_cross_entropy(grid, labels)
    (our_gradient,) = torch.autograd.grad(3 * ours, grid)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(our_gradient, 3 * gradient, atol=1e-6)


def test_gradient_is_the_derivative():
    torch.manual_seed(0)
    grid = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 5, 4))
    labels[0, 0] = 255
    assert torch.autograd.gradcheck(lambda g: upsampled_cross_entropy(g, labels), (grid,))


def test_two_classes_by_hand():
    grid = torch.tensor([[[[0.0]], [[math.log(3.0)]]]])  # probabilities 1/4 and 3/4 everywhere
    labels = torch.tensor([[[1, 0], [255, 1]]])
    expected = -(2 * math.log(0.75) + math.log(0.25)) / 3
    assert upsampled_cross_entropy(grid, labels).item() == pytest.approx(expected, rel=1e-6)


def test_a_batch_without_any_label_costs_nothing_and_moves_nothing():
    grid = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = upsampled_cross_entropy(grid, torch.full((2, 8, 8), 255))
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(grid.grad, torch.zeros_like(grid))


def test_one_ignored_image_weighs_nothing():
    grid, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    labels[1] = 255
    assert torch.allclose(upsampled_cross_entropy(grid, labels), upsampled_cross_entropy(grid[:1], labels[:1]))


def test_huge_scores_neither_overflow_nor_vanish():
    grid = torch.tensor([[[[1e4]], [[-1e4]], [[0.0]]]], requires_grad=True)
    loss = upsampled_cross_entropy(grid, torch.tensor([[[2]]]))
    loss.backward()
    assert loss.item() == pytest.approx(1e4) and torch.isfinite(grid.grad).all()


def test_memory_layout_does_not_matter():
    grid, labels = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 16, 16))
    channels_last = grid.contiguous(memory_format=torch.channels_last)
    assert torch.equal(upsampled_cross_entropy(grid, labels), upsampled_cross_entropy(channels_last, labels))


def test_shapes_that_do_not_belong_together_are_named():
    with pytest.raises(ValueError, match=r"same B; got \(2, 3, 4, 4\) and \(1, 8, 8\)"):
        upsampled_cross_entropy(torch.zeros(2, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.long))


@pytest.mark.parametrize("shape, size", [((2, 3, 4, 4), (16, 16)), ((3, 5, 2), (7, 9)), ((4, 8, 8), (8, 8))])
def test_resizing_equals_torch(shape, size):
    scores = torch.randn(shape)
    flat = scores.reshape(1, -1, *shape[-2:])
    expected = F.interpolate(flat, size, mode="bilinear", align_corners=False).reshape(*shape[:-2], *size)
    assert torch.allclose(resize_scores(scores, size), expected, atol=1e-6)


def test_a_wrong_label_is_named_with_its_place():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 2, 3] = 7
    with pytest.raises(ValueError, match=r"in \[0, 5\) or 255 .*found 7 at \[0, 2, 3\]"):
        check_labels(labels, 5)
    check_labels(torch.full((1, 2, 2), 255), 5)
