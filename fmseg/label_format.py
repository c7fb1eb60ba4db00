"""How mask files of a data set write class ids: where they start, and what a pixel without a label holds. Numpy only.

FreeMask's scripts are written for ADE20K (150 classes from 1, 0 is no label); COCO-Stuff has 171 from 0, 255 is none.
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

__all__ = ["ADE20K", "COCO_STUFF", "LabelFormat"]

_NO_CLASS = np.iinfo(np.int64).min


@dataclass(frozen=True)
class LabelFormat:
    """What values in a mask file, a byte a pixel, mean; in memory, classes are counted from 0.

    Attributes:
        num_classes: C, >= 1.
        ignore: the value of pixels without a label, in [0, 255]; a filtered pixel is written as this.
        shift: the value of class 0; 1 with mmsegmentation's ``reduce_zero_label``.
        ignore_index: what pixels without a label have in memory; not in [0, C).

    Raises:
        ValueError: the values do not fit into a byte, or a class has the value of pixels without a label.
    """

    num_classes: int
    ignore: int = 255
    shift: int = 0
    ignore_index: int = 255

    def __post_init__(self):
        if self.num_classes < 1 or self.shift < 0 or self.shift + self.num_classes > 256 or not 0 <= self.ignore < 256:
            raise ValueError(f"ids must fit into a byte, and there must be a class; got {self}")
        if self.shift <= self.ignore < self.shift + self.num_classes or 0 <= self.ignore_index < self.num_classes:
            raise ValueError(f"`ignore` and `ignore_index` must not be ids of classes; got {self}")

    def read(self, mask: ndarray) -> ndarray:
        """Labels of a decoded mask file.

        Args:
            mask: integers of any shape, as in the file.

        Returns:
            int64 of the same shape: class ids in [0, C) or ``ignore_index``.

        Raises:
            TypeError: not an array of integers.
            ValueError: a value is neither a class nor ``ignore``.
        """
        check_integers("mask", mask)
        table = np.full(257, _NO_CLASS)
        table[self.ignore] = self.ignore_index
        table[self.shift : self.shift + self.num_classes] = np.arange(self.num_classes)
        inside = mask if mask.dtype == np.uint8 else np.where((mask >= 0) & (mask < 256), mask, 256)
        labels = table[inside]
        bad = labels == _NO_CLASS
        if bad.any():
            raise self.unknown(mask, bad)
        return labels

    def write(self, labels: ndarray) -> ndarray:
        """The opposite of :meth:`read`.

        Args:
            labels: integers of any shape, class ids in [0, C) or ``ignore_index``.

        Returns:
            uint8 of the same shape, for a png of one channel.

        Raises:
            TypeError: not an array of integers.
            ValueError: an id is out of range.
        """
        check_integers("labels", labels)
        ignored = labels == self.ignore_index
        bad = ~ignored & ((labels < 0) | (labels >= self.num_classes))
        if bad.any():
            at = np.argwhere(bad)[0].tolist()
            raise ValueError(
                f"`labels` must hold class ids in [0, {self.num_classes}) or {self.ignore_index} (ignored); found "
                f"{int(labels[tuple(at)])} at {at}"
            )
        return np.where(ignored, self.ignore, labels + self.shift).astype(np.uint8)

    def unknown(self, mask: ndarray, bad: ndarray) -> ValueError:
        """The error for a mask file with values, where ``bad`` (bool) is true, that mean nothing."""
        at = np.argwhere(bad)[0].tolist()
        return ValueError(
            f"`mask` must hold {self.shift} to {self.shift + self.num_classes - 1} (classes) or {self.ignore} (no "
            f"label); found {int(mask[tuple(at)])} at {at}. Are `shift` and `ignore` those of this data set?"
        )


def check_integers(name: str, values: ndarray) -> None:
    """Raise TypeError where ``values`` is not an array of integers."""
    if not isinstance(values, ndarray) or values.dtype.kind not in "iu":
        kind = getattr(values, "dtype", type(values).__name__)
        raise TypeError(f"`{name}` must be an array of integer ids; got {kind}. np.array(picture) makes one of a png")


ADE20K = LabelFormat(150, ignore=0, shift=1)
COCO_STUFF = LabelFormat(171)  # train ids, as mmsegmentation's converter writes them
