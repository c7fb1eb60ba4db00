"""Segmenters at the papers' size and how they are trained, read from the config files that mmsegmentation ships.

FreeMask trains from these very files (its own differ in data, length and warm-up alone, dossier 3.4), so what is data
there stays data here: architecture, optimiser, schedule, crop, augmentation, test time. FMWISS's DeepLabV3 follows
WILSON, whose values are given below.
"""

import copy
import importlib.util
import math
import os
import pickle
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fmseg.inference import TestTime
from fmseg.segmenters import Segmenter, from_config
from fmseg.words import find

FILES = {
    "segformer": {
        "b2": "segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py",
        "b4": "segformer/segformer_mit-b4_8xb2-160k_ade20k-512x512.py",
    },
    "segmenter": {
        "s": "segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py",
        "b": "segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k-512x512.py",
    },
    "mask2former": {
        "t": "mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py",
        "s": "mask2former/mask2former_swin-s_8xb2-160k_ade20k-512x512.py",
        "b": "mask2former/mask2former_swin-b-in1k-384x384-pre_8xb2-160k_ade20k-640x640.py",
    },
    "deeplabv3": {"r101": "deeplabv3/deeplabv3_r101-d8_4xb4-40k_voc12aug-512x512.py"},
}
_RESNET = "https://download.openmmlab.com/pretrain/third_party/resnet101_v1c-e67eebb6.pth"  # mmengine's name for it
_GPUS = 8  # of the config files above; their batch sizes are for one
_DIVISOR = {"segformer": 32, "segmenter": 16, "mask2former": 32, "deeplabv3": 16}
# optimiser steps by data set: on real images alone, and in FreeMask's joint training (dossier 2.4). 160k on ADE20K is
# mmsegmentation's; 80k on COCO-Stuff is inferred from FreeMask's base config; 40k on VOC is mmsegmentation's schedule
STEPS = {"ade20k": (160_000, 320_000), "coco-stuff": (80_000, 160_000), "voc": (40_000, 80_000)}
REAL_REPEAT = {"ade20k": 11, "coco-stuff": 4}  # how often FreeMask's joint training repeats the real images
WARMUP = {("ade20k", True): 3000}  # SegFormer; else 1500
# WILSON's DeepLabV3 (FMWISS dossier 2.5): ResNet-101 at stride 16, ASPP of 256 channels
WILSON_BATCH, WILSON_EPOCHS = 24, {0: 30, 1: 40}
WILSON_LR = {0: 0.01, 1: 0.001}


ORIGIN = (
    "Pre-trained backbones and trained segmenters are linked from mmsegmentation's model zoo "
    "(https://github.com/open-mmlab/mmsegmentation, configs/<model>/README.md and each config's `checkpoint`); "
    "download the file once and give its path"
)


@dataclass(frozen=True)
class Recipe:
    """How a paper-size segmenter is trained and tested.

    Attributes:
        train: fields of :class:`fmseg.training.TrainConfig`.
        pipeline: transforms for :class:`fmseg.photos.Photos`.
        crop: (H, W) of training images.
        test: how pictures are shown in evaluation.
        real_repeat: times each real picture appears in an epoch.
        source: where the values come from.
    """

    train: dict[str, Any]
    pipeline: list[dict[str, Any]]
    crop: tuple[int, int]
    test: TestTime
    real_repeat: int
    source: str


def check(name: str, size: str) -> None:
    """Raise a ValueError that lists what there is if there is no such paper-size segmenter."""
    name = tuple(FILES)[find(name, tuple(FILES), "name")]
    if size not in FILES[name]:
        raise ValueError(f"`size` of {name} must be one of {', '.join(FILES[name])}; got {size!r}")


@lru_cache(maxsize=16)
def _file(name: str, size: str):
    """The config file as mmengine reads it."""
    from mmengine.config import Config

    check(name, size)
    folder = Path(importlib.util.find_spec("mmseg").submodule_search_locations[0]) / ".mim" / "configs"
    path = folder / FILES[name][size]
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: this mmsegmentation came without its config files. Install the wheel from PyPI "
            "(pip install -c constraints.txt mmsegmentation)"
        )
    return Config.fromfile(path)


def weights_url(name: str, size: str) -> str:
    """Where the pre-trained backbone comes from; a local file is looked up by the last part of the address.

    WILSON's DeepLabV3 starts from an ImageNet ResNet-101 with in-place ABN; mmsegmentation's is the same network with
    ordinary batch norm.
    """
    model = _file(name, size).model
    url = (model.backbone.get("init_cfg") or {}).get("checkpoint") or model.get("pretrained")
    return _RESNET if url == "open-mmlab://resnet101_v1c" else url


