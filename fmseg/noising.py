"""What a diffusion model is trained on: noised latents, and the error of the noise that it sees in them."""

import torch
from torch import Tensor

SNR_CAP = 5.0


def signal_to_noise(alphas: Tensor, timesteps: Tensor) -> Tensor:
    r"""Ratio of signal to noise variance, :math:`\bar\alpha_t / (1 - \bar\alpha_t)`.

    Args:
        alphas: (T,) cumulative products :math:`\bar\alpha`, a scheduler's ``alphas_cumprod``.
        timesteps: (B,) int64 in [0, T).

    Returns:
        (B,) > 0.
    """
    kept = alphas[timesteps]
    return kept / (1 - kept)


def noise_loss(found: Tensor, noise: Tensor, snr: Tensor) -> Tensor:
    r"""Squared error of the predicted noise, each timestep weighted by :math:`\min(\mathrm{SNR}, 5) / \mathrm{SNR}`
    (Hang et al. 2023, "Efficient diffusion training via min-SNR weighting"), so that nearly clean latents, where the
    noise is hard to see and matters little, do not rule.

    Args:
        found, noise: (B, C, h, w) predicted and true noise.
        snr: (B,) from :func:`signal_to_noise`.

    Returns:
        () mean over the batch.
    """
    weight = snr.clamp(max=SNR_CAP) / snr
    return (weight * (found - noise).square().mean((1, 2, 3))).mean()


def spread_timesteps(count: int, of: int) -> Tensor:
    """(count,) int64: one random timestep from each of ``count`` equal parts of [0, of), in random order.

    Draws from torch's global generator. The mean over a batch varies less than with independent timesteps.
    """
    at = (torch.arange(count) + torch.rand(count)) / count * of
    return at.long().clamp(max=of - 1)[torch.randperm(count)]
