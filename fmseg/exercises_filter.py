"""Exercises of notebook 22: class means, the filter, and what a detector is judged by."""

import torch
from torch import Tensor

from fmseg.exercise import Exercise
from fmseg.noise import ClassLoss, filter_labels


def _pictures() -> list[tuple]:
    """Losses and labels of a few small pictures, some pixels ignored; number of classes; class 3 is never there."""
    generator = torch.Generator().manual_seed(22)
    made = []
    for count, side in ((2, 4), (3, 5)):
        labels = torch.randint(0, 3, (count, side, side), generator=generator)
        labels[0, 0] = 255
        labels[1, :, 2:] = 1  # classes have different numbers of pixels in different pictures
        losses = torch.rand(count, side, side, generator=generator) * 2 + labels.clamp(max=3)
        made.append((losses, labels, 4))
    return made


def _means(losses: Tensor, labels: Tensor, classes: int) -> Tensor:
    return torch.from_numpy(ClassLoss(classes).update(losses, labels).compute()).float()


def _of_pictures(losses: Tensor, labels: Tensor, classes: int) -> Tensor:
    rows = torch.stack([_means(a, b, classes) for a, b in zip(losses, labels, strict=True)])
    there = torch.stack([(labels == c).flatten(1).any(1) for c in range(classes)], 1)
    return (rows * there).sum(0) / there.sum(0).clamp(min=1)


def _all_counted(losses: Tensor, labels: Tensor, classes: int) -> Tensor:
    return _means(losses, labels.where(labels != 255, 0), classes)


class_means = Exercise(
    _means,
    _pictures,
    {
        "This is a mean of pictures' means: a picture with one pixel of a class weighs as much as one full of it. The "
        "paper's mean is over pixels.": _of_pictures,
        "Ignored pixels count as class 0 here: leave out what has the label 255.": _all_counted,
        "This divides by all pixels: divide by the class's own number of pixels.": lambda x, y, n: torch.stack(
            [x[y == c].sum() / x.numel() for c in range(n)]
        ),
        "These are sums: divide by the number of pixels of the class.": lambda x, y, n: torch.stack(
            [x[y == c].sum() for c in range(n)]
        ),
    },
    tolerance=1e-4,
    learned="A class that no picture has gets 0, so the filter would drop every pixel of it: the official behaviour.",
)


def _to_filter() -> list[tuple]:
    """Losses and labels of a picture, class means, margin; one pixel lies on its threshold exactly."""
    generator = torch.Generator().manual_seed(23)
    made = []
    for alpha in (1.25, 2.0, 0.5):
        labels = torch.randint(0, 3, (6, 6), generator=generator)
        labels[0, 0] = 255
        means = torch.tensor([0.5, 2.0, 0.25])
        losses = torch.rand(6, 6, generator=generator) * 3
        labels[1, 1] = 0
        losses[1, 1] = alpha * 0.5  # a tie
        made.append((losses, labels, means, alpha))
    return made


def _filtered(losses: Tensor, labels: Tensor, means: Tensor, alpha: float) -> Tensor:
    return filter_labels(losses, labels, means.numpy(), alpha=float(alpha))


def _threshold(losses: Tensor, labels: Tensor, limit: Tensor, tie: bool = False) -> Tensor:
    known = labels != 255
    over = losses >= limit if tie else losses > limit
    return labels.where(~(over & known), 255)


def _look_up(means: Tensor, labels: Tensor) -> Tensor:
    return means[labels.where(labels != 255, 0)]


filtered = Exercise(
    _filtered,
    _to_filter,
    {
        "A pixel on its threshold is kept: the comparison is strict.": lambda x, y, m, a: _threshold(
            x, y, a * _look_up(m, y), tie=True
        ),
        "The margin does nothing yet: multiply the class's mean by alpha.": lambda x, y, m, a: _filtered(x, y, m, 1.0),
        "One threshold for all: take the mean of the class that the mask gives the pixel.": lambda x, y, m, a: (
            _threshold(x, y, a * m.mean())
        ),
        "The means of this very picture are used; they come from real training images.": lambda x, y, m, a: _filtered(
            x, y, _means(x, y, len(m)), a
        ),
        "A dropped pixel gets the label 0, a class in memory; 0 is what a mask file of ADE20K holds. Here it is "
        "255.": lambda x, y, m, a: _filtered(x, y, m, a).where((_filtered(x, y, m, a) != 255) | (y == 255), 0),
        "Kept and dropped are turned round.": lambda x, y, m, a: y.where(_filtered(x, y, m, a) == 255, 255),
    },
    learned="The label of a kept pixel never changes, and no picture is dropped as a whole.",
)


def _detections() -> list[tuple]:
    """Dropped and wrong pixels, bool."""
    generator = torch.Generator().manual_seed(24)
    return [(torch.rand(8, 8, generator=generator) < p, torch.rand(8, 8, generator=generator) < q)
            for p, q in ((0.3, 0.2), (0.6, 0.1))]  # fmt: skip


def _rates(dropped: Tensor, wrong: Tensor) -> tuple[float, float, float]:
    both = float((dropped & wrong).sum())
    kept = float((~dropped & ~wrong).sum())
    return both / float(dropped.sum()), both / float(wrong.sum()), kept / float((~wrong).sum())


precision_recall_kept = Exercise(
    _rates,
    _detections,
    {
        "Precision and recall are swapped: precision is a share of the dropped pixels.": lambda d, w: (
            _rates(d, w)[1], _rates(d, w)[0], _rates(d, w)[2]
        ),
        "The third number is a share of *right* pixels; this is the share of all pixels that are kept.": lambda d, w: (
            *_rates(d, w)[:2], float((~d).float().mean())
        ),
        "The third number asks how many of the right pixels are kept, not how many of the kept ones are right.": (
            lambda d, w: (*_rates(d, w)[:2], float((~d & ~w).sum()) / float((~d).sum()))
        ),
    },
    learned="Where few pixels are wrong, a filter of fair recall may still drop more right pixels than wrong ones.",
)  # fmt: skip
