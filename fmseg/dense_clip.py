"""Dense CLIP features without training: MaskCLIP (Zhou et al. 2022, arXiv 2112.01071), for every CLIP image tower here.

The last attention of a tower mixes positions to say what the picture holds. Read without mixing, its value path says
what each position holds, in the space of the texts. Official code: github.com/chongzhou96/MaskCLIP (245d31f),
mmseg/models/backbones/vit.py and mmseg/models/decode_heads/maskclip_head.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmseg.dilation import dilated, stage_stride, stages

__all__ = ["dense_features", "dilated", "refine", "resized_positions", "scores", "stride"]

SHARPNESS = 100.0  # of the softmax in `refine`, CLIP's own logit scale


def dense_features(model: nn.Module, images: Tensor, *, return_keys: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    r"""Image features of each position, in the space of CLIP's texts (FMWISS eq. 1 before its norm).

    .. math:: F = \mathrm{proj}(\mathrm{LN}(v + \mathrm{MLP}(\mathrm{LN}_2(v)))), \quad
              v = x + W_o\,\mathrm{value}(\mathrm{LN}_1(x)) + b_o

    in the last block of a transformer, x being its input; :math:`F = W_c\,\mathrm{value}(x)` under the attention
    pooling of a residual network, x being its last map (no position embedding there).

    Args:
        model: a CLIP or its image tower in eval mode: open_clip's VisionTransformer, ModifiedResNet, or TimmModel with
            attention pooling; as :func:`dilated` returns it, too.
        images: (B, 3, H, W) float, normalised; H and W multiples of :func:`stride`.
        return_keys: also return what key smoothing compares, see :func:`refine`.

    Returns:
        (B, D, h, w), not normalised, with h = H / stride; with ``return_keys`` also the last attention's keys
        (B, K, h, w), in a transformer after its output projection, as officially.

    Raises:
        TypeError: another tower. ValueError: images of another form or size, or a model in training mode.

    Differs from the official code: the position embedding is resized whenever the grid is another one, officially only
    if it has another number of cells; LayerNorm keeps CLIP's epsilon 1e-5, officially 1e-6.
    """
    tower = getattr(model, "visual", model)
    read = _reader(tower)
    _check_images(tower, images)
    features, keys = (part.permute(0, 3, 1, 2).contiguous() for part in read(tower, images))
    return (features, keys) if return_keys else features


def stride(model: nn.Module) -> int:
    """Pixels between two positions of :func:`dense_features`: the side of a patch, or the product of all strides."""
    tower = getattr(model, "visual", model)
    if _reader(tower) is _vit:
        return tower.conv1.stride[0]
    if _reader(tower) is _resnet:
        return 4 * math.prod(stage_stride(stage) for stage in stages(tower))
    return tower.trunk.feature_info[-1]["reduction"]


def scores(features: Tensor, text: Tensor) -> Tensor:
    r"""Cosine of each position with each text: :math:`M = \bar F \bar T^\top` (FMWISS eq. 3), no bias, no scale.

    Args:
        features: (B, D, h, w) as of :func:`dense_features`; all-zero positions score 0 (officially NaN).
        text: (C, D) unit rows, as of :func:`fmseg.clip.text_embeddings`.

    Returns:
        (B, C, h, w) in [-1, 1].

    Raises:
        ValueError: shapes do not fit, or rows of ``text`` have another length than 1.
    """
    if features.ndim != 4 or text.ndim != 2 or features.shape[1] != text.shape[1]:
        raise ValueError(
            f"`features` must be (B, D, h, w) and `text` (C, D) with the same D; got {tuple(features.shape)} and "
            f"{tuple(text.shape)}. Are both of the same CLIP?"
        )
    length = text.norm(dim=1)
    if bool(((length - 1).abs() > 1e-3).any()):
        raise ValueError(f"rows of `text` must have length 1; found {length.min():.3g} to {length.max():.3g}")
    return torch.einsum("bdhw,cd->bchw", F.normalize(features, dim=1), text)


def refine(
    scores: Tensor,
    keys: Tensor | None = None,
    *,
    prompt_denoising: float = 0.0,
    key_smoothing: float = 0.0,
    key_norm: str = "channels",
) -> Tensor:
    r"""MaskCLIP's two refinements, both off unless asked for, as in its released configurations.

    With :math:`P = \mathrm{softmax}_c(100\,M)`: prompt denoising sets M of a class to -100 in pictures where P of that
    class is below its threshold everywhere. Key smoothing then replaces P by :math:`W P, W = \hat K \hat K^\top`, at
    positions whose largest P is below its threshold. W is not normalised: rows of W P need not sum to one.

    Args:
        scores: (B, C, h, w) cosines M.
        keys: (B, K, h, w), needed for key smoothing.
        prompt_denoising: threshold in [0, 1]; 0 is off; 0.5 in a commented line of the official configurations.
        key_smoothing: threshold in [0, 1]; 0 is off; 1.0 in a commented line there.
        key_norm: along what keys get length 1: "channels", so that W holds cosines, or "positions", see below.

    Returns:
        (B, C, h, w): scores; with key smoothing probabilities P, smoothed where unsure.

    Raises:
        ValueError: an argument is out of range, keys are missing or do not fit.

    Differs from the official code (maskclip_head.py, ``refine_output``): it normalises keys of shape (B, hw, K) along
    dimension 1, which are the positions, with ``F.normalize``'s default; ``key_norm="positions"`` does the same. The
    input is not changed in place.
    """
    _check_refine(scores, keys, prompt_denoising, key_smoothing, key_norm)
    if prompt_denoising > 0:
        surest = (SHARPNESS * scores).softmax(1).amax((2, 3), keepdim=True)
        scores = torch.where(surest < prompt_denoising, -100.0, scores)
    if key_smoothing > 0:
        shares = (SHARPNESS * scores).softmax(1).flatten(2)
        unit = F.normalize(keys.flatten(2), dim=1 if key_norm == "channels" else 2)
        smooth = shares @ unit.mT @ unit  # W is never built
        unsure = shares.amax(1, keepdim=True) < key_smoothing
        scores = torch.where(unsure, smooth, shares).reshape(scores.shape)
    return scores


def resized_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int], stretch: float = 0.0) -> Tensor:
    """A learned position embedding on another grid: bicubic, no antialiasing; itself where the grid is its own.

    Args:
        positions: (prefix + h*w, D), the prefix (class token) without place kept as it is.
        old, new: (h, w).
        stretch: cells by which a grid is taken to be larger than it is, both ways; DINO's code has 0.1.

    Returns:
        (prefix + h'*w', D).
    """
    if tuple(old) == tuple(new):
        return positions
    prefix = len(positions) - old[0] * old[1]
    grid = positions[prefix:].T.reshape(1, -1, *old)
    factor = [(n + stretch) / o for n, o in zip(new, old, strict=True)]
    size = {"scale_factor": factor} if stretch else {"size": tuple(new)}
    grid = F.interpolate(grid, **size, mode="bicubic", align_corners=False)
    return torch.cat([positions[:prefix], grid[0].flatten(1).T])


def _reader(tower: nn.Module):
    if hasattr(tower, "class_embedding") and hasattr(tower, "transformer"):
        attention = tower.transformer.resblocks[-1].attn
        if isinstance(attention, nn.MultiheadAttention) and getattr(tower, "attn_pool", None) is None:
            return _vit
    elif hasattr(tower, "attnpool"):
        return _resnet
    elif hasattr(tower, "trunk") and hasattr(getattr(tower.head, "pool", None), "qkv"):
        return _timm
    raise TypeError(
        f"`model` must be a CLIP whose image tower is open_clip's VisionTransformer, ModifiedResNet, or TimmModel with "
        f"attention pooling, for each its plain form; got {type(tower).__name__}"
    )


def _vit(tower: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    x = tower.conv1(images)
    grid = x.shape[2:]
    x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = tower.ln_pre(x + resized_positions(tower.positional_embedding, tower.grid_size, grid))
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        x = block(x)
    _, k, v = F.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, -1)
    v = x + last.ls_1(last.attn.out_proj(v))
    v = v + last.ls_2(last.mlp(last.ln_2(v)))
    v, k = tower.ln_post(v), last.attn.out_proj(k)
    v = v if tower.proj is None else v @ tower.proj
    return v[:, 1:].unflatten(1, grid), k[:, 1:].unflatten(1, grid)


def _resnet(tower: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    x = tower.stem(images)
    for stage in stages(tower):
        x = stage(x)
    x, pool = x.permute(0, 2, 3, 1), tower.attnpool
    return pool.c_proj(pool.v_proj(x)), pool.k_proj(x)


def _timm(tower: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    x, pool = tower.trunk.forward_features(images).permute(0, 2, 3, 1), tower.head.pool
    _, k, v = pool.qkv(x).chunk(3, -1) if pool.qkv is not None else (None, pool.k(x), pool.v(x))
    v = pool.proj(v)
    for name, layer in tower.head.named_children():
        v = v if name == "pool" else layer(v)
    return v, k


def _check_images(tower: nn.Module, images: Tensor) -> None:
    if tower.training:
        raise ValueError("`model` must be in eval mode: call model.eval()")
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"`images` must be (B, 3, H, W) floats, normalised; got {tuple(images.shape)} of {images.dtype}. "
            "Pictures of bytes go through fmseg.clip.preprocess first"
        )
    step = stride(tower)
    height, width = images.shape[2:]
    if height % step or width % step or not height * width:
        raise ValueError(f"`images` must have sides that are multiples of {step}; got {height} x {width}")


def _check_refine(scores: Tensor, keys: Tensor | None, denoising: float, smoothing: float, key_norm: str) -> None:
    if scores.ndim != 4:
        raise ValueError(f"`scores` must be (B, C, h, w); got {tuple(scores.shape)}")
    for name, value in (("prompt_denoising", denoising), ("key_smoothing", smoothing)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1]; got {value!r}")
    if key_norm not in ("channels", "positions"):
        raise ValueError(f"`key_norm` must be 'channels' or 'positions'; got {key_norm!r}")
    if smoothing > 0 and keys is None:
        raise ValueError("`key_smoothing` needs `keys`: dense_features(..., return_keys=True)")
    if keys is not None and (keys.ndim, *_places(keys)) != (4, *_places(scores)):
        raise ValueError(
            f"`keys` must be (B, K, h, w) on the grid of `scores`; got {tuple(keys.shape)} and {tuple(scores.shape)}"
        )


def _places(values: Tensor) -> tuple[int, ...]:
    return (len(values), *values.shape[2:])