def weights_file(name: str, size: str) -> Path:
    """The local file of a pre-trained backbone, in the folder that FMSEG_WEIGHTS names.

    Raises:
        FileNotFoundError: the variable is not set, or the file is not there; says what to download.
    """
    url = weights_url(name, size)
    if "FMSEG_WEIGHTS" not in os.environ:
        raise FileNotFoundError(f"Set FMSEG_WEIGHTS to a folder with {Path(url).name}, from {url}")
    path = Path(os.environ["FMSEG_WEIGHTS"]) / Path(url).name
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}; download it from {url}")
    return path


def model_config(name: str, size: str) -> dict[str, Any]:
    """The architecture, in the form of :mod:`fmseg.segmenter_configs`: a model config, ``divisor``, ``mean``, ``std``.

    Left out: addresses of pre-trained weights, the preprocessor (done inside :class:`fmseg.segmenters.Segmenter`), the
    auxiliary head of DeepLabV3, which WILSON does not have. Plain batch norm for SyncBN: the trainer converts it where
    there are several GPUs.

    Raises:
        ValueError: no such segmenter.
    """
    config = copy.deepcopy(_file(name, size).model.to_dict())
    preprocessor = config.pop("data_preprocessor")
    for key in ("pretrained", "auxiliary_head"):
        config.pop(key, None)
    config["backbone"].pop("init_cfg", None)
    if name == "deeplabv3":
        config["backbone"] |= {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2)}
        config["decode_head"] |= {"channels": 256, "dilations": (1, 6, 12, 18)}
    if name == "mask2former":
        config["decode_head"]["type"] = "BatchedMask2FormerHead"  # the same, but for the matching's speed
    _plain_norm(config)
    return config | {"divisor": _DIVISOR[name], "mean": preprocessor["mean"], "std": preprocessor["std"]}


def _plain_norm(config: Any) -> None:
    if isinstance(config, dict):
        if config.get("type") == "SyncBN":
            config["type"] = "BN"
        for value in config.values():
            _plain_norm(value)
    elif isinstance(config, list | tuple):
        for value in config:
            _plain_norm(value)


def build(
    name: str, size: str, *, num_classes: int, image_size: int = 512, seed: int = 0, ignore_index: int = 255
) -> Segmenter:
    """A segmenter at a paper's size with random weights.

    Args:
        name, size: a key of :data:`FILES`: "segformer" "b2" or "b4"; "segmenter" "s" or "b"; "mask2former" "t", "s" or
            "b"; "deeplabv3" "r101".
        num_classes, image_size, seed, ignore_index: as in :func:`fmseg.segmenters.build`.

    Raises:
        ValueError: no such segmenter, or an argument does not fit.
    """
    options = {"num_classes": num_classes, "image_size": image_size, "seed": seed, "ignore_index": ignore_index}
    return from_config(name, model_config(name, size), **options)


