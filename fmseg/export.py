"""Write any of our sets in VOC's or ADE20K's layout, so that outside tools can read them.

Besides images and masks there is ``manifest.csv`` (a line a picture: name, size, classes) and ``dataset.json`` (class
names, ignore value, layout). Masks are written losslessly; images as PNG unless JPEG is asked for.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np

from fmseg.datasets import IGNORE, voc_palette
from fmseg.words import find

LAYOUTS = {"voc": ("train", "val", "trainval", "train_aug"), "ade": ("training", "validation")}
_JPEG_QUALITY = 95


def write(
    data, folder: str | Path, layout: str = "voc", split: str | None = None, *, prefix: str = "",
    image_format: str = "png", progress: bool = False,
) -> Path:  # fmt: skip
    """Write a set.

    Args:
        data: has ``name``, ``classes``, a length, and gives ``image`` (H, W, 3) uint8, ``labels`` (H, W) uint8 and
            ``name`` by index: a drawn set of the world, or one on disk.
        folder: created; other splits of the same set may lie there.
        layout: 'voc' (JPEGImages, SegmentationClass with VOC's palette, ImageSets/Segmentation; ids as they are, 255 is
            void) or 'ade' (images/<split>, annotations/<split>; ids + 1, 0 is unlabelled, so at most 254 classes).
        split: 'train' and so on for 'voc', 'training' or 'validation' for 'ade'; default the first.
        prefix: put before every name, where splits of a set share names and folders, as in VOC's layout.
        image_format: 'png' (lossless; tell mmsegmentation ``img_suffix='.png'``) or 'jpg'.
        progress: show a bar.

    Returns:
        The folder.

    Raises:
        FileExistsError: that split, or a picture of that name, is there already; nothing is overwritten. ValueError: an
        unknown layout, split or format. OSError: the folder cannot be written; the message names the file.
    """
    from tqdm import tqdm

    splits = LAYOUTS[tuple(LAYOUTS)[find(layout, tuple(LAYOUTS), "layout")]]
    split = splits[0] if split is None else splits[find(split, splits, "split")]
    find(image_format, ("png", "jpg"), "image_format")
    folder = Path(folder)
    images, masks = _folders(folder, layout, split)
    done = folder / f"manifest-{split}.csv"  # written last: the mark of a complete split
    if done.exists():
        raise FileExistsError(f"{done} exists; choose an empty folder or another split name")
    _describe(folder, data, layout)
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in tqdm(range(len(data)), disable=not progress, unit="image"):
        example = data[index]
        name = f"{prefix}{example.name}"
        if (images / f"{name}.{image_format}").exists():
            raise FileExistsError(
                f"{images / name}.{image_format} exists: a name occurs twice in `data`, or another split has it; give "
                "a `prefix`"
            )
        _write_image(example.image, images / f"{name}.{image_format}")
        _write_mask(example.labels, masks / f"{name}.png", layout)
        present = [int(k) for k in np.unique(example.labels) if k != IGNORE]
        height, width = example.labels.shape
        rows.append({"name": name, "width": width, "height": height, "classes": " ".join(map(str, present))})
    names = [row["name"] for row in rows]
    if layout == "voc":
        listing = folder / "ImageSets/Segmentation" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(names) + "\n", encoding="utf-8")
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", "width", "height", "classes"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    done.write_text(text.getvalue(), encoding="utf-8")
    return folder


def _folders(folder: Path, layout: str, split: str) -> tuple[Path, Path]:
    if layout == "voc":
        return folder / "JPEGImages", folder / ("SegmentationClassAug" if split == "train_aug" else "SegmentationClass")
    return folder / "images" / split, folder / "annotations" / split


def _describe(folder: Path, data, layout: str) -> None:
    """dataset.json; a folder that holds another set is refused."""
    about = {
        "name": data.name, "layout": layout, "classes": list(data.classes),
        "ignore": IGNORE if layout == "voc" else 0, "first_class_id": 0 if layout == "voc" else 1,
    }  # fmt: skip
    path = folder / "dataset.json"
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != about:
            raise FileExistsError(f"{folder} holds another set or layout, see {path.name}; choose another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _write_image(image: np.ndarray, path: Path) -> None:
    from PIL import Image

    options = {"quality": _JPEG_QUALITY} if path.suffix == ".jpg" else {}
    Image.fromarray(image).save(path, **options)


def _write_mask(labels: np.ndarray, path: Path, layout: str) -> None:
    from PIL import Image

    if layout == "ade":
        if labels[labels != IGNORE].max(initial=0) > 253:
            raise ValueError(f"{path.stem}: the layout 'ade' has room for 254 classes; found id {labels.max()}")
        Image.fromarray(np.where(labels == IGNORE, 0, labels + 1).astype(np.uint8)).save(path)
        return
    mask = Image.frombytes("P", labels.shape[::-1], np.ascontiguousarray(labels).tobytes())
    mask.putpalette(voc_palette().ravel().tolist())
    mask.save(path)
