"""Distillation losses of LwF, LwF-MC, ILT and MiB: by hand, by loops, by properties, against the official trainer."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg import distill
from fmseg.distill import (
    binary_cross_entropy,
    encoder_distillation,
    icarl_loss,
    ilt_distillation,
    knowledge_distillation,
    lwf_mc_loss,
    unbiased_cross_entropy,
    unbiased_distillation,
)

FIXTURE = Path(__file__).parent / "fixtures/distill.npz"
few = settings(max_examples=20, deadline=None)
DISTILLATIONS = [knowledge_distillation, unbiased_distillation]


@st.composite
def steps(draw):
    """A step: scores of the new and of the old model, labels with ignored pixels, number of old classes."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    old, new = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    logits, old_logits = (3 * random(generator, shape[0], c, *shape[1:]) for c in (old + new, old))
    labels = torch.randint(0, old + new, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.2] = 255
    return logits, old_logits, labels


def random(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def example(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits, old_logits = random(generator, 2, 5, 2, 3).to(dtype), random(generator, 2, 3, 2, 3).to(dtype)
    labels = torch.tensor([[[0, 3, 255], [4, 0, 1]], [[3, 3, 0], [255, 2, 4]]])
    return logits, old_logits, labels


def softmax(scores):
    weights = [math.exp(s - max(scores)) for s in scores]
    return [w / sum(weights) for w in weights]


def bce(score, target):
    p = 1 / (1 + math.exp(-score))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def pixels(maps):
    """Each pixel's list of scores, image by image, row by row."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1]).tolist()


def close(ours, expected, tolerance=1e-9):
    assert float(ours) == pytest.approx(float(expected), rel=tolerance, abs=tolerance)


# -- by hand and by loops --------------------------------------------------------------------------------------------


def test_distillation_by_hand():
    old = torch.tensor([[[[0.0]], [[math.log(3)]]]])  # q = 1/4, 3/4
    new = torch.tensor([[[[0.0]], [[0.0]], [[math.log(2)]]]])  # p = 1/4, 1/4, 1/2
    close(knowledge_distillation(new, old), math.log(2) / 2, 1e-6)  # the new class is cut off: p = 1/2, 1/2
    close(unbiased_distillation(new, old), -(math.log(3 / 4) / 4 + 3 * math.log(1 / 4) / 4) / 2, 1e-6)


@few
@given(steps(), st.sampled_from([0.5, 1.0, 2.0]))
def test_distillation_equals_the_loop(step, alpha):
    logits, old_logits, labels = step
    mask = (labels == 0).double()
    old, total = old_logits.shape[1], {"plain": [], "unbiased": []}
    for f, g, w in zip(pixels(logits), pixels(old_logits), mask.flatten().tolist(), strict=True):
        q, p, narrow = softmax([alpha * s for s in g]), softmax(f), softmax(f[:old])
        p = [p[0] + sum(p[old:]), *p[1:old]]
        total["plain"].append(-w * sum(a * math.log(b) for a, b in zip(q, narrow, strict=True)) / old)
        total["unbiased"].append(-w * sum(a * math.log(b) for a, b in zip(q, p, strict=True)) / old)
    close(knowledge_distillation(logits, old_logits, alpha=alpha, mask=mask), np.mean(total["plain"]))
    close(unbiased_distillation(logits, old_logits, alpha=alpha, mask=mask), np.mean(total["unbiased"]))


@few
@given(steps())
def test_label_losses_equal_the_loop(step):
    logits, old_logits, labels = step
    old, sums = old_logits.shape[1], {"unce": 0.0, "bce": 0.0, "kept": 0.0, "icarl": 0.0, "official": 0.0}
    for f, g, y in zip(pixels(logits), pixels(old_logits), labels.flatten().tolist(), strict=True):
        p, g = softmax(f), [1 / (1 + math.exp(-s)) for s in g]
        if y != 255:
            sums["unce"] -= math.log(sum(p[:old]) if y < old else p[y])
            sums["bce"] += sum(bce(s, c == y) for c, s in enumerate(f))
            sums["icarl"] += sum(bce(s, c == y) for c, s in enumerate(f) if c >= old)
        kept = sum(bce(s, t) for s, t in zip(f, g, strict=False))
        sums["kept"] += kept
        sums["icarl"] += kept
        sums["official"] += kept + sum(bce(s, c == y) for c, s in enumerate(f) if c >= old)
    mean = {name: value / labels.numel() for name, value in sums.items()}
    close(unbiased_cross_entropy(logits, labels, old), mean["unce"])
    close(binary_cross_entropy(logits, labels), mean["bce"])
    close(lwf_mc_loss(logits, labels, old_logits, weight=2.5), mean["bce"] + 2.5 * mean["kept"])
    close(icarl_loss(logits, labels, old_logits), mean["icarl"])
    close(icarl_loss(logits, labels, old_logits, ignored_is_negative=True), mean["official"])


def test_icarl_background_from_the_labels():
    logits = torch.zeros(1, 3, 1, 2)
    old_logits = torch.full((1, 2, 1, 2), 20.0)  # sure of both old classes
    logits[0, 0] = 20.0
    labels = torch.tensor([[[0, 2]]])
    rest = 3 * math.log(2)  # classes 1 and 2 are at 1/2: log 2 each, whatever the target
    ours = icarl_loss(logits, labels, old_logits)
    close(ours, 2 * rest / 3, 1e-6)  # background agrees with the old model everywhere
    taught = icarl_loss(logits, labels, old_logits, background_from_labels=True)
    close(taught, 2 * rest / 3 + 20.0 / 2, 1e-6)  # and contradicts the label in one pixel of two
    ignored = icarl_loss(logits, torch.tensor([[[0, 255]]]), old_logits, background_from_labels=True)
    close(ignored, (3 * math.log(2)) / 2, 1e-6)  # two classes in one pixel, the middle one in the other


def test_encoder_and_ilt_by_hand():
    features, moved = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 0.0]], [[0.0, 3.0]]]])
    close(encoder_distillation(features, moved), 10 / 4)
    logits, old_logits, _ = example()
    parts = 100 * knowledge_distillation(logits, old_logits) + 100 * 2.5
    close(ilt_distillation(logits, old_logits, features, moved), parts, 1e-6)


# -- properties ------------------------------------------------------------------------------------------------------


@few
@given(steps())
def test_ignored_pixels_and_their_scores_do_not_matter(step):
    logits, old_logits, labels = step
    old = old_logits.shape[1]
    other = torch.where((labels == 255)[:, None], logits + 7 * torch.randn_like(logits), logits)
    more, mostly_ignored = torch.cat([logits, logits]), torch.cat([labels, torch.full_like(labels, 255)])
    for loss in (lambda z, y: unbiased_cross_entropy(z, y, old), binary_cross_entropy):
        close(loss(other, labels), loss(logits, labels))
        close(2 * loss(more, mostly_ignored), loss(logits, labels))  # but they are part of the mean


@few
@given(steps(), st.randoms(use_true_random=False))
def test_batches_are_means_of_their_images_in_any_order(step, random):
    logits, old_logits, labels = step
    old = old_logits.shape[1]
    losses = [
        lambda k: knowledge_distillation(logits[k], old_logits[k]),
        lambda k: unbiased_distillation(logits[k], old_logits[k]),
        lambda k: unbiased_cross_entropy(logits[k], labels[k], old),
        lambda k: lwf_mc_loss(logits[k], labels[k], old_logits[k]),
        lambda k: icarl_loss(logits[k], labels[k], old_logits[k]),
        lambda k: encoder_distillation(logits[k], logits[k].flip(1)),
    ]
    order = random.sample(range(len(logits)), len(logits))
    for loss in losses:
        close(loss(order), np.mean([loss([k]).item() for k in order]))
        close(loss(order), loss(slice(None)))


@few
@given(steps())
def test_relabelling_classes_of_a_kind_changes_nothing(step):
    logits, old_logits, labels = step
    old, classes = old_logits.shape[1], logits.shape[1]
    order = [0, *range(old - 1, 0, -1), *range(classes - 1, old - 1, -1)]  # background first, old before new
    renamed = torch.tensor([*[order.index(c) for c in range(classes)], *[255] * (256 - classes)])[labels]
    turned, old_turned = logits[:, order], old_logits[:, order[:old]]
    close(unbiased_distillation(turned, old_turned), unbiased_distillation(logits, old_logits))
    close(knowledge_distillation(turned, old_turned), knowledge_distillation(logits, old_logits))
    close(unbiased_cross_entropy(turned, renamed, old), unbiased_cross_entropy(logits, labels, old))
    close(lwf_mc_loss(turned, renamed, old_turned), lwf_mc_loss(logits, labels, old_logits))


@few
@given(steps())
def test_labels_of_old_classes_are_background(step):
    logits, old_logits, labels = step
    old = old_logits.shape[1]
    masked = torch.where(labels < old, 0, labels)
    close(unbiased_cross_entropy(logits, masked, old), unbiased_cross_entropy(logits, labels, old))


def test_without_new_classes_in_sight_unbiased_losses_are_the_plain_ones():
    logits, old_logits, labels = example()
    logits[:, 3:] = -1e3
    close(unbiased_distillation(logits, old_logits), knowledge_distillation(logits, old_logits))
    seen = torch.where(labels >= 3, 255, labels)
    only = torch.where(seen == 255, 255, 0)
    expected = F.cross_entropy(logits[:, :1], only, ignore_index=255, reduction="sum") / labels.numel()
    close(unbiased_cross_entropy(logits, seen, 3), expected)  # all of p is "known": nothing to learn


def test_the_old_opinion_is_the_optimum():
    """A model that repeats the old one has no gradient, and any other costs more."""
    old_logits = example()[1]
    for loss in DISTILLATIONS:
        news = torch.full((2, 2, 2, 3), -40.0, dtype=torch.float64)  # new classes without weight
        logits = torch.cat([old_logits, news], 1).requires_grad_()
        best = loss(logits, old_logits)
        (gradient,) = torch.autograd.grad(best, logits)
        assert gradient.abs().max() < 1e-12
        assert loss(logits + 0.1 * torch.randn_like(logits), old_logits) > best


def test_alpha_hardens_the_old_model_only():
    logits, old_logits, _ = example()
    for loss in DISTILLATIONS:
        close(loss(logits, old_logits, alpha=3.0), loss(logits, 3.0 * old_logits))


def test_masks():
    logits, old_logits, labels = example()
    for loss in DISTILLATIONS:
        whole, mask = loss(logits, old_logits), labels == 0
        close(loss(logits, old_logits, mask=mask) + loss(logits, old_logits, mask=~mask), whole)
        close(loss(logits, old_logits, mask=mask.double() * 0.5), loss(logits, old_logits, mask=mask) / 2)


def test_nothing_to_learn_costs_nothing_and_moves_nothing():
    logits, old_logits, labels = example()
    ignored = torch.full_like(labels, 255)
    empty = torch.zeros_like(labels, dtype=torch.bool)
    for loss in (
        lambda z: unbiased_cross_entropy(z, ignored, 3),
        lambda z: binary_cross_entropy(z, ignored),
        lambda z: knowledge_distillation(z, old_logits, mask=empty),
        lambda z: unbiased_distillation(z, old_logits, mask=empty),
        lambda z: encoder_distillation(z, z.detach()),
    ):
        z = logits.clone().requires_grad_()
        value = loss(z)
        value.backward()
        assert value.item() == 0 and torch.equal(z.grad, torch.zeros_like(z))


def test_the_old_model_gets_no_gradient():
    logits, old_logits, labels = example()
    old_logits.requires_grad_()
    logits.requires_grad_()
    for loss in (
        knowledge_distillation(logits, old_logits),
        unbiased_distillation(logits, old_logits),
        lwf_mc_loss(logits, labels, old_logits),
        icarl_loss(logits, labels, old_logits),
        encoder_distillation(logits[:, :3], old_logits),
    ):
        assert torch.autograd.grad(loss, old_logits, allow_unused=True) == (None,)


def test_gradients_are_the_derivatives():
    logits, old_logits, labels = (x[:1].clone() for x in example())
    logits.requires_grad_()
    mask, target = labels == 0, torch.randn(1, 5, 2, 3, dtype=torch.float64)
    for loss in (
        lambda z: knowledge_distillation(z, old_logits, alpha=2.0, mask=mask),
        lambda z: unbiased_distillation(z, old_logits, alpha=2.0, mask=mask),
        lambda z: unbiased_cross_entropy(z, labels, 3),
        lambda z: binary_cross_entropy(z, labels),
        lambda z: lwf_mc_loss(z, labels, old_logits),
        lambda z: icarl_loss(z, labels, old_logits, background_from_labels=True),
        lambda z: encoder_distillation(z, target),
        lambda z: ilt_distillation(z, old_logits, z, target),
    ):
        assert torch.autograd.gradcheck(loss, logits)


def test_huge_scores_stay_finite():
    logits, old_logits, labels = example(torch.float32)
    for loss in (
        lambda z: unbiased_distillation(z, 1e4 * old_logits),
        lambda z: unbiased_cross_entropy(z, labels, 3),
        lambda z: lwf_mc_loss(z, labels, 1e4 * old_logits),
    ):
        z = (1e4 * logits).requires_grad_()
        value = loss(z)
        value.backward()
        assert value.isfinite() and z.grad.isfinite().all()


# -- errors ----------------------------------------------------------------------------------------------------------


def test_errors_name_the_argument():
    logits, old_logits, labels = example()
    bad = logits.clone()
    bad[1, 2, 0, 1] = math.nan
    with pytest.raises(ValueError, match=r"`logits` must be finite; found nan at \[1, 2, 0, 1\].*diverged"):
        knowledge_distillation(bad, old_logits)
    with pytest.raises(ValueError, match=r"`old_logits` must be finite; found inf"):
        lwf_mc_loss(logits, labels, torch.full_like(old_logits, math.inf))
    with pytest.raises(ValueError, match=r"`logits` must have at least the 5 classes of `old_logits`; got 3.*order"):
        knowledge_distillation(old_logits, logits)
    with pytest.raises(ValueError, match=r"`logits` must have more than the 5 classes of `old_logits`; got 5"):
        unbiased_distillation(logits, logits)
    with pytest.raises(ValueError, match=r"the grid of `logits`, .* = \(2, 2, 3\); got \(2, 3, 2\)"):
        unbiased_distillation(logits, old_logits.mT)
    for alpha in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"`alpha` must be a finite number > 0; got {alpha}"):
            knowledge_distillation(logits, old_logits, alpha=alpha)
    with pytest.raises(ValueError, match=r"`weight` must be a finite number >= 0; got -1"):
        lwf_mc_loss(logits, labels, old_logits, weight=-1)
    with pytest.raises(ValueError, match=r"`labels` must hold class ids in \[0, 5\) or 255 .*found 7 at \[0, 1, 2\]"):
        unbiased_cross_entropy(logits, torch.tensor([[[0, 3, 1], [4, 0, 7]]] * 2), 3)
    with pytest.raises(ValueError, match=r"`labels` must be \(B, H, W\) = \(2, 2, 3\).*got \(2, 4, 6\)"):
        binary_cross_entropy(logits, torch.zeros(2, 4, 6, dtype=torch.long))
    with pytest.raises(TypeError, match=r"`labels` must be a tensor of integer class ids; got torch.float64"):
        binary_cross_entropy(logits, labels.double())
    for old_classes in (0, 5, 2.0, True):
        with pytest.raises(ValueError, match=rf"`old_classes` must be an integer in \[1, 5\).*got {old_classes}"):
            unbiased_cross_entropy(logits, labels, old_classes)
    with pytest.raises(ValueError, match=r"`mask` must be \(B, H, W\) = \(2, 2, 3\); got \(2, 1, 2, 3\)"):
        knowledge_distillation(logits, old_logits, mask=(labels == 0)[:, None])
    with pytest.raises(ValueError, match="`mask` must be >= 0; found -1"):
        knowledge_distillation(logits, old_logits, mask=-torch.ones(2, 2, 3))
    with pytest.raises(TypeError, match="`mask` must be bool or float; got torch.int64"):
        knowledge_distillation(logits, old_logits, mask=labels)
    with pytest.raises(ValueError, match=r"`logits` must be \(B, C, H, W\).*got \(5, 2, 3\).*x\[None\]"):
        knowledge_distillation(logits[0], old_logits)
    with pytest.raises(TypeError, match="`logits` must be a tensor of floats; got torch.int64"):
        binary_cross_entropy(labels[:, None], labels)
    with pytest.raises(ValueError, match=r"`old_features` must have the shape of `features`.*same layer"):
        encoder_distillation(logits, old_logits)


# -- the official code -----------------------------------------------------------------------------------------------


def test_equals_the_official_losses_on_recorded_inputs():
    r = {name: torch.from_numpy(value) for name, value in np.load(FIXTURE).items()}
    z, old, y, full = r["logits"], r["old_logits"], r["labels"], r["labels_full"]
    for alpha in (1.0, 2.0):
        for mask, name in ((None, ""), (r["mask"], "_masked")):
            close(knowledge_distillation(z, old, alpha=alpha, mask=mask), r[f"kd{name}/{alpha:g}"], 1e-6)
            close(unbiased_distillation(z, old, alpha=alpha, mask=mask), r[f"ukd{name}/{alpha:g}"], 1e-6)
    close(unbiased_cross_entropy(z, y, old.shape[1]), r["unce"], 1e-6)
    close(binary_cross_entropy(z, y), r["bce"], 1e-6)
    for flag in (0, 1):
        of_labels = {"background_from_labels": bool(flag)}
        close(icarl_loss(z, full, old, **of_labels), r[f"icarl_full/{flag}"], 1e-6)
        close(icarl_loss(z, y, old, **of_labels, ignored_is_negative=True), r[f"icarl/{flag}"], 1e-6)
        assert abs(icarl_loss(z, y, old, **of_labels) - r[f"icarl/{flag}"]) > 1e-2


def test_equals_the_official_trainer_with_its_weights():
    r = {name: torch.from_numpy(value) for name, value in np.load(FIXTURE).items()}
    z, old, e, old_e, y = r["logits"], r["old_logits"], r["features"], r["old_features"], r["labels_step"]
    plain = F.cross_entropy(z, y, ignore_index=255, reduction="none").mean()
    seen = {  # method: loss and what it adds, as Trainer.train returns them
        "LWF": (plain, distill.LWF_WEIGHT * knowledge_distillation(z, old)),
        "ILT": (plain, ilt_distillation(z, old, e, old_e)),
        "MiB": (unbiased_cross_entropy(z, y, 4), distill.MIB_WEIGHT * unbiased_distillation(z, old)),
        "LWF-MC": (binary_cross_entropy(z, y), lwf_mc_loss(z, y, old) - binary_cross_entropy(z, y)),
    }
    for method, (loss, extra) in seen.items():
        close(loss, r[f"trainer/{method}"][0], 1e-6)
        close(extra, r[f"trainer/{method}"][1], 1e-6)
