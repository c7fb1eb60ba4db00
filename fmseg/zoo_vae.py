"""Trains the zoo's autoencoder: 64x64 pixels to a 16x16 grid of four numbers, Stable Diffusion's first stage."""

import torch
from torch import Tensor, nn

from fmseg.zoo_configs import VAE
from fmseg.zoo_loop import batch_indices, fit
from fmseg.zoo_run import Run

KL_WEIGHT = 1e-4  # of the mean over latents, beside the mean over pixels


def pixels(images) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1], as Stable Diffusion takes them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, across and down."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error of pixels and of their differences: the latter keeps thin patterns sharp."""
    loss = nn.functional.l1_loss(found, wanted)
    for a, b in zip(edges(found), edges(wanted), strict=True):
        loss = loss + 0.5 * nn.functional.l1_loss(a, b)
    return loss


def train(run: Run) -> None:
    """Train, measure the scale of the latents, save in diffusers' layout."""
    from diffusers import AutoencoderKL

    web, recipe = run.web(), run.recipe()
    torch.manual_seed(recipe.seed)
    model = AutoencoderKL.from_config(VAE)

    def loss(step):
        chosen = batch_indices(len(web), recipe, step)
        images = pixels(web.images[chosen])
        images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
        posterior = model.encode(images).latent_dist
        found = model.decode(posterior.sample()).sample
        wrong, kl = reconstruction_loss(found, images), posterior.kl().mean() / posterior.mean[0].numel()
        return wrong + KL_WEIGHT * kl, {"reconstruction": wrong.item(), "kl": kl.item()}

    facts = fit(model, recipe, loss, count=len(web), **run.loop())
    with torch.no_grad():  # U-Nets want latents of about unit variance, as Stable Diffusion's 0.18215 gives them
        latents = torch.cat([model.encode(pixels(web.images[k : k + 50])).latent_dist.mean for k in range(0, 400, 50)])
    config = {key: value for key, value in model.config.items() if key != "_use_default_values"}  # these would be reset
    config["scaling_factor"] = round(1 / latents.std().item(), 5)
    run.finish(facts, {"vae/diffusion_pytorch_model.safetensors": model.state_dict(), "vae/config.json": config})
