import json
import pickle

import numpy as np
import pytest
from test_on_disk import listed, photo, put

from fmseg import on_disk
from fmseg.datasets import voc_palette
from fmseg.photos import MEAN_COLOUR, Photos, _build, _global_seed

PIPELINE = [  # mmsegmentation's, smaller
    {"type": "RandomResize", "scale": (80, 40), "ratio_range": (0.5, 2.0), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": (32, 32), "cat_max_ratio": 0.75},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PhotoMetricDistortion"},
]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(3)
    base = tmp_path / "VOC2012"
    for k, size in enumerate(((40, 60), (50, 30), (20, 90))):
        put(base / f"JPEGImages/p{k}.jpg", np.kron(photo(size[0] // 10, size[1] // 10), np.ones((10, 10, 1))))
        ids = np.kron(rng.integers(0, 21, (size[0] // 10, size[1] // 10)), np.ones((10, 10)))
        put(base / f"SegmentationClass/p{k}.png", np.where(ids == 7, 255, ids), voc_palette())
    listed(base / "ImageSets/Segmentation/train.txt", "p0", "p1", "p2")
    return on_disk.voc(base, "train")


def test_a_crop_depends_on_picture_and_seed_alone(data):
    photos = Photos(data, PIPELINE, (32, 32))
    np.random.seed(1)
    image, labels = photos.crop(1, 77)
    assert (image.shape, image.dtype, labels.shape, labels.dtype) == ((32, 32, 3), np.uint8, (32, 32), np.uint8)
    expected = np.random.RandomState(1).rand()
    assert np.random.rand() == expected, "the caller's random state is left alone"
    from_json = Photos(data, json.loads(json.dumps(PIPELINE)), (32, 32))
    for other in (photos, from_json, pickle.loads(pickle.dumps(photos))):
        images, found = other.take([0, 1], [5, 77])
        assert np.array_equal(images[1], image) and np.array_equal(found[1], labels)
    assert not np.array_equal(photos.crop(1, 78)[0], image)


def test_equals_mmsegmentations_own_pipeline_on_the_files(data):
    from mmcv.transforms import LoadImageFromFile
    from mmseg.datasets.transforms import LoadAnnotations

    photos = Photos(data, PIPELINE, (32, 32))
    for index in range(3):
        results = {"img_path": str(data.images[index]), "seg_map_path": str(data.masks[index]), "seg_fields": [],
                   "reduce_zero_label": False}  # fmt: skip
        results = LoadAnnotations()(LoadImageFromFile(imdecode_backend="pillow")(results))
        with _global_seed(9 + index):
            for transform in photos._transforms:
                results = transform(results)
        image, labels = photos.crop(index, 9 + index)
        height, width = results["gt_seg_map"].shape
        assert np.array_equal(labels[:height, :width], results["gt_seg_map"])
        theirs = np.clip(np.rint(results["img"][..., ::-1].astype(float)), 0, 255)
        assert np.array_equal(image[:height, :width], theirs)


def test_a_small_picture_is_padded_with_grey_and_ignored(data):
    image, labels = Photos(data, [], (60, 100)).crop(2, 0)
    assert np.array_equal(image[:20, :90], data[2].image) and np.array_equal(labels[:20, :90], data[2].labels)
    assert (image[20:] == MEAN_COLOUR).all() and (labels[20:] == 255).all() and (labels[:, 90:] == 255).all()


def test_transforms_are_found_whatever_the_default_scope_is(data):
    from mmengine.registry import DefaultScope

    resize = {"type": "RandomChoiceResize", "scales": [24, 36], "resize_type": "ResizeShortestEdge", "max_size": 200}
    with DefaultScope.overwrite_default_scope("mmengine"):
        photos = Photos(data, [resize, PIPELINE[1]], (32, 32))
        assert photos.crop(0, 1)[1].shape == (32, 32)


def test_flipped_images_keep_their_labels(data):
    photos = Photos(data, [{"type": "RandomFlip", "prob": 1.0}], (60, 100))
    image, labels = photos.crop(0, 1)
    assert np.array_equal(image[:40, :60], data[0].image[:, ::-1])
    assert np.array_equal(labels[:40, :60], data[0].labels[:, ::-1])


def test_a_table_is_applied_to_the_labels(data):
    table = np.full(256, 255, np.uint8)
    table[:16] = np.arange(16)
    labels = Photos(data, [], (60, 100), table=table).crop(0, 0)[1][:40, :60]
    truth = data[0].labels
    assert np.array_equal(labels, np.where(truth > 15, 255, truth))


def test_bad_input_is_named(data):
    with pytest.raises(ValueError, match="holds the transform 'RandomKrop', which mmsegmentation does not have"):
        Photos(data, [{"type": "RandomKrop"}], (32, 32))
    with pytest.raises(ValueError, match="needs a type"):
        Photos(data, [{"prob": 1}], (32, 32))
    with pytest.raises(ValueError, match="leaves 60x40 pixels, more than the crop 32x32; end it with a RandomCrop"):
        Photos(data, [], (32, 32)).crop(0, 0)
    with pytest.raises(ValueError, match="`repeat` must be a whole number >= 1, got 0"):
        Photos(data, [], (32, 32), repeat=0)
    with pytest.raises(ValueError, match=r"`table` must be \(256,\) uint8, got \(21,\) int64"):
        Photos(data, [], (32, 32), table=np.arange(21))
    with pytest.raises(ValueError, match="holds no picture"):
        Photos(data.subset([]), [], (32, 32))


def test_wilsons_crop_keeps_area_and_aspect_and_falls_back_to_the_centre(data):
    crop = _build({"type": "RandomResizedCrop", "size": 24, "scale": (0.5, 2.0)})
    np.random.seed(0)
    windows = np.array([crop.window(40, 60) for _ in range(300)])
    area, aspect = windows[:, 2] * windows[:, 3] / 2400, windows[:, 3] / windows[:, 2]
    assert 0.49 <= area.min() and area.max() <= 1 and 0.72 < aspect.min() and aspect.max() < 1.37
    assert (windows[:, 0] + windows[:, 2]).max() <= 40 and (windows[:, 1] + windows[:, 3]).max() <= 60
    central = _build({"type": "RandomResizedCrop", "size": 24, "scale": (3.0, 4.0)})
    assert central.window(40, 60) == (0, 3, 40, 53) and central.window(60, 40) == (3, 0, 53, 40)
    image, labels = Photos(data, [{"type": "RandomResizedCrop", "size": 24}], (24, 24)).crop(0, 3)
    assert image.shape == (24, 24, 3) and set(np.unique(labels)) <= set(np.unique(data[0].labels))
