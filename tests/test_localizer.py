"""WILSON's localizer and what it learns from: by hand, by loops, by properties, against the official trainer."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg import pamr
from fmseg.localizer import (
    Localizer,
    balanced_cross_entropy,
    class_scores,
    classification_loss,
    localization_loss,
    pseudo_masks,
)

FIXTURE = Path(__file__).parent / "fixtures/wilson.npz"
OLD, CLASSES = 3, 5
few = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def recorded():
    return {k: torch.from_numpy(v) for k, v in np.load(FIXTURE).items()}


@st.composite
def scenes(draw):
    """Scores of localizer and old model, image labels of the new classes."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    b, h, w = (draw(st.integers(1, 3)) for _ in range(3))
    scores = 3 * torch.randn(b, CLASSES, h, w, generator=generator, dtype=torch.float64)
    old_logits = 3 * torch.randn(b, OLD, h, w, generator=generator, dtype=torch.float64)
    image_labels = torch.zeros(b, CLASSES - 1)
    image_labels[:, OLD - 1 :] = torch.randint(0, 2, (b, CLASSES - OLD), generator=generator).float()
    return scores, old_logits, image_labels


def bce(score, target):
    p = 1 / (1 + math.exp(-score))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def loop_scores(scores):
    out = torch.zeros(scores.shape[:2], dtype=scores.dtype)
    for b, c in np.ndindex(*out.shape):
        m, z = scores[b].softmax(0)[c].flatten(), scores[b, c].flatten()
        size = float(m.mean())
        out[b, c] = float(m @ z) / (1 + float(m.sum())) + (1 - size) ** 3 * math.log(0.01 + size)
    return out


def hard(classes, width=CLASSES):
    """(1, C, 1, n) masks of pixels of the given classes; None has no class."""
    masks = torch.zeros(1, width, 1, len(classes))
    for i, c in enumerate(classes):
        if c is not None:
            masks[0, c, 0, i] = 1
    return masks


def close(ours, expected, tolerance=1e-9):
    assert ours.item() == pytest.approx(float(expected), rel=tolerance, abs=tolerance)


# -- class scores, classification, localization ----------------------------------------------------------------------


def test_class_scores_by_hand():
    """Two pixels, two classes at 0 and log 3: m = 1/4, 3/4 everywhere."""
    scores = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    expected = [
        0.0 + 0.75**3 * math.log(0.01 + 0.25),
        1.5 * math.log(3) / (1 + 1.5) + 0.25**3 * math.log(0.01 + 0.75),
    ]
    assert class_scores(scores)[0].tolist() == pytest.approx(expected, rel=1e-5)
    unlike = class_scores(scores, epsilon=0.0, gamma=0.0, floor=1.0)[0]
    assert unlike.tolist() == pytest.approx([math.log(1.25), math.log(3) + math.log(1.75)], rel=1e-5)


@few
@given(scenes())
def test_class_scores_and_losses_equal_the_loop(scene):
    scores, old_logits, image_labels = scene
    pooled = loop_scores(scores)
    torch.testing.assert_close(class_scores(scores), pooled)
    new = image_labels[:, OLD - 1 :]
    each = [bce(float(pooled[b, OLD + c]), float(new[b, c])) for b, c in np.ndindex(*new.shape)]
    close(classification_loss(scores, new), np.mean(each))
    pairs = zip(scores[:, :OLD].flatten().tolist(), old_logits.sigmoid().flatten().tolist(), strict=True)
    close(localization_loss(scores, old_logits), np.mean([bce(s, t) for s, t in pairs]))


def test_a_class_that_covers_more_scores_higher():
    values = []
    for n in range(5):
        scores = torch.zeros(1, 2, 1, 4)
        scores[0, 1] = -6
        scores[0, 1, 0, :n] = 6
        values.append(class_scores(scores)[0, 1].item())
    assert values == sorted(values) and values[0] < -4 < 0 < values[-1]


