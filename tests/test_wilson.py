"""WILSON's soft pseudo-labels and its loss for the segmenter: by hand, by loops, against the official trainer."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg import pamr, wilson
from fmseg.distill import encoder_distillation
from fmseg.localizer import balanced_cross_entropy, classification_loss, localization_loss, pseudo_masks
from fmseg.wilson import image_weights, segmentation_loss, segmentation_targets, soft_labels

FIXTURE = Path(__file__).parent / "fixtures/wilson.npz"
OLD, CLASSES = 3, 5
few = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def recorded():
    return {k: torch.from_numpy(v) for k, v in np.load(FIXTURE).items()}


@st.composite
def scenes(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    b, h, w = (draw(st.integers(1, 3)) for _ in range(3))
    scores, logits = (3 * torch.randn(b, CLASSES, h, w, generator=generator, dtype=torch.float64) for _ in range(2))
    old_logits = 3 * torch.randn(b, OLD, h, w, generator=generator, dtype=torch.float64)
    image_labels = torch.zeros(b, CLASSES - 1)
    image_labels[:, OLD - 1 :] = torch.randint(0, 2, (b, CLASSES - OLD), generator=generator).float()
    return scores, logits, old_logits, image_labels, draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))


def bce(score, target):
    return max(score, 0) - score * target + math.log1p(math.exp(-abs(score)))


def close(ours, expected, tolerance=1e-9):
    assert ours.item() == pytest.approx(float(expected), rel=tolerance, abs=tolerance)


# -- labels ----------------------------------------------------------------------------------------------------------


def test_soft_labels_by_hand():
    scores = torch.tensor([0.0, 0.0, math.log(2), math.log(4)]).view(1, 4, 1, 1)  # m = 1/8, 1/8, 1/4, 1/2
    absent = torch.tensor([[0, 1, 0]])  # only class 2 is there: its 1/4 is the largest of what is left
    assert soft_labels(scores, absent).flatten().tolist() == pytest.approx([1 / 16, 0, 1 / 2 + 1 / 8, 0])
    assert soft_labels(scores, absent, alpha=1.0).flatten().tolist() == [0, 0, 1, 0]
    assert soft_labels(scores, absent, alpha=0.0).flatten().tolist() == pytest.approx([1 / 8, 0, 1 / 4, 0])
    nothing = torch.zeros(1, 3)
    assert soft_labels(scores, nothing, alpha=1.0).flatten().tolist() == [1, 0, 0, 0]


@few
@given(scenes())
def test_labels_and_targets_equal_the_loop(scene):
    scores, _, old_logits, image_labels, alpha = scene
    q = soft_labels(scores, image_labels, alpha=alpha)
    targets = segmentation_targets(q, old_logits)
    mixed = segmentation_targets(q, old_logits, background_share=0.3)
    for b, i, j in np.ndindex(len(q), *q.shape[2:]):
        m = scores[b, :, i, j].softmax(0).tolist()
        m = [v if not c or image_labels[b, c - 1] else 0.0 for c, v in enumerate(m)]
        expected = [alpha * (v == max(m)) + (1 - alpha) * v for v in m]
        assert q[b, :, i, j].tolist() == pytest.approx(expected)
        old = old_logits[b, :, i, j].sigmoid().tolist()
        rest = old[1:] + expected[OLD:]
        assert targets[b, :, i, j].tolist() == pytest.approx([min(old[0], expected[0]), *rest])
        assert mixed[b, :, i, j].tolist() == pytest.approx([0.7 * old[0] + 0.3 * expected[0], *rest])


@few
@given(scenes())
def test_images_count_if_their_new_classes_are_found(scene):
    scores, _, _, image_labels, alpha = scene
    q = soft_labels(scores, image_labels, alpha=alpha)
    ours = image_weights(q, image_labels, OLD)
    if alpha < 1:
        assert ours.tolist() == [1] * len(q)
    else:
        winners = [set(q[b].argmax(0).flatten().tolist()) - {0} for b in range(len(q))]
        wanted = [{c + 1 for c in image_labels[b].nonzero().flatten().tolist()} for b in range(len(q))]
        assert ours.tolist() == [float(w == t) for w, t in zip(winners, wanted, strict=True)]


# -- the loss --------------------------------------------------------------------------------------------------------


def test_loss_by_hand():
    logits, targets = torch.zeros(2, 3, 1, 2), torch.full((2, 3, 1, 2), 0.25)
    whole = 3 * math.log(2)  # a sum over classes; 1e-5 in the denominator
    close(segmentation_loss(logits, targets), whole * 2 / (2 + 1e-5), 1e-6)
    close(segmentation_loss(logits, targets, normalise=True), math.log(2) * 2 / (2 + 1e-5), 1e-6)
    logits[1] = 5.0
    close(segmentation_loss(logits, targets, torch.tensor([1.0, 0.0])), whole / (1 + 1e-5), 1e-6)


@few
@given(scenes())
def test_loss_equals_the_loop(scene):
    scores, logits, old_logits, image_labels, alpha = scene
    q = soft_labels(scores, image_labels, alpha=alpha)
    targets, weights = segmentation_targets(q, old_logits), image_weights(q, image_labels, OLD)
    per_image = [
        sum(bce(f, t) for f, t in zip(logits[b].flatten().tolist(), targets[b].flatten().tolist(), strict=True))
        / logits[b, 0].numel()
        for b in range(len(logits))
    ]
    expected = float(np.dot(weights, per_image)) / (float(weights.sum()) + 1e-5)
    close(segmentation_loss(logits, targets, weights), expected)
    close(segmentation_loss(logits, targets, weights, normalise=True), expected / CLASSES)


@few
@given(scenes())
def test_order_of_images_and_classes(scene):
    scores, logits, old_logits, image_labels, alpha = scene

    def loss(k, c=slice(None), old=slice(None)):
        order = torch.arange(CLASSES)[c]
        labels = image_labels[k][:, order[1:] - 1]
        q = soft_labels(scores[k][:, order], labels, alpha=alpha)
        targets = segmentation_targets(q, old_logits[k][:, old])
        return segmentation_loss(logits[k][:, order], targets)

    backwards = list(reversed(range(len(logits))))
    close(loss(backwards), loss(slice(None)))
    close(loss(slice(None), [0, 2, 1, 4, 3], [0, 2, 1]), loss(slice(None)))
    n = len(logits)
    rows = [loss([k]).item() * (1 + 1e-5) for k in range(n)]
    close(loss(slice(None)), np.sum(rows) / (n + 1e-5))


def test_the_targets_are_the_optimum_and_get_no_gradient():
    targets = torch.rand(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    logits = targets.detach().logit().requires_grad_()
    loss = segmentation_loss(logits, targets)
    by_logits, by_targets = torch.autograd.grad(loss, (logits, targets), allow_unused=True)
    assert by_logits.abs().max() < 1e-12 and by_targets is None
    scores = torch.randn(1, 3, 2, 2, requires_grad=True)
    q, old_logits = soft_labels(scores, torch.ones(1, 2)), torch.randn(1, 2, 2, 2, requires_grad=True)
    assert not q.requires_grad and not segmentation_targets(q, old_logits).requires_grad


def test_gradient_is_the_derivative():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.rand(2, 3, 2, 2, dtype=torch.float64), torch.tensor([1.0, 0.5])
    for normalise in (False, True):
        loss = partial(segmentation_loss, targets=targets, weights=weights, normalise=normalise)
        assert torch.autograd.gradcheck(loss, logits)


def test_no_image_that_counts_costs_nothing_and_moves_nothing():
    logits = torch.randn(2, 3, 2, 2, requires_grad=True)
    loss = segmentation_loss(logits, torch.rand(2, 3, 2, 2), torch.zeros(2))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("alpha, share", [(0.5, -1), (0.9, -1), (1.0, -1), (0.0, 0.3)])
def test_a_step_equals_the_official_trainer(recorded, alpha, share):
    """The step of the module's docstring, term by term and in total."""
    labels, guess, z = recorded["image_labels"], recorded["scores"], recorded["scores_train"]
    old_logits, logits = recorded["old_logits"], recorded["logits"]
    located, refined_loss, segmented, total = recorded[f"step/{alpha:g}/{share}"].tolist()
    old = old_logits.shape[1]

    learned = classification_loss(z, labels[:, old - 1 :]) + localization_loss(z, old_logits)
    images = F.interpolate(recorded["images"], guess.shape[2:], mode="bilinear", align_corners=True)
    masks = pseudo_masks(pamr.refine(images, guess.softmax(1)), labels)
    of_masks = balanced_cross_entropy(z, masks, labels)
    q = soft_labels(guess, labels, alpha=alpha)
    targets = segmentation_targets(q, old_logits, background_share=None if share == -1 else share)
    ours = segmentation_loss(logits, targets, image_weights(q, labels, old))
    encoder = wilson.ENCODER_WEIGHT * encoder_distillation(recorded["features"], recorded["old_features"])

    close(learned, located, 1e-5)
    close(of_masks, refined_loss, 1e-5)
    close(ours, segmented, 1e-5)
    close(learned + of_masks + ours + encoder, total, 1e-5)


