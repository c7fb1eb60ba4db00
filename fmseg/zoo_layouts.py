"""Trains the layout-to-image models: U-Nets with rectified cross-attention on a data set's own masks and pictures.

`layout-*` starts from the zoo's text-to-image U-Net (FreestyleNet's recipe: all of the U-Net learns, autoencoder and
text encoder stay). `weak-*` plays OASIS, the generator without a foundation model: half as wide, from scratch, briefly.
"""

import numpy as np
import torch
from torch import nn

from fmseg.datasets import draw_set
from fmseg.eight_bits import save_unet
from fmseg.fitting import batch_indices, fit
from fmseg.noising import noise_loss, signal_to_noise, spread_timesteps
from fmseg.rectify import install, keep_masks, layout_prompt
from fmseg.stable_diffusion import encode_images, encode_prompts, load_pipeline
from fmseg.zoo_configs import WEAK_UNET
from fmseg.zoo_diffusion import NO_TEXT
from fmseg.zoo_run import Run

GRIDS = (16, 8, 4, 2)  # where the U-Net's cross-attention works


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
    images = np.concatenate([real.images, real.images[:, :, ::-1]])
    labels = np.concatenate([real.labels, real.labels[:, :, ::-1]])
    latents = encode_images(pipe, np.ascontiguousarray(images))
    prompts, owners = layout_prompt(labels, real.classes, pipe.tokenizer)
    texts, empty = encode_prompts(pipe, prompts), encode_prompts(pipe, [""])
    alphas, count = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.num_train_timesteps

    def loss(step):
        chosen = batch_indices(len(images), recipe, step)
        keep = keep_masks(labels[chosen], [owners[k] for k in chosen], GRIDS, texts.shape[1])
        silent = torch.rand(len(chosen)) < NO_TEXT
        text = torch.where(silent[:, None, None], empty, texts[chosen])
        keep = {side: mask | silent[:, None, None, None] for side, mask in keep.items()}
        clean = latents[chosen]
        noise, at = torch.randn_like(clean), spread_timesteps(len(clean), count)
        noisy = pipe.scheduler.add_noise(clean, noise, at)
        found = unet(noisy, at, text, cross_attention_kwargs={"rectify": keep}).sample
        return noise_loss(found, noise, signal_to_noise(alphas, at))

    facts = fit(nn.ModuleDict({"unet": unet}), recipe, loss, count=len(real), **run.loop())
    save_unet(unet, run.folder() / "unet")
    run.finish(facts, {})
