"""Layout-to-image models that a table needs besides the zoo's: of fewer pictures, or without what `web` taught.

FreestyleNet's recipe as :mod:`fmseg.zoo_layouts` has it, on the first pictures of a draw's training split. They belong
to runs, so they are made where a run needs them, once, and kept beside its pictures; they are not shipped.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fmseg import zoo
from fmseg.datasets import draw_set
from fmseg.noising import noise_loss, signal_to_noise, spread_timesteps
from fmseg.provenance import canonical_hash
from fmseg.records import lock
from fmseg.rectify import install, keep_masks, layout_prompt
from fmseg.settings import check_config
from fmseg.stable_diffusion import encode_images, encode_prompts, load_pipeline
from fmseg.zoo_loop import Recipe, batch_indices, fit

KEYS = ("draw", "images", "size", "start", "base", "steps", "batch_size", "lr", "average", "seed")
STARTS = ("zoo", "scratch")
NO_TEXT = 0.1  # share of training pictures without prompt, so that guidance has something to lead away from
FACTS = "facts.json"


def made(recipe: dict[str, Any], home: Path, *, progress: bool = False) -> Path:
    """The folder of a model in diffusers' layout (``unet/``), trained now if it is not there.

    Args:
        recipe: ``draw``, ``images`` (the first of its training split), ``size`` (pixels), ``start`` ("zoo": from the
            zoo's text-to-image U-Net, or "scratch": from random weights of the same form), ``base`` (hash of the zoo's
            text-to-image model, whose autoencoder and text encoder stay), ``steps``, ``batch_size``, ``lr``,
            ``average``, ``seed``; and ``code``, what else it rests on.
        home: where such models are kept.
        progress: show a bar.

    Raises:
        ValueError: a key is missing or unknown, another ``start``, a ``base`` that the zoo no longer has.
    """
    check_config(recipe, KEYS, ("code",))
    if recipe["start"] not in STARTS:
        raise ValueError(f"`start` must be one of {', '.join(STARTS)}; got {recipe['start']!r}")
    if recipe["base"] != zoo.weights_hash("diffusion"):
        raise ValueError(
            f"`base` must be {zoo.weights_hash('diffusion')!r}, the zoo's text-to-image model; got {recipe['base']!r}. "
            "Weights that a record means are in the commit that made it"
        )
    folder = Path(home) / "generators" / canonical_hash(recipe)
    with lock(folder.with_suffix(".lock"), f"generator {folder.name}", wait=24 * 3600):
        if not (folder / FACTS).exists():  # written last, so its presence says that all is there
            _train(recipe, folder, progress)
    return folder


def _train(recipe: dict[str, Any], folder: Path, progress: bool) -> None:
    from diffusers import UNet2DConditionModel

    training = Recipe(**{k: recipe[k] for k in ("steps", "batch_size", "lr", "average", "seed")})
    real = draw_set(recipe["draw"], "train", recipe["images"], size=recipe["size"])
    pipe = load_pipeline(zoo.folder("diffusion"))
    torch.manual_seed(training.seed)
    unet = pipe.unet if recipe["start"] == "zoo" else UNet2DConditionModel.from_config(pipe.unet.config)
    install(unet).requires_grad_(True)
    grids = tuple(unet.config.sample_size >> k for k in range(len(unet.config.block_out_channels)))
    images = np.concatenate([real.images, real.images[:, :, ::-1]])
    labels = np.concatenate([real.labels, real.labels[:, :, ::-1]])
    latents = encode_images(pipe, np.ascontiguousarray(images))
    prompts, owners = layout_prompt(labels, real.classes, pipe.tokenizer)
    texts, empty = encode_prompts(pipe, prompts), encode_prompts(pipe, [""])
    alphas, count = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.num_train_timesteps

    def loss(step):
        chosen = batch_indices(len(images), training, step)
        keep = keep_masks(labels[chosen], [owners[k] for k in chosen], grids, texts.shape[1])
        silent = torch.rand(len(chosen)) < NO_TEXT
        text = torch.where(silent[:, None, None], empty, texts[chosen])
        keep = {side: mask | silent[:, None, None, None] for side, mask in keep.items()}
        clean = latents[chosen]
        noise, at = torch.randn_like(clean), spread_timesteps(len(clean), count)
        noisy = pipe.scheduler.add_noise(clean, noise, at)
        found = unet(noisy, at, text, cross_attention_kwargs={"rectify": keep}).sample
        return noise_loss(found, noise, signal_to_noise(alphas, at))

    facts = fit(
        nn.ModuleDict({"unet": unet}), training, loss, count=len(real), checkpoint=folder.with_suffix(".pt"),
        identity={"recipe": recipe}, progress=progress,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    (folder / FACTS).write_text(json.dumps({"recipe": recipe, **facts}, indent=1) + "\n")
    folder.with_suffix(".pt").unlink(missing_ok=True)
