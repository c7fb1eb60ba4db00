"""A zoo of random weights, and configurations of class-incremental runs that take seconds."""

import hashlib
import json

import torch
from safetensors.torch import save_file

from fmseg.zoo_configs import CLIP, VIT, VIT_MEAN, VIT_STD


def write_zoo(home, seed=0):
    """clip, mim, dino and backbone-deeplabv3 in their libraries' layouts, with cards; nothing in them was trained."""
    from open_clip.model import CLIP as Model
    from timm.models.vision_transformer import VisionTransformer

    import fmseg.convnet  # noqa: F401  registers the trunk

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = Model(**CLIP)
        for module in clip.visual.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        vits = {name: VisionTransformer(**VIT) for name in ("mim", "dino")}
    config = {"model_cfg": CLIP, "preprocess_cfg": {"interpolation": "bicubic", "resize_mode": "squash"}}
    _save(home / "clip", "open_clip_model.safetensors", clip, {"open_clip_config.json": config})
    facts = {"architecture": "vit", "kwargs": VIT, "mean": VIT_MEAN, "std": VIT_STD}
    for name, vit in vits.items():
        _save(home / name, "model.safetensors", vit, {"config.json": facts})
    from fmseg.segmenters import build

    trunk = build("deeplabv3", num_classes=2, seed=seed + 1).model.backbone
    _save(home / "backbone-deeplabv3", "backbone.safetensors", trunk, {})
    return home


def write_cards(home):
    """A zoo of cards alone, for what reads hashes and never weights."""
    for name in ("clip", "mim", "dino", "backbone-deeplabv3"):
        (home / name).mkdir(parents=True)
        (home / name / "card.json").write_text(json.dumps({"files": {"model": name}, "training": {"code": ""}}))
    return home


def _save(folder, name, model, others):
    folder.mkdir(parents=True)
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / name)
    for part, content in others.items():
        (folder / part).write_text(json.dumps(content))
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}
    (folder / "card.json").write_text(json.dumps({"files": files, "training": {"code": ""}}))


TRAIN = {"steps": 3, "batch_size": 4, "lr": 0.005, "backbone_lr": 0.1, "augment": ["flip"], "grad_clip": 1.0}
FMWISS = {"capacity": 5, "keep": 0.08, "threshold": 0.6, "seeds": 4}


def config(method="fmwiss", *, protocol="mini/10-10/overlap", seed=100, train=None, **options):
    """A run of a few steps on a dozen pictures."""
    images = {"coco": 32, "voc": 16} if "coco" in protocol else {"voc": 16}
    chosen = (FMWISS | options) if method == "fmwiss" else options
    how = TRAIN | (train or {})
    from fmseg.incremental_base import family

    base = {**TRAIN, "steps": 2, "family": family(method)}
    return {
        "method": method, "seed": seed, "protocol": protocol, "images": images, "validation": 4, "size": 64,
        "segmenter": "deeplabv3", "backbone": "scratch", "base": None if method == "joint" else base, "train": how,
        "share": 1.0, "options": chosen,
    }  # fmt: skip
