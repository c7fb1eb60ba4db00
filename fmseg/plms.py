"""PLMS, the sampler that FreestyleNet and so FreeMask paint with: Liu et al. 2022, "Pseudo Numerical Methods for
Diffusion Models on Manifolds", without Runge-Kutta steps, as in CompVis' ldm/models/diffusion/plms.py.

Eta is 0: a picture is a function of text, initial noise and number of steps. The zoo's mini models use DDIM
(:mod:`fmseg.stable_diffusion`).
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from fmseg.stable_diffusion import encode_prompts

# where a pipeline's schedule is silent: Stable Diffusion 1's, as CompVis has it
_SCHEDULE = {"steps_offset": 1, "set_alpha_to_one": False, "timestep_spacing": "leading"}


def plms_scheduler(pipe, steps: int):
    """A fresh PLMS scheduler on the pipeline's noise schedule.

    Args:
        pipe: Stable Diffusion. steps: in [4, training steps of the schedule).

    Raises:
        ValueError: ``steps`` is out of range; the method looks three steps back.
    """
    from diffusers import PNDMScheduler

    config, known = pipe.scheduler.config, signature(PNDMScheduler.__init__).parameters
    said = {k: v for k, v in config.items() if k in known and k not in config.get("_use_default_values", ())}
    total = config.num_train_timesteps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 4 <= steps < total:
        raise ValueError(f"`steps` of PLMS must be an integer in [4, {total}), got {steps!r}")
    scheduler = PNDMScheduler(**_SCHEDULE | said | {"skip_prk_steps": True})
    scheduler.set_timesteps(steps, device=pipe.unet.device)
    return scheduler


@torch.no_grad()
def plms_latents(
    pipe, text: Tensor, noise: Tensor, *, steps: int, guidance: float,
    cross_attention_kwargs: dict[str, Any] | None = None,
) -> Tensor:  # fmt: skip
    r"""Denoise by PLMS, with classifier-free guidance.

    .. math:: e' = (55 e_t - 59 e_{t+1} + 37 e_{t+2} - 9 e_{t+3}) / 24

    takes the place of DDIM's noise; the first steps use shorter sums, and the very first looks one step ahead, so the
    U-Net is asked ``steps + 1`` times.

    Args:
        text: (N, L, D) of :func:`fmseg.stable_diffusion.encode_prompts`. noise: (N, C, h, w), standard normal.
        steps: see :func:`plms_scheduler`. guidance: w; above 1 the U-Net sees 2N rows, those without prompt first.
        cross_attention_kwargs: for the attention processors; with guidance, of 2N rows.

    Returns:
        (N, C, h, w) scaled latents in the U-Net's dtype, as :func:`fmseg.stable_diffusion.decode` takes them.

    Raises:
        ValueError: rows differ, or ``steps`` is out of range.
    """
    if len(text) != len(noise):
        raise ValueError(f"`text` and `noise` must have as many rows; got {len(text)} and {len(noise)}")
    scheduler = plms_scheduler(pipe, steps)
    text = text.to(pipe.unet.device, pipe.unet.dtype)
    if guidance > 1:
        text = torch.cat([encode_prompts(pipe, [""]).to(text).expand_as(text), text])
    latents = noise.to(pipe.unet.device, pipe.unet.dtype)
    for t in scheduler.timesteps:
        rows = torch.cat([latents, latents]) if guidance > 1 else latents
        found = pipe.unet(rows, t, text, cross_attention_kwargs=cross_attention_kwargs, return_dict=False)[0]
        if guidance > 1:
            blind, seeing = found.chunk(2)
            found = blind + guidance * (seeing - blind)
        latents = scheduler.step(found, t, latents, return_dict=False)[0]
    return latents
