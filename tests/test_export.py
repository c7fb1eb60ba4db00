import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from toys import ROOT

from fmseg import export, names, on_disk
from fmseg.datasets import Example, draw_set, voc_palette


@pytest.fixture(scope="module")
def drawn():
    return draw_set("ade", "train", 4, size=32)


class Few:
    """A set of two pictures of different sizes, with ignored pixels."""

    name, classes = "few", names.VOC

    def __init__(self, ids=("a", "b")):
        self.ids = ids

    def __len__(self):
        return 2

    def __getitem__(self, index):
        labels = np.full((3 + index, 5), 20 - index, np.uint8)
        labels[0, 0] = 255
        return Example(np.full((*labels.shape, 3), 7, np.uint8), labels, self.ids[index])


def test_voc_layout_is_read_back_by_our_reader(tmp_path):
    for split in ("train", "val"):
        export.write(Few(), tmp_path, "voc", split, prefix=f"{split}_")
        back = on_disk.voc(tmp_path, split)
        assert [back[i].name for i in range(2)] == [f"{split}_a", f"{split}_b"]
        assert all(np.array_equal(back[i].labels, Few()[i].labels) for i in range(2))
        assert all(np.array_equal(back[i].image, Few()[i].image) for i in range(2))
    mask = Image.open(tmp_path / "SegmentationClass/val_b.png")
    assert mask.mode == "P" and mask.getpalette()[57:60] == voc_palette()[19].tolist()


def test_ade_layout_numbers_from_one_and_is_read_back(tmp_path, drawn):
    export.write(drawn, tmp_path / "ADEChallengeData2016", "ade", "validation")
    raw = np.asarray(Image.open(next((tmp_path / "ADEChallengeData2016/annotations/validation").glob("*0.png"))))
    assert np.array_equal(raw, drawn.labels[0] + 1)
    back = on_disk.ade20k(tmp_path, "validation")
    assert all(np.array_equal(back[i].labels, drawn.labels[i]) for i in range(4))
    export.write(Few(), tmp_path / "few", "ade")
    assert np.asarray(Image.open(tmp_path / "few/annotations/training/a.png"))[0].tolist() == [0, 21, 21, 21, 21]


def test_manifest_and_description(tmp_path):
    export.write(Few(), tmp_path, "voc", "val")
    with (tmp_path / "manifest-val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {"name": "b", "width": "5", "height": "4", "classes": "19"}
    about = json.loads((tmp_path / "dataset.json").read_text())
    assert about["ignore"] == 255 and about["classes"] == list(names.VOC) and about["layout"] == "voc"


def test_jpeg_on_request(tmp_path, drawn):
    export.write(drawn, tmp_path, "ade", image_format="jpg")
    picture = np.asarray(Image.open(next((tmp_path / "images/training").glob("*0.jpg"))), float)
    assert np.abs(picture - drawn.images[0]).mean() < 12


def test_nothing_is_overwritten_and_bad_input_is_named(tmp_path, drawn):
    export.write(Few(), tmp_path, "voc", "val")
    with pytest.raises(FileExistsError, match="manifest-val.csv exists; choose an empty folder or another split"):
        export.write(Few(), tmp_path, "voc", "val")
    with pytest.raises(FileExistsError, match="holds another set or layout"):
        export.write(drawn, tmp_path, "voc", "train")
    with pytest.raises(ValueError, match="`layout` must be one of .*; got 'coco'"):
        export.write(drawn, tmp_path, "coco")
    with pytest.raises(ValueError, match="`split` must be one of .*; got 'val'"):
        export.write(drawn, tmp_path / "x", "ade", "val")
    with pytest.raises(FileExistsError, match="JPEGImages/a.png exists: .* another split has it; give a `prefix`"):
        export.write(Few(), tmp_path, "voc", "train")
    with pytest.raises(FileExistsError, match="a.png exists: a name occurs twice"):
        export.write(Few(("a", "a")), tmp_path / "twice")
    assert not (tmp_path / "twice/manifest-train.csv").exists()


TRAIN = """
import sys
from mmengine.runner import Runner
from fmseg import paper_segmenters

folder = sys.argv[1]
model = paper_segmenters.model_config("segformer", "b2")
model = {k: v for k, v in model.items() if k not in ("divisor", "mean", "std")}
model["backbone"] |= {"embed_dims": 16, "num_layers": [1, 1, 1, 1]}
model["decode_head"] |= {"in_channels": [16, 32, 80, 128], "num_classes": 21}
model["data_preprocessor"] = {"type": "SegDataPreProcessor", "size": (64, 64), "mean": [0] * 3, "std": [255] * 3}
pipeline = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
runner = Runner(
    model=model, work_dir=f"{folder}/work", default_scope="mmseg", log_level="ERROR",
    train_dataloader={
        "batch_size": 2, "sampler": {"type": "InfiniteSampler"}, "collate_fn": {"type": "pseudo_collate"},
        "dataset": {
            "type": "PascalVOCDataset", "data_root": folder, "ann_file": "ImageSets/Segmentation/train.txt",
            "data_prefix": {"img_path": "JPEGImages", "seg_map_path": "SegmentationClass"}, "img_suffix": ".png",
            "pipeline": pipeline,
        },
    },
    train_cfg={"type": "IterBasedTrainLoop", "max_iters": 3},
    optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
)
before = [p.detach().clone() for p in runner.model.parameters()]
runner.train()
moved = sum(bool((a != b).any()) for a, b in zip(before, runner.model.parameters(), strict=True))
print("steps", runner.iter, "moved", moved > 0.9 * len(before))
"""


def test_plain_mmsegmentation_trains_on_an_export(tmp_path):
    """An outside witness: mmengine's runner, mmsegmentation's own dataset class, loader, model and loss.

    In a process of its own, since the runner changes mmengine's global state.
    """
    export.write(draw_set("voc", "train", 6, size=64), tmp_path, "voc", "train")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    made = subprocess.run([sys.executable, "-c", TRAIN, str(tmp_path)], env=env, capture_output=True, text=True)
    assert made.stdout.splitlines()[-1:] == ["steps 3 moved True"], made.stderr[-2000:]