@few
@given(scenes())
def test_images_and_pixels_in_any_order(scene):
    scores, old_logits, image_labels = scene
    new = image_labels[:, OLD - 1 :]
    close(classification_loss(scores.flip(0), new.flip(0)), classification_loss(scores, new))
    close(classification_loss(scores.flip(3), new), classification_loss(scores, new))
    close(localization_loss(scores.flip(0, 2), old_logits.flip(0, 2)), localization_loss(scores, old_logits))
    rows = [classification_loss(scores[[k]], new[[k]]).item() for k in range(len(new))]
    close(classification_loss(scores, new), np.mean(rows))


def test_the_losses_equal_the_official_ones(recorded):
    new = recorded["image_labels"][:, 3:]
    torch.testing.assert_close(class_scores(recorded["scores"]), recorded["class_scores"], rtol=1e-5, atol=1e-5)
    close(classification_loss(recorded["scores"], new), recorded["class_loss"], 1e-6)
    z = recorded["scores_train"]
    ours = classification_loss(z, new) + localization_loss(z, recorded["old_logits"])
    close(ours, recorded["step/0.5/-1"][0], 1e-5)


# -- pseudo-masks and l_SSS ------------------------------------------------------------------------------------------


def test_pseudo_masks_by_hand():
    masks = torch.tensor([
        [0.9, 0.64, 0.62, 0.1],  # background: above 0.7 * 0.9 = 0.63
        [0.1, 0.2, 0.5, 0.31],  # above 0.6 * 0.5 = 0.3
        [0.0, 0.16, 0.19, 0.19],  # never above 0.2
        [0.0, 0.0, 0.0, 0.9],  # not in the image
    ])[None, :, None]  # fmt: skip
    ours = pseudo_masks(masks, torch.tensor([[1, 1, 0]]))
    assert ours[0, :, 0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    both = pseudo_masks(masks, torch.tensor([[1, 1, 1]]))  # the last pixel has two classes: none
    assert both[0, :, 0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@few
@given(scenes())
def test_pseudo_masks_equal_the_loop(scene):
    scores, _, image_labels = scene
    masks = scores.softmax(1)
    ours = pseudo_masks(masks, image_labels)
    for b, i, j in np.ndindex(len(masks), *masks.shape[2:]):
        present = [0, *(c for c in range(1, CLASSES) if image_labels[b, c - 1])]
        share = {c: 0.6 if c else 0.7 for c in present}
        limit = {c: max(share[c] * float(masks[b, c].max()), 0.2) for c in present}
        clear = [c for c in present if masks[b, c, i, j] > limit[c]]
        assert ours[b, :, i, j].nonzero().flatten().tolist() == (clear if len(clear) == 1 else [])


def test_balanced_cross_entropy_by_hand():
    scores = torch.zeros(1, CLASSES, 1, 4)  # log 5 everywhere
    pseudo, labels = hard([0, 0, 3, None]), torch.tensor([[0, 0, 1, 0]])
    weights = [1 - 3 / 4, 1 - 3 / 4, 1 - 2 / 4, 0]
    close(balanced_cross_entropy(scores, pseudo, labels), math.log(5) * sum(weights) / 4, 1e-6)
    missing = torch.tensor([[0, 0, 1, 1]])  # class 4 has no pixel: the image does not count
    assert balanced_cross_entropy(scores, pseudo, missing).item() == 0
    twice = [x.expand(2, -1, -1, -1) for x in (scores, pseudo)]
    two = balanced_cross_entropy(*twice, torch.cat([labels, missing]))
    close(two, math.log(5) * sum(weights) / 8, 1e-6)  # but it is part of the batch


@few
@given(scenes())
def test_balanced_cross_entropy_equals_the_loop(scene):
    scores, _, image_labels = scene
    pseudo = pseudo_masks((scores + 0.3).softmax(1), image_labels)
    total = 0.0
    for b in range(len(scores)):
        pixels = pseudo[b].sum((1, 2)).tolist()
        if sum(n > 0 for n in pixels) != 1 + int(image_labels[b].sum()):
            continue
        log_p = scores[b].log_softmax(0)
        for c, i, j in pseudo[b].nonzero().tolist():
            weight = (sum(pixels) - pixels[c]) / (1 + sum(pixels))
            total -= weight * float(log_p[c, i, j]) / scores[0, 0].numel()
    close(balanced_cross_entropy(scores, pseudo, image_labels), total / len(scores))


def test_scores_are_resized_to_the_masks(recorded):
    scores, pseudo = recorded["scores_train"], recorded["pseudo"].float()
    big = pseudo.repeat_interleave(2, 2).repeat_interleave(2, 3)
    close(balanced_cross_entropy(scores, big, recorded["image_labels"]), recorded["balanced_big"], 1e-6)


def test_masks_and_their_loss_equal_the_official_trainer(recorded):
    images = F.interpolate(recorded["images"], (8, 9), mode="bilinear", align_corners=True)
    refined = pamr.refine(images, recorded["scores"].softmax(1))
    pseudo = pseudo_masks(refined, recorded["image_labels"])
    assert torch.equal(pseudo, recorded["pseudo"].float()) and pseudo.sum() > 0
    ours = balanced_cross_entropy(recorded["scores_train"], pseudo, recorded["image_labels"])
    close(ours, recorded["step/0.5/-1"][1], 1e-5)


# -- gradients and edges ---------------------------------------------------------------------------------------------


def test_gradients_are_the_derivatives():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, CLASSES, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    old_logits = torch.randn(2, OLD, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 1]])
    pseudo = torch.cat([hard([0, 0, 3, None]), hard([0, 3, 4, 4])]).view(2, CLASSES, 2, 2).double()
    assert balanced_cross_entropy(scores, pseudo, labels) > 0
    for loss in (
        lambda z: classification_loss(z, labels[:, OLD - 1 :]),
        lambda z: localization_loss(z, old_logits),
        lambda z: balanced_cross_entropy(z, pseudo, labels),
        lambda z: balanced_cross_entropy(z[..., :1], pseudo, labels),
    ):
        assert torch.autograd.gradcheck(loss, scores)


