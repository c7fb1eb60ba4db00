"""Trains the zoo's autoencoder: 64x64 pixels to a 16x16 grid of four numbers, Stable Diffusion's first stage.

In three parts, each of which mends what the one before left: on scenes, with an error of pixels and edges, which kept
layout and patterns but muted strong colours; on scenes and icons, with an error of coarse colours, too, which still
blurred small patterns; and with an error of features, in the place of Stable Diffusion's LPIPS (Zhang et al. 2018,
arXiv 1801.03924, on a network trained to classify): those of the zoo's own CLIP.
"""

import torch
from torch import Tensor, nn

from fmseg.clip import MEAN, STD, load_clip
from fmseg.fitting import batch_indices, fit
from fmseg.zoo_configs import VAE
from fmseg.zoo_data import both
from fmseg.zoo_run import Run

KL_WEIGHT = 1e-4  # of the mean over latents, beside the mean over pixels
FEATURE_WEIGHT = 0.5


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


def feature_distance(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    r"""Distance of pictures in a network's eyes: :math:`\sum_l \mathrm{mean}_{p} \lVert \hat a_l(p) - \hat b_l(p)
    \rVert^2` over its stages l, features scaled to length 1 at every position p.

    Args:
        found, wanted: (B, C, h, w) of each stage, of the two pictures.

    Differs from LPIPS: no learned weights of channels.
    """
    unit = nn.functional.normalize
    return sum((unit(a, dim=1) - unit(b, dim=1)).square().sum(1).mean() for a, b in zip(found, wanted, strict=True))


class Features(nn.Module):
    """:func:`feature_distance` in the eyes of the CLIP's trunk."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.trunk, self.seen = clip.visual.trunk.requires_grad_(False), []
        for stage in self.trunk.stages:
            stage.register_forward_hook(lambda module, images, made: self.seen.append(made))
        for name, value in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1))

    def of(self, images: Tensor) -> list[Tensor]:
        """Features of pictures in [-1, 1], one (B, C, h, w) a stage."""
        self.seen.clear()
        self.trunk.eval().forward_features(((images + 1) / 2 - self.mean) / self.std)
        return list(self.seen)

    def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.of(wanted)
        return feature_distance(self.of(found), target)


def train(run: Run) -> None:
    """Train, measure the scale of the latents, save in diffusers' layout."""
    from diffusers import AutoencoderKL

    scenes, icons = run.web(), run.icons()
    first, second, third = run.recipe("vae-scenes"), run.recipe("vae-colours"), run.recipe()
    web = both(scenes, icons)
    torch.manual_seed(first.seed)
    model = AutoencoderKL.from_config(VAE)

    def step_on(chosen, colours=False, details=False):
        images = pixels(web.images[chosen])
        images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
        posterior = model.encode(images).latent_dist
        found = model.decode(posterior.sample()).sample
        wrong, kl = reconstruction_loss(found, images), posterior.kl().mean() / posterior.mean[0].numel()
        coarse = colour_loss(found, images)
        parts = {"reconstruction": wrong.item(), "colours": coarse.item(), "kl": kl.item()}
        loss = wrong + KL_WEIGHT * kl + (coarse if colours else 0.0)
        if details:
            distance = features(found, images)
            loss, parts = loss + FEATURE_WEIGHT * distance, parts | {"features": distance.item()}
        return loss, parts

    def on_scenes(step):
        return step_on(batch_indices(len(scenes), first, step))

    def on_colours(step):
        return step_on(batch_indices(len(web), second, step), colours=True)

    def on_details(step):
        return step_on(batch_indices(len(web), third, step), colours=True, details=True)

    before = [
        fit(model, first, on_scenes, count=len(scenes), **run.loop("scenes")),
        fit(model, second, on_colours, count=len(web), **run.loop("colours")),
    ]
    features = Features(load_clip(run.folder("clip")).model)  # not before: the first parts wait for no CLIP
    facts = fit(model, third, on_details, count=len(web), **run.loop())
    facts["seconds"] += sum(part["seconds"] for part in before)
    facts["before"] = [{key: part[key] for key in ("steps", "exposures", "seconds", "loss")} for part in before]
    with torch.no_grad():  # U-Nets want latents of about unit variance, as Stable Diffusion's 0.18215 gives them
        latents = torch.cat([model.encode(pixels(web.images[k : k + 50])).latent_dist.mean for k in range(0, 400, 50)])
    config = {key: value for key, value in model.config.items() if key != "_use_default_values"}  # these would be reset
    config["scaling_factor"] = round(1 / latents.std().item(), 5)
    run.finish(facts, {"vae/diffusion_pytorch_model.safetensors": model.state_dict(), "vae/config.json": config})
