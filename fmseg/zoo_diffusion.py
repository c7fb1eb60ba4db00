"""Trains the zoo's text-to-image model in the latents of its autoencoder: U-Net and text encoder together."""

import hashlib
import os
import random
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fmseg.noising import noise_loss, signal_to_noise, spread_timesteps
from fmseg.vocabulary import CONTEXT_LENGTH, clip_tokenizer
from fmseg.zoo_configs import SCHEDULER, TEXT_ENCODER, UNET
from fmseg.zoo_data import both, mixed_indices
from fmseg.zoo_loop import fit
from fmseg.zoo_run import Run
from fmseg.zoo_vae import pixels

NO_TEXT = 0.1  # of the pictures come without their sentence, for classifier-free guidance


def reworded(caption: str, rng: random.Random) -> str:
    """The sentence as people may put it: another word for photo, the ground left out, or names alone."""
    if rng.random() < NO_TEXT:
        return ""
    things, _, ground = caption.removeprefix("a photo of ").rpartition(" on ")
    if not things:
        things, ground = "", ground or caption.removeprefix("a photo of ")
    ground = ground if rng.random() < 0.7 or not things else ""
    if rng.random() < 0.2:
        words = f"{things} {ground}".split()
        return " ".join(w for w in words if w not in ("a", "an", "and"))
    what = rng.choice(("photo", "photo", "photograph", "picture"))
    return f"a {what} of {things} on {ground}" if things and ground else f"a {what} of {things or ground}"


def latents_of(folder: Path, vae: nn.Module, images: np.ndarray, chunk: int = 2000) -> np.ndarray:
    """(N, 4, 16, 16) float32 latents of pictures: posterior means, scaled. Kept in a folder, part by part, unscaled."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(images), chunk):
        pictures = hashlib.sha256(images[start : start + chunk].tobytes()).hexdigest()[:16]
        path = folder / f"{pictures}.npy"  # by content: another mix of pictures must not meet these latents
        if not path.exists():
            with torch.no_grad():
                means = [
                    vae.encode(pixels(images[k : min(k + 50, start + chunk)])).latent_dist.mean
                    for k in range(start, min(start + chunk, len(images)), 50)
                ]
            partial = path.with_suffix(".part.npy")
            np.save(partial, torch.cat(means).numpy().astype(np.float16))
            os.replace(partial, path)
        parts.append(np.load(path))
    return np.concatenate(parts).astype(np.float32) * vae.config.scaling_factor


def train(run: Run) -> None:
    """Train on the latents of the pictures and save a StableDiffusionPipeline's folder."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    options, recipe, tokenizer = run.params[run.name], run.recipe(), clip_tokenizer()
    scenes, icons = run.web().first(options["scenes"]), run.icons().first(options["icons"])
    web = both(scenes, icons)
    vae = AutoencoderKL.from_pretrained(run.folder("vae") / "vae", torch_dtype=torch.float32).eval()
    latents = latents_of(run.folder("vae") / "latents", vae, web.images)
    if not 0.5 < latents.std() < 2:
        raise ValueError(f"latents have deviation {latents.std():.2f}, not about 1: is `scaling_factor` right?")
    torch.manual_seed(recipe.seed)
    unet = UNet2DConditionModel.from_config(UNET)
    text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    scheduler = DDIMScheduler(**SCHEDULER)

    def loss(step):
        chosen = mixed_indices(len(scenes), len(icons), recipe, step)
        rng = random.Random(recipe.seed * 1_000_003 + step)
        texts = [reworded(web.captions[k], rng) for k in chosen]
        ids = tokenizer(texts, padding="max_length", max_length=CONTEXT_LENGTH, return_tensors="pt").input_ids
        clean = torch.from_numpy(latents[chosen])
        noise, at = torch.randn_like(clean), spread_timesteps(len(clean), scheduler.config.num_train_timesteps)
        noisy = scheduler.add_noise(clean, noise, at)
        found = unet(noisy, at, text_encoder(ids).last_hidden_state).sample
        return noise_loss(found, noise, signal_to_noise(scheduler.alphas_cumprod, at))

    facts = fit(model, recipe, loss, count=len(web), **run.loop())
    pipe = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(run.folder(), safe_serialization=True)
    run.finish(facts, {})
