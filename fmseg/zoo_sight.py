"""A small network that sees latents as the zoo's CLIP sees pictures: what the U-Net's pictures are held against.

Perceptual losses for diffusion models: Lin and Yang 2024, "Diffusion model with perceptual loss", arXiv 2401.00110,
who take the U-Net itself; here a network of its own, which takes in latents as they are, so that no picture needs to be
decoded in training. It is not shipped: it serves the U-Net's training alone.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fmseg.fitting import Recipe, fit
from fmseg.zoo_backbones import DEPTH, PLACES_WEIGHT, SIDE, targets_of
from fmseg.zoo_data import WORDS, naming_loss
from fmseg.zoo_run import Run

BLUR = 0.3  # deviation of noise on its latents, at most: predictions of clean latents are never quite clean


def _block(width: int, out: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, out, 3, stride, 1), nn.GroupNorm(8, out), nn.SiLU(),
        nn.Conv2d(out, out, 3, 1, 1), nn.GroupNorm(8, out), nn.SiLU(),
    )  # fmt: skip


class Sight(nn.Module):
    """Latents (B, 4, 16, 16) -> (B, 126) scores of words and (B, 28, 16, 16) features as backbones say them."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([_block(4, 64, 1), _block(64, 96, 2), _block(96, 128, 2)])
        self.norm, self.head = nn.LayerNorm(256), nn.Linear(256, sum(map(len, WORDS.values())))
        self.places = nn.Conv2d(64 + 96 + 128, DEPTH, 1)

    def maps(self, latents: Tensor) -> list[Tensor]:
        """(B, C, h, w) of each stage: 16x16, 8x8, 4x4."""
        found = []
        for stage in self.stages:
            latents = stage(latents)
            found.append(latents)
        return found

    def words(self, maps: list[Tensor]) -> Tensor:
        """(B, 126) scores of the words, from :meth:`maps`."""
        deep = maps[-1]
        return self.head(self.norm(torch.cat([deep.mean((2, 3)), deep.amax((2, 3))], dim=1)))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.maps(latents)
        fine = [nn.functional.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False) for x in maps]
        return self.words(maps), self.places(torch.cat(fine, dim=1))


def teach(
    run: Run, recipe: Recipe, latents: np.ndarray, targets: list[np.ndarray], named: dict[str, Tensor],
    chosen: Callable[[int], np.ndarray],
) -> Sight:  # fmt: skip
    """Train it, or take up what is there.

    Args:
        run, recipe: of the training it serves; the part is called "sight".
        latents: (N, 4, 16, 16) float32. targets: parts of :func:`fmseg.zoo_backbones.dense_targets` for the same N.
        named: words of the captions, {kind: (N, words) bool}.
        chosen: step -> indices of a batch.

    Returns:
        The network in eval mode, its weights fixed.
    """
    torch.manual_seed(recipe.seed)
    model = Sight()

    def loss(step):
        some = chosen(step)
        seen = torch.from_numpy(latents[some])
        seen = seen + BLUR * torch.rand(len(seen), 1, 1, 1) * torch.randn_like(seen)
        words, places = model(seen)
        naming, right = naming_loss(words, {kind: there[some] for kind, there in named.items()})
        wrong = nn.functional.mse_loss(places, targets_of(targets, some))
        return naming + PLACES_WEIGHT * wrong, {"places": wrong.item()} | right

    fit(model, recipe, loss, count=len(latents), **run.loop("sight", f"{run.name}-sight"))
    return model.requires_grad_(False)
