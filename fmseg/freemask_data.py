"""What FreeMask's chain calls real images: a draw of the world, or tiles of photographs as the mini models take them.

The generator and all that judges its pictures work on squares of one size. A photograph is made smaller, its aspect
kept, and cut into as few squares as cover it; neighbours overlap where the size does not divide. So no part of a street
scene is left out, and a mask still shows which things stand beside which.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from fmseg import names, on_disk
from fmseg.datasets import draw_set
from fmseg.inference import fitted

WORLD = ("draw", "images", "validation", "size")
PHOTOGRAPHS = ("data", "scale", "images", "validation", "size")
# A generator is asked for CamVid's classes by words of the world: its vocabulary would spell their own names letter
# by letter, more tokens than it reads. One token each, near in looks where there is one; what it means is learned.
WORDS = dict(
    zip(
        names.CAMVID,
        ("sky", "brick", "bar", "rock", "sand", "grass", "square", "wood", "disc", "heart", "ring"),
        strict=True,
    )
)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Squares of photographs.

    Attributes:
        images: (N, H, H, 3) uint8 RGB. labels: (N, H, H) uint8 class ids, 255 where nothing counts.
        names: of each, the photograph's with the tile's number.
        classes: names by id.
        fingerprint: of the files they come from.
    """

    images: ndarray
    labels: ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.images)


def keys(config: dict[str, Any]) -> tuple[str, ...]:
    """The keys of a configuration that say what its real images are: those of photographs where it has ``data``."""
    return PHOTOGRAPHS if "data" in config else WORLD


def real_set(config: dict[str, Any], part: str = "train"):
    """The real images that a configuration means: has ``images``, ``labels``, ``classes``, ``num_classes``, a length.

    Args:
        config: ``draw``, ``images`` and ``validation`` (numbers), ``size`` (pixels), optional ``seed``: the first of a
            draw's split. Or ``data`` (a set of :mod:`fmseg.on_disk` with splits 'train' and 'val'), ``scale`` ((long,
            short) pixels that a photograph is made to fit), ``size`` (of the tiles), ``images`` and ``validation``
            (numbers of photographs at equal distances, or None: all).
        part: 'train' or 'val'.

    Raises:
        ValueError: a value does not fit. FileNotFoundError: the photographs are not on this machine.
    """
    count = config["images" if part == "train" else "validation"]
    if "data" in config:
        root = on_disk.root_of(config["data"])
        return tiles(config["data"], root, part, tuple(config["scale"]), config["size"], count)
    return draw_set(config["draw"], part, count, seed=config.get("seed", 0), size=config["size"])


def words(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The words by which a generator is asked for classes: :data:`WORDS`, or the classes' own names."""
    return tuple(WORDS.get(name, name) for name in classes)


def content(config: dict[str, Any], parts: tuple[str, ...] = ("train", "val")) -> list[str]:
    """What a configuration does not say about its real images: hashes of the photographs' files."""
    return [real_set(config, part).fingerprint for part in parts] if "data" in config else []


def photographs(config: dict[str, Any], part: str = "train") -> on_disk.OnDisk:
    """The whole photographs that a configuration's tiles are cut from; arguments as :func:`real_set`."""
    count = config["images" if part == "train" else "validation"]
    return _spread(on_disk.open_set(config["data"], on_disk.root_of(config["data"]), part), count)


@lru_cache(maxsize=4)
def tiles(data: str, root: Path, split: str, scale: tuple[int, int], size: int, count: int | None = None) -> Tiles:
    """Tiles of a data set on disk, by photograph, from the upper left; read once.

    Args:
        data, root, split: as in :func:`fmseg.on_disk.open_set`.
        scale: (long, short) pixels that a photograph is made to fit. size: of a tile.
        count: photographs, at equal distances in the list (neighbours in a film are alike); None: all.

    Raises:
        ValueError: a photograph is smaller than a tile once it is resized, or ``count`` < 1; as the data set's reader.
    """
    found = _spread(on_disk.open_set(data, root, split), count)
    images, labels, titles = [], [], []
    for index, path in enumerate(found.images):
        picture = found[index]
        image, label = resized(picture.image, picture.labels, scale)
        for number, (top, left) in enumerate(places(label.shape, size, path)):
            here = slice(top, top + size), slice(left, left + size)
            images.append(image[here])
            labels.append(label[here])
            titles.append(f"{path.stem} {number}")
    return Tiles(np.stack(images), np.stack(labels), tuple(titles), found.classes, found.fingerprint()[:16])


def resized(image: ndarray, labels: ndarray, scale: tuple[int, int]) -> tuple[ndarray, ndarray]:
    """A photograph and its mask, as large as fits into ``scale`` (long, short); masks take the nearest pixel."""
    from PIL import Image

    height, width = fitted(labels.shape, scale)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(small), np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def places(shape: tuple[int, int], size: int, name: object = "a photograph") -> list[tuple[int, int]]:
    """(top, left) of the fewest squares of ``size`` pixels that cover (H, W), equally spaced, by rows.

    Raises:
        ValueError: a side is shorter than the square; ``name`` is for the message.
    """
    if min(shape) < size:
        raise ValueError(
            f"`scale` makes {name} {shape[1]}x{shape[0]}, less than a tile of {size}x{size}; take a larger scale"
        )
    tops, lefts = (np.linspace(0, side - size, -(-side // size)).round().astype(int).tolist() for side in shape)
    return [(top, left) for top in tops for left in lefts]


def _spread(found: on_disk.OnDisk, count: int | None) -> on_disk.OnDisk:
    if count is None:
        return found
    if count < 1:
        raise ValueError(f"`images` and `validation` must be >= 1 photographs, or None for all; got {count}")
    return found.subset(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
