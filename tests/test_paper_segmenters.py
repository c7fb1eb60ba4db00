"""Paper-size segmenters and recipes, against mmsegmentation's own builders, on small images.

At full size they run in benchmarks/paper_size.py.
"""

import numpy as np
import pytest
import torch

from fmseg import paper_segmenters as paper
from fmseg.inference import TestTime
from fmseg.train_config import TrainConfig, learning_rate, parameter_groups

EVERY = [(name, size) for name, sizes in paper.FILES.items() for size in sizes]
MILLIONS = {  # parameters as mmsegmentation and the papers count them, rounded
    ("segformer", "b2"): 25, ("segformer", "b4"): 61, ("segmenter", "s"): 26, ("segmenter", "b"): 102,
    ("mask2former", "t"): 47, ("mask2former", "s"): 69, ("mask2former", "b"): 107, ("deeplabv3", "r101"): 61,
}  # fmt: skip


@pytest.fixture(scope="module", params=EVERY, ids=lambda pair: "-".join(pair))
def built(request):
    name, size = request.param
    return request.param, paper.build(name, size, num_classes=150, image_size=64)


def test_size_learning_rates_and_decay_are_mmsegmentations(built):
    from mmengine.optim import build_optim_wrapper

    (name, size), model = built
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert abs(count - MILLIONS[name, size]) < 1.5, count
    recipe = paper.recipe(name, size, "ade20k", images=1000)
    config = TrainConfig.from_dict(recipe.train)
    if name == "deeplabv3":
        assert len(parameter_groups(model, config.weight_decay, config.keys)) == 2 and not config.keys, "WILSON's own"
        return
    theirs = build_optim_wrapper(model.model, paper._file(name, size).optim_wrapper).optimizer
    wanted = {id(p): (g["lr"], g["weight_decay"]) for g in theirs.param_groups for p in g["params"]}
    ours = {}
    for group in parameter_groups(model, config.weight_decay, config.keys, config.norm_decay):
        ours |= {id(p): (config.lr * group["factor"], group["weight_decay"]) for p in group["params"]}
    if not config.keys:  # Segmenter: nothing decays at all
        assert config.weight_decay == 0.0
    assert ours.keys() == wanted.keys()
    assert all(np.allclose(ours[k], wanted[k], rtol=1e-6) for k in wanted)


@pytest.mark.parametrize("name, size", [pair for pair in EVERY if pair[0] != "deeplabv3"])
def test_the_schedule_is_mmengines_after_the_warm_up(name, size):
    from mmengine.registry import PARAM_SCHEDULERS

    config = TrainConfig.from_dict(paper.recipe(name, size, "ade20k").train)
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=config.lr)
    poly = dict(paper._file(name, size).param_scheduler[-1])
    scheduler = PARAM_SCHEDULERS.build(poly | {"optimizer": optimizer, "begin": 0, "end": 200})
    ours = TrainConfig.from_dict(config.to_dict() | {"steps": 200, "warmup_steps": 0})
    for step in range(200):
        theirs = optimizer.param_groups[0]["lr"]  # ends one step earlier: a two-hundredth here, nothing in 160,000
        assert np.isclose(theirs, learning_rate(ours, step), rtol=0, atol=0.01 * config.lr), step
        optimizer.step()
        scheduler.step()


def test_freemasks_values():
    """Dossier 3.4, row by row."""
    b2 = paper.recipe("segformer", "b2", "ade20k", joint=True)
    assert (b2.train["steps"], b2.train["batch_size"], b2.train["warmup_steps"]) == (320_000, 16, 3000)
    assert (b2.train["lr"], b2.train["weight_decay"], b2.real_repeat, b2.crop) == (6e-5, 0.01, 11, (512, 512))
    assert b2.train["keys"]["head"] == {"lr": 10.0, "decay": 1.0} and b2.train["keys"]["norm"]["decay"] == 0
    assert b2.test == TestTime(scale=(2048, 512))
    coco = paper.recipe("segformer", "b4", "coco-stuff", joint=True)
    assert (coco.train["steps"], coco.train["warmup_steps"], coco.real_repeat) == (160_000, 1500, 4)
    s = paper.recipe("segmenter", "s", "ade20k")
    assert (s.train["optimizer"], s.train["lr"], s.train["min_lr"], s.train["batch_size"]) == ("sgd", 1e-3, 1e-4, 8)
    assert s.test == TestTime(scale=(2048, 512), window=512, stride=480) and s.train["steps"] == 160_000
    big = paper.recipe("mask2former", "b", "ade20k")
    assert big.crop == (640, 640) and big.test.scale == (2560, 640) and big.train["grad_clip"] == 0.01
    assert big.train["keys"]["backbone"] == {"lr": 0.1, "decay": 1.0} and big.train["norm_decay"] == 0.0
    assert [step["type"] for step in b2.pipeline] == [
        "RandomResize", "RandomCrop", "RandomFlip", "PhotoMetricDistortion"
    ]  # fmt: skip
    assert paper.model_config("segmenter", "s")["mean"] == [127.5] * 3


