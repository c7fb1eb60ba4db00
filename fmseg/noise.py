"""Which regions of a synthetic image do not show what its mask says: loss by pixel, mean loss by class, filter.

Yang et al. 2023, "FreeMask: Synthetic Images with Dense Annotations Make Stronger Segmentation Models", and its code
github.com/LiheYoung/FreeMask, preprocess/filter.py. A segmenter that was trained on the real images judges both::

    stats = ClassLoss(num_classes)
    for image, labels in real_training_set:  # real *training* images, not synthetic ones, not the validation set
        stats.update(loss_map(segmenter(image), labels), labels)
    means = stats.compute()
    for image, labels in synthetic_set:
        clean = filter_labels(loss_map(segmenter(image), labels), labels, means)

Only pixels are dropped, never images. Ids run from 0 and pixels without a label have ``ignore_index``; mask files hold
other values, see :class:`fmseg.label_format.LabelFormat`. Filter after re-sampling: see :mod:`fmseg.resample`.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from fmseg.pixel_loss import check_labels

__all__ = ["EPSILON", "MARGIN", "ClassLoss", "filter_labels", "loss_map"]

MARGIN = 1.25  # alpha, on both data sets
EPSILON = 1e-5  # pixels, added to the denominator of a class's mean
IGNORE = 255
CHUNK = 1 << 18  # scores in each of a few blocks: 1 MiB in float32, with which a CPU's cache copes
_NATS = math.log(2)  # in a bit
_SPREAD = 80.0  # of scores; exp(-80) is a normal float32, so that no product of exponentials is rounded to nothing


@torch.no_grad()
def loss_map(logits: Tensor, labels: Tensor, *, ignore_index: int = IGNORE, chunk: int = CHUNK) -> Tensor:
    r"""Cross-entropy of every pixel, FreeMask dossier eq. 1, straight from the scores on the head's grid.

    .. math:: \ell_p = -\log \frac{\exp z_{m_p,p}}{\sum_c \exp z_{c,p}}, \quad z = \mathrm{resize}(\mathrm{logits})

    Equal to ``F.cross_entropy(F.interpolate(logits, (H, W), mode="bilinear"), labels, reduction="none")`` up to
    rounding, but resizing, log-sum-exp and the target's score are done in chunks of rows, and the C maps of full size
    are never stored. Where the grid divides the labels' size, a pixel costs no exponential of its own (see
    ``_by_progression``). Not differentiable; images do not influence each other.

    Args:
        logits: (B, C, h, w) float, unnormalised scores on a grid of any size; half precision is computed in float32.
        labels: (B, H, W) int64, class ids in [0, C) or ``ignore_index``.
        ignore_index: label of pixels without a loss.
        chunk: about so many scores are held in each of a few blocks, >= 1; changes no loss by more than rounding.

    Returns:
        (B, H, W) nats >= 0, float32 (float64 for float64); 0 where ignored, so all 0 for a mask that is all ignored.

    Raises:
        TypeError, ValueError: shapes, dtypes or ids do not fit; a score is not finite, ignored places included; the
            scores are probabilities.

    Differs from the official code: ``model.predict`` resizes first and stores all maps; there NaN scores keep every
    pixel silently, and versions of mmsegmentation whose ``predict`` returns probabilities yield another criterion.
    """
    spreads = _check(logits, labels, ignore_index, chunk)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    out = logits.new_zeros(labels.shape)
    for grid, spread, mask, into in zip(logits, spreads, labels, out, strict=True):
        counted = mask != ignore_index
        if not bool(counted.any()):
            continue
        framed, size = _framed(grid), tuple(mask.shape)
        factors = [whole / part for whole, part in zip(size, grid.shape[1:], strict=True)]
        if spread <= _SPREAD and factors != [1, 1] and all(f.is_integer() for f in factors):
            total = _by_progression(framed, int(factors[0]), int(factors[1]), chunk)
        else:
            total = _by_rows(framed, size, chunk, spread <= _SPREAD)
        bits = total.sub_(_of_target(framed, torch.where(counted, mask, 0)))
        torch.mul(bits, _NATS, out=into).clamp_(min=0).masked_fill_(~counted, 0)
    return out


class ClassLoss:
    r"""Mean loss by class that grows: ``update`` with images, ``merge`` with another shard's, ``compute`` the means.

    .. math:: \bar\ell_c = \frac{\sum_i \sum_p [m_{i,p} = c]\, \ell_{i,p}}{\sum_i \sum_p [m_{i,p} = c] + 10^{-5}}

    (FreeMask dossier eq. 2.) Every pixel weighs the same, in a large image or a small one. Sums are in float64, so that
    shards and orders differ in the last digits only. ``counts`` ((C,) int64) and ``sums`` ((C,) float64, nats) are the
    whole state: save them, and continue with :meth:`from_state`. An update that raises leaves the state as it was.

    Args:
        num_classes: C, >= 1.
        ignore_index: label of pixels that do not count.

    Raises:
        ValueError: C < 1.

    Differs from the official code: one pass a batch instead of one a class and image, and no limit to batches of one;
    there each image's sum is in float32.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE):
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"`num_classes` must be an integer >= 1; got {num_classes!r}")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.counts, self.sums = np.zeros(num_classes, np.int64), np.zeros(num_classes)

    @classmethod
    def from_state(cls, counts, sums, ignore_index: int = IGNORE) -> "ClassLoss":
        """Continue from saved ``counts`` and ``sums``, (C,) each: arrays, or lists as JSON gives them.

        Raises ValueError where they are no counts and sums of losses.
        """
        counts, sums = np.asarray(counts), np.asarray(sums, dtype=np.float64)
        fits = counts.ndim == 1 and counts.size and counts.dtype.kind in "iu" and counts.shape == sums.shape
        if not fits or (counts < 0).any() or not (np.isfinite(sums) & (sums >= 0)).all():
            raise ValueError(
                f"`counts` and `sums` must be (C,) integers >= 0 and finite numbers >= 0; got {counts.dtype} of "
                f"{counts.shape} and {sums.shape}"
            )
        stats = cls(len(counts), ignore_index)
        stats.counts += counts.astype(np.int64)
        stats.sums += sums
        return stats

    def update(self, loss: Tensor, labels: Tensor) -> "ClassLoss":
        """Add images; returns itself.

        Args:
            loss: float of any shape, nats >= 0, as of :func:`loss_map`; not looked at where ignored.
            labels: int64 of that shape, ids in [0, C) or ``ignore_index``.

        Raises:
            TypeError, ValueError: shapes, dtypes or ids do not fit; a loss is not finite or negative.
        """
        loss = _check_losses(loss, labels, self.num_classes, self.ignore_index)
        bins = torch.where(labels == self.ignore_index, self.num_classes, labels).flatten()
        size = self.num_classes + 1  # the last bin: pixels that do not count
        self.counts += torch.bincount(bins, minlength=size)[:-1].cpu().numpy()
        self.sums += torch.bincount(bins, loss.flatten().double(), minlength=size)[:-1].cpu().numpy()
        return self

    def merge(self, other: "ClassLoss") -> "ClassLoss":
        """Add what another shard has seen; returns itself, leaves ``other`` alone.

        Raises TypeError if ``other`` is no ClassLoss, ValueError if it has other classes or ignores another label.
        """
        if not isinstance(other, ClassLoss):
            raise TypeError(f"`other` must be a ClassLoss; got {type(other).__name__}. See ClassLoss.from_state")
        mine, its = ((s.num_classes, s.ignore_index) for s in (self, other))
        if mine != its:
            raise ValueError(f"`other` must be of as many classes and ignore the same label, {mine}; got {its}")
        self.counts += other.counts
        self.sums += other.sums
        return self

    def compute(self, absent: str = "drop") -> ndarray:
        """Mean loss of each class so far.

        Args:
            absent: what a class gets that no pixel has had. "drop", as officially: 0, so that the filter drops all its
                pixels with a loss above 0. "keep": infinity, so that it drops none.

        Returns:
            (C,) float64, nats.

        Raises:
            ValueError: ``absent`` is another word.
        """
        if absent not in ("drop", "keep"):
            raise ValueError(f"`absent` must be 'drop' or 'keep'; got {absent!r}")
        means = self.sums / (self.counts + EPSILON)
        return means if absent == "drop" else np.where(self.counts > 0, means, math.inf)

    def __repr__(self) -> str:
        seen = f"{int(self.counts.sum())} pixels of {int((self.counts > 0).sum())} classes"
        return f"ClassLoss({self.num_classes} classes, {seen}, ignores {self.ignore_index})"


