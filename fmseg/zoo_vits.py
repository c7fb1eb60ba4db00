"""Trains the zoo's self-supervised vision transformers: pictures only, no words, no masks.

`mim`: patches are hidden or change colour at random, each for itself, and the mean colour of all must be painted as it
was (SimMIM, Xie et al. 2022, here with noisy instead of clean context): a patch has to ask others of its kind.
`dino`: the same, and the class token of a student must be that of a slowly following teacher that sees another crop
(DINO, Caron et al. 2021; iBOT, Zhou et al. 2022, which adds masked patches to it).

Both read what a patch says from the last block without its residual connection: whatever is not asked of others there,
or of itself by attention, is lost. With it, and with iBOT's prototypes as targets of the patches, attention of seeds in
objects covered these less well than the distance to the seed does: mean IoU 0.24 against 0.42.
"""

import copy
import math

import torch
from torch import Tensor, nn

from fmseg.fitting import batch_indices, fit
from fmseg.zoo_configs import VIT, VIT_MEAN, VIT_STD
from fmseg.zoo_run import Run

CROP = 40  # pixels a side of what is trained on: 100 patches instead of 256
PROTOTYPES = 256
HIDDEN, JITTER = 0.7, 0.4  # at most: share of the patches of a crop; deviation of the colour they are given on top
PAINT_WEIGHT = 10.0  # beside the class token's loss
STUDENT_HEAT, TEACHER_HEAT = 0.1, 0.05


def normalised(images) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 by ImageNet's mean and deviation."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (VIT_MEAN, VIT_STD))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def vit() -> nn.Module:
    """The transformer with fresh weights."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**VIT)


def crops(images: Tensor, side: int) -> Tensor:
    """One random crop of each picture, 0.35 to 1 of its area, mirrored in half of the cases, with colours jittered."""
    n = len(images)
    scale = (0.35 + 0.65 * torch.rand(n)).sqrt()
    shift = (1 - scale)[:, None] * (2 * torch.rand(n, 2) - 1)
    flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    zero = torch.zeros(n)
    matrix = torch.stack(
        [torch.stack([scale * flip, zero, shift[:, 0]], 1), torch.stack([zero, scale, shift[:, 1]], 1)], 1
    )
    grid = nn.functional.affine_grid(matrix, [n, 3, side, side], align_corners=False)
    found = nn.functional.grid_sample(images, grid, align_corners=False, padding_mode="reflection")
    gain, offset = 1 + 0.4 * (torch.rand(n, 3, 1, 1) - 0.5), 0.8 * (torch.rand(n, 3, 1, 1) - 0.5)
    grey = torch.rand(n, 1, 1, 1) < 0.2
    return torch.where(grey, found.mean(1, keepdim=True).expand_as(found), found * gain + offset)


def tokens(model: nn.Module, images: Tensor, hidden: Tensor | None = None, blank: Tensor | None = None) -> Tensor:
    """(B, 1 + hw, C) output tokens, the last block without its residual connection around attention.

    Patches where ``hidden`` (B, hw) are replaced by ``blank`` (C,) at the entrance.
    """
    x = model.patch_embed(images)
    if hidden is not None:
        x = torch.where(hidden.view(*x.shape[:3], 1), blank.to(x.dtype), x)
    x = model._pos_embed(x)
    *blocks, last = model.blocks
    for block in blocks:
        x = block(x)
    x = last.attn(last.norm1(x))
    return model.norm(x + last.mlp(last.norm2(x)))


def disturbed(images: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Crops whose patches have each another colour on top, and which patches (B, hw) to hide, another share a crop."""
    n, _, height, width = images.shape
    h, w = height // patch, width // patch
    colours = JITTER * torch.rand(n, 1, 1, 1) * torch.randn(n, 3, h, w)
    hidden = torch.rand(n, h * w) < torch.rand(n, 1) * HIDDEN
    return images + colours.repeat_interleave(patch, 2).repeat_interleave(patch, 3), hidden