def test_wilsons_values():
    """FMWISS dossier 2.5 and 3.4."""
    base = paper.recipe("deeplabv3", "r101", "voc", images=10_582)
    later = paper.recipe("deeplabv3", "r101", "voc", images=2_145, step=1)
    assert base.train["steps"] == 30 * (10_582 // 24) and later.train["steps"] == 40 * (2_145 // 24)
    assert (base.train["lr"], later.train["lr"], base.train["nesterov"]) == (0.01, 0.001, True)
    assert later.train["keys"] == {"decode_head": {"lr": 10.0, "decay": 1.0}}
    assert base.test == TestTime(centre_crop=512)
    model = paper.build("deeplabv3", "r101", num_classes=16, image_size=64).eval()
    assert model.grid_logits(torch.zeros(1, 3, 64, 96)).shape == (1, 16, 4, 6), "output stride 16"


def test_a_smaller_crop_shrinks_what_is_measured_in_pixels():
    small = paper.recipe("mask2former", "t", "ade20k", crop=128)
    whole = paper.recipe("mask2former", "t", "ade20k")
    assert small.crop == (128, 128) and small.test.scale == (512, 128)
    assert small.pipeline[0]["scales"] == [round(v / 4) for v in whole.pipeline[0]["scales"]]
    assert small.pipeline[1] == {"type": "RandomCrop", "crop_size": (128, 128), "cat_max_ratio": 0.75}
    crop = paper.recipe("deeplabv3", "r101", "voc", images=100, crop=64).pipeline[0]
    assert crop["size"] == 64 and crop["scale"] == (0.5, 2.0)


def test_pretrained_weights_come_from_a_local_file(tmp_path, monkeypatch):
    model = paper.build("segformer", "b2", num_classes=3, image_size=64)
    state = {key: torch.full_like(value, 0.25) for key, value in model.model.backbone.state_dict().items()}
    path = tmp_path / "mit_b2_20220624-66e8bf70.pth"
    torch.save(state, path)
    with pytest.raises(FileNotFoundError, match="Set FMSEG_WEIGHTS to a folder with mit_b2_20220624-66e8bf70.pth"):
        monkeypatch.delenv("FMSEG_WEIGHTS", raising=False)
        paper.weights_file("segformer", "b2")
    monkeypatch.setenv("FMSEG_WEIGHTS", str(tmp_path))
    head = model.model.decode_head.conv_seg.weight.clone()
    paper.load_pretrained(model, paper.weights_file("segformer", "b2"))
    assert all((v == 0.25).all() for v in model.model.backbone.state_dict().values())
    assert torch.equal(model.model.decode_head.conv_seg.weight, head)
    with pytest.raises(FileNotFoundError, match="download it from https://.*mit_b4"):
        paper.weights_file("segformer", "b4")
    trained = {"state_dict": {f"backbone.{k}": v for k, v in state.items()}}
    torch.save(trained, tmp_path / "trained.pth")
    paper.load_pretrained(model, tmp_path / "trained.pth")
    with pytest.raises(ValueError, match="does not hold the all of segformer: decode_head.* is missing"):
        paper.load_pretrained(model, tmp_path / "trained.pth", part="all")
    torch.save({k: v for k, v in list(state.items())[:-3]}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"does not hold the backbone of segformer: .* is missing \(3 such entries\)"):
        paper.load_pretrained(model, tmp_path / "less.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="text.pth is no file of weights"):
        paper.load_pretrained(model, tmp_path / "text.pth")
    other = {k: torch.zeros(7) if v.ndim else v for k, v in state.items()}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="has another shape"):
        paper.load_pretrained(model, tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match="There is no file .*none.pth. Pre-trained backbones and trained"):
        paper.load_pretrained(model, tmp_path / "none.pth")


def test_unknown_names_and_sizes_are_named():
    with pytest.raises(ValueError, match="`name` must be one of 4 known names; got 'segfromer'.*Did you mean"):
        paper.build("segfromer", "b2", num_classes=3)
    with pytest.raises(ValueError, match="`size` of segformer must be one of b2, b4; got 'b9'"):
        paper.recipe("segformer", "b9", "ade20k")
    with pytest.raises(ValueError, match="`dataset` must be one of"):
        paper.recipe("segformer", "b2", "cityscapes")
    with pytest.raises(ValueError, match="`images` must be the number of training pictures"):
        paper.recipe("deeplabv3", "r101", "voc")
