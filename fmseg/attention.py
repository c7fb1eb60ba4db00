"""Attention of the last block of self-supervised vision transformers (DINO, iBOT).

Official code: ``get_last_selfattention`` in facebookresearch/dino vision_transformer.py and bytedance/ibot
models/vision_transformer.py. FMWISS reads the rows of seed positions (its eq. 4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fmseg.dense_clip import resized_positions
from fmseg.vits import Vit, load_vit

__all__ = ["Vit", "last_attention", "load_vit", "query_map", "seed_attention"]


def last_attention(vit: nn.Module, images: Tensor) -> Tensor:
    r"""What each token of the last block attends to: :math:`S_m = \mathrm{softmax}(q_m k_m^\top / \sqrt{d})`.

    Args:
        vit: timm's VisionTransformer in eval mode, its last block in the plain form; ``fused_attn`` does not matter,
            norms of queries and keys are applied.
        images: (B, 3, H, W) float, normalised as the model was trained; H and W multiples of its patch.

    Returns:
        (B, heads, T, T), rows sum to one; T = prefix + H/patch * W/patch, the prefix (class token, registers) first.

    Raises:
        TypeError: another model or block. ValueError: images of another form or size, or a model in training mode.

    On another grid than its own the position embedding is resized as officially, by bicubic interpolation without
    antialiasing to a grid that is 0.1 cells too large (timm's own models antialias).
    """
    _check(vit, images)
    *blocks, last = vit.blocks
    x = _tokens(vit, images)
    for block in blocks:
        x = block(x)
    attention = last.attn
    parts = attention.qkv(last.norm1(x)).unflatten(2, (3, attention.num_heads, attention.head_dim))
    q, k, _ = parts.permute(2, 0, 3, 1, 4)
    return (attention.q_norm(q) * attention.scale @ attention.k_norm(k).mT).softmax(-1)


def seed_attention(attention: Tensor, seeds: Tensor, grid: Sequence[int], num_prefix: int = 1) -> Tensor:
    """Where in the picture the seeds attend to, head by head: ``attention[b, :, prefix + seed, prefix:]`` as maps.

    Args:
        attention: (B, heads, T, T), as of :func:`last_attention`.
        seeds: (B, S) int64, positions row by row in [0, h*w): the query patches.
        grid: (h, w), with T = num_prefix + h*w.
        num_prefix: tokens before the patches.

    Returns:
        (B, heads, S, h, w); a map sums to one less what its seed gives to the prefix.

    Raises:
        ValueError: shapes do not fit, or a seed lies outside the grid.
    """
    height, width = grid
    if attention.ndim != 4 or attention.shape[2:] != (num_prefix + height * width,) * 2:
        raise ValueError(
            f"`attention` must be (B, heads, T, T) with T = {num_prefix} + {height} * {width}; got "
            f"{tuple(attention.shape)}"
        )
    if seeds.ndim != 2 or len(seeds) != len(attention) or seeds.dtype != torch.int64:
        raise ValueError(f"`seeds` must be (B, S) int64 with B = {len(attention)}; got {tuple(seeds.shape)}")
    if seeds.numel() and not 0 <= int(seeds.min()) <= int(seeds.max()) < height * width:
        raise ValueError(
            f"`seeds` must be in [0, {height * width}); found {int(seeds.min())} to {int(seeds.max())}. Row i, column "
            f"j is i * {width} + j"
        )
    patches = attention[:, :, num_prefix:, num_prefix:]
    rows = patches.gather(2, seeds[:, None, :, None].expand(-1, patches.shape[1], -1, patches.shape[3]))
    return rows.unflatten(3, (height, width))


def query_map(attention: Tensor, seeds: Tensor, grid: Sequence[int], num_prefix: int = 1) -> Tensor:
    """The mean of :func:`seed_attention` over heads: (B, S, h, w)."""
    return seed_attention(attention, seeds, grid, num_prefix).mean(1)


def _tokens(vit: nn.Module, images: Tensor) -> Tensor:
    """timm's embedding of patches, prefix and positions, for any size."""
    x = vit.patch_embed.proj(images)
    grid = x.shape[2:]
    x = vit.patch_embed.norm(x.flatten(2).transpose(1, 2))
    prefix = [token.expand(len(x), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
    positions = 0
    if vit.pos_embed is not None:
        positions = resized_positions(vit.pos_embed[0], vit.patch_embed.grid_size, grid, stretch=0.1)
    x = torch.cat([*prefix, x + positions], 1) if vit.no_embed_class else torch.cat([*prefix, x], 1) + positions
    return vit.norm_pre(x)


def _check(vit: nn.Module, images: Tensor) -> None:
    last = vit.blocks[-1] if hasattr(vit, "blocks") and hasattr(vit, "patch_embed") else None
    plain = (type(vit).__name__, type(last).__name__, type(getattr(last, "attn", None)).__name__)
    if plain != ("VisionTransformer", "Block", "Attention"):
        raise TypeError(
            f"`vit` must be a VisionTransformer of timm's, of plain blocks, as load_vit's; got {type(vit).__name__}"
        )
    if vit.training:
        raise ValueError("`vit` must be in eval mode: call vit.eval()")
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"`images` must be (B, 3, H, W) floats, normalised; got {tuple(images.shape)} of {images.dtype}. "
            "Pictures of bytes go through load_vit(...).preprocess first"
        )
    patch = vit.patch_embed.patch_size
    height, width = images.shape[2:]
    if height % patch[0] or width % patch[1] or not height * width:
        raise ValueError(f"`images` must have sides that are multiples of {patch[0]}; got {height} x {width}")
