"""Segmenters at the papers' size and how they are trained, read from the config files that mmsegmentation ships.

FreeMask trains from these very files (its own differ in data, length and warm-up alone, dossier 3.4), so what is data
there stays data here: architecture, optimiser, schedule, crop, augmentation, test time. FMWISS's DeepLabV3 follows
WILSON, whose values are given below.
"""

import copy
import importlib.util
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fmseg.inference import TestTime
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


def recipe(
    name: str, size: str, dataset: str, *, joint: bool = False, images: int | None = None, step: int = 0
) -> Recipe:
    """How one of them is trained.

    Args:
        name, size: the segmenter.
        dataset: 'ade20k', 'coco-stuff' or 'voc'; fixes the number of steps.
        joint: FreeMask's training on real and synthetic images.
        images: training pictures; DeepLabV3 alone needs it, whose length is given in epochs.
        step: of the incremental protocol, DeepLabV3 alone: 0 (base classes) or later.

    Raises:
        ValueError: an unknown name, size or data set; ``images`` missing for DeepLabV3.
    """
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