@torch.no_grad()
def filter_labels(
    loss: Tensor, labels: Tensor, means: ndarray, *, alpha: float = MARGIN, ignore_index: int = IGNORE
) -> Tensor:  # fmt: skip
    r"""Labels without the pixels that a synthetic image got wrong, FreeMask dossier eq. 3.

    .. math:: \tilde m_p = \mathrm{ignore} \;\text{if}\; \ell_p > \alpha\, \bar\ell_{m_p}, \quad m_p \;\text{otherwise}

    The threshold is strict, a tie is kept. It is rounded to the precision of ``loss``, as PyTorch does where it
    compares a tensor with a number.

    Args:
        loss: float of any shape, nats >= 0, as of :func:`loss_map`; not looked at where ignored.
        labels: int64 of that shape, ids in [0, C) or ``ignore_index``; not changed.
        means: (C,) >= 0, of :meth:`ClassLoss.compute` over the real training images; infinite: never filtered.
        alpha: the tolerance margin, >= 0; a larger one keeps more, infinity everything.
        ignore_index: label of pixels that do not count, and of those filtered.

    Returns:
        int64 of the shape of ``labels``. All ignored stays all ignored.

    Raises:
        TypeError, ValueError: shapes, dtypes or ids do not fit, a loss is not finite or negative, ``alpha`` < 0.

    Differs from the official code: one look-up a pixel instead of a pass a class; a filtered pixel becomes
    ``ignore_index``, there 0, which is what ``ADE20K.write`` makes of it.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha >= 0:
        raise ValueError(f"`alpha` must be a number >= 0, {MARGIN} in the paper; got {alpha!r}")
    limits = torch.as_tensor(means, dtype=torch.float64)
    if limits.ndim != 1 or not len(limits) or not bool((limits >= 0).all()):
        raise ValueError(
            f"`means` must be (C,) numbers >= 0, one a class; got {tuple(limits.shape)}, from "
            f"{float(limits.min()) if limits.numel() else math.nan}. See ClassLoss.compute"
        )
    loss = _check_losses(loss, labels, len(limits), ignore_index)
    if math.isinf(alpha):
        return labels.clone()
    limits = torch.cat((alpha * limits, limits.new_tensor([math.inf]))).to(loss)  # the last: pixels without a label
    limit = limits.take(torch.where(labels == ignore_index, len(limits) - 1, labels))
    return labels.masked_fill(loss > limit, ignore_index)


def _framed(grid: Tensor) -> Tensor:
    """(C, h + 2, w + 2): scores (C, h, w) in bits, less the largest at each point, framed by the outermost ones again.

    What all classes share at a grid point they share after resizing, too, so it cancels, and the sums of exponentials
    are near 1. Resizing repeats the outermost points beyond the grid; the frame makes them cells like others.
    """
    classes, height, width = grid.shape
    framed = grid.new_empty(classes, height + 2, width + 2)
    torch.sub(grid, grid.amax(0), out=framed[:, 1:-1, 1:-1])
    framed.mul_(1 / _NATS)  # powers of two are computed faster than those of e
    framed[:, 1:-1, 0], framed[:, 1:-1, -1] = framed[:, 1:-1, 1], framed[:, 1:-1, -2]
    framed[:, 0], framed[:, -1] = framed[:, 1], framed[:, -2]
    return framed


def _by_progression(framed: Tensor, down: int, across: int, chunk: int) -> Tensor:
    """(H, W) bits: log of the sum over classes, resized by whole factors, without an exponential a class and pixel.

    Between four grid points a score is A + B s + C t + D s t, and pixels lie at equal steps of s and of t. So its
    exponential is a geometric progression along a row as well as along a column, and that of its step down a column is
    one along a row: four exponentials and some products serve down * across pixels. The spread of the scores bounds all
    of them away from overflow and underflow.
    """
    classes, cells, width = framed.shape[0], framed.shape[1] - 1, framed.shape[2]
    lines = framed.view(classes, -1)
    sums = framed.new_empty(down, across, cells * width)  # a pixel's place in its cell, the cell between grid points
    at_once = max(1, chunk // (classes * width))
    block = pixel = framed.new_empty(0)
    for start in range(0, cells, at_once):
        here = slice(start * width, min(start + at_once, cells) * width)
        if block.numel() != 4 * classes * (here.stop - here.start):  # at the start, and where fewer rows remain
            block = framed.new_empty(4, classes, here.stop - here.start)
            pixel = torch.empty_like(block[0])
        value, down_step, across_steps = block[0], block[1], block[2:].view(-1)
        torch.sub(lines[:, here.start + width : here.stop + width], lines[:, here], out=block[2])
        torch.add(lines[:, here], block[2], alpha=_first(down), out=value)
        torch.mul(block[2], 1 / down, out=down_step)
        # in one long line, the last point of a row gets a right neighbour that is none: a column that is cut off below
        both = block[:2].view(-1)
        torch.sub(both[1:], both[:-1], out=across_steps[:-1])
        across_steps[-1] = 0
        both.add_(across_steps, alpha=_first(across))
        across_steps.mul_(1 / across)
        block.exp2_()
        for j in range(across):
            if j:
                block[:2] *= block[2:]
            torch.sum(value, 0, out=sums[0, j, here])
            for i in range(1, down):
                torch.mul(pixel if i > 1 else value, down_step, out=pixel)
                torch.sum(pixel, 0, out=sums[i, j, here])
    full = sums.log2_().view(down, across, cells, width)[..., :-1].permute(2, 0, 3, 1)
    full = full.reshape(cells * down, (width - 1) * across)
    top, side = down - down // 2, across - across // 2  # pixels of the outermost cells that lie outside of the image
    return full[top : top + (cells - 1) * down, side : side + (width - 2) * across]


def _first(factor: int) -> float:
    """Where in a cell its first pixel lies: pixels are centred on their squares (``align_corners=False``)."""
    return 0.0 if factor % 2 else 0.5 / factor


def _by_rows(framed: Tensor, size: tuple[int, int], chunk: int, narrow: bool) -> Tensor:
    """(H, W) bits: log of the sum over classes for any size and, if not ``narrow``, any spread; some rows at a time."""
    grid = framed[:, 1:-1, 1:-1]
    upper, lower, _, weights = _axis(grid.shape[1], size[0], grid)
    out = grid.new_empty(size)
    at_once = max(1, 4 * chunk // (len(grid) * size[1]))
    for start in range(0, size[0], at_once):
        here = slice(start, start + at_once)
        needed = slice(int(upper[start]), int(lower[here][-1]) + 1)
        rows = F.interpolate(grid[:, needed], size[1], mode="linear", align_corners=False)
        z = weights[here, needed] @ rows
        out[here] = z.exp2_().sum(0).log2_() if narrow else z.mul_(_NATS).logsumexp(0).div_(_NATS)
    return out


def _of_target(framed: Tensor, target: Tensor) -> Tensor:
    """(H, W) bits: resized scores of each pixel's own class, four look-ups a pixel."""
    _, height, width = framed.shape
    upper, lower, share, _ = _axis(height - 2, target.shape[0], framed)
    left, right, part, _ = _axis(width - 2, target.shape[1], framed)
    plane = target * (height * width)
    above, below = (plane + ((row + 1) * width + 1)[:, None] for row in (upper, lower))
    above = torch.lerp(framed.take(above + left), framed.take(above + right), part)
    below = torch.lerp(framed.take(below + left), framed.take(below + right), part)
    return torch.lerp(above, below, share[:, None])


