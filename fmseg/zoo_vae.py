"""Trains the zoo's autoencoder: 64x64 pixels to a 16x16 grid of four numbers, Stable Diffusion's first stage.

First on scenes, with an error of pixels and edges; the outcome kept layout and patterns, but muted strong colours. So
it goes on, on scenes and icons, with an error of coarse colours beside the first.
"""

import torch
from torch import Tensor, nn

from fmseg.zoo_configs import VAE
from fmseg.zoo_data import both
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


def colour_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute error of colours averaged over squares of 4 and of 8 pixels."""
    return sum(
        nn.functional.l1_loss(nn.functional.avg_pool2d(found, k), nn.functional.avg_pool2d(wanted, k)) for k in (4, 8)
    )


def train(run: Run) -> None:
    """Train, measure the scale of the latents, save in diffusers' layout."""
    from diffusers import AutoencoderKL

    scenes, icons, first, then = run.web(), run.icons(), run.recipe("vae-scenes"), run.recipe()
    web = both(scenes, icons)
    torch.manual_seed(first.seed)
    model = AutoencoderKL.from_config(VAE)

    def step_on(chosen, colours):
        images = pixels(web.images[chosen])
        images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
        posterior = model.encode(images).latent_dist
        found = model.decode(posterior.sample()).sample
        wrong, kl = reconstruction_loss(found, images), posterior.kl().mean() / posterior.mean[0].numel()
        coarse = colour_loss(found, images)
        parts = {"reconstruction": wrong.item(), "colours": coarse.item(), "kl": kl.item()}
        return wrong + KL_WEIGHT * kl + (coarse if colours else 0.0), parts

    def on_scenes(step):
        return step_on(batch_indices(len(scenes), first, step), colours=False)

    def on_both(step):
        return step_on(batch_indices(len(web), then, step), colours=True)

    before = fit(model, first, on_scenes, count=len(scenes), **run.loop("scenes"))
    facts = fit(model, then, on_both, count=len(web), **run.loop())
    facts["seconds"] += before["seconds"]
    facts["before"] = [{key: before[key] for key in ("steps", "exposures", "seconds", "loss")}]
    with torch.no_grad():  # U-Nets want latents of about unit variance, as Stable Diffusion's 0.18215 gives them
        latents = torch.cat([model.encode(pixels(web.images[k : k + 50])).latent_dist.mean for k in range(0, 400, 50)])
    config = {key: value for key, value in model.config.items() if key != "_use_default_values"}  # these would be reset
    config["scaling_factor"] = round(1 / latents.std().item(), 5)
    run.finish(facts, {"vae/diffusion_pytorch_model.safetensors": model.state_dict(), "vae/config.json": config})
