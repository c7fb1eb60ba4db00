"""Trains the layout-to-image models: U-Nets with rectified cross-attention on a data set's own masks and pictures.

`layout-*` starts from the zoo's text-to-image U-Net; as in FreestyleNet all of it learns, autoencoder and text encoder
stay; what differs is said in :mod:`fmseg.layout_model`. `weak-*` plays OASIS, the generator without a foundation model:
half as wide, from scratch, briefly.
"""

import torch
from torch import nn

from fmseg.datasets import draw_set
from fmseg.eight_bits import save_unet
from fmseg.fitting import batch_indices, fit
from fmseg.layout_model import PARTS, Lesson
from fmseg.rectify import install
from fmseg.stable_diffusion import load_pipeline
from fmseg.zoo_configs import WEAK_UNET
from fmseg.zoo_run import Run


def train(run: Run) -> None:
    """Train on the training split that all seeds of `ade` or `stuff` share and save the U-Net in diffusers' layout."""
    from diffusers import UNet2DConditionModel

    kind, _, draw = run.name.partition("-")
    options, recipe = run.params[run.name], run.recipe()
    real = draw_set(draw, "train", options["images"])
    pipe = load_pipeline(run.folder("diffusion"))
    torch.manual_seed(recipe.seed)
    unet = pipe.unet if kind == "layout" else UNet2DConditionModel.from_config(WEAK_UNET)
    install(unet).requires_grad_(True)
    parts = PARTS if kind == "layout" else 0  # the weak one learns too briefly to know pictures by heart
    lesson = Lesson(pipe, real.images, real.labels, real.classes, parts)

    def loss(step):
        return lesson.loss(unet, batch_indices(len(lesson), recipe, step))

    facts = fit(nn.ModuleDict({"unet": unet}), recipe, loss, count=len(real), **run.loop())
    save_unet(unet, run.folder() / "unet")
    run.finish(facts, {})
