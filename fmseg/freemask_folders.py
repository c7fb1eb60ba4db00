"""FreeMask's folders of synthetic images, read and written: a picture and a mask of one name for each (mask, seed).

The layout is that of the official configurations (dossier 3.3)::

    ADE20K_Synthetic/images_resampled/ADE_train_00000001_seed_42.jpg
    ADE20K_Synthetic/annotations_filtered_resampled/ADE_train_00000001_seed_42.png     ids as in ADE20K's own masks
    COCO_Synthetic/images_resampled/000000000009_seed_42.jpg
    COCO_Synthetic/annotations_filtered_resampled/000000000009_seed_42_labelTrainIds.png

so that what is written here trains by the official configurations, and what their authors offer trains here.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy import ndarray

from fmseg.datasets import IGNORE
from fmseg.label_format import LabelFormat
from fmseg.on_disk import OnDisk
from fmseg.resample import image_name

IMAGES, MASKS = "images_resampled", "annotations_filtered_resampled"
FOLDERS = {"ade20k": "ADE20K_Synthetic", "coco-stuff": "COCO_Synthetic"}
SUFFIX = {"coco-stuff": "_labelTrainIds"}  # of mask files, which mmsegmentation's COCOStuffDataset asks for
QUALITY = 75  # of the JPEGs, PIL's default, with which FreestyleNet's script writes


def folder_of(data: str) -> str:
    """Name of a data set's synthetic folder; of one that the paper does not have, after the same fashion."""
    return FOLDERS.get(data, f"{data.upper()}_Synthetic")


def paths(root: Path, data: str, mask: str, index: int) -> tuple[Path, Path]:
    """(picture, mask) of a mask's picture number ``index`` below a synthetic folder."""
    name = image_name(mask, index)
    return Path(root) / IMAGES / f"{name}.jpg", Path(root) / MASKS / f"{name}{SUFFIX.get(data, '')}.png"


def label_format(like: OnDisk) -> LabelFormat:
    """How a data set's mask files write class ids, from its own table.

    Raises:
        ValueError: its ids are not in one row, as COCO's raw ids are not.
    """
    table, classes = like.table, like.num_classes
    shift = int(np.flatnonzero(table == 0)[0])
    if not np.array_equal(table[shift : shift + classes], np.arange(classes)):
        raise ValueError(f"masks of {like.name} do not write their {classes} classes in one row of ids")
    return LabelFormat(classes, ignore=int(np.flatnonzero(table == IGNORE)[0]), shift=shift)


def jpeg(image: ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as the bytes of a JPEG."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def png(labels: ndarray, form: LabelFormat) -> bytes:
    """Labels (H, W), class ids or 255, as the bytes of a mask file of one channel."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(form.write(labels)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        OSError: a full disk, say; names the file and leaves nothing half.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot write {path}: {reason}; free some space or get the rights") from None
    finally:
        part.unlink(missing_ok=True)


def read(root: str | Path, like: OnDisk, wanted: Iterable[tuple[str, int]] | None = None) -> OnDisk:
    """A synthetic folder as a data set to train on.

    Args:
        root: has :data:`IMAGES` and :data:`MASKS`. like: the real set; classes and ids in mask files are its own.
        wanted: (mask, index) of the pictures to take, in this order; None: all that are there, by name.

    Returns:
        A data set whose masks are read as strictly as the real ones.

    Raises:
        FileNotFoundError: a folder, a picture or a mask is missing; officially it would be passed over in silence.
    """
    root, suffix = Path(root), SUFFIX.get(like.name, "")
    for part in (IMAGES, MASKS):
        if not (root / part).is_dir():
            raise FileNotFoundError(f"{root} has no folder {part}; see fmseg.freemask_folders for the layout")
    images = {path.stem: path for path in (root / IMAGES).iterdir() if path.suffix == ".jpg"}
    masks = {path.stem.removesuffix(suffix): path for path in (root / MASKS).glob(f"*{suffix}.png")}
    names = sorted(images.keys() | masks.keys()) if wanted is None else [image_name(*pair) for pair in wanted]
    for kind, found, ending in (("picture", images, ".jpg"), ("mask", masks, f"{suffix}.png")):
        lacking = [name for name in names if name not in found]
        if lacking:
            raise FileNotFoundError(
                f"{root}: {len(lacking)} of {len(names)} names have no {kind}; the first is {lacking[0]}{ending}"
            )
    if not names:
        raise FileNotFoundError(f"{root / IMAGES} holds no picture")
    return replace(like, images=tuple(images[n] for n in names), masks=tuple(masks[n] for n in names))
