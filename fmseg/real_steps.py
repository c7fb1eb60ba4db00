"""What each step of a class-incremental run may see of VOC and COCO on disk: pictures, labels, and nothing more.

The counterpart of :mod:`fmseg.incremental_data`. Which classes a picture holds is read from its mask once and kept in a
file; from then on a step with image-level labels never opens a mask of its pictures: the source that it is given does
not even know where they lie.
"""

import hashlib
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmseg import distributed, on_disk, protocols
from fmseg.datasets import IGNORE, Example
from fmseg.incremental_data import BASE, STEP
from fmseg.on_disk import OnDisk
from fmseg.photos import Photos
from fmseg.protocols import Incremental
from fmseg.records import lock

_KEPT = 3  # stream of the draw of which pictures are kept, as in the mini world
_BLIND = np.full(256, IGNORE, np.int16)


class Unlabelled(OnDisk):
    """Pictures whose masks nobody can open: every pixel's label is unknown."""

    def __getitem__(self, index: int) -> Example:
        image = self.image(index)
        return Example(image, np.full(image.shape[:2], IGNORE, np.uint8), self.images[index].stem)


def without_masks(data: OnDisk) -> Unlabelled:
    """The same pictures, and no masks."""
    return Unlabelled(data.name, data.classes, data.images, (), _BLIND)


class Tagged(Photos):
    """Crops of pictures with image-level labels alone.

    Args:
        data: the pictures; masks are forgotten at once.
        tags: (N, T) bool, a row a picture.
        others: of :class:`fmseg.photos.Photos`, but ``table``.
    """

    def __init__(self, data: OnDisk, tags: np.ndarray, pipeline: Sequence[dict], crop: tuple[int, int], **others):
        if tags.dtype != bool or tags.ndim != 2 or len(tags) != len(data):
            raise ValueError(f"`tags` must be ({len(data)}, T) bool, a row a picture; got {tags.shape} {tags.dtype}")
        super().__init__(without_masks(data), pipeline, crop, **others)
        self.tags = tags

    def fingerprint(self) -> list:
        """That of the pictures, and of the image-level labels."""
        return [*super().fingerprint(), hashlib.sha256(np.packbits(self.tags).tobytes()).hexdigest()]


@dataclass(frozen=True, eq=False)
class Steps:
    """Everything that a run may look at.

    Attributes:
        protocol: who may see what.
        base, step: the pictures of step 0 and 1 with their masks; give methods the sources below.
        tags: (N, new classes) bool: image-level labels of ``step``.
        held_out: {data set: validation pictures}; the first is that of the base step.
        pipeline, crop: of the sources (:class:`fmseg.photos.Photos`).
    """

    protocol: Incremental
    base: OnDisk
    step: OnDisk
    tags: np.ndarray
    held_out: dict[str, OnDisk]
    pipeline: list[dict]
    crop: tuple[int, int]

    def base_source(self) -> Photos:
        """Step 0: pictures with pixel labels."""
        return self._photos(self.base, self.protocol.pixel_labels(BASE, self.base.classes), "base")

    def weak_source(self) -> Tagged:
        """Step 1 with image-level labels of its classes, and no pixel labels."""
        return Tagged(self.step, self.tags, self.pipeline, self.crop, name="step")

    def pixel_source(self) -> Photos:
        """Step 1 with pixel labels of its classes, all else background: for comparators with more supervision."""
        told = replace(self.protocol, weak=False)
        return self._photos(self.step, told.pixel_labels(STEP, self.step.classes), "step, pixels")

    def joint_sources(self) -> list[Photos]:
        """All pictures of both steps with all their labels, each picture once: the upper bound."""
        seen = set(self.base.images)
        further = self.step.subset([i for i, path in enumerate(self.step.images) if path not in seen])
        parts = [part for part in (self.base, further) if len(part)]
        return [
            self._photos(part, self.protocol.evaluation(STEP, part.classes), f"joint {k}")
            for k, part in enumerate(parts)
        ]

    def truth(self, step: int, name: str | None = None) -> tuple[OnDisk, np.ndarray]:
        """Validation pictures of a data set (default: the first), and what its ids become after a step."""
        data = self.held_out[name or next(iter(self.held_out))]
        return data, self.protocol.evaluation(step, data.classes)

    def new_names(self) -> tuple[str, ...]:
        """Names of the new classes, by logit."""
        return tuple(self.protocol.order[k] for k in self.protocol.new(STEP))

    def old_names(self) -> tuple[str, ...]:
        """Names of the old classes without background, by logit."""
        return tuple(self.protocol.order[k] for k in self.protocol.new(BASE) if k)

    def _photos(self, data: OnDisk, table: np.ndarray, name: str) -> Photos:
        return Photos(data, self.pipeline, self.crop, table=table, name=name)


