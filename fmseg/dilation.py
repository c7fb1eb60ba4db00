"""Finer grids from a convolutional CLIP tower: strides traded for dilation, weights unchanged (Chen et al. 2015)."""

import copy

import torch.nn.functional as F
from torch import Tensor, nn


def dilated(model: nn.Module, by: int = 2) -> nn.Module:
    """A copy of a convolutional image tower whose grid is finer: the last strides left are traded for dilation.

    At positions that are multiples of ``by`` it computes what the tower computes: ``dilated(m, k)[..., ::k, ::k]`` are
    the features of m. So each 3x3 convolution after a traded stride is dilated, the strided one is not; CLIP's average
    pools are kept at stride 1, spread as far as the strides traded before them.

    Args:
        model: a CLIP or its image tower: ModifiedResNet, or TimmModel on :mod:`fmseg.convnet`'s trunk. Is not changed.
        by: how much finer, a product of the last stages' strides: 1, 2, 4, ...; 4 for RN50 is stride 8.

    Raises:
        TypeError: a tower without strides (a transformer: show it larger images), or of other blocks.
        ValueError: ``by`` is no product of the last strides.

    Differs from the official code: its mmseg/models/backbones/resnet.py drops an average pool whose stride is traded,
    which changes all features; and its released R50 configurations trade no stride (strides 1 2 2 2). The strides
    (1, 2, 1, 1) and dilations (1, 1, 2, 4) there belong to the student of MaskCLIP+.
    """
    tower = copy.deepcopy(getattr(model, "visual", model))
    parts = stages(tower)
    first, product = len(parts), 1
    while first > 0 and product < by:
        first -= 1
        product *= stage_stride(parts[first])
    if product != by:
        every = [stage_stride(stage) for stage in parts]
        raise ValueError(f"`by` must be a product of the last stages' strides, which are {every}; got {by!r}")
    spread = 1
    for stage in parts[first:]:
        for block in stage:
            spread = _spread_bottleneck(block, spread) if hasattr(block, "conv3") else _spread_basic(block, spread)
    if hasattr(tower, "trunk"):
        tower.trunk.feature_info[-1]["reduction"] //= by
    return tower


def stages(tower: nn.Module) -> list[nn.Sequential]:
    """The stages of an image tower that :func:`dilated` knows, first to last; TypeError for another tower."""
    if hasattr(tower, "attnpool"):
        return [tower.layer1, tower.layer2, tower.layer3, tower.layer4]
    if type(getattr(tower, "trunk", None)).__name__ == "ByobNet":
        parts = list(tower.trunk.stages)
        if all(type(block).__name__ == "BasicBlock" for stage in parts for block in stage):
            return parts
    raise TypeError(
        f"`model` must have a ModifiedResNet or a timm ByobNet of basic blocks, whose strides can be traded for "
        f"dilation; got {type(tower).__name__}. A transformer's grid gets finer with larger images"
    )


def stage_stride(stage: nn.Sequential) -> int:
    """How much coarser a stage makes the grid."""
    block = stage[0]
    return block.stride if hasattr(block, "conv3") else block.conv1_kxk.conv.stride[0]


def _spread_bottleneck(block: nn.Module, spread: int) -> int:
    _spread(block.conv2, spread)
    if isinstance(block.avgpool, SpreadAverage):  # traded before
        block.avgpool.spread *= spread
    if block.stride == 1:
        return spread
    block.avgpool = block.downsample[0] = SpreadAverage(block.stride, spread)
    traded, block.stride = block.stride, 1
    return spread * traded


def _spread_basic(block: nn.Module, spread: int) -> int:
    first, second = block.conv1_kxk.conv, block.conv2_kxk.conv
    _spread(first, spread)
    traded = first.stride[0]
    if traded > 1:
        first.stride = block.shortcut.conv.stride = (1, 1)
    _spread(second, spread * traded)
    return spread * traded


def _spread(convolution: nn.Conv2d, spread: int) -> None:
    convolution.dilation = tuple(spread * d for d in convolution.dilation)
    convolution.padding = tuple(spread * p for p in convolution.padding)


class SpreadAverage(nn.Module):
    """Mean over ``size`` x ``size`` positions that lie ``spread`` apart, at each position; (B, C, H, W) to the same."""

    def __init__(self, size: int, spread: int):
        super().__init__()
        self.size, self.spread = size, spread

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        edge = (self.size - 1) * self.spread
        x = F.pad(x, (0, edge, 0, edge), mode="replicate")
        steps = [self.spread * k for k in range(self.size)]
        return sum(x[..., i : i + height, j : j + width] for i in steps for j in steps) / self.size**2
