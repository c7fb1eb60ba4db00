"""Trains the zoo's text-to-image model in the latents of its autoencoder: U-Net and text encoder together.

In four parts. First the noise alone is learned: grounds follow the text soon, patterns half, outlines hardly, even
after 7,000 steps. Then, mostly on single things and pairs, the picture that the U-Net has in mind is held against the
true one in the eyes of a small network (:mod:`fmseg.zoo_sight`), which is also asked for the caption's words. At first
these losses' gradients are about as large as the noise's, which gives patterns and few outlines (shapes named right:
from .33 to .38 in 5,000 steps); in the third part they weigh four and ten times as much (.67 after 5,000 more), and in
the last most pictures are pairs, of which the two things melted into one figure before. It helped single things (found
by the oracle in .80 of the pictures before, .91 after; seed 100) more than pairs (both found: .18, .20).
"""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmseg.fitting import Recipe, fit
from fmseg.noising import clean_latents, deciding_timesteps, noise_loss, signal_to_noise, spread_timesteps
from fmseg.vocabulary import CONTEXT_LENGTH, clip_tokenizer
from fmseg.zoo_backbones import targets_for
from fmseg.zoo_configs import SCHEDULER, TEXT_ENCODER, UNET
from fmseg.zoo_data import both, named_words, naming_loss, shared_indices
from fmseg.zoo_run import Run
from fmseg.zoo_sight import teach
from fmseg.zoo_vae import feature_distance, pixels

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
    sets = run.web().first(options["scenes"]), run.icons().first(options["icons"]), run.duos()
    web, counts = both(*sets), [len(one) for one in sets]
    vae = AutoencoderKL.from_pretrained(run.folder("vae") / "vae", torch_dtype=torch.float32).eval()
    latents = latents_of(run.folder("vae") / "latents", vae, web.images)
    if not 0.5 < latents.std() < 2:
        raise ValueError(f"latents have deviation {latents.std():.2f}, not about 1: is `scaling_factor` right?")
    named = {kind: torch.from_numpy(there) for kind, there in named_words(web.captions).items()}
    seeing, known = run.recipe("diffusion-sight"), sum(counts[:2])  # targets are those of the backbones: no duos
    words, targets = {kind: there[:known] for kind, there in named.items()}, targets_for(run, *sets[:2])
    sight = teach(
        run, seeing, latents[:known], targets, words, lambda step: shared_indices(counts[:2], (0.5, 0.5), seeing, step)
    )
    torch.manual_seed(recipe.seed)
    unet = UNet2DConditionModel.from_config(UNET)
    text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    scheduler = DDIMScheduler(**SCHEDULER)
    alphas, times = scheduler.alphas_cumprod, scheduler.config.num_train_timesteps

    def seen(
        clean: Tensor, found: Tensor, chosen: np.ndarray, weight: dict[str, float]
    ) -> tuple[Tensor, dict[str, float]]:
        """What the picture in mind lacks: features of the true one, words of the caption."""
        maps = sight.maps(found)
        looks = feature_distance(maps, sight.maps(clean))
        names, right = naming_loss(sight.words(maps), {kind: there[chosen] for kind, there in named.items()})
        return weight["looks"] * looks + weight["names"] * names, {"looks": looks.item()} | right

    def loss_of(mine: Recipe, section: dict[str, Any]) -> Callable[[int], Any]:
        shares, weight = section["shares"], section.get("eyes")
        timesteps = deciding_timesteps if weight else spread_timesteps

        def loss(step):
            chosen = shared_indices(counts, shares, mine, step)
            rng = random.Random(mine.seed * 1_000_003 + step)
            texts = [reworded(web.captions[k], rng) for k in chosen]
            ids = tokenizer(texts, padding="max_length", max_length=CONTEXT_LENGTH, return_tensors="pt").input_ids
            clean = torch.from_numpy(latents[chosen])
            noise, at = torch.randn_like(clean), timesteps(len(clean), times)
            noisy = scheduler.add_noise(clean, noise, at)
            found = unet(noisy, at, text_encoder(ids).last_hidden_state).sample
            value = noise_loss(found, noise, signal_to_noise(alphas, at))
            if not weight:
                return value
            more, parts = seen(clean, clean_latents(noisy, found, alphas, at), chosen, weight)
            return value + more, {"noise": value.item()} | parts

        return loss

    before = []
    first = {
        "words": run.recipe("diffusion-words"),
        "looks": run.recipe("diffusion-looks"),
        "outlines": run.recipe("diffusion-outlines"),
    }
    for part, mine in first.items():
        section = f"diffusion-{part}"
        loss = loss_of(mine, run.params[section])
        before.append(fit(model, mine, loss, count=len(web), **run.loop(part, section)))
    facts = fit(model, recipe, loss_of(recipe, options), count=len(web), **run.loop())
    facts["seconds"] += sum(one["seconds"] for one in before)
    facts["before"] = [{key: one[key] for key in ("steps", "exposures", "seconds", "loss")} for one in before]
    pipe = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(run.folder(), safe_serialization=True)
    run.finish(facts, {})
