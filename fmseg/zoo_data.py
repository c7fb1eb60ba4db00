"""What foundation models are trained on: many pictures of the draws `web`, `icon` and `duo`, drawn once and cached.

Labels are words that captions name, with the captions' errors; masks are never looked at.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy import ndarray
from torch import Tensor, nn

from fmseg.datasets import draw_set
from fmseg.fitting import Recipe, batch_indices
from fmseg.words import PATTERNS, SHAPES, STUFF, WEB_PATTERNS, WEB_SHAPES, WEB_THINGS

WORDS = {  # what a caption can name, by kind
    "pattern": PATTERNS + WEB_PATTERNS, "shape": SHAPES + WEB_SHAPES, "ground": STUFF, "thing": WEB_THINGS,
}  # fmt: skip
_CHUNK = 2000


@dataclass(frozen=True)
class WebImages:
    """N pictures with sentences. ``images`` (N, 64, 64, 3) uint8; ``captions``: N texts."""

    images: ndarray
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def first(self, count: int) -> "WebImages":
        """The first ``count`` of them."""
        return WebImages(self.images[:count], self.captions[:count])


def both(*sets: WebImages) -> WebImages:
    """Scenes, then icons (then duos), as one set."""
    return WebImages(np.concatenate([one.images for one in sets]), sum((one.captions for one in sets), ()))


def shared_indices(counts: Sequence[int], shares: Sequence[float], recipe: Recipe, step: int) -> ndarray:
    """Which pictures of :func:`both` make a batch, each set having its share of it; each set is seen epoch by epoch.

    Args:
        counts: sizes of the sets. shares: fractions of a batch, rounded to whole pictures; the first set has the rest.

    Raises:
        ValueError: not one share a set, or a first set without a picture in the batch.
    """
    few = [round(share * recipe.batch_size) for share in shares[1:]]
    if len(counts) != len(shares) or not 0 < recipe.batch_size - sum(few) <= recipe.batch_size:
        raise ValueError(f"`shares` must be one a set and leave the first some of {recipe.batch_size}; got {shares}")
    sizes, starts = [recipe.batch_size - sum(few), *few], np.cumsum([0, *counts])
    return np.concatenate(
        [
            start + batch_indices(count, replace(recipe, batch_size=size), step)
            for count, size, start in zip(counts, sizes, starts, strict=False)
        ]
    )


def mixed_indices(scenes: int, icons: int, recipe: Recipe, step: int) -> ndarray:
    """Which pictures of :func:`both` make a batch: icons mostly at first (three of four), scenes mostly at the end."""
    share = 0.75 - 0.5 * step / recipe.steps
    few = round(share * recipe.batch_size)
    part = [replace(recipe, batch_size=n) for n in (recipe.batch_size - few, few)]
    return np.concatenate([batch_indices(scenes, part[0], step), scenes + batch_indices(icons, part[1], step)])


def named_words(captions: Sequence[str]) -> dict[str, ndarray]:
    """Which words captions hold, right or wrong: {"pattern": (N, 6), "shape": (N, 16), "ground": (N, 8), "thing":
    (N, 96)} bool; a thing is a pattern followed by a shape."""
    labels = {kind: np.zeros((len(captions), len(words)), dtype=bool) for kind, words in WORDS.items()}
    at = {kind: {word: k for k, word in enumerate(words)} for kind, words in WORDS.items()}
    for row, caption in enumerate(captions):
        tokens = caption.split()
        for word in [*tokens, *(f"{a} {b}" for a, b in zip(tokens, tokens[1:], strict=False))]:
            for kind, known in at.items():
                if word in known:
                    labels[kind][row, known[word]] = True
    return labels


def naming_loss(scores: Tensor, named: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy with the target spread evenly over the words of a kind that a caption holds (Mahajan et al. 2018),
    summed over the four kinds; rows without a word of a kind do not count for it.

    Args:
        scores: (B, 126), the words of all kinds side by side.
        named: {kind: (B, words) bool}, as :func:`named_words`.

    Returns:
        () loss, and the share of rows whose best word of each kind is in the caption.
    """
    total, right = scores.new_zeros(()), {}
    for part, (kind, there) in zip(scores.split([n.shape[1] for n in named.values()], 1), named.items(), strict=True):
        rows = there.any(1)
        target = there[rows].float() / there[rows].sum(1, keepdim=True)
        if rows.any():
            total = total + nn.functional.cross_entropy(part[rows], target)
            best = part[rows].detach().argmax(1, keepdim=True)
            right[kind] = there[rows].gather(1, best).float().mean().item()
    return total, right