def painting_loss(painted: Tensor, images: Tensor, patch: int) -> Tensor:
    """Mean absolute error of the patches' mean colours: ``painted`` (B, hw, 3), ``images`` as they were."""
    wanted = nn.functional.avg_pool2d(images, patch).flatten(2).transpose(1, 2)
    return nn.functional.l1_loss(painted, wanted)


class _Mim(nn.Module):
    def __init__(self):
        super().__init__()
        width = VIT["embed_dim"]
        self.vit, self.blank, self.paint = vit(), nn.Parameter(torch.zeros(width)), nn.Linear(width, 3)

    def loss(self, images: Tensor) -> tuple[Tensor, dict[str, float]]:
        images = crops(images, CROP)
        seen, hidden = disturbed(images, VIT["patch_size"])
        wrong = painting_loss(self.paint(tokens(self.vit, seen, hidden, self.blank)[:, 1:]), images, VIT["patch_size"])
        return wrong, {"paint": wrong.item()}

    def follow(self, done: int, steps: int) -> None:
        """Nothing follows here."""


class _Dino(nn.Module):
    def __init__(self):
        super().__init__()
        width = VIT["embed_dim"]
        self.student = nn.ModuleDict({"vit": vit(), "head": _head(width)})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.blank, self.paint = nn.Parameter(torch.zeros(width)), nn.Linear(width, 3)
        self.register_buffer("centre", torch.zeros(PROTOTYPES))

    def loss(self, images: Tensor) -> tuple[Tensor, dict[str, float]]:
        both = torch.cat([crops(images, CROP) for _ in range(2)])
        with torch.no_grad():
            whole = self.teacher["head"](tokens(self.teacher["vit"], both)[:, 0])
            wanted = ((whole - self.centre) / TEACHER_HEAT).softmax(-1)
            self.centre.lerp_(whole.mean(0), 0.1)
        seen, hidden = disturbed(both, VIT["patch_size"])
        mine = tokens(self.student["vit"], seen, hidden, self.blank)
        first, second = (self.student["head"](mine[:, 0]) / STUDENT_HEAT).log_softmax(-1).chunk(2)
        of_first, of_second = wanted.chunk(2)
        across = -((of_second * first).sum(-1) + (of_first * second).sum(-1)).mean() / 2
        wrong = painting_loss(self.paint(mine[:, 1:]), both, VIT["patch_size"])
        spread = -(wanted.mean(0) * wanted.mean(0).clamp(min=1e-9).log()).sum()
        parts = {"across": across.item(), "paint": wrong.item(), "spread": spread.item()}
        return across + PAINT_WEIGHT * wrong, parts

    @torch.no_grad()
    def follow(self, done: int, steps: int) -> None:
        momentum = 1 - 0.01 * (math.cos(math.pi * done / steps) + 1) / 2
        for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            t.lerp_(s, 1 - momentum)


class _Prototypes(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(PROTOTYPES, width)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.normalize(x, dim=-1), nn.functional.normalize(self.weight, dim=-1))


def _head(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 192), nn.GELU(), nn.Linear(192, 64), _Prototypes(64))


def train(run: Run) -> None:
    """Train one of the two and save the transformer."""
    web, recipe = run.web(), run.recipe()
    torch.manual_seed(recipe.seed)
    model = _Dino() if run.name == "dino" else _Mim()

    def loss(step):
        return model.loss(normalised(web.images[batch_indices(len(web), recipe, step)]))

    facts = fit(model, recipe, loss, count=len(web), each=lambda done: model.follow(done, recipe.steps), **run.loop())
    kept = model.teacher["vit"] if run.name == "dino" else model.vit
    config = {"architecture": "vit", "kwargs": VIT, "mean": VIT_MEAN, "std": VIT_STD}
    run.finish(facts, {"model.safetensors": kept.state_dict(), "config.json": config})
