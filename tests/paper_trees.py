"""Small trees in VOC's and COCO's layout, tiny foundation models in a folder of weights, and `paper` made small."""

import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from toys import ROOT

from fmseg import export, names
from fmseg.datasets import draw_set
from fmseg.settings import Settings, load

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
EXPERTS = {"clip": {"model": "tiny-clip"}, "vit": {"model": "tiny-vit"}, "templates": "plain"}


def write_voc(root, train=14, val=3):
    folder = root / "VOCdevkit/VOC2012"
    export.write(draw_set("voc", "train", train, size=64), folder, "voc", "train_aug")
    export.write(draw_set("voc", "val", val, size=96), folder, "voc", "val", prefix="val_")
    return root


def write_coco(root, train=4, val=2):
    """Pictures of two things each: a class that only COCO has, and on the last one, and in `val`, a class of VOC's."""
    rng = np.random.default_rng(7)
    mine = [n for n in names.COCO[1:] if n not in names.VOC_IN_COCO.values()]
    raw = {name: number for number, name in names.COCO_BY_ID.items()}
    for part, count in (("train2017", train), ("val2017", val)):
        for k in range(count):
            labels = np.full((64, 64), 160)  # stuff
            labels[8:40, 8:40] = raw[mine[k]] - 1
            if part == "val2017" or k == count - 1:
                labels[40:60, 40:60] = raw["person"] - 1
            for place, array, ending in (("images", rng.integers(0, 256, (64, 64, 3)), "jpg"),
                                         ("stuffthingmaps", labels, "png")):  # fmt: skip
                path = root / "coco" / place / part / f"{k:012d}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
    return root


def write_weights(home):
    """A CLIP of open_clip's form with a transformer for pictures, and a transformer of timm's; random weights."""
    from open_clip.model import CLIP
    from timm.models.vision_transformer import VisionTransformer

    kwargs = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        clip, vit = CLIP(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT), VisionTransformer(**kwargs)
    config = {"model_cfg": {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": {}}
    facts = {"architecture": "vit", "kwargs": kwargs, "mean": [0.5] * 3, "std": [0.25] * 3}
    for folder, model, weights, about, content in (
        ("tiny-clip", clip, "open_clip_model.safetensors", "open_clip_config.json", config),
        ("tiny-vit", vit, "model.safetensors", "config.json", facts),
    ):
        (home / folder).mkdir(parents=True)
        save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, home / folder / weights)
        (home / folder / about).write_text(json.dumps(content))
    return home


def small_paper(root):
    """The paper profile with two steps of two crops of 64 pixels and mini models."""
    values = load("paper", ROOT).values
    train = {"steps": 2, "batch_size": 2, "eval_every": None, "device": "cpu"}
    section = values["incremental"] | {"size": "mini", "experts": EXPERTS, "seeds": {"headline": 1, "others": 1}}
    changes = {"crop": 64, "pretrained": False, "seeds": [0], "train": train, "incremental": section}
    return Settings("paper", values | changes, root)
