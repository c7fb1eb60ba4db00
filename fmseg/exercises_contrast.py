"""Exercises of notebook 12: the dense contrastive loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg.contrast import contrast
from fmseg.exercise import Exercise


def _points() -> list[tuple]:
    """Unit vectors, labels, temperature; in the second case two classes, one with a single point, are alone."""
    generator = torch.Generator().manual_seed(12)
    made = []
    for labels, temperature in (([0, 0, 0, 1, 1, 2, 2, 2], 0.5), ([0, 0, 1, 2, 2], 0.3), ([1, 1, 0, 0], 0.1)):
        vectors = F.normalize(torch.randn(len(labels), 3, generator=generator), dim=1)
        made.append((vectors, torch.tensor(labels), temperature))
    return made


def _right(vectors: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return contrast(vectors, labels, temperature=temperature, normalise=False)


def _by_hand(
    vectors: Tensor, labels: Tensor, temperature: float, *, itself: bool = False, supcon: bool = False,
    everybody: bool = False, added: bool = False, all_anchors: bool = False,
) -> Tensor:  # fmt: skip
    """Eq. 7 in loops over anchors, with a mistake if one is named."""
    similar = vectors @ vectors.T / temperature
    losses = []
    for i, label in enumerate(labels):
        same = labels == label
        positives = [j for j in range(len(labels)) if same[j] and (itself or j != i)]
        negatives = similar[i][~same].exp().sum()
        if supcon:
            negatives = similar[i][torch.arange(len(labels)) != i].exp().sum()
        elif everybody:
            negatives = similar[i].exp().sum()
        if not positives:
            losses += [similar.new_zeros(())] if all_anchors else []
            continue
        each = []
        for j in positives:
            denominator = negatives if supcon or everybody else similar[i, j].exp() + negatives
            each.append(denominator.log() - similar[i, j])
        losses.append(torch.stack(each).sum() if added else torch.stack(each).mean())
    return torch.stack(losses).mean()


loss_of_points = Exercise(
    _right,
    _points,
    {
        "The denominator holds all positives at once: that is SupCon (Khosla et al. 2020). In eq. 7 it holds one "
        "positive at a time, the one in the numerator.": lambda *x: _by_hand(*x, supcon=True),
        "The denominator runs over all points, the anchor itself and its other positives among them; eq. 7 has one "
        "positive and the negatives.": lambda *x: _by_hand(*x, everybody=True),
        "An anchor is its own positive: leave i out of P_i.": lambda *x: _by_hand(*x, itself=True),
        "The temperature does nothing yet: divide the products by tau.": lambda v, n, _: _right(v, n, 1.0),
        "An anchor's positives are added up: eq. 7 takes their mean, 1 / |P_i|.": lambda *x: _by_hand(*x, added=True),
        "An anchor without a positive counts as a loss of 0: leave it out of the mean.": lambda *x: _by_hand(
            *x, all_anchors=True
        ),
        "The sign is turned: minus the logarithm of a share is positive.": lambda *x: -_right(*x),
    },
    learned="Each positive is compared with the negatives on its own; others never stand below, as in SupCon.",
)


def _one_anchor() -> list[tuple]:
    """Products of an anchor with its positives and its negatives, and the temperature."""
    generator = torch.Generator().manual_seed(7)
    made = [(1, 3, 0.5), (2, 4, 0.2), (3, 1, 1.0)]
    return [
        (torch.rand(p, generator=generator) * 2 - 1, torch.rand(n, generator=generator) * 2 - 1, t) for p, n, t in made
    ]


def _loss_of_anchor(positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    repelled = (negatives / temperature).logsumexp(0)
    return F.softplus(repelled - positives / temperature).mean()


def _push(positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    negatives = negatives.clone().requires_grad_()
    return torch.autograd.grad(_loss_of_anchor(positives, negatives, temperature), negatives)[0]


def _softmax(positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    return (negatives / temperature).softmax(0)


def _push_among_all(positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    return (torch.cat([positives, negatives]) / temperature).softmax(0)[len(positives) :] / temperature


push_of_negatives = Exercise(
    _push,
    _one_anchor,
    {
        "The positive is missing from the denominator: as it is, negatives push with full force even when all of them "
        "are far away.": lambda p, n, t: _softmax(p, n, t) / t,
        "The factor 1 / tau of the chain rule is missing.": lambda p, n, t: _push(p, n, t) * t,
        "All positives share one denominator: that is SupCon's gradient, not eq. 7's.": _push_among_all,
        "The positives' terms are added up: take their mean.": lambda p, n, t: _push(p, n, t) * len(p),
        "The sign is turned: a larger product with a negative makes the loss larger.": lambda *x: -_push(*x),
    },
    learned="A negative pushes by its share of the exponentials: near ones hard, far ones hardly.",
)


def _sizes() -> list[tuple]:
    return [(24, 32, 21, 10), (2, 8, 3, 5)]


pairs_to_compare = Exercise(
    lambda images, side, classes, points: ((images * side * side) ** 2, (classes * points) ** 2),
    _sizes,
    {
        "Points are drawn for each class of the mini-batch, not of each image.": lambda images, side, classes, points: (
            (images * side * side) ** 2, (images * classes * points) ** 2
        ),
        "A grid of `side` has side x side pixels.": lambda images, side, classes, points: (
            (images * side) ** 2, (classes * points) ** 2
        ),
        "These are points, not pairs of points: every point meets every other.": (
            lambda images, side, classes, points: (images * side * side, classes * points)
        ),
        "Pixels of different images are compared, too: square the number of all pixels.": (
            lambda images, side, classes, points: (images * (side * side) ** 2, (classes * points) ** 2)
        ),
    },
    learned="That is why ten points a class are enough to pay for, and all pixels are not.",
)  # fmt: skip