def test_no_pseudo_label_costs_nothing_and_moves_nothing():
    scores = torch.randn(2, CLASSES, 3, 3, requires_grad=True)
    loss = balanced_cross_entropy(scores, torch.zeros(2, CLASSES, 3, 3), torch.zeros(2, CLASSES - 1))
    loss.backward()
    assert loss.item() == 0 and torch.equal(scores.grad, torch.zeros_like(scores))


def test_the_old_model_and_the_masks_get_no_gradient():
    scores, old_logits = (torch.randn(1, c, 2, 2, requires_grad=True) for c in (CLASSES, OLD))
    loss = localization_loss(scores, old_logits)
    assert torch.autograd.grad(loss, old_logits, allow_unused=True) == (None,)
    assert not pseudo_masks(scores.softmax(1), torch.ones(1, CLASSES - 1)).requires_grad


# -- the head --------------------------------------------------------------------------------------------------------


def test_the_head_is_the_official_one_by_parts():
    torch.manual_seed(0)
    head, x = Localizer(6, CLASSES, width=4), torch.randn(2, 6, 5, 7)
    convs = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [tuple(c.weight.shape) for c in convs] == [(4, 6, 3, 3), (4, 4, 3, 3), (CLASSES, 4, 1, 1)]
    assert [c.bias is None for c in convs] == [True, True, False]
    y = x
    for conv, norm in zip(convs, norms, strict=False):
        y = F.conv2d(y, conv.weight, padding=1)
        y = F.batch_norm(y, None, None, norm.weight, norm.bias, training=True)
        y = torch.where(y > 0, y, 0.01 * y)
    expected = F.conv2d(y, convs[2].weight, convs[2].bias)
    torch.testing.assert_close(head(x), expected)


def test_guesses_use_running_statistics_and_leave_the_head_as_it_was():
    torch.manual_seed(0)
    head, x = Localizer(6, CLASSES, width=4), torch.randn(2, 6, 4, 4, requires_grad=True)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    guess = head.guess(x)
    assert head.training and not guess.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    torch.testing.assert_close(head.guess(x[:1]), guess[:1])  # no image sees its batch
    assert (head(x) - guess).abs().max() > 1e-3
    assert torch.equal(head.eval().guess(x), head(x)) and not head.training