def _axis(size_in: int, size_out: int, like: Tensor) -> tuple[Tensor, ...]:
    """Linear resizing of one axis: both neighbours of each output, the share of the second; and all as a matrix.

    Returns:
        (size_out,) int64 twice, (size_out,) float, (size_out, size_in) float.
    """
    return tuple(each.to(like.device) for each in _cpu_axis(size_in, size_out, like.dtype))


@lru_cache(maxsize=64)
def _cpu_axis(size_in: int, size_out: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    # read off torch's own resizing: positions worked out anew would be rounded otherwise, and shares differ by 1e-5
    points = torch.eye(size_in, dtype=dtype)[None]
    matrix = F.interpolate(points, size_out, mode="linear", align_corners=False)[0].T.contiguous()
    first = (matrix > 0).int().argmax(1)
    second = (first + 1).clamp(max=size_in - 1)
    share = torch.where(second > first, 1 - matrix.gather(1, first[:, None])[:, 0], 0)
    return first, second, share, matrix


def _check(logits: Tensor, labels: Tensor, ignore_index: int, chunk: int) -> list[float]:
    """Raise where arguments do not fit; else the spread of each image's scores."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"`logits` must be a tensor of floats; got {getattr(logits, 'dtype', type(logits).__name__)}")
    if logits.ndim != 4 or 0 in logits.shape[1:]:
        hint = "One image is x[None]" if logits.ndim == 3 else "Is an axis missing?"
        raise ValueError(f"`logits` must be (B, C, h, w), C, h, w >= 1; got {tuple(logits.shape)}. {hint}")
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"`chunk` must be an integer >= 1, a number of scores; got {chunk!r}")
    _check_ids(labels, logits.shape[1], ignore_index)
    if labels.ndim != 3 or len(labels) != len(logits) or 0 in labels.shape[1:]:
        raise ValueError(
            f"`labels` must be (B, H, W) with B = {len(logits)} as in `logits`, H, W >= 1; got {tuple(labels.shape)}. "
            "Images of different sizes go in one by one"
        )
    spreads = []
    for grid in logits:
        low, high = (float(x) for x in grid.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            at = (~logits.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"`logits` must be finite; found {float(logits[tuple(at)])} at {at}. Is the checkpoint whole, and does "
                "the model get normalised images? Half precision may have overflowed"
            )
        if low >= 0 and high <= 1 and len(grid) > 1 and bool(((grid.float().sum(0) - 1).abs() < 1e-3).all()):
            raise ValueError(
                "`logits` must be unnormalised scores; these sum to 1 over the classes: probabilities, as `predict` of "
                "mmsegmentation 0.x returns. Take their logarithm, or the scores before softmax"
            )
        spreads.append(high - low)
    return spreads


def _check_ids(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        raise TypeError(
            f"`labels` must be int64 class ids; got {getattr(labels, 'dtype', type(labels).__name__)}. See LabelFormat"
        )
    inside = torch.where(labels == ignore_index, 0, labels)
    if inside.numel() and not 0 <= int(inside.min()) <= int(inside.max()) < num_classes:
        check_labels(labels, num_classes, ignore_index)


def _check_losses(loss: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """``loss``, 0 where ignored."""
    if not isinstance(loss, Tensor) or not loss.is_floating_point():
        raise TypeError(f"`loss` must be a tensor of floats; got {getattr(loss, 'dtype', type(loss).__name__)}")
    _check_ids(labels, num_classes, ignore_index)
    if loss.shape != labels.shape:
        raise ValueError(
            f"`loss` and `labels` must have one shape; got {tuple(loss.shape)} and {tuple(labels.shape)}. `loss_map` "
            "brings the scores to the size of the labels"
        )
    loss = torch.where(labels == ignore_index, 0, loss)
    if loss.numel():
        low, high = (float(x) for x in loss.aminmax())
        if not (low >= 0 and high < math.inf):
            bad = ~((loss >= 0) & (loss < math.inf))
            at = bad.nonzero()[0].tolist()
            raise ValueError(f"`loss` must be finite and >= 0, nats; found {float(loss[tuple(at)])} at {at}")
    return loss
