"""Synthetic pictures for label maps, made once and shared: each a function of generator, mask and index alone.

A shelf holds pictures of N masks, up to a largest number a mask, in shared parts (:mod:`fmseg.parts`): a block of
neighbouring masks is a set, and its part number r is the picture number r of each of them. A part is painted in one go
whatever else is wanted, so its bytes depend on nothing but the recipe (what paints, its weights' hash, its options, its
code) and its own masks; a larger set begins with a smaller one.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from fmseg import parts

PART = 20  # masks a part; two groups of the generator
Painter = Callable[[ndarray, list[int]], ndarray]  # (n, H, W) uint8 masks and n seeds -> (n, H, W, 3) uint8 RGB


def noise_seed(mask: ndarray, index: int) -> int:
    """Seed of a picture's noise, in [0, 2**63): a hash of the mask's shape and bytes and the index, nothing else."""
    if index < 0:
        raise ValueError(f"`index` must be >= 0; got {index}")
    head = f"{mask.shape} {mask.dtype} {index} ".encode()
    return int.from_bytes(hashlib.sha256(head + np.ascontiguousarray(mask).tobytes()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Part:
    """One file of a shelf: pictures number ``index`` of the masks ``block``."""

    index: int
    block: slice
    path: Path


@dataclass(frozen=True, eq=False)
class Shelf:
    """Where pictures of some masks lie, or will lie: below :func:`fmseg.parts.home`.

    Args:
        recipe: JSON values that say what paints and how; pictures of different recipes never mix.
        masks: (N, H, W) uint8 class ids, 255 where there is none.
        most: pictures a mask, >= 1.
        module: the fmseg module that paints; its code belongs to the recipe.

    Raises:
        TypeError, ValueError: masks or ``most`` do not fit.
    """

    recipe: dict[str, Any]
    masks: ndarray
    most: int
    module: str = "fmseg.generation"

    def __post_init__(self):
        masks = self.masks
        if getattr(masks, "dtype", None) != np.uint8 or masks.ndim != 3 or not len(masks):
            got = getattr(masks, "shape", type(masks).__name__)
            raise TypeError(f"`masks` must be (N, H, W) uint8, not empty; got {got} {getattr(masks, 'dtype', '')}")
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 1:
            raise ValueError(f"`most` must be a whole number >= 1; got {self.most!r}")

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts, by index first: those of a smaller ``most`` come first, under the same names."""
        folders = {}
        for start in range(0, len(self.masks), PART):
            block = slice(start, min(start + PART, len(self.masks)))
            masks = np.ascontiguousarray(self.masks[block])
            key = {"recipe": self.recipe, "shape": list(masks.shape), "masks": hashlib.sha256(masks).hexdigest()}
            folders[start] = block, parts.folder("shelves", key, self.module)
        return tuple(
            Part(index, block, parts.file_of(folder, index))
            for index in range(self.most)
            for block, folder in folders.values()
        )

    def missing(self) -> list[Part]:
        """Parts that nobody has made yet."""
        return [part for part in self.parts if not part.path.exists()]


def fill(shelf: Shelf, paint: Painter) -> int:
    """Make what is missing, beside others who do the same; returns when all parts are there.

    Args:
        shelf: which pictures.
        paint: makes them: a function of its masks and seeds, called with whole parts.

    Returns:
        Parts that this process made.

    Raises:
        ValueError: what ``paint`` returns is no picture of every mask. OSError: a part could not be written (a full
            disk, say); names it. Parts that are there stay, and nothing is half there.
    """
    return parts.fill({p.path: partial(_painted, paint, shelf.masks[p.block], p.index) for p in shelf.parts})


def pictures(shelf: Shelf, pairs: Iterable[tuple[int, int]]) -> ndarray:
    """Pictures from a filled shelf.

    Args:
        shelf: see :func:`fill`.
        pairs: M of (mask number in [0, N), index in [0, most)).

    Returns:
        (M, H, W, 3) uint8 RGB, in the order of ``pairs``.

    Raises:
        ValueError: a pair that the shelf has not, or a damaged file; names it.
        FileNotFoundError: a part was not made yet.
    """
    pairs = np.asarray(list(pairs), dtype=np.int64).reshape(-1, 2)
    limits = (len(shelf.masks), shelf.most)
    for column, name in enumerate(("mask", "index")):
        wrong = (pairs[:, column] < 0) | (pairs[:, column] >= limits[column])
        if wrong.any():
            bad = pairs[wrong][0].tolist()
            raise ValueError(f"`pairs` holds {bad}; its {name} must lie in [0, {limits[column]})")
    out = np.empty((len(pairs), *shelf.masks.shape[1:], 3), np.uint8)
    for part in shelf.parts:
        here = (pairs[:, 1] == part.index) & (pairs[:, 0] >= part.block.start) & (pairs[:, 0] < part.block.stop)
        if here.any():
            out[here] = parts.read(part.path)["images"][pairs[here, 0] - part.block.start]
    return out


def _painted(paint: Painter, masks: ndarray, index: int) -> parts.Arrays:
    images = paint(masks, [noise_seed(mask, index) for mask in masks])
    if getattr(images, "dtype", None) != np.uint8 or images.shape != (*masks.shape, 3):
        got = f"{getattr(images, 'dtype', type(images).__name__)} of {getattr(images, 'shape', '')}"
        raise ValueError(f"`paint` must return uint8 of {(*masks.shape, 3)} for these masks; got {got}")
    return {"images": images}