def test_a_localizer_finds_what_only_images_are_labelled_with():
    """Two classes, image labels only: after training every object is found with its class. A halo of background goes
    with it, because the focal term rewards size; the old model keeps most of the rest."""
    torch.manual_seed(0)
    features, truth = torch.zeros(16, 4, 6, 6), torch.zeros(16, 6, 6, dtype=torch.long)
    labels = torch.zeros(16, 2)
    for b in range(16):
        c, i, j = b % 2, *torch.randint(0, 4, (2,)).tolist()
        features[b, c + 1, i : i + 3, j : j + 3] = 2
        truth[b, i : i + 3, j : j + 3] = c + 1
        labels[b, c] = 1
    features[:, 0] = (truth == 0).float()
    old_logits = 4 * (2 * (truth == 0).float() - 1)[:, None]  # the old model knows background
    features = features + 0.1 * torch.randn_like(features)
    head = Localizer(4, 3, width=8)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    for _ in range(50):
        z = head(features)
        optimiser.zero_grad()
        (classification_loss(z, labels) + localization_loss(z, old_logits)).backward()
        optimiser.step()
    right = head.guess(features).argmax(1) == truth
    assert right[truth > 0].float().mean() > 0.95 and right[truth == 0].float().mean() > 0.75


# -- errors ----------------------------------------------------------------------------------------------------------


def test_errors_name_the_argument():
    scores, old_logits = torch.randn(2, CLASSES, 2, 2), torch.randn(2, OLD, 2, 2)
    labels = torch.zeros(2, CLASSES - 1)
    with pytest.raises(ValueError, match=r"`image_labels` must be \(B, new classes\) = \(2, 4\); got \(2, 5\)"):
        classification_loss(scores, torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"`image_labels` must be .*got \(2,\)"):
        classification_loss(scores, torch.zeros(2))
    with pytest.raises(ValueError, match=r"`image_labels` must hold 0 .* and 1 .*found 0.0 to 7.0"):
        classification_loss(scores, torch.tensor([[0, 7], [1, 1]]))
    with pytest.raises(ValueError, match=r"`image_labels` must be \(B, C - 1\) = \(2, 4\); got \(2, 2\)"):
        pseudo_masks(scores.softmax(1), labels[:, :2])
    with pytest.raises(ValueError, match="`scores` must be finite; found nan"):
        class_scores(scores * math.nan)
    with pytest.raises(ValueError, match="`floor` must be a finite number > 0; got 0.0"):
        class_scores(scores, floor=0.0)
    with pytest.raises(ValueError, match="`scores` must have more than the 5 classes of `old_logits`; got 5"):
        localization_loss(scores, scores)
    with pytest.raises(ValueError, match=r"the grid of `scores`.*got \(2, 4, 4\)"):
        localization_loss(scores, torch.zeros(2, OLD, 4, 4))
    with pytest.raises(ValueError, match=r"`top` must be in \[0, 1\]; got 1.5"):
        pseudo_masks(scores.softmax(1), labels, top=1.5)
    with pytest.raises(ValueError, match="`pseudo` must hold 0 and 1, at most one 1 a pixel"):
        balanced_cross_entropy(scores, torch.ones_like(scores), labels)
    with pytest.raises(ValueError, match="`pseudo` must hold 0 and 1.*pseudo_masks"):
        balanced_cross_entropy(scores, scores.softmax(1), labels)
    with pytest.raises(ValueError, match=r"`pseudo` must be \(2, 5, 'H', 'W'\); got \(2, 3, 2, 2\)"):
        balanced_cross_entropy(scores, old_logits, labels)
    with pytest.raises(ValueError, match=r"`features` must be \(B, 6, h, w\); got \(2, 5, 2, 2\)"):
        Localizer(6, 3)(scores)
    with pytest.raises(ValueError, match="`classes` must be an integer >= 2; got 1"):
        Localizer(6, 1)
