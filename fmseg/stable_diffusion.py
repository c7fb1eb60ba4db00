"""The door to Stable Diffusion 1.x: load it, turn text and pictures into its numbers, generate, decode, invert.

Sampling is DDIM without noise of its own (eta 0), so a picture is a function of prompt, initial noise and steps alone.
The zoo's small pipeline has the same layout and goes through the same door.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

OnStep = Callable[[int, int, Tensor], AbstractContextManager | None]
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_FILES = (
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json",
)  # fmt: skip
_SCHEDULE = {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}  # SD 1's; the class has the opposites
_LAYOUT = (
    "A folder in diffusers' layout holds model_index.json and the folders unet, vae, text_encoder, tokenizer and "
    "scheduler, as StableDiffusionPipeline.save_pretrained(folder) writes them"
)
_CHUNK = 8  # pictures in the autoencoder at once


def load_pipeline(source: str | os.PathLike, *, device="cpu", dtype: torch.dtype = torch.float32):
    """Stable Diffusion in diffusers' form, ready for inference.

    Args:
        source: a folder in diffusers' layout, or a name on the hub such as "CompVis/stable-diffusion-v1-4", downloaded
            if it is not in the hub's cache. Weights are read from safetensors only, never from pickles.
        device, dtype: of networks and latents.

    Returns:
        StableDiffusionPipeline with a DDIM scheduler on the folder's noise schedule, without safety checker, feature
        extractor and progress bar. Where the schedule's file is silent: no clipping, steps_offset 1, last alpha that of
        timestep 0, as in Stable Diffusion 1.

    Raises:
        FileNotFoundError: no such folder, a part of it is missing, or a hub's name cannot be downloaded.
        ValueError: the folder is of another kind of pipeline, its parts do not fit together, or cannot be read.
    """
    from diffusers import StableDiffusionPipeline
    from safetensors import SafetensorError

    folder = Path(source)
    local = folder.is_dir()
    if local:
        _check_folder(folder)
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)):
        raise FileNotFoundError(f"There is no folder {source}. {_LAYOUT}")
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        pipe = StableDiffusionPipeline.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if local:
            raise ValueError(f"{folder} cannot be read as Stable Diffusion: {what}. {_LAYOUT}") from error
        raise FileNotFoundError(
            f"{source} is no folder here, and could not be downloaded from the hub ({what}). Download it once where "
            f"there is a network, with StableDiffusionPipeline.from_pretrained({str(source)!r}, use_safetensors=True, "
            "safety_checker=None).save_pretrained(folder), and give the folder's path"
        ) from error
    _check_parts(pipe, source)
    pipe.scheduler = _scheduler(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@torch.no_grad()
def encode_prompts(pipe, prompts: Sequence[str]) -> Tensor:
    """Text as the U-Net sees it.

    Returns:
        (N, L, D) last hidden states of the text encoder after its final norm, padded to the tokenizer's length L (77 in
        Stable Diffusion), in the encoder's dtype and device.

    Raises:
        ValueError: no list of texts, or a text with more than L tokens, which diffusers would cut.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"`prompts` must be a list of at least one text, got {prompts!r}")
    length = pipe.tokenizer.model_max_length
    tokens = pipe.tokenizer(list(prompts), padding="max_length", max_length=length, return_tensors=None).input_ids
    for prompt, ids in zip(prompts, tokens, strict=True):
        if len(ids) > length:
            raise ValueError(f"{prompt!r} has {len(ids)} tokens with start and end; this text encoder takes {length}")
    return pipe.text_encoder(torch.tensor(tokens, device=pipe.text_encoder.device)).last_hidden_state


def sample_noise(shape: Sequence[int], seeds: Iterable[int]) -> Tensor:
    """Standard normal noise, each sample a function of its own seed alone.

    Args:
        shape: of one sample, for example (4, 64, 64).
        seeds: integers in [0, 2**64). All 64 bits count: torch's own CPU generator would look at the low 32 only.

    Returns:
        (N, *shape) float32 on the CPU.

    Raises:
        ValueError: a seed is out of range.
    """
    seeds = [int(seed) for seed in seeds]
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise ValueError(f"`seeds` must be in [0, 2**64), got {seed}")
    made = [np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(made)) if made else torch.empty(0, *shape)


