"""Trains the zoo's self-supervised vision transformers: pictures only, no words, no masks.

`dino`: a student that sees one crop, partly masked, must give the class token of a slowly following teacher that sees
another crop, and the teacher's patches where its own were masked (DINO, Caron et al. 2021; iBOT, Zhou et al. 2022).
`mim`: patches are masked or recoloured at random, and all must be painted as they were (SimMIM, Xie et al. 2022, with
jittered instead of clean context, so that a patch has to look at others of its kind).
"""

import copy
import math

import torch
from torch import Tensor, nn

from fmseg.zoo_configs import VIT, VIT_MEAN, VIT_STD
from fmseg.zoo_loop import batch_indices, fit
from fmseg.zoo_run import Run

CROP = 40  # pixels a side of what is trained on: 100 patches instead of 256
PROTOTYPES = 256
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
    """(B, 1 + hw, C) output tokens; patches where ``hidden`` (B, hw) are replaced by ``blank`` (C,) at the entrance."""
    x = model.patch_embed(images)
    if hidden is not None:
        x = torch.where(hidden.view(*x.shape[:3], 1), blank.to(x.dtype), x)
    x = model._pos_embed(x)
    return model.norm(model.blocks(x))


class _Dino(nn.Module):
    def __init__(self):
        super().__init__()
        width = VIT["embed_dim"]
        self.student = nn.ModuleDict({"vit": vit(), "head": _head(width), "patches": _head(width)})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.blank = nn.Parameter(torch.zeros(width))
        self.register_buffer("centre", torch.zeros(2, PROTOTYPES))

    def loss(self, images: Tensor) -> tuple[Tensor, dict[str, float]]:
        views = [crops(images, CROP) for _ in range(2)]
        count = (CROP // VIT["patch_size"]) ** 2
        hidden = torch.rand(2 * len(images), count) < torch.rand(2 * len(images), 1) * 0.6
        both = torch.cat(views)
        with torch.no_grad():
            seen = tokens(self.teacher["vit"], both)
            whole, parts = self.teacher["head"](seen[:, 0]), self.teacher["patches"](seen[:, 1:])
            wanted = ((whole - self.centre[0]) / TEACHER_HEAT).softmax(-1)
            wanted_parts = ((parts - self.centre[1]) / TEACHER_HEAT).softmax(-1)
            self.centre[0].lerp_(whole.mean(0), 0.1)
            self.centre[1].lerp_(parts.mean((0, 1)), 0.1)
        mine = tokens(self.student["vit"], both, hidden, self.blank)
        first, second = (self.student["head"](mine[:, 0]) / STUDENT_HEAT).log_softmax(-1).chunk(2)
        other_second, other_first = wanted.chunk(2)
        across = -((other_first * first).sum(-1) + (other_second * second).sum(-1)).mean() / 2
        guess = (self.student["patches"](mine[:, 1:]) / STUDENT_HEAT).log_softmax(-1)
        within = -((wanted_parts * guess).sum(-1) * hidden).sum() / hidden.sum().clamp(min=1)
        spread = -(wanted.mean(0) * wanted.mean(0).clamp(min=1e-9).log()).sum()
        return across + within, {"across": across.item(), "within": within.item(), "spread": spread.item()}

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


class _Mim(nn.Module):
    def __init__(self):
        super().__init__()
        width, patch = VIT["embed_dim"], VIT["patch_size"]
        self.vit, self.blank = vit(), nn.Parameter(torch.zeros(width))
        self.paint = nn.Linear(width, 3 * patch * patch)

    def loss(self, images: Tensor) -> tuple[Tensor, dict[str, float]]:
        patch, images = VIT["patch_size"], crops(images, CROP)
        n, _, height, width = images.shape
        h, w = height // patch, width // patch
        strength = 1.2 * torch.rand(n, 1, 1, 1)
        colours = strength * torch.randn(n, 3, h, w)
        jittered = images + colours.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        hidden = torch.rand(n, h * w) < torch.rand(n, 1) * 0.7
        out = self.paint(tokens(self.vit, jittered, hidden, self.blank)[:, 1:])
        wanted = nn.functional.unfold(images, patch, stride=patch).transpose(1, 2)
        wrong = (out - wanted).abs().mean(-1)
        return wrong.mean(), {"hidden": (wrong * hidden).sum().item() / max(1, int(hidden.sum()))}

    def follow(self, done: int, steps: int) -> None:
        """Nothing follows here."""


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