def _cache(folder: Path, draw: str, split: str) -> Path:
    """Where pictures of a draw are kept: a draw that looks otherwise, whatever was changed, has another folder."""
    digest = hashlib.sha256()
    first = draw_set(draw, split, 16)
    for array in (first.images, first.labels):
        digest.update(array.tobytes())
    digest.update(json.dumps(first.captions).encode())
    return Path(folder) / f"{draw}-{digest.hexdigest()[:12]}"


def _draw_chunk(folder: str, draw: str, split: str, start: int) -> None:
    drawn, names = draw_set(draw, split, _CHUNK, start=start), {}
    for kind in ("labels", "images"):  # the images last: their presence says that a part is whole
        names[kind] = Path(folder) / f"{kind}-{start}.npy"
        (Path(folder) / f"captions-{start}.json").write_text(json.dumps(drawn.captions))
        partial = names[kind].with_suffix(".part.npy")
        np.save(partial, getattr(drawn, kind))
        os.replace(partial, names[kind])


def _parts(folder: Path, draw: str, split: str, count: int, workers: int) -> list[int]:
    """Draw what the folder lacks; the first index of every part."""
    if count < 1:
        raise ValueError(f"`count` must be >= 1; got {count}")
    folder.mkdir(parents=True, exist_ok=True)
    starts = list(range(0, count, _CHUNK))
    missing = [s for s in starts if not (folder / f"images-{s}.npy").exists()]
    if missing:
        with ProcessPoolExecutor(workers) as pool:
            for job in [pool.submit(_draw_chunk, str(folder), draw, split, s) for s in missing]:
                job.result()
    return starts


def _joined(folder: Path, kind: str, starts: list[int], count: int) -> ndarray:
    first = np.load(folder / f"{kind}-0.npy", mmap_mode="r")
    whole = np.empty((count, *first.shape[1:]), dtype=first.dtype)
    for start in starts:
        part = np.load(folder / f"{kind}-{start}.npy", mmap_mode="r")[: count - start]
        whole[start : start + len(part)] = part
    return whole


def web_images(folder: Path, count: int, draw: str = "web", workers: int = 1) -> WebImages:
    """The first ``count`` training pictures of `web` or `icon`; drawn where the folder lacks them (3 ms each).

    Args:
        folder: cache; parts of it that are there are kept, so that drawing can be interrupted.
        count: how many, >= 1.
        workers: processes that draw.

    Raises:
        ValueError: ``count`` < 1.
    """
    folder = _cache(folder, draw, "train")
    starts = _parts(folder, draw, "train", count, workers)
    captions = [c for s in starts for c in json.loads((folder / f"captions-{s}.json").read_text())]
    return WebImages(_joined(folder, "images", starts, count), tuple(captions[:count]))


def labelled_images(folder: Path, draw: str, count: int, workers: int = 1) -> tuple[ndarray, ndarray]:
    """(N, 64, 64, 3) pictures and (N, 64, 64) class ids: split `large` of a draw, cached as :func:`web_images`."""
    folder = _cache(folder, draw, "large")
    starts = _parts(folder, draw, "large", count, workers)
    return _joined(folder, "images", starts, count), _joined(folder, "labels", starts, count)