def load_pretrained(model: Segmenter, path: str | os.PathLike, part: str = "backbone") -> None:
    """Take weights from a local file of mmsegmentation's.

    Args:
        model: a paper-size segmenter, filled in place.
        path: a .pth file: a bare state dict (pre-trained backbones) or one with ``state_dict`` (trained segmenters).
        part: "backbone", or "all" for a trained segmenter with as many classes.

    Raises:
        FileNotFoundError: no such file; says where such files come from. ValueError: not weights of this model: names
        what is missing, left over or of another shape.
    """
    if part not in ("backbone", "all"):
        raise ValueError(f"`part` must be 'backbone' or 'all', got {part!r}")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}. {ORIGIN}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(state.get("state_dict", state))
    except (RuntimeError, AttributeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no file of weights ({what}). {ORIGIN}") from error
    target = model.model.backbone if part == "backbone" else model.model
    if part == "backbone" and any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    state = {key: v for key, v in state.items() if not key.startswith(("auxiliary_head.", "head.", "fc."))}
    mine = target.state_dict()
    shapes = [k for k in mine.keys() & state.keys() if mine[k].shape != state[k].shape]
    # what a backbone file may lack: norms of the outputs, which only segmenters have, and computed index tables
    lacking = [k for k in mine.keys() - state.keys() if not (part == "backbone" and _is_computed(k))]
    left = sorted(state.keys() - mine.keys())
    if shapes or lacking or (part == "all" and left):
        which = shapes or lacking or left
        how = "has another shape" if shapes else "is missing" if lacking else "is not part of this model"
        raise ValueError(
            f"{path} does not hold the {part} of {model.name}: {sorted(which)[0]} {how} ({len(which)} such entries)"
        )
    target.load_state_dict(state, strict=False)


def _is_computed(key: str) -> bool:
    return "relative_position_index" in key or key.startswith("norm") or "num_batches_tracked" in key


def recipe(
    name: str, size: str, dataset: str, *, joint: bool = False, images: int | None = None, step: int = 0,
    crop: int | None = None,
) -> Recipe:  # fmt: skip
    """How one of them is trained.

    Args:
        name, size: the segmenter.
        dataset: 'ade20k', 'coco-stuff' or 'voc'; fixes the number of steps.
        joint: FreeMask's training on real and synthetic images.
        images: training pictures; DeepLabV3 alone needs it, whose length is given in epochs.
        step: of the incremental protocol, DeepLabV3 alone: 0 (base classes) or later.
        crop: side of training images, pixels, if not the recipe's; what is measured in pixels shrinks with it. For
            trials, not for results.

    Raises:
        ValueError: an unknown name, size or data set; ``images`` missing for DeepLabV3.
    """
    if crop is not None:
        return _shrunk(recipe(name, size, dataset, joint=joint, images=images, step=step), crop)
    config = _file(name, size)
    if name == "deeplabv3":
        return _wilson(images, min(step, 1))
    real, both = STEPS[tuple(STEPS)[find(dataset, tuple(STEPS), "dataset")]]
    steps = both if joint else real
    wrapper = config.optim_wrapper
    optimizer, parts = dict(wrapper.optimizer), wrapper.get("paramwise_cfg") or {}
    poly = config.param_scheduler[-1]
    train = {
        "steps": steps,
        "batch_size": _GPUS * config.train_dataloader.batch_size,
        "optimizer": optimizer["type"].lower(),
        "lr": optimizer["lr"],
        "weight_decay": optimizer["weight_decay"],
        "schedule": "poly",
        "poly_power": poly.power,
        "min_lr": poly.eta_min,
        "warmup_steps": WARMUP.get((dataset, joint), 1500) if name == "segformer" else 0,
        "grad_clip": (wrapper.get("clip_grad") or {}).get("max_norm"),
        "keys": {key: _multipliers(value) for key, value in parts.get("custom_keys", {}).items()},
        "norm_decay": parts.get("norm_decay_mult", 1.0),
        "eval_every": 8000,
    }
    steps_of = {s["type"]: dict(s) for s in config.train_pipeline if s["type"] not in _LOADING}
    crop = tuple(steps_of["RandomCrop"]["crop_size"])
    resize = next(s for s in config.test_pipeline if s["type"] == "Resize")
    windows = config.model.test_cfg
    slide = {"window": windows.crop_size[0], "stride": windows.stride[0]} if windows.mode == "slide" else {}
    return Recipe(
        train, list(steps_of.values()), crop, TestTime(scale=tuple(resize["scale"]), **slide),
        REAL_REPEAT.get(dataset, 1) if joint else 1, f"mmsegmentation {FILES[name][size]}",
    )  # fmt: skip


_LOADING = ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")


def _multipliers(value) -> dict[str, float]:
    return {"lr": float(value.get("lr_mult", 1.0)), "decay": float(value.get("decay_mult", 1.0))}


def _wilson(images: int | None, step: int) -> Recipe:
    """FMWISS dossier 2.5 and 3.4; WILSON run.py, argparser.py, dataset/__init__.py."""
    if not isinstance(images, int) or images < WILSON_BATCH:
        raise ValueError(
            f"`images` must be the number of training pictures, at least one batch ({WILSON_BATCH}), because WILSON's "
            f"DeepLabV3 is trained for epochs; got {images!r}"
        )
    epoch = images // WILSON_BATCH  # the last, short batch is dropped there
    train = {
        "steps": WILSON_EPOCHS[step] * epoch,
        "batch_size": WILSON_BATCH,
        "optimizer": "sgd",
        "nesterov": True,
        "lr": WILSON_LR[step],
        "weight_decay": 1e-4,
        "schedule": "poly",
        "poly_power": 0.9,
        "keys": {} if step == 0 else {"decode_head": {"lr": 10.0, "decay": 1.0}},
        "norm_decay": 1.0,
        "eval_every": math.ceil(WILSON_EPOCHS[step] / 8) * epoch,
    }
    pipeline = [
        {"type": "RandomResizedCrop", "size": 512, "scale": (0.5, 2.0)},
        {"type": "RandomFlip", "prob": 0.5},
    ]
    return Recipe(train, pipeline, (512, 512), TestTime(centre_crop=512), 1, "WILSON run.py, argparser.py")


def _shrunk(whole: Recipe, crop: int) -> Recipe:
    factor = crop / whole.crop[0]

    def small(value):
        if isinstance(value, list | tuple):
            return type(value)(small(v) for v in value)
        return max(1, round(value * factor))

    pixels = ("scale", "scales", "crop_size", "size", "max_size")
    pipeline = [
        {key: small(v) if key in pixels and step["type"] != "RandomResizedCrop" else v for key, v in step.items()}
        for step in whole.pipeline
    ]
    for step in pipeline:
        if step["type"] == "RandomResizedCrop":  # its "scale" is a share of the area
            step["size"] = crop
    test = {key: None if value is None else small(value) for key, value in vars(whole.test).items()}
    return replace(whole, pipeline=pipeline, crop=(crop, crop), test=TestTime(**test))
