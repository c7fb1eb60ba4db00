"""More synthetic images for masks that are hard to learn: hardness, counts, the draw and its manifest. Numpy only.

Yang et al. 2023, "FreeMask: Synthetic Images with Dense Annotations Make Stronger Segmentation Models", and its code
github.com/LiheYoung/FreeMask, preprocess/resample.py. How many images a mask gets depends on the real masks and on the
class means of :class:`fmseg.noise.ClassLoss` alone, neither on images nor on the filter. So draw first, then generate
and filter only what was drawn: the same training set, at 54.9 % of the cost on ADE20K and 65.3 % on COCO-Stuff::

    means = stats.compute()
    plan = manifest({name: hardness(class_counts(mask, ADE20K), means) for name, mask in real_training_masks})
    for name, index in pairs(plan):
        image, labels = generate(name, seed=FIRST_SEED + index)
        clean = filter_labels(loss_map(segmenter(image), labels), labels, means)
        save(image_name(name, index), image, clean)

The official scripts generate and filter all images, then copy those drawn.
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from fmseg.label_format import LabelFormat, check_integers

__all__ = [
    "EPSILON", "FIRST_SEED", "MOST", "SIDE", "class_counts", "counts_by_rank", "draw", "hardness", "image_counts",
    "image_name", "manifest", "nearest", "pairs", "saving",
]  # fmt: skip

SIDE = 512  # pixels; masks are squashed to a square, as the generator takes them
MOST = 20  # N_max on ADE20K; 6 on COCO-Stuff
FIRST_SEED = 42  # of the generator's noise; index i is seed 42 + i
EPSILON = 1e-5  # pixels, added to the denominator


def nearest(mask: ndarray, side: int = SIDE) -> ndarray:
    """A mask squashed to a square by nearest neighbour.

    Args:
        mask: (H, W) of any dtype.
        side: pixels, >= 1.

    Returns:
        (side, side): pixel (i, j) is that of row floor((i + 1/2) H / side), likewise its column, as PIL's
        ``Image.resize((side, side), Image.NEAREST)``; ``mask`` itself where it has that size.

    Raises:
        ValueError: not two dimensions, an empty mask, or ``side`` < 1.
    """
    _check_count("side", side)
    if getattr(mask, "ndim", None) != 2 or not mask.size:
        raise ValueError(f"`mask` must be (H, W), not empty; got {getattr(mask, 'shape', type(mask).__name__)}")
    if mask.shape == (side, side):
        return mask
    rows, columns = ((2 * np.arange(side) + 1) * size // (2 * side) for size in mask.shape)
    return mask[rows[:, None], columns]


def class_counts(mask: ndarray, labels: LabelFormat, *, side: int | None = SIDE) -> ndarray:
    r"""Pixels of each class in a real mask, n of FreeMask dossier eq. 4, from one histogram.

    Args:
        mask: (H, W) integers as in the file.
        labels: how the file writes class ids.
        side: the mask is squashed to so many pixels squared first, see :func:`nearest`; None: it is counted as it is.

    Returns:
        (C,) int64; pixels without a label are in none of them.

    Raises:
        TypeError, ValueError: shape or dtype do not fit, or a value is neither a class nor ignored.

    Differs from the official code: one histogram, there a sort and a pass a class; C and ids are parameters.
    """
    check_integers("mask", mask)
    small = nearest(mask, side) if side is not None else mask
    if small.dtype == np.uint8:
        values = _histogram(small)
    else:
        values = np.bincount(np.where((small >= 0) & (small < 256), small, 256).ravel(), minlength=257)
    counts = values[labels.shift : labels.shift + labels.num_classes].astype(np.int64)
    if counts.sum() + values[labels.ignore] < small.size:
        known = [labels.ignore, *range(labels.shift, labels.shift + labels.num_classes)]
        raise labels.unknown(small, ~np.isin(small, known))
    return counts


def hardness(counts: ndarray, means: ndarray) -> ndarray:
    r"""How hard a mask is to learn: the mean loss of its pixels' classes, FreeMask dossier eq. 4.

    .. math:: h_i = \frac{\sum_c n_{i,c}\, \bar\ell_c}{\sum_c n_{i,c} + 10^{-5}}

    Args:
        counts: (..., C) integers >= 0 of :func:`class_counts`, one mask or many.
        means: (C,) finite, >= 0, nats, of ``ClassLoss.compute()``: mean losses on the real training images.

    Returns:
        (...,) float64, nats; 0, the easiest, for a mask without any label. A mask's value does not depend on the
        others, so equal masks tie.

    Raises:
        TypeError, ValueError: shapes, dtypes or values do not fit.
    """
    counts, means = np.asarray(counts), np.asarray(means, dtype=np.float64)
    check_integers("counts", counts)
    if means.ndim != 1 or not counts.ndim or counts.shape[-1] != len(means):
        raise ValueError(
            f"`counts` must be (..., C) and `means` (C,), one a class; got {counts.shape} and {means.shape}"
        )
    if (counts < 0).any():
        raise ValueError(f"`counts` must be >= 0, numbers of pixels; found {counts.min()}")
    bad = ~(np.isfinite(means) & (means >= 0))
    if bad.any():
        at = int(bad.argmax())
        raise ValueError(
            f"`means` must be finite and >= 0, nats; found {means[at]} for class {at}. Take ClassLoss.compute() with "
            "absent='drop': infinity is for the filter alone"
        )
    # a sum a row, not a matrix product, whose rounding may depend on a row's place and break ties
    return (counts * means).sum(-1) / (counts.sum(-1) + EPSILON)


def counts_by_rank(masks: int, most: int = MOST, *, rounding: str = "even") -> ndarray:
    r"""Synthetic images of each rank, from the easiest mask to the hardest, FreeMask dossier eq. 5.

    .. math:: n_q = \min(1 + \mathrm{round}(q / N \cdot N_{\max}),\; N_{\max}), \quad q = 1 .. N

    Args:
        masks: N >= 0.
        most: N_max >= 1, images that can be had of a mask.
        rounding: "even", as officially: Python's, halves to the even neighbour; or "floor".

    Returns:
        (N,) int64 in [1, N_max], ascending.

    Raises:
        TypeError, ValueError: a number is out of range, or ``rounding`` another word.

    Differs from the official code: N_max is a parameter, there 20.
    """
    _check_count("masks", masks, least=0)
    _check_count("most", most)
    if rounding not in ("even", "floor"):
        raise ValueError(f"`rounding` must be 'even' or 'floor'; got {rounding!r}")
    share = np.arange(1, masks + 1) / max(masks, 1) * most  # in this order: halves are halves as in the official code
    return np.minimum(1 + (np.rint(share) if rounding == "even" else np.floor(share)), most).astype(np.int64)


def image_counts(hardness: ndarray, most: int = MOST, *, rounding: str = "even") -> ndarray:
    """Synthetic images of each mask: :func:`counts_by_rank` of its rank by ascending hardness.

    Args:
        hardness: (N,) finite numbers of :func:`hardness`; of equal ones the earlier ranks lower.
        most, rounding: see :func:`counts_by_rank`.

    Returns:
        (N,) int64 in [1, N_max], in the order of ``hardness``.

    Raises:
        TypeError, ValueError: values do not fit.
    """
    values = _check_hardness(hardness)
    counts = np.empty(len(values), np.int64)
    counts[np.argsort(values, kind="stable")] = counts_by_rank(len(values), most, rounding=rounding)
    return counts


def draw(count: int, most: int, root_seed: int, mask: str | int) -> list[int]:
    """Which of a mask's images are taken: a uniform draw without replacement.

    The draw is a function of the root seed and the mask's name or number: the same in any order, from any worker. A
    mask whose count changes keeps its images: a smaller draw is part of a larger one of the same ``most``.

    Args:
        count: images to take, in [0, most].
        most: images there are, >= 1.
        root_seed: >= 0.
        mask: its name, or its number >= 0.

    Returns:
        ``count`` different indices in [0, most), ascending.

    Raises:
        TypeError, ValueError: a number is out of range, or ``mask`` is neither name nor number.

    Differs from the official code, where the draw has no seed and cannot be repeated: compare counts, not identities.
    """
    _check_count("most", most)
    _check_count("count", count, least=0)
    _check_count("root_seed", root_seed, least=0)
    if count > most:
        raise ValueError(f"`count` must be at most `most`, {most}, the images there are; got {count}")
    if isinstance(mask, str):
        key = [1, int.from_bytes(hashlib.sha256(mask.encode()).digest()[:16], "big")]  # hash() is salted by the process
    else:
        _check_count("mask", mask, least=0)
        key = [0, int(mask)]
    generator = np.random.default_rng(np.random.SeedSequence([int(root_seed), *key]))
    return sorted(generator.permutation(most)[:count].tolist())


def manifest(hardness: Mapping[str, float], most: int = MOST, root_seed: int = 0, *, rounding: str = "even") -> dict:
    """Which images to generate, as plain data that JSON can hold.

    Args:
        hardness: a finite number for the name of each mask; of equal ones the name that sorts first ranks lower.
        most, rounding: see :func:`counts_by_rank`.
        root_seed: of the draw, >= 0.

    Returns:
        {"most", "root_seed", "rounding", "masks"}; "masks" lists {"mask": name, "hardness": nats, "rank": 1 (easiest)
        to N, "images": indices in [0, most)} by name, whatever the order of the argument. See :func:`pairs`.

    Raises:
        TypeError, ValueError: values do not fit.

    Differs from the official code: a list, no copies of files; images that do not exist are not passed over silently.
    """
    names = sorted(hardness)
    values = _check_hardness([hardness[name] for name in names])
    ranks = np.empty(len(names), np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(1, len(names) + 1)
    counts = counts_by_rank(len(names), most, rounding=rounding)
    masks = [
        {"mask": n, "hardness": float(v), "rank": int(q), "images": draw(int(counts[q - 1]), most, root_seed, n)}
        for n, v, q in zip(names, values, ranks, strict=True)
    ]
    return {"most": int(most), "root_seed": int(root_seed), "rounding": rounding, "masks": masks}


def pairs(plan: dict) -> list[tuple[str, int]]:
    """(mask, index) of all images of a :func:`manifest`, to be generated, filtered and trained on."""
    return [(row["mask"], index) for row in plan["masks"] for index in row["images"]]


def saving(plan: dict) -> dict:
    """What drawing before filtering saves.

    Args:
        plan: a :func:`manifest`.

    Returns:
        {"drawn": images drawn, "all": images of all masks, "share": drawn / all; NaN without masks}. 221,814 of 404,200
        for ADE20K's 20,210 masks and 20 images of each; 463,293 of 709,722 for COCO-Stuff's 118,287 and 6.
    """
    drawn, whole = len(pairs(plan)), plan["most"] * len(plan["masks"])
    return {"drawn": drawn, "all": whole, "share": drawn / whole if whole else math.nan}


def image_name(mask: str, index: int, first_seed: int = FIRST_SEED) -> str:
    """Name without ending of a mask's image and of its filtered mask, in the official folders."""
    return f"{mask}_seed_{first_seed + index}"


def _histogram(mask: ndarray) -> ndarray:
    """(256,) pixels of each value of a uint8 array, not empty: runs of equal pixels are counted at once, by length."""
    flat = np.ascontiguousarray(mask).reshape(-1)
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if len(turns) > flat.size // 8:  # noise: runs do not pay
        return np.bincount(flat, minlength=256)
    starts = np.append(0, turns)
    return np.bincount(flat[starts], np.diff(starts, append=flat.size), minlength=256).astype(np.int64)


def _check_hardness(values) -> ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"`hardness` must be finite, one number a mask; got {values.shape}, {_first_bad(values)}")
    return values


def _first_bad(values: ndarray) -> str:
    bad = np.argwhere(~np.isfinite(values))
    return f"found {values[tuple(bad[0])]} at {bad[0].tolist()}" if len(bad) else "all finite"


def _check_count(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer; got {value!r} ({type(value).__name__})")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}; got {value}")