def test_errors_name_the_argument():
    scores, old_logits = torch.randn(2, CLASSES, 2, 2), torch.randn(2, OLD, 2, 2)
    labels, q = torch.zeros(2, CLASSES - 1), torch.rand(2, CLASSES, 2, 2)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"`alpha` must be in \[0, 1\]; got {alpha}"):
            soft_labels(scores, labels, alpha=alpha)
    with pytest.raises(ValueError, match=r"`image_labels` must be \(B, C - 1\) = \(2, 4\); got \(2, 5\)"):
        soft_labels(scores, torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"`soft` must be in \[0, 1\]; found .*softmax"):
        segmentation_targets(5 * scores, old_logits)
    with pytest.raises(ValueError, match="`soft` must have more than the 5 classes of `old_logits`; got 5"):
        segmentation_targets(q, scores)
    with pytest.raises(ValueError, match=r"`background_share` must be in \[0, 1\]; got -1"):
        segmentation_targets(q, old_logits, background_share=-1)
    with pytest.raises(ValueError, match=r"`targets` must have the shape of `logits`.*got \(2, 3, 2, 2\).*grid"):
        segmentation_loss(scores, old_logits)
    with pytest.raises(ValueError, match=r"`targets` must be in \[0, 1\]"):
        segmentation_loss(scores, scores)
    with pytest.raises(ValueError, match=r"`weights` must be \(2,\), one an image, >= 0; got \[1.0, -1.0\]"):
        segmentation_loss(scores, q, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="`weights` must be finite; found nan"):
        segmentation_loss(scores, q, torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="`logits` must be finite; found inf"):
        segmentation_loss(scores + math.inf, q)
    with pytest.raises(ValueError, match=r"`old_classes` must be an integer in \[1, 5\)"):
        image_weights(q, labels, 5)
