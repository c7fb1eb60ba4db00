"""Photographs as a source of training batches: each decoded, disturbed and cropped from a seed of its own.

The disturbances are mmsegmentation's transforms in its config files' own words (``train_pipeline``), so that what the
papers' configurations say is what runs. Which crop comes out is a function of (picture, seed) alone, whatever process
makes it.
"""

import hashlib
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np

from fmseg.datasets import IGNORE
from fmseg.on_disk import OnDisk

MEAN_COLOUR = (124, 116, 104)  # RGB; what crops of small pictures are padded with


class Photos:
    """Crops of a data set on disk. As :class:`fmseg.batches.Source`, but nothing is kept in memory.

    Args:
        data: the pictures.
        pipeline: transforms as {"type": name, ...}, between loading and packing: RandomResize, RandomChoiceResize,
            RandomCrop, RandomFlip, PhotoMetricDistortion and whatever else mmsegmentation has.
        crop: (height, width) of what comes out; smaller results are padded at the right and below, with the mean colour
            and the ignore label. Differs from the official code, which pads with zeros after normalising: the same but
            for rounding.
        table: (256,) uint8, applied to the labels, such as a protocol's; or None.
        repeat: times each picture appears in one epoch, >= 1.
        name: shown in error messages.

    Raises:
        ValueError: an unknown transform, a table that does not fit, ``repeat`` < 1, no picture.
    """

    def __init__(
        self, data: OnDisk, pipeline: Sequence[dict], crop: tuple[int, int], *, table: np.ndarray | None = None,
        repeat: int = 1, name: str = "real",
    ):  # fmt: skip
        if not len(data):
            raise ValueError(f"source `{name}` holds no picture; leave it out instead")
        if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
            raise ValueError(f"source `{name}`: `repeat` must be a whole number >= 1, got {repeat!r}")
        if table is not None and (table.shape != (256,) or table.dtype != np.uint8):
            raise ValueError(f"source `{name}`: `table` must be (256,) uint8, got {table.shape} {table.dtype}")
        self.data, self.table, self.repeat, self.name = data, table, repeat, name
        self.size = (int(crop[0]), int(crop[1]))
        self.pipeline = [dict(step) for step in pipeline]
        self._transforms = [_build(step) for step in self.pipeline]

    def __len__(self) -> int:
        return len(self.data)

    def crop(self, index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """One crop: (H, W, 3) uint8 RGB and (H, W) uint8 labels."""
        photo = self.data[index]
        image, labels = self._disturbed(photo.image, photo.labels, seed)
        image, labels = _padded(image, labels, self.size)
        return image, labels if self.table is None else self.table[labels]

    def check_ids(self, num_classes: int, ignore_index: int) -> None:
        """Raise a ValueError if the labels can hold an id that is neither in [0, num_classes) nor ``ignore_index``."""
        known = np.unique(self.data.table[self.data.table >= 0]) if self.table is None else np.unique(self.table)
        wrong = [k for k in known if k >= num_classes and k != ignore_index]
        if wrong:
            raise ValueError(
                f"source `{self.name}` can hold label {wrong[0]}; the model has classes 0..{num_classes - 1} and "
                f"{ignore_index} is ignored. Give a `table`, or build a model with more classes"
            )

    def fingerprint(self) -> list:
        """Tells sources apart by what they are made of: names of the pictures, pipeline, crop, table."""
        digest = hashlib.sha256()
        for part in ([path.name for path in self.data.images], self.pipeline, self.size):
            digest.update(repr(part).encode())
        digest.update((self.data.table if self.table is None else self.table).tobytes())
        return [len(self.data), self.repeat, digest.hexdigest()]

    def take(self, index: Sequence[int], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Crops of several pictures: (B, H, W, 3) uint8 RGB and (B, H, W) uint8 labels."""
        crops = [self.crop(int(i), int(seed)) for i, seed in zip(index, seeds, strict=True)]
        return np.stack([image for image, _ in crops]), np.stack([labels for _, labels in crops])

    def _disturbed(self, image, labels, seed):
        results = {  # as mmsegmentation's loading steps leave it; its colour transforms work on BGR
            "img": np.ascontiguousarray(image[..., ::-1]),
            "gt_seg_map": labels.copy(),
            "seg_fields": ["gt_seg_map"],
            "img_shape": image.shape[:2],
            "ori_shape": image.shape[:2],
        }
        with _global_seed(seed):
            for transform in self._transforms:
                results = transform(results)
        out = np.clip(np.rint(results["img"]), 0, 255).astype(np.uint8)[..., ::-1]
        return out, results["gt_seg_map"].astype(np.uint8)


def _build(step: dict):
    import mmseg.datasets.transforms  # noqa: F401  registers them
    from mmcv.transforms import TRANSFORMS as COMMON
    from mmengine.registry import DefaultScope
    from mmseg.registry import TRANSFORMS

    from fmseg import _transforms  # noqa: F401  registers ours

    if "type" not in step:
        raise ValueError(f"a step of `pipeline` needs a type, got {step!r}")
    pair = {k: tuple(v) for k, v in step.items() if isinstance(v, list) and len(v) == 2}  # JSON knows no tuples
    with DefaultScope.overwrite_default_scope("mmseg"):  # RandomChoiceResize looks its resizing up by name
        for registry in (TRANSFORMS, COMMON):
            if registry.get(step["type"]) is not None:
                return registry.build({**step, **pair})
    raise ValueError(f"`pipeline` holds the transform {step['type']!r}, which mmsegmentation does not have")


@contextmanager
def _global_seed(seed: int):
    """mmcv's transforms draw from numpy's and Python's global state: seeded inside, put back afterwards."""
    import random

    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


def _padded(image, labels, size):
    height, width = labels.shape
    if (height, width) == size:
        return np.ascontiguousarray(image), labels
    if height > size[0] or width > size[1]:
        raise ValueError(
            f"`pipeline` leaves {width}x{height} pixels, more than the crop {size[1]}x{size[0]}; "
            "end it with a RandomCrop of that size"
        )
    out = np.empty((*size, 3), np.uint8)
    out[:] = MEAN_COLOUR
    out[:height, :width] = image
    filled = np.full(size, IGNORE, np.uint8)
    filled[:height, :width] = labels
    return out, filled