def load(config: dict[str, Any], folder: Path | None = None, *, progress: bool = False) -> Steps:
    """Find the pictures of a run where this machine keeps them (:func:`fmseg.on_disk.root_of`).

    Args:
        config: ``protocol`` (of VOC or COCO), ``sets`` ({data set: {"split", "validation"[, "images": only that many of
            the first pictures]}}), ``seed``, ``share`` (of the step's pictures that are kept, drawn from the seed, in
            (0, 1]), ``pipeline``, ``crop``.
        folder: where :func:`presence_of` keeps what it read.
        progress: show a bar while masks are read.

    Raises:
        ValueError: a protocol that is not of real data, data sets that do not fit it, a share out of range, or a step
        that is left without pictures. FileNotFoundError: data are not there.
    """
    protocol, share = _protocol(config["protocol"]), config["share"]
    if not 0 < share <= 1:
        raise ValueError(f"`share` must be in (0, 1], the part of the step's pictures that is kept; got {share}")
    wanted = tuple(dict.fromkeys(protocol.datasets))
    if tuple(config["sets"]) != wanted:
        raise ValueError(f"`sets` of {protocol.name} must be {', '.join(wanted)}; got {', '.join(config['sets'])}")
    data, held_out, present = {}, {}, {}
    for name, how in config["sets"].items():
        root = on_disk.root_of(name)
        data[name] = on_disk.open_set(name, root, how["split"])
        if how.get("images"):
            data[name] = data[name].subset(range(min(len(data[name]), how["images"])))
        held_out[name] = on_disk.open_set(name, root, how["validation"])
        present[name] = presence_of(data[name], folder, progress=progress)
    chosen = []
    for step, name in enumerate(protocol.datasets):
        kept = protocol.images(step, present[name], data[name].classes)
        if step == STEP and share < 1:
            order = np.random.default_rng([config["seed"], _KEPT]).permutation(len(kept))
            kept = np.sort(kept[order[: max(1, round(share * len(kept)))]])
        if not len(kept):
            raise ValueError(f"step {step} of {protocol.name} may see none of the {len(data[name])} pictures of {name}")
        chosen.append(kept)
    first, last = protocol.datasets[BASE], protocol.datasets[STEP]
    tags = protocol.image_labels(STEP, present[last][chosen[STEP]], data[last].classes)
    return Steps(
        protocol, data[first].subset(chosen[BASE]), data[last].subset(chosen[STEP]), tags, held_out,
        config["pipeline"], tuple(config["crop"]),
    )  # fmt: skip


def presence_of(data: OnDisk, folder: Path | None = None, *, progress: bool = False) -> np.ndarray:
    """Which classes each picture holds, anywhere in its mask.

    Args:
        data: N pictures with masks.
        folder: what was read is kept here, and read back while names, sizes and meaning of the mask files are the
            same; None: masks are read each time. Of several processes the first reads, the others wait.

    Returns:
        (N, C) bool.

    Raises:
        ValueError: a mask cannot be read, or the kept file is damaged.
    """
    if folder is None:
        return _read(data, progress)
    path = Path(folder) / f"{data.name}-{identity(data)[:16]}.npz"
    if distributed.world().first:
        with lock(path.with_suffix(".lock"), f"presence of classes in {data.name}", wait=24 * 3600):
            if not path.exists():
                _keep(path, _read(data, progress))
    distributed.wait_for_all()
    try:
        with np.load(path) as kept:
            present = np.unpackbits(kept["present"], axis=1, count=data.num_classes).astype(bool)
        if len(present) != len(data):
            raise ValueError(f"{len(present)} rows for {len(data)} pictures")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, masks are then read again") from error
    return present


def identity(data: OnDisk) -> str:
    """Hash (hex) of names and sizes of the mask files and of what their ids mean; no mask is opened."""
    digest = hashlib.sha256(f"{data.name}:{data.num_classes};".encode() + data.table.tobytes())
    for path in data.masks:
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
    return digest.hexdigest()


def _read(data: OnDisk, progress: bool) -> np.ndarray:
    from tqdm import tqdm

    def row(index: int) -> np.ndarray:
        return protocols.presence([data.labels(index)], data.num_classes)[0]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = tqdm(pool.map(row, range(len(data))), total=len(data), disable=not progress, unit="mask")
        return np.stack(list(rows))


def _keep(path: Path, present: np.ndarray) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            np.savez(file, present=np.packbits(present, axis=1))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _protocol(name: str) -> Incremental:
    protocol = protocols.get(name)
    if not isinstance(protocol, Incremental) or not set(protocol.datasets) <= set(on_disk.READERS):
        known = [p.name for p in protocols.PROTOCOLS.values()
                 if isinstance(p, Incremental) and set(p.datasets) <= set(on_disk.READERS)]  # fmt: skip
        raise ValueError(f"`protocol` must be one of {', '.join(known)}; got {name!r}")
    return protocol
