"""FreeMask's folders: names as in the official configurations, masks that read back, what is missing is named."""

import errno
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fmseg import freemask_folders as folders
from fmseg.label_format import ADE20K, COCO_STUFF
from fmseg.on_disk import OnDisk

ADE = np.array([255, *range(150)] + [-1] * 105, np.int16)
COCO = np.array([*range(171)] + [-1] * 84 + [255], np.int16)
SETS = {
    "ade20k": (OnDisk("ade20k", tuple("ab"), (), (), ADE), ADE20K),
    "coco-stuff": (OnDisk("coco-stuff", tuple("ab"), (), (), COCO), COCO_STUFF),
}


def like(name):
    data, form = SETS[name]
    return replace(data, classes=tuple(map(str, range(form.num_classes)))), form


def test_paths_are_those_of_the_official_configurations(tmp_path):
    ade = folders.paths(tmp_path / folders.folder_of("ade20k"), "ade20k", "ADE_train_00000001", 0)
    assert [str(p.relative_to(tmp_path)) for p in ade] == [
        "ADE20K_Synthetic/images_resampled/ADE_train_00000001_seed_42.jpg",
        "ADE20K_Synthetic/annotations_filtered_resampled/ADE_train_00000001_seed_42.png",
    ]
    coco = folders.paths(tmp_path / folders.folder_of("coco-stuff"), "coco-stuff", "000000000009", 5)
    assert coco[0].name == "000000000009_seed_47.jpg" and coco[1].name == "000000000009_seed_47_labelTrainIds.png"


@pytest.mark.parametrize("name", SETS)
def test_ids_are_written_as_the_data_sets_own(name):
    data, form = like(name)
    assert folders.label_format(data) == form


def test_a_set_without_a_row_of_ids_is_refused():
    table = np.full(256, 255, np.int16)
    table[[3, 9]] = [0, 1]
    with pytest.raises(ValueError, match="masks of coco do not write their 2 classes in one row"):
        folders.label_format(OnDisk("coco", ("a", "b"), (), (), table))


def write(root, name, pairs, side=8):
    data, form = like(name)
    rng = np.random.default_rng(0)
    made = {}
    for mask, index in pairs:
        image, labels = rng.integers(0, 256, (side, side, 3), np.uint8), rng.integers(0, 100, (side, side))
        labels[0] = 255
        files = (folders.jpeg(image), folders.png(labels, form))
        for path, content in zip(folders.paths(root, name, mask, index), files, strict=True):
            folders.put(path, content)
        made[mask, index] = labels
    return data, made


@pytest.mark.parametrize("name", SETS)
def test_what_is_written_reads_back(name, tmp_path):
    data, made = write(tmp_path, name, [("b", 1), ("a", 0), ("a", 3)])
    found = folders.read(tmp_path, data)
    assert [p.stem for p in found.images] == ["a_seed_42", "a_seed_45", "b_seed_43"]
    assert np.array_equal(found[2].labels, made["b", 1]) and found[0].image.shape == (8, 8, 3)
    some = folders.read(tmp_path, data, [("b", 1), ("a", 0)])
    assert [p.stem for p in some.images] == ["b_seed_43", "a_seed_42"] and np.array_equal(some[1].labels, made["a", 0])
    first = np.array(Image.open(found.masks[0]))
    assert (first[0] == (0 if name == "ade20k" else 255)).all()  # filtered and unlabelled are one on disk


def test_what_is_missing_is_named(tmp_path):
    data, _ = like("ade20k")
    with pytest.raises(FileNotFoundError, match="has no folder images_resampled"):
        folders.read(tmp_path, data)
    write(tmp_path, "ade20k", [("a", 0), ("b", 0)])
    with pytest.raises(FileNotFoundError, match=r"1 of 2 names have no picture; the first is c_seed_43.jpg"):
        folders.read(tmp_path, data, [("a", 0), ("c", 1)])
    (tmp_path / folders.MASKS / "b_seed_42.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 names have no mask; the first is b_seed_42.png"):
        folders.read(tmp_path, data)


def test_a_full_disk_leaves_nothing_half(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="cannot write .*a.jpg: No space left on device; free some space"):
        folders.put(tmp_path / "deep/a.jpg", b"x" * 100)
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_reader_is_as_strict_as_for_real_masks(tmp_path):
    data, _ = write(tmp_path, "ade20k", [("a", 0)])
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / folders.MASKS / "a_seed_42.png")
    with pytest.raises(ValueError, match="holds the id 200, which ade20k does not have"):
        folders.read(tmp_path, data)[0]