@torch.no_grad()
def generate_latents(
    pipe, prompt_embeds: Tensor, noise: Tensor, *, steps: int, guidance: float, negative_embeds: Tensor | None = None,
    start: int = 0, on_step: OnStep | None = None, cross_attention_kwargs: dict[str, Any] | None = None,
) -> Tensor:  # fmt: skip
    r"""Denoise by DDIM with eta 0 (Song et al. 2021, eq. 12), with classifier-free guidance.

    .. math:: \hat\epsilon = \epsilon_\emptyset + w (\epsilon_y - \epsilon_\emptyset)

    Args:
        prompt_embeds: (N, L, D) from :func:`encode_prompts`.
        noise: (N, C, h, w) latents before step ``start``; for ``start=0`` standard normal.
        steps: of the whole schedule. Step k of [0, steps) is the (steps - k)-th from the clean end.
        guidance: w. Above 1, the U-Net sees 2N rows, those without prompt first; otherwise N rows with prompt.
        negative_embeds: (N or 1, L, D) for the rows without prompt; by default of the empty text.
        start: first step that is done.
        on_step: called as (k, timestep, latents) before the U-Net is. It may return a context manager, for example
            :class:`fmseg.taps.Taps`, that is entered around this one call.
        cross_attention_kwargs: for the attention processors; with guidance, of 2N rows.

    Returns:
        (N, C, h, w) latents in the U-Net's dtype; scaled, as :func:`decode` takes them. Made without autograd, but not
        in inference mode: what taps record can be trained on.

    Raises:
        ValueError: rows differ, or steps do not fit the schedule.
    """
    _check_rows(prompt_embeds, noise)
    scheduler = _scheduler(pipe, steps)
    if not 0 <= start < steps:
        raise ValueError(f"`start` must be in [0, {steps}), got {start}")
    guided, text = guidance > 1, prompt_embeds.to(pipe.unet.device, pipe.unet.dtype)
    if guided:
        without = encode_prompts(pipe, [""]) if negative_embeds is None else negative_embeds
        text = torch.cat([without.to(text).expand_as(text), text])
    latents = noise.to(pipe.unet.device, pipe.unet.dtype)
    for k, t in enumerate(scheduler.timesteps[start:], start):
        rows = torch.cat([latents, latents]) if guided else latents
        found = _predict(pipe, rows, t, text, (k, int(t), latents), on_step, cross_attention_kwargs)
        if guided:
            blind, seeing = found.chunk(2)
            found = blind + guidance * (seeing - blind)
        latents = scheduler.step(found, t, latents, return_dict=False)[0]
    return latents


@torch.no_grad()
def invert(pipe, latents: Tensor, prompt_embeds: Tensor, steps: int, *, on_step: OnStep | None = None) -> Tensor:
    r"""The noise from which DDIM would make given latents: the sampler run backwards, without guidance.

    .. math:: z_{t+1} = \sqrt{\bar\alpha_{t+1}} \, (z_t - \sqrt{1-\bar\alpha_t}\,\epsilon) / \sqrt{\bar\alpha_t}
              + \sqrt{1-\bar\alpha_{t+1}}\,\epsilon

    Exact as far as the predicted noise is the same at both ends of a step; hence more steps, smaller error. Generate
    from the result with guidance 1 and the same number of steps.

    Args:
        latents: (N, C, h, w) from :func:`encode_images`.
        prompt_embeds: (N, L, D).
        steps: at least 1.
        on_step: as in :func:`generate_latents`; k counts from the clean end, from 0.

    Returns:
        (N, C, h, w) in the U-Net's dtype.

    Raises:
        ValueError: rows differ, or steps do not fit the schedule.

    Differs from the paper's equation (dossier 2.9), with diffusers' DDIMInverseScheduler: the U-Net is told t + 1, the
    timestep that generating will tell it for this step, not t.
    """
    from diffusers import DDIMInverseScheduler

    _check_rows(prompt_embeds, latents)
    known = signature(DDIMInverseScheduler.__init__).parameters
    scheduler = DDIMInverseScheduler(**{k: v for k, v in _scheduler(pipe, steps).config.items() if k in known})
    scheduler.set_timesteps(steps, device=pipe.unet.device)
    latents, text = (x.to(pipe.unet.device, pipe.unet.dtype) for x in (latents, prompt_embeds))
    for k, t in enumerate(scheduler.timesteps):
        found = _predict(pipe, latents, t, text, (k, int(t), latents), on_step, None)
        latents = scheduler.step(found, t, latents, return_dict=False)[0]
    return latents


