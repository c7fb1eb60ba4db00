"""Exercises of notebook 11: co-segmentation."""

import torch
from torch import Tensor

from fmseg.coseg import binarise, initial_mask
from fmseg.exercise import Exercise


def _maps() -> list[tuple]:
    """A map and the share of its locations to keep; the values are no shares, and some are negative."""
    generator = torch.Generator().manual_seed(11)
    made = [(4, 5, 0.3), (6, 6, 0.5), (8, 8, 0.1), (3, 3, 0.0)]
    return [(torch.randn(h, w, generator=generator) ** 3, keep) for h, w, keep in made]


def _highest(maps: Tensor, keep: float) -> Tensor:
    return binarise(maps, keep=keep)


def _of_range(maps: Tensor, keep: float) -> Tensor:
    return maps > maps.min() + (1 - keep) * (maps.max() - maps.min())


def _of_mass(maps: Tensor, keep: float) -> Tensor:
    return binarise(maps.clamp(min=0), mass=keep)


def _by_row(maps: Tensor, keep: float) -> Tensor:
    return torch.stack([binarise(row[None], keep=keep)[0] for row in maps])


highest_share = Exercise(
    _highest,
    _maps,
    {
        "You keep the *lowest* values.": lambda maps, keep: binarise(-maps, keep=keep),
        "You keep all but that share: values above the quantile of `keep`, where that of 1 - keep is asked for. This "
        "is the very doubt about the paper's K.": lambda maps, keep: maps > maps.quantile(keep),
        "You cut at a share of the map's range. How many locations lie above depends on the values then.": _of_range,
        "You keep a share of the map's sum, as DINO's visualisation does; asked for is a share of the locations.": (
            _of_mass
        ),
        "You keep that share in each row: one object may fill several rows and leave others empty.": _by_row,
    },
    learned="However flat or peaked a map is, its mask has the same size.",
)


def _scored() -> list[tuple]:
    """Scores (C, h, w), presence (C,), threshold."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for classes, present, threshold in ((3, (1, 0, 1), 0.5), (4, (1, 1, 0, 1), 0.4), (2, (0, 1), 0.6)):
        offset = torch.linspace(0, 0.6, classes)[:, None, None]
        scores = torch.rand(classes, 5, 6, generator=generator) * 0.7 - offset + 0.2
        made.append((scores, torch.tensor(present).bool(), threshold))
    return made


def _initial(scores: Tensor, present: Tensor, threshold: float) -> Tensor:
    return initial_mask(scores[None], present[None], threshold=threshold)[0]


def _scaled(scores: Tensor) -> Tensor:
    low, high = scores.amin((1, 2), keepdim=True), scores.amax((1, 2), keepdim=True)
    return (scores - low) / (high - low)


def _no_rivals(scores: Tensor, present: Tensor, threshold: float) -> Tensor:
    return (_scaled(scores) > threshold) & present[:, None, None]


def _all_rivals(scores: Tensor, present: Tensor, threshold: float) -> Tensor:
    return _no_rivals(scores, present, threshold) & (scores == scores.amax(0))


def _absent_too(scores: Tensor, present: Tensor, threshold: float) -> Tensor:
    return (_scaled(scores) > threshold) & (scores == scores.amax(0))


def _unscaled(scores: Tensor, present: Tensor, threshold: float) -> Tensor:
    return _rivalling(scores, present) & (scores > threshold)


def _scaled_together(scores: Tensor, present: Tensor, threshold: float) -> Tensor:
    seen = scores[present]
    return _rivalling(scores, present) & ((scores - seen.min()) / (seen.max() - seen.min()) > threshold)


def _rivalling(scores: Tensor, present: Tensor) -> Tensor:
    rivals = scores.masked_fill(~present[:, None, None], -torch.inf)
    return (rivals == rivals.amax(0)) & present[:, None, None]


def _scaled_first(scores: Tensor, present: Tensor, threshold: float) -> Tensor:
    scaled = _scaled(scores)
    return _rivalling(scaled, present) & (scaled > threshold)


clip_mask = Exercise(
    _initial,
    _scored,
    {
        "Rivals are missing: where two present classes score, the higher score takes the pixel.": _no_rivals,
        "Classes that the label does not name are rivals, too, as you have it; they are known not to be there.": (
            _all_rivals
        ),
        "Classes that the label does not name must get an empty mask.": _absent_too,
        "The threshold is meant for scores scaled to between 0 and 1, class by class.": _unscaled,
        "Scale each class by its own lowest and highest score: a class that CLIP scores low everywhere has its best "
        "place, too.": _scaled_together,
        "Scaled scores of two classes cannot be compared; let the scores themselves compete.": _scaled_first,
    },
    learned="The label does most of the work: it silences every class that is not there.",
)


def _ious() -> list[tuple]:
    return [(0.2,), (0.5,), (0.9,), (0.0,)]


break_even = Exercise(
    lambda iou: iou / (1 + iou),
    _ious,
    {
        "Not IoU itself: a right pixel moves from the misses to the hits and leaves the union as it was, a wrong one "
        "makes the union larger; write both.": lambda iou: iou,
        "Half right is not the limit: for a poor mask less is enough.": lambda iou: 0.5,
        "You turned it round: this is the share that may be wrong.": lambda iou: 1 / (1 + iou),
        "That is the Dice coefficient of the mask, 2 IoU / (1 + IoU); half of it is the answer.": lambda iou: (
            2 * iou / (1 + iou)
        ),
    },
    learned="So the worse the mask, the more a careless union helps it; a good mask is easily spoiled.",
)
