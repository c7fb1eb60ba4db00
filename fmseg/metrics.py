"""Scores of a segmentation: confusion matrix, IoU per class, and the groupings that the three papers print.

Statistics are counts (update / merge / compute), so serial, sharded and resumed runs give the very same numbers.
IoU values are fractions in [0, 1] here; tables print them times 100. NaN means "no ground truth", never "zero".
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

_PIXELS_AT_ONCE = 1 << 18  # int64 temporaries of 2 MiB: they stay in cache and are not faulted in again and again
_SCORES_AT_ONCE = 1 << 22  # float32 scores of 16 MiB


def confusion_matrix(pred, target, num_classes: int, ignore_index: int = 255) -> np.ndarray:
    r"""Count how often each true class was given each predicted class.

    .. math:: M_{tp} = |\{i : y_i = t, \hat y_i = p, y_i \ne \text{ignore}\}|

    Args:
        pred: class ids in [0, C), numpy array or torch tensor of an integer dtype (bool counts as 0/1), any shape.
            Not looked at where ``target`` is ignored.
        target: class ids in [0, C) or ``ignore_index``; same shape as ``pred``, may be of the other library.
            On two devices, counting happens where ``pred`` is.
        num_classes: C, >= 1.
        ignore_index: the label of pixels that are not counted. A value in [0, C) leaves that class out.

    Returns:
        (C, C) int64 numpy array; rows are the truth, columns the prediction.

    Raises:
        TypeError: not an array, or not of an integer dtype (logits, one-hot or scaled masks).
        ValueError: shapes differ, or a counted id is out of range (the message says which and where).
    """
    num_classes, ignore_index = _check_classes(num_classes, ignore_index)
    _check_masks(pred, target)
    flat_pred, flat_target = pred.reshape(-1), target.reshape(-1)
    device = pred.device if isinstance(pred, torch.Tensor) else torch.device("cpu")
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=device)  # the last bin: pixels not counted
    for start in range(0, len(flat_target), _PIXELS_AT_ONCE):
        truth = _int64(flat_target[start : start + _PIXELS_AT_ONCE], device)
        guess = _int64(flat_pred[start : start + _PIXELS_AT_ONCE], device)
        counted = truth != ignore_index
        _check_range("target", truth, counted, num_classes, ignore_index, start, target.shape)
        _check_range("pred", guess, counted, num_classes, ignore_index, start, pred.shape)
        pair = torch.where(counted, truth * num_classes + guess, num_classes**2)
        counts += torch.bincount(pair, minlength=num_classes**2 + 1)
    return counts[:-1].cpu().numpy().reshape(num_classes, num_classes)


def iou_per_class(matrix) -> np.ndarray:
    r"""Intersection over union of each class of a confusion matrix.

    .. math:: \mathrm{IoU}_c = M_{cc} / (\sum_p M_{cp} + \sum_t M_{tc} - M_{cc})

    A class without ground truth gets NaN and so is left out of every mean. Pixels wrongly given to it still count
    against their true class.

    Args:
        matrix: (C, C) integer counts, rows are the truth, columns the prediction.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class with no ground truth.

    Raises:
        TypeError, ValueError: ``matrix`` is not a square table of counts.

    Differs from the official code: mmsegmentation's ``IoUMetric`` gives 0, not NaN, to a class that is predicted
    somewhere but occurs nowhere in the truth, so there a single stray pixel can cost 1/C of the mean.
    """
    matrix = _check_matrix(matrix)
    hit, truth, guess = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    iou = np.full(len(matrix), np.nan)
    np.divide(hit, truth + guess - hit, out=iou, where=truth > 0)
    return iou


class Confusion:
    """A confusion matrix that grows: ``update`` with masks, ``merge`` with another shard's, ``compute`` the IoUs.

    ``matrix`` ((C, C) int64, rows truth, columns prediction) is the whole state: save it, and continue with
    :meth:`from_matrix`. An update that raises leaves the state as it was.

    Args:
        num_classes: C, >= 1.
        ignore_index: the label of pixels that are not counted.

    Raises:
        TypeError, ValueError: an argument is no integer, or C < 1.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255):
        self.num_classes, self.ignore_index = _check_classes(num_classes, ignore_index)
        self.matrix = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)

    @classmethod
    def from_matrix(cls, matrix, ignore_index: int = 255) -> "Confusion":
        """Continue from a saved ``matrix`` ((C, C) counts: array, tensor or nested lists as JSON gives them).

        Raises TypeError or ValueError where it is not a square table of counts.
        """
        matrix = _check_matrix(matrix)
        confusion = cls(len(matrix), ignore_index)
        confusion.matrix += matrix
        return confusion

    def update(self, pred, target) -> "Confusion":
        """Add masks of any equal shape; arguments and errors are those of :func:`confusion_matrix`. Returns itself."""
        self.matrix += confusion_matrix(pred, target, self.num_classes, self.ignore_index)
        return self

    def merge(self, other: "Confusion") -> "Confusion":
        """Add what another shard has counted; returns itself, leaves ``other`` alone.

        Raises TypeError if ``other`` is no Confusion, ValueError if it counts other classes or ignores another label.
        """
        if not isinstance(other, Confusion):
            raise TypeError(f"`other` must be a Confusion, got {type(other).__name__}; see Confusion.from_matrix.")
        for name in ("num_classes", "ignore_index"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                raise ValueError(
                    f"`other` must have the same {name}: expected {mine}, got {its}. "
                    "Were the shards evaluated under different protocols?"
                )
        self.matrix += other.matrix
        return self

    def compute(self) -> np.ndarray:
        """(C,) float64 IoU per class, NaN for a class with no ground truth so far: see :func:`iou_per_class`."""
        return iou_per_class(self.matrix)

    def __repr__(self) -> str:
        return f"Confusion({self.num_classes} classes, {int(self.matrix.sum())} pixels, ignores {self.ignore_index})"


def mean_iou(iou, classes: Iterable[int] | None = None) -> float:
    """Mean IoU over the classes that have ground truth.

    Args:
        iou: (C,) floats as :meth:`Confusion.compute` gives them; NaN (or None, as in JSON) is left out.
        classes: ids to average over, each once; all by default.

    Returns:
        The mean as a fraction; NaN, without a warning, if nothing is left to average.

    Raises:
        TypeError, ValueError: ``iou`` is not one row of numbers; ``classes`` holds an id that is not in it, or twice.
    """
    iou = _check_iou(iou)
    chosen = iou if classes is None else iou[_check_ids("classes", classes, len(iou))]
    chosen = chosen[~np.isnan(chosen)]
    return float(chosen.mean()) if chosen.size else float("nan")


def grouped_iou(iou, old: Iterable[int], new: Iterable[int], background: int | None = 0) -> dict[str, float]:
    """Mean IoU of old classes, of new ones, and of all: the three columns of an incremental-learning table.

    ``old`` never contains the background, ``all`` does: only so do the per-class rows of WILSON (CVPR 2022,
    supplement, Tables 4-7) average to the values that it prints, and FMWISS reprints its tables.

    Args:
        iou: (C,) floats, NaN where there is no ground truth.
        old: ids of the classes of earlier steps; the background is dropped from them if it is listed.
        new: ids of the classes of this step.
        background: its id, or None if there is no such class.

    Returns:
        {"old", "new", "all"}: fractions, each over its classes with ground truth; "all" is over background, old and
        new, so classes that are in none of them (of later steps) do not enter. NaN where a group is empty.

    Raises:
        TypeError, ValueError: ids out of range, listed twice or in both groups; background listed as new.
    """
    iou = _check_iou(iou)
    old, new = _check_ids("old", old, len(iou)), _check_ids("new", new, len(iou))
    behind = [] if background is None else _check_ids("background", [background], len(iou))
    old = [c for c in old if c not in behind]
    _check_disjoint("old", old, "new", new)
    _check_disjoint("background", behind, "new", new)
    return {"old": mean_iou(iou, old), "new": mean_iou(iou, new), "all": mean_iou(iou, [*behind, *old, *new])}


def seen_unseen(iou, seen: Iterable[int], unseen: Iterable[int]) -> dict[str, float]:
    r"""Mean IoU of seen and of unseen classes and their harmonic mean: the columns of a zero-shot table.

    .. math:: H = 2SU / (S + U), \quad H = 0 \text{ if } S = U = 0

    Args:
        iou: (C,) floats, NaN where there is no ground truth.
        seen: ids of classes with training masks; list the background here if the table counts it.
        unseen: ids of classes without.

    Returns:
        {"seen", "unseen", "harmonic"}: fractions; NaN for a group without ground truth, and then for H too.

    Raises:
        TypeError, ValueError: ids out of range, listed twice or in both groups.
    """
    iou = _check_iou(iou)
    seen, unseen = _check_ids("seen", seen, len(iou)), _check_ids("unseen", unseen, len(iou))
    _check_disjoint("seen", seen, "unseen", unseen)
    s, u = mean_iou(iou, seen), mean_iou(iou, unseen)
    return {"seen": s, "unseen": u, "harmonic": 0.0 if s == u == 0 else 2 * s * u / (s + u)}


def grid_ceiling(labels, num_classes: int, grid: int, ignore_index: int = 255) -> np.ndarray:
    r"""IoU per class of the truth itself after it went through a coarse grid: what a grid-bound prediction can reach.

    The truth, one-hot, is averaged in each cell of a grid x grid map (over the pixels that are not ignored), resized
    back bilinearly (``align_corners=False``), and its argmax (a tie goes to the lower id) is scored against the truth.
    Even a mask that is constant in every cell can lose pixels when cells are over 2 pixels wide: at the corner of a
    region the three neighbouring cells outweigh the pixel's own.

    It is the ceiling of *this* read-out of an ideal coarse map, not of every way to use one.

    Args:
        labels: (N, H, W) integer array or tensor, class ids in [0, C) or ``ignore_index``; H and W divisible by grid.
        num_classes: C, >= 1.
        grid: cells along each side, >= 1.
        ignore_index: label of pixels that are neither pooled nor scored.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class with no ground truth.

    Raises:
        TypeError, ValueError: wrong dtype or shape, ids out of range, size not divisible by ``grid``.
    """
    confusion = Confusion(num_classes, ignore_index)
    _check_mask("labels", labels)
    if labels.ndim != 3:
        raise ValueError(f"`labels` must be (N, H, W), got shape {tuple(labels.shape)}; one image is labels[None].")
    grid = _check_int("grid", grid, 1)
    n, height, width = labels.shape
    if height % grid or width % grid:
        raise ValueError(
            f"`grid` must divide the image size: {height} x {width} pixels do not split into {grid} x {grid} equal "
            "cells. Crop or resize the labels (nearest neighbour) first, or choose another grid."
        )
    step = max(1, _SCORES_AT_ONCE // max(1, num_classes * height * width))
    for start in range(0, n, step):
        truth = _int64(labels[start : start + step], torch.device("cpu"))
        where = (start * height * width, tuple(labels.shape))
        _check_range("labels", truth, truth != ignore_index, num_classes, ignore_index, *where)
        scores = _cell_shares(truth, num_classes, grid, ignore_index)
        coarse = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False).argmax(1)
        confusion.update(coarse, truth)
    return confusion.compute()


def _cell_shares(truth, num_classes, grid, ignore_index):
    """(N, C, grid, grid) float32: the share of each class among the counted pixels of a cell, 0 if there are none."""
    n, height, width = truth.shape
    image = torch.arange(n).view(n, 1, 1) * grid**2
    row = (torch.arange(height) * grid // height).view(1, height, 1) * grid
    column = (torch.arange(width) * grid // width).view(1, 1, width)
    ids = torch.where(truth == ignore_index, num_classes, truth)  # one more bin, for ignored pixels
    bins = (image + row + column) * (num_classes + 1) + ids
    counts = torch.bincount(bins.flatten(), minlength=n * grid**2 * (num_classes + 1))
    counts = counts.view(n, grid, grid, num_classes + 1)[..., :num_classes]
    shares = counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    return shares.permute(0, 3, 1, 2)


# -- validation ------------------------------------------------------------------------------------------------------


def _int64(x, device):
    if isinstance(x, torch.Tensor):
        return x.to(device=device, dtype=torch.int64)
    return torch.from_numpy(x.astype(np.int64)).to(device)


def _check_int(name, value, least=None):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {value!r} ({type(value).__name__}).")
    if least is not None and value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    return int(value)


def _check_classes(num_classes, ignore_index):
    return _check_int("num_classes", num_classes, 1), _check_int("ignore_index", ignore_index)


def _check_mask(name, mask):
    if isinstance(mask, torch.Tensor):
        wrong = mask.dtype.is_floating_point or mask.dtype.is_complex
    elif isinstance(mask, np.ndarray):
        wrong = mask.dtype.kind not in "biu"
    else:
        raise TypeError(
            f"`{name}` must be a numpy array or a torch tensor of class ids, got {type(mask).__name__}; "
            "np.asarray converts lists and images."
        )
    if not wrong:
        return
    kind = str(mask.dtype).removeprefix("torch.")
    if name != "pred":
        raise TypeError(
            f"`{name}` must hold integer class ids, got {kind} of shape {tuple(mask.shape)}. A mask scaled to [0, 1], "
            "resized with interpolation, or one-hot? Go back to the ids; cast only if every value is a whole number."
        )
    nan = "; it holds NaN, which argmax would silently turn into a class" if "float" in kind and _has_nan(mask) else ""
    raise TypeError(
        f"`pred` must hold integer class ids, got {kind} of shape {tuple(mask.shape)}{nan}. "
        "Logits or probabilities? Take the argmax over the class axis first: pred.argmax(1) for (B, C, H, W)."
    )


def _has_nan(mask):
    return bool(mask.isnan().any() if isinstance(mask, torch.Tensor) else np.isnan(mask).any())


def _check_masks(pred, target):
    _check_mask("pred", pred)
    _check_mask("target", target)
    if tuple(pred.shape) != tuple(target.shape):
        hint = "Resize the prediction to the truth, not the truth to the prediction."
        if pred.ndim == target.ndim + 1:
            hint = "Does it still have a class axis? Take the argmax over it first."
        raise ValueError(
            f"`pred` must have the shape of `target`, {tuple(target.shape)}; got {tuple(pred.shape)}. {hint}"
        )


def _check_range(name, ids, counted, num_classes, ignore_index, start, shape):
    """Raise at the first counted id out of [0, C); `start` is the flat position of `ids` in an array of `shape`."""
    if not ids.numel():
        return
    ids = torch.where(counted, ids, 0)
    low, high = ids.aminmax()
    if low >= 0 and high < num_classes:
        return
    first = int(((ids < 0) | (ids >= num_classes)).flatten().nonzero()[0])
    value = int(ids.flatten()[first])
    place = [int(i) for i in np.unravel_index(start + first, tuple(shape))]
    allowed = f"class ids in [0, {num_classes})"
    if name == "pred":
        hint = "Does the model have more outputs than the data set has classes, or are these ids of another data set?"
    else:
        allowed += f" or {ignore_index}"
        hint = "Are these ids of another data set, or is `num_classes` too small?"
        if value in (255, -1, -100):
            hint = f"If {value} marks pixels that do not count, pass ignore_index={value}."
    raise ValueError(f"`{name}` must hold {allowed}; found {value} at {place}. {hint}")


def _check_matrix(matrix):
    matrix = np.asarray(matrix.cpu() if isinstance(matrix, torch.Tensor) else matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"`matrix` must be a square table of counts, (C, C) with C >= 1; got shape {matrix.shape}.")
    if matrix.dtype.kind not in "iu":
        raise TypeError(f"`matrix` must hold integer counts, got {matrix.dtype}; was it normalised? Keep the counts.")
    if (matrix < 0).any():
        raise ValueError(f"`matrix` must hold counts >= 0, got {matrix.min()}; did an int32 overflow?")
    return matrix.astype(np.int64)


def _check_iou(iou):
    iou = np.asarray(iou.cpu() if isinstance(iou, torch.Tensor) else iou, dtype=np.float64)
    if iou.ndim != 1:
        raise ValueError(
            f"`iou` must be one value a class, (C,); got shape {iou.shape}. Not a matrix: see iou_per_class."
        )
    return iou


def _check_ids(name, ids, num_classes):
    ids = [_check_int(name, i) for i in ids]
    for i in ids:
        if not 0 <= i < num_classes:
            raise ValueError(f"`{name}` must hold class ids in [0, {num_classes}), the length of `iou`; found {i}.")
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise ValueError(f"`{name}` must list each class once; found {twice} more than once.")
    return ids


def _check_disjoint(name, ids, other, others):
    both = sorted(set(ids) & set(others))
    if both:
        raise ValueError(f"`{name}` and `{other}` must not share classes; both hold {both}. Put each into one group.")
