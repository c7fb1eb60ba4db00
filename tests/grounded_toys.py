"""A zoo for tests: a diffusion model of SD's layout with a few random weights, and an oracle that sees blobs."""

import hashlib
import json

import numpy as np
import torch
import torch.nn.functional as F

from fmseg import grounded_full, grounded_runs, grounded_sets, plan_real_grounded, protocols, zoo
from fmseg.datasets import get_draw
from fmseg.generation import text_to_image
from fmseg.vocabulary import clip_tokenizer
from fmseg.zoo_configs import SCHEDULER, TEXT_ENCODER, UNET, VAE

SMALL = UNET | dict(block_out_channels=[8, 8, 8, 8], norm_num_groups=4, cross_attention_dim=16, attention_head_dim=1)
TEXT = TEXT_ENCODER | dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
AUTOENCODER = VAE | dict(block_out_channels=[8, 8, 8], norm_num_groups=4)


def make_zoo(folder):
    """Folders `diffusion`, `oracle` and `judge` with cards; the oracles' files hold nothing."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = StableDiffusionPipeline(
            vae=AutoencoderKL.from_config(AUTOENCODER), unet=UNet2DConditionModel.from_config(SMALL),
            text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)), tokenizer=clip_tokenizer(),
            scheduler=DDIMScheduler(**SCHEDULER), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    pipe.save_pretrained(folder / "diffusion")
    for name in ("oracle", "judge", "clip"):
        (folder / name).mkdir()
        (folder / name / "model.txt").write_text(name)
    for path in folder.iterdir():
        files = {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in path.rglob("*.*")}
        (path / zoo.CARD).write_text(json.dumps({"files": files}))


def blobs(classes, images, batch=50):
    """Probabilities in which many classes have large regions, a function of each picture."""
    made = []
    for image in images:
        rng = torch.Generator().manual_seed(int((image.astype(np.int64) * (1, 2, 3)).sum()))
        x = torch.randn(1, len(classes), 6, 6, generator=rng) * 4
        made.append(F.interpolate(x, image.shape[:2], mode="bilinear")[0].softmax(0).numpy())
    return np.stack(made)


def install(folder, monkeypatch):
    """Make this zoo and its oracle the ones that runs use."""
    monkeypatch.setenv("FMSEG_ZOO", str(folder))
    text_to_image.cache_clear()
    monkeypatch.setattr(grounded_sets, "load_oracle", lambda name="oracle": (get_draw(name).classes,) * 2)
    monkeypatch.setattr(grounded_sets, "probabilities", blobs)


def config(**changes):
    """A head's run that takes a second."""
    split = protocols.get("mini/grounded-voc-1")
    made = {
        "method": "head", "seed": 0, "draw": "voc", "seen": list(split.seen), "step": 1,
        "sampling": {"steps": 2, "train": 3.0, "test": 3.0},
        "oracle": {"rule": "best", "score": 0.0, "area": 1},
        "pictures": {"from": "painted", "one": 20, "two": 20, "of": "draw", "share": 0.8},
        "test": {"one": 20, "two": 20, "unseen": 20, "groups": [list(split.unseen)]},
        "zoo": {name: zoo.weights_hash(name) for name in ("diffusion", "oracle")},
        "head": {"widths": [2, 2, 2, 2], "dim": 8, "heads": 2, "layers": 1, "hidden": 8},
        "undetected": "skip",
        "train": {"steps": 3, "batch_size": 4, "lr": 0.001, "weight_decay": 0.0, "schedule": "constant"},
    }  # fmt: skip
    return made | changes


def run(**changes):
    return grounded_runs.run(config(**changes))


# What a picture costs at the paper's size, made up.
MEASURED = {"seconds": {"step": 2.0, "decode": 1.0, "oracle": 0.5, "forward": 0.25, "backward": 0.25}, "memory": 9e9}


def without_stable_diffusion(monkeypatch):
    """A plan at paper size that times nothing: :data:`MEASURED` in the place of minutes."""
    monkeypatch.setattr(grounded_full, "random_pipeline", lambda: type("Pipe", (), {"device": "cpu"}))
    monkeypatch.setattr(grounded_full, "mask2former", lambda: None)
    monkeypatch.setattr(grounded_full, "one_picture", lambda pipe, names, steps, oracle: MEASURED)
    monkeypatch.setattr(plan_real_grounded, "segmenter_step", lambda size, draw, crop: (0.01, 5.0))
