"""Protocol I's scores of pictures that come a few at a time: what :func:`fmseg.grounded_scores.scores` says of all of
them at once, where all of them would not fit into memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fmseg import image_counts
from fmseg.grounded_images import MILLION
from fmseg.grounded_scores import COLUMNS, complete, overlaps
from fmseg.grounded_sets import Triplets


class Tally:
    """Update with pictures, then compute; the order of pictures decides only which row of :meth:`packed` is whose.

    Args:
        classes: how many names there are.
    """

    def __init__(self, classes: int):
        self._sums = np.zeros((len(COLUMNS), classes, 4))  # IoU, how many, pixels in both, pixels in either
        self._pictures = np.zeros(len(COLUMNS), np.int64)
        self._rows = np.zeros((image_counts.BLOCKS, len(COLUMNS) * classes, 3), np.int64)
        self._seen = 0

    def update(self, masks: Tensor, data: Triplets, groups: Sequence[str | None]) -> None:
        """Add pictures.

        Args:
            masks: (N, O, H, W) bool, the answers. data: what they are compared with.
            groups: the column of each picture, None to leave it out; as in :func:`fmseg.grounded_scores.scores`
                pictures in which the oracle missed something never count.

        Raises:
            ValueError: shapes do not fit.
        """
        if masks.shape != data.masks.shape or len(groups) != len(data):
            raise ValueError(
                f"`masks` must be {tuple(data.masks.shape)} with a group a picture; got {tuple(masks.shape)} and "
                f"{len(groups)} groups"
            )
        inside, whole = (x.numpy() for x in overlaps(masks, data.masks))
        counts, named, classes = complete(data).numpy(), data.named.numpy(), self._sums.shape[1]
        for row, group in enumerate(groups):
            block = self._rows[self._seen % image_counts.BLOCKS]
            self._seen += 1
            if group is None or not counts[row]:
                continue
            column = COLUMNS.index(group)
            self._pictures[column] += 1
            for slot in np.flatnonzero(named[row] >= 0):
                i, u = int(inside[row, slot]), int(whole[row, slot])
                iou, what = (i / u if u else 1.0), int(named[row, slot])
                self._sums[column, what] += (iou, 1, i, u)
                block[column * classes + what] += (round(MILLION * iou), 1, 0)

    def compute(self) -> dict[str, dict[str, float | int]]:
        """Column -> ``miou``, ``pooled`` (percent), ``pictures`` and ``classes`` that counted, of columns with any."""
        made = {}
        for column, pictures, sums in zip(COLUMNS, self._pictures, self._sums, strict=True):
            there = sums[:, 1] > 0
            if there.any():
                each = sums[there, 0] / sums[there, 1]
                pooled = sums[there, 2] / np.maximum(1, sums[there, 3])
                made[column] = {"miou": _percent(each), "pooled": _percent(pooled)}
                made[column] |= {"pictures": int(pictures), "classes": int(there.sum())}
        return made

    def counts(self) -> np.ndarray:
        """(rows, columns * classes, 3) int64, what each picture adds: see :func:`fmseg.grounded_images.counted`."""
        return self._rows[: max(1, min(self._seen, image_counts.BLOCKS))]


def packed(counts: np.ndarray) -> dict[str, Any]:
    """Counts of a :class:`Tally` as :func:`fmseg.grounded_images.counted` keeps them."""
    return {"columns": list(COLUMNS), "counts": image_counts.pack(counts)}


def by_column(tallies: dict[str, "Tally"], chosen: dict[str, str]) -> np.ndarray:
    """Counts whose columns come from different tallies: of each column those of the tally that is chosen for it.

    Args:
        tallies: of the same pictures. chosen: column -> key; columns that are left out stay zero.
    """
    first = next(iter(tallies.values()))
    made, classes = np.zeros_like(first.counts()), first._sums.shape[1]
    for column, key in chosen.items():
        part = slice(COLUMNS.index(column) * classes, (COLUMNS.index(column) + 1) * classes)
        made[:, part] = tallies[key].counts()[:, part]
    return made


def _percent(values) -> float:
    return round(100 * float(np.mean(values)), 4)
