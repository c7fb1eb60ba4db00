"""What each validation image adds to a run's IoUs, small enough for a run record. A bootstrap over images needs it."""

import base64
import binascii
import zlib

import numpy as np
from numpy import ndarray

from fmseg.metrics import confusion_matrix

BLOCKS = 300  # rows kept; of more images, image k adds to row k modulo 300


def count(pred: ndarray, target: ndarray, num_classes: int, ignore_index: int = 255) -> ndarray:
    """Pixels of each class and image: right, in the truth, in the prediction.

    Args:
        pred: (N, H, W) class ids in [0, C). target: (N, H, W) class ids or ``ignore_index``.
        num_classes: C. ignore_index: label of pixels that are not counted.

    Returns:
        (min(N, 300), C, 3) int64.

    Raises:
        TypeError, ValueError: as :func:`fmseg.metrics.confusion_matrix`; or no image.
    """
    if not len(target):
        raise ValueError("`target` must hold at least one image, got none")
    if len(pred) != len(target):
        raise ValueError(f"`pred` and `target` must hold as many images; got {len(pred)} and {len(target)}")
    found = np.zeros((min(len(target), BLOCKS), num_classes, 3), np.int64)
    for k, (guess, truth) in enumerate(zip(pred, target, strict=True)):
        matrix = confusion_matrix(guess, truth, num_classes, ignore_index)
        found[k % BLOCKS] += np.stack([np.diagonal(matrix), matrix.sum(1), matrix.sum(0)], 1)
    return found


def iou(counts: ndarray) -> ndarray:
    """IoU of each class over all rows.

    Args:
        counts: (B, C, 3) of :func:`count`, or some of its rows, repeated ones too.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class that occurs in no truth, as :func:`fmseg.metrics.iou_per_class`.
    """
    right, truth, guess = counts.sum(0).T
    found = np.full(len(right), np.nan)
    np.divide(right, truth + guess - right, out=found, where=truth > 0)
    return found


def pack(counts: ndarray) -> dict:
    """Counts as a JSON value.

    Args:
        counts: (B, C, 3) integers in [0, 2**32).

    Returns:
        {"shape": [B, C, 3], "zlib": base64 text of the four bytes of all counts, lowest bytes first}.

    Raises:
        ValueError: another shape, or a count out of range.
    """
    counts = np.asarray(counts)
    if counts.ndim != 3 or counts.shape[2] != 3 or counts.dtype.kind not in "iu":
        raise ValueError(f"`counts` must be integers (B, C, 3), got {counts.dtype} {counts.shape}")
    if counts.size and (counts.min() < 0 or counts.max() >= 2**32):
        raise ValueError(f"`counts` must be in [0, 2**32), got {counts.min()} to {counts.max()}")
    planes = counts.astype("<u4")[..., None].view(np.uint8).transpose(3, 2, 1, 0)  # like beside like: packs to a third
    return {"shape": list(counts.shape), "zlib": base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()}


def unpack(packed: dict) -> ndarray:
    """The (B, C, 3) int64 counts of :func:`pack`. Raises ValueError where text and shape do not fit."""
    try:
        rows, classes, kinds = packed["shape"]
        planes = np.frombuffer(zlib.decompress(base64.b64decode(packed["zlib"], validate=True)), np.uint8)
        planes = planes.reshape(4, kinds, classes, rows).transpose(3, 2, 1, 0)
        return np.ascontiguousarray(planes).view("<u4")[..., 0].astype(np.int64)
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise ValueError(f"`packed` must be what fmseg.image_counts.pack returns: {error}") from None