@torch.no_grad()
def decode(pipe, latents: Tensor) -> np.ndarray:
    """Scaled latents (N, C, h, w) -> pictures (N, H, W, 3) uint8, rounded as diffusers rounds."""
    made = []
    for part in latents.to(pipe.vae.device, pipe.vae.dtype).split(_CHUNK):
        image = pipe.vae.decode(part / pipe.vae.config.scaling_factor).sample
        made.append((image.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return torch.cat(made).numpy()


@torch.no_grad()
def encode_images(pipe, images: np.ndarray) -> Tensor:
    """Pictures as latents: the mean of the autoencoder's posterior, scaled; nothing is drawn.

    Args:
        images: (N, H, W, 3) uint8, sides divisible by the autoencoder's factor (8 in Stable Diffusion).

    Returns:
        (N, C, h, w) in the autoencoder's dtype and device.

    Raises:
        ValueError: another shape or dtype.
    """
    images, factor = np.asarray(images), pipe.vae_scale_factor
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise ValueError(f"`images` must be (N, H, W, 3) uint8, N > 0; got {images.shape} {images.dtype}")
    if images.shape[1] % factor or images.shape[2] % factor:
        raise ValueError(f"sides of `images` must be divisible by {factor}, got {images.shape[1:3]}")
    made = []
    for k in range(0, len(images), _CHUNK):
        part = torch.tensor(images[k : k + _CHUNK], device=pipe.vae.device).permute(0, 3, 1, 2)
        made.append(pipe.vae.encode((part.float() / 127.5 - 1).to(pipe.vae.dtype)).latent_dist.mean)
    return torch.cat(made) * pipe.vae.config.scaling_factor


def _predict(pipe, rows, t, text, told, on_step, kwargs) -> Tensor:
    around = on_step(*told) if on_step is not None else None
    with nullcontext() if around is None else around:
        return pipe.unet(rows, t, text, cross_attention_kwargs=kwargs, return_dict=False)[0]


def _scheduler(pipe, steps: int | None = None):
    """A fresh DDIM scheduler on the pipeline's noise schedule; what the schedule leaves out as Stable Diffusion 1."""
    from diffusers import DDIMScheduler

    config, known = pipe.scheduler.config, signature(DDIMScheduler.__init__).parameters
    said = {k: v for k, v in config.items() if k in known and k not in config.get("_use_default_values", ())}
    scheduler = DDIMScheduler(**_SCHEDULE | said)
    if steps is not None:
        total = scheduler.config.num_train_timesteps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps < total:
            raise ValueError(f"`steps` must be an integer in [1, {total}), got {steps!r}")
        scheduler.set_timesteps(steps, device=pipe.unet.device)
    return scheduler


def _check_rows(prompt_embeds: Tensor, latents: Tensor) -> None:
    if prompt_embeds.ndim != 3 or latents.ndim != 4 or len(prompt_embeds) != len(latents):
        raise ValueError(
            "text must be (N, L, D) and latents (N, C, h, w) with the same N; got "
            f"{tuple(prompt_embeds.shape)} and {tuple(latents.shape)}"
        )


def _check_folder(folder: Path) -> None:
    for name in _FILES:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}. {_LAYOUT}")
    if '"StableDiffusionPipeline"' not in (folder / _FILES[0]).read_text():
        raise ValueError(f"{folder / _FILES[0]} is not of a StableDiffusionPipeline, that is of Stable Diffusion 1.x")
    for part, stem in _WEIGHTS.items():
        if not any((folder / part / (stem + end)).exists() for end in (".safetensors", ".safetensors.index.json")):
            others = sorted(p.name for p in (folder / part).iterdir() if p.name != "config.json")
            raise FileNotFoundError(
                f"{folder / part} has no {stem}.safetensors, but {', '.join(others) or 'nothing else'}. Pickles (.bin, "
                ".ckpt) are never opened here, because opening one can run code; save the pipeline again with "
                "save_pretrained(folder, safe_serialization=True), or download the revision with safetensors"
            )


def _check_parts(pipe, source) -> None:
    """What the libraries let pass with a warning or none: weights left out, a tokenizer that lost its words."""
    for part in (pipe.unet, pipe.vae):
        for name, parameter in part.named_parameters():
            if parameter.is_meta:
                raise ValueError(f"{source} has no weights for {name} of its {type(part).__name__}")
    text, tokenizer = pipe.text_encoder.config, pipe.tokenizer
    pairs = {
        "words of the tokenizer and the text encoder": (len(tokenizer), text.vocab_size),
        "lengths of the tokenizer and the text encoder": (tokenizer.model_max_length, text.max_position_embeddings),
        "widths of the text encoder and the U-Net": (text.hidden_size, pipe.unet.config.cross_attention_dim),
        "channels of the autoencoder and the U-Net": (pipe.vae.config.latent_channels, pipe.unet.config.in_channels),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise ValueError(f"{source} does not fit together: {what} are {one} and {other}")
