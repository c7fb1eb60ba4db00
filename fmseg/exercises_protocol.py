"""Exercises of notebooks 32 and 34: a mean over classes, a label map of independent masks, a harmonic mean."""

import numpy as np
import torch
from torch import Tensor

from fmseg.exercise import Exercise
from fmseg.grounding_targets import label_map
from fmseg.metrics import seen_unseen


def _counts() -> list[tuple]:
    """Pixels in both masks, pixels in either, class ids; a picture each."""
    rng, made = np.random.default_rng(32), []
    for classes in ([0, 0, 1], [0, 1, 1, 1, 2, 2], [2, 0, 2, 2, 1]):
        whole = rng.integers(50, 900, len(classes))
        made.append((np.floor(whole * rng.uniform(0.2, 0.9, len(classes))).astype(int), whole, np.array(classes)))
    return made


def _by_class(both, either, classes, of) -> float:
    return 100 * float(np.mean([of(both[classes == c], either[classes == c]) for c in np.unique(classes)]))


mean_of_masks = Exercise(
    lambda both, either, classes: _by_class(both, either, classes, lambda b, e: np.mean(b / e)),
    _counts,
    {
        "The mean over pictures: a class with more pictures counts more. First the mean within each class.": (
            lambda both, either, classes: 100 * float(np.mean(both / either))
        ),
        "Pixels were added up within a class before dividing: a large mask counts more there. The table's row 'head "
        "pooled' does this, the others do not.": lambda both, either, classes: _by_class(
            both, either, classes, lambda b, e: b.sum() / e.sum()
        ),
        "All pixels of all classes were added up.": lambda both, either, classes: 100 * both.sum() / either.sum(),
        "Right, but as a fraction: percent are asked for.": lambda both, either, classes: (
            _by_class(both, either, classes, lambda b, e: np.mean(b / e)) / 100
        ),
    },
    tolerance=1e-4,
    learned="Every class has the same weight, however often it was painted, and every picture within it.",
)  # fmt: skip


def _logits() -> list[tuple]:
    """Logits (O, H, W), ids of the O classes, the id of background."""
    generator = torch.Generator().manual_seed(34)
    made = []
    for ids, background in (([3, 7], 20), ([0, 5], 20), ([4, 1, 2], 9)):
        made.append((2 * torch.randn(len(ids), 5, 5, generator=generator), ids, background))
    return made


def _named(logits: Tensor, ids, background: int, claimed: Tensor) -> Tensor:
    return torch.where(claimed, torch.tensor(ids)[logits.argmax(0)], background)


map_of_masks = Exercise(
    lambda logits, ids, background: label_map(logits[None], ids, background=background)[0],
    _logits,
    {
        "No pixel is background: where no mask is above 0, nobody claims it.": lambda logits, ids, background: (
            torch.tensor(ids)[logits.argmax(0)]
        ),
        "The threshold belongs to probabilities: a sigmoid above one half is a logit above 0.": (
            lambda logits, ids, background: _named(logits, ids, background, logits.amax(0) > 0.5)
        ),
        "One mask above 0 is enough: you asked all of them.": lambda logits, ids, background: _named(
            logits, ids, background, (logits > 0).all(0)
        ),
        "Places in the list were given; a label is the class's id.": lambda logits, ids, background: label_map(
            logits[None], range(len(ids)), background=background
        )[0],
        "Where masks overlap the surer one wins, not the first.": lambda logits, ids, background: _named(
            (logits > 0).float(), ids, background, (logits > 0).any(0)
        ),
    },
    learned="Masks are independent, so two may claim a pixel, or none; a training set needs one answer.",
)


def _ious() -> list[tuple]:
    """IoU by class as fractions, ids of seen classes, ids of unseen ones."""
    rng, made = np.random.default_rng(35), []
    for seen, unseen in ((3, 2), (5, 1), (15, 5)):
        iou = np.concatenate([rng.uniform(0.5, 0.9, seen), rng.uniform(0.02, 0.4, unseen)])
        made.append((iou, list(range(seen)), list(range(seen, seen + unseen))))
    return made


harmonic_mean = Exercise(
    lambda iou, seen, unseen: seen_unseen(iou, seen, unseen)["harmonic"],
    _ious,
    {
        "The mean over all classes: the many seen ones drown the unseen.": lambda iou, seen, unseen: float(iou.mean()),
        "The plain mean of the two groups: a model that knows no unseen class gets half marks for it.": (
            lambda iou, seen, unseen: float(iou[seen].mean() + iou[unseen].mean()) / 2
        ),
        "The geometric mean of the two groups.": lambda iou, seen, unseen: float(
            (iou[seen].mean() * iou[unseen].mean()) ** 0.5
        ),
        "The harmonic mean over all classes: it is taken of the two groups' means.": lambda iou, seen, unseen: float(
            1 / np.mean(1 / iou)
        ),
        "Twice too small: it is 2SU / (S + U).": lambda iou, seen, unseen: (
            seen_unseen(iou, seen, unseen)["harmonic"] / 2
        ),
    },
    learned="Whoever is bad at one of the two is bad.",
)  # fmt: skip
