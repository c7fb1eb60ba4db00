"""Synthetic pictures for label maps, made once and shared: each a function of generator, mask and index alone.

A shelf holds pictures of N masks, up to a largest number a mask, in fixed parts: index r of a block of neighbouring
masks is one file. A part is painted in one go whatever else is wanted, so its bytes depend on nothing but the recipe
(what paints, its weights' hash, its options) and its own masks; a larger set begins with a smaller one. Several
processes may fill one shelf: each takes the parts that nobody works on. A part appears under its name when it is
complete; what a killed process left is never taken for one.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

import fmseg
from fmseg.provenance import canonical_hash
from fmseg.records import LockedError, lock

PART = 20  # masks a part; two groups of the generator
Painter = Callable[[ndarray, list[int]], ndarray]  # (n, H, W) uint8 masks and n seeds -> (n, H, W, 3) uint8 RGB


def home() -> Path:
    """Where what runs share is kept: build/freemask of this checkout, or the folder that FMSEG_SHARED names."""
    given = os.environ.get("FMSEG_SHARED")
    return Path(given) if given else Path(fmseg.__file__).resolve().parent.parent / "build" / "freemask"


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
    """Where pictures of some masks lie, or will lie.

    Args:
        folder: created when the first part is written; may hold other shelves.
        recipe: JSON values that say what paints and how; pictures of different recipes never mix.
        masks: (N, H, W) uint8 class ids, 255 where there is none.
        most: pictures a mask, >= 1.

    Raises:
        TypeError, ValueError: masks or ``most`` do not fit.
    """

    folder: Path
    recipe: dict[str, Any]
    masks: ndarray
    most: int

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
        made, recipe = [], canonical_hash(self.recipe)
        for start in range(0, len(self.masks), PART):
            block = slice(start, min(start + PART, len(self.masks)))
            digest = hashlib.sha256(f"{self.masks[block].shape}".encode())
            digest.update(np.ascontiguousarray(self.masks[block]).tobytes())
            made.append((block, digest.hexdigest()[:16]))
        return tuple(
            Part(index, block, Path(self.folder) / recipe / f"{name}-{index:03d}.npy")
            for index in range(self.most)
            for block, name in made
        )

    def missing(self) -> list[Part]:
        """Parts that nobody has made yet."""
        return [part for part in self.parts if not part.path.exists()]


def fill(shelf: Shelf, paint: Painter, *, progress: bool = False) -> int:
    """Make what is missing, beside others who do the same; returns when all parts are there.

    Args:
        shelf: which pictures.
        paint: makes them: a function of its masks and seeds, called with whole parts.
        progress: show a bar over parts.

    Returns:
        Parts that this process made.

    Raises:
        ValueError: what ``paint`` returns is no picture of every mask. OSError: a part could not be written (a full
            disk, say); names it. Parts that are there stay, and nothing is half there.
    """
    from tqdm import tqdm

    made, waiting = 0, shelf.missing()
    with tqdm(total=len(waiting), unit="part", disable=not progress, mininterval=2) as bar:
        while waiting:
            others = []
            for part in waiting:
                try:
                    with lock(part.path.with_suffix(".lock"), f"part {part.path.name}"):
                        if not part.path.exists():
                            masks = shelf.masks[part.block]
                            _write(part.path, _painted(paint, masks, part.index))
                            made += 1
                    bar.update()
                except LockedError:
                    others.append(part)
            waiting = others
            if others:
                time.sleep(0.1)  # somebody else paints them; if it is killed, its locks are free at once
    return made


def pictures(shelf: Shelf, pairs: Iterable[tuple[int, int]]) -> ndarray:
    """Pictures from a filled shelf.

    Args:
        shelf: see :func:`fill`.
        pairs: M of (mask number in [0, N), index in [0, most)).

    Returns:
        (M, H, W, 3) uint8 RGB, in the order of ``pairs``.

    Raises:
        ValueError: a pair that the shelf has not, or a file that is no whole part; names it.
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
            out[here] = read(part.path, shelf.masks[part.block].shape)[pairs[here, 0] - part.block.start]
    return out


def read(path: Path, shape: tuple[int, int, int]) -> ndarray:
    """The pictures of one part, (n, H, W, 3) uint8 for (n, H, W) masks.

    Raises:
        FileNotFoundError: it was not made yet. ValueError: it is cut short or something else; names it.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} was not made yet; see fmseg.synthetic.fill") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a whole part ({error}); delete it, and it is made again") from None
    if found.dtype != np.uint8 or found.shape != (*shape, 3):
        raise ValueError(
            f"{path} holds {found.dtype} of {found.shape}, expected uint8 of {(*shape, 3)}; delete it, and it is made "
            "again"
        )
    return found


def _painted(paint: Painter, masks: ndarray, index: int) -> ndarray:
    images = paint(masks, [noise_seed(mask, index) for mask in masks])
    if getattr(images, "dtype", None) != np.uint8 or images.shape != (*masks.shape, 3):
        got = f"{getattr(images, 'dtype', type(images).__name__)} of {getattr(images, 'shape', '')}"
        raise ValueError(f"`paint` must return uint8 of {(*masks.shape, 3)} for these masks; got {got}")
    return images


def _write(path: Path, images: ndarray) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            np.save(file, images, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())  # a full disk shows here at the latest
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = f"cannot write {path}: {error.strerror or error}; free some space and start again, what is done stays"
        raise OSError(error.errno, reason) from None
