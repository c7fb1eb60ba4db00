r"""Pixel-adaptive mask refinement: masks flow to where the image looks alike.

Araslanov and Roth 2020, "Single-Stage Semantic Segmentation from Image Labels", arXiv 2005.08104. Code:
github.com/visinf/1-stage-wseg (bebc9a6), models/mods/pamr.py; copied by WILSON (41c7d5b), wss/modules.py.
"""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg import _loss_checks as check

ITERATIONS = 10
DILATIONS = (1, 2, 4, 8, 12)  # WILSON's, train.py
SHARPNESS = 0.1  # share of the local standard deviation at which affinity has fallen to 1/e
_AROUND = [place for place in product((-1, 0, 1), repeat=2) if place != (0, 0)]


@torch.no_grad()
def affinity(images: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    r"""How much each pixel should listen to each of its neighbours.

    .. math:: A_{i,\cdot} = \mathrm{softmax}_{n \in N(i)} \Big( -\frac13 \sum_{k=1}^{3}
              \frac{|x_{k,i} - x_{k,n}|}{0.1\, s_{k,i} + 10^{-8}} \Big)

    N(i): the 8 neighbours at each dilation, the border repeated outwards; s: standard deviation of the values at
    these and, once a dilation, at i itself. A change of an image channel's scale or offset changes nothing, so it does
    not matter how images are normalised; on a flat image all neighbours weigh the same.

    Args:
        images: (B, 3, H, W) float (any number of channels), at the size of the masks.
        dilations: distances of the neighbours in pixels, >= 1.

    Returns:
        (B, 8 * len(dilations), H, W), sums to 1 over dimension 1; dilation by dilation, row by row. No gradient.

    Raises:
        TypeError, ValueError: ``images`` are no maps or not finite, a dilation is out of range.
    """
    check.maps("images", images)
    dilations = _checked(dilations)
    around = torch.stack([view for d in dilations for view in _neighbours(images, d)], 1)  # (B, P, 3, H, W)
    centres = images[:, None].expand(-1, len(dilations), -1, -1, -1)
    spread = torch.cat([around, centres], 1).std(1, keepdim=True)
    unlike = (around - images[:, None]).abs() / (SHARPNESS * spread + 1e-8)
    return (-unlike.mean(2)).softmax(1)


@torch.no_grad()
def refine(
    images: Tensor, masks: Tensor, *, iterations: int = ITERATIONS, dilations: Sequence[int] = DILATIONS
) -> Tensor:  # fmt: skip
    r"""Replace each mask value by the affine mean of its neighbours, a few times over.

    .. math:: m^{t+1}_{c,i} = \sum_{n \in N(i)} A_{i,n} m^t_{c,n}

    Values stay between the smallest and the largest of their class, and what sums to 1 over classes keeps doing so.

    Args:
        images: (B, 3, H, W) float. WILSON resizes them to the grid of the scores (bilinear, ``align_corners=True``).
        masks: (B, C, h, w) float, resized to H x W (bilinear, ``align_corners=True``) if they are of another size.
        iterations: >= 0; 10 in WILSON.
        dilations: see :func:`affinity`; 1, 2, 4, 8, 12 in WILSON's train.py, with 24 by default in its PAMR.

    Returns:
        (B, C, H, W). No gradient: WILSON makes labels of it.

    Raises:
        TypeError, ValueError: shapes do not fit, a value is not finite or out of range.
    """
    check.maps("images", images)
    check.maps("masks", masks)
    if len(images) != len(masks):
        raise ValueError(f"`masks` must have the batch of `images`, {len(images)}; got {len(masks)}.")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"`iterations` must be an integer >= 0; got {iterations!r}.")
    weights, dilations = affinity(images, dilations), _checked(dilations)
    if masks.shape[2:] != images.shape[2:]:
        masks = F.interpolate(masks, images.shape[2:], mode="bilinear", align_corners=True)
    for _ in range(iterations):
        moved = torch.zeros_like(masks)  # neighbours are views, added one by one: the stack of 40 is never built
        for j, d in enumerate(dilations):
            for k, view in enumerate(_neighbours(masks, d)):
                moved.addcmul_(view, weights[:, 8 * j + k, None])
        masks = moved
    return masks


def _neighbours(maps: Tensor, d: int) -> list[Tensor]:
    """The 8 maps shifted by d, as views of one padded copy."""
    height, width = maps.shape[2:]
    padded = F.pad(maps, (d, d, d, d), mode="replicate")
    return [padded[:, :, d + y * d : d + y * d + height, d + x * d : d + x * d + width] for y, x in _AROUND]


def _checked(dilations: Sequence[int]) -> tuple[int, ...]:
    dilations = tuple(dilations)
    if not dilations or any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in dilations):
        raise ValueError(f"`dilations` must be integers >= 1, at least one; got {dilations}.")
    return dilations
