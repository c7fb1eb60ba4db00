"""FreestyleNet's rectified cross-attention: a label map decides which pixel may read which word of the prompt.

FreeMask's synthetic images come from Stable Diffusion with this attention: Xue et al. 2023, "Freestyle Layout-to-Image
Synthesis". It adds no parameters. Made once a batch, used by every layer and step::

    prompts, owners = layout_prompt(labels, names, tokenizer)
    keep = keep_masks(labels, owners, sizes=(64, 32, 16, 8), length=77)
    install(unet)(latents, timestep, text_states, cross_attention_kwargs={"rectify": keep})
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayoutPrompt(NamedTuple):
    """B prompts, and for each the class ids that its content tokens belong to; owner j is that of token j + 1."""

    prompts: list[str]
    owners: list[tuple[int, ...]]


def layout_prompt(labels, class_names, tokenizer, ignore_index: int = 255) -> LayoutPrompt:
    """The prompts of label maps: names of the classes present, by ascending id, joined by single blanks.

    Args:
        labels: (B, H, W) class ids or ``ignore_index``, tensor or array of an integer dtype.
        class_names: sequence, or mapping from class id to name. Two classes may share a name.
        tokenizer: transformers' CLIPTokenizer, or anything with its ``tokenize`` and ``model_max_length``.
        ignore_index: the label that has no name.

    Returns:
        B prompts and their token owners. Nothing but ignored pixels gives "" and ().

    Raises:
        TypeError, ValueError: ``labels`` are no integer (B, H, W), or hold an id without a name; a name has no tokens;
            a prompt does not fit the tokenizer's length together with the start and the end token.

    Differs from the official code (scripts/LIS.py, ldm/modules/attention_ADE20K.py): a name's number of tokens comes
    from the tokenizer, as in FLIS.py, not from lists of ids; a prompt that is too long is an error, it is not cut.
    """
    labels = _checked(labels)
    names = dict(class_names if isinstance(class_names, Mapping) else enumerate(class_names))
    prompts, owners = [], []
    for row, label in enumerate(labels):
        present = [c for c in label.unique().tolist() if c != ignore_index]
        for c in present:
            if c not in names:
                where = [row, *(label == c).nonzero()[0].tolist()]
                raise ValueError(
                    f"`labels` must hold ids of the {len(names)} `class_names` or {ignore_index}; found {c} at {where}."
                )
        pieces = {c: len(tokenizer.tokenize(names[c])) for c in present}
        if 0 in pieces.values():
            raise ValueError(f"The name of class {min(pieces, key=pieces.get)} has no tokens.")
        needed = sum(pieces.values()) + 2
        if needed > tokenizer.model_max_length:
            longest = sorted(pieces, key=pieces.get, reverse=True)[:3]
            raise ValueError(
                f"The {len(present)} class names of `labels[{row}]` need {needed} tokens, start and end included; the "
                f"tokenizer has room for {tokenizer.model_max_length}. "
                f"Longest: {', '.join(f'{names[c]!r} ({pieces[c]})' for c in longest)}."
            )
        prompts.append(" ".join(names[c] for c in present))
        owners.append(tuple(c for c in present for _ in range(pieces[c])))
    return LayoutPrompt(prompts, owners)


def keep_masks(
    labels, owners: Sequence[Sequence[int]], sizes: Iterable[int], length: int, *, shared: bool = True
) -> dict[int, Tensor]:  # fmt: skip
    r"""Which pixel may look at which token, at every resolution that the U-Net's cross-attention works at.

    .. math:: M_{u,j} = [\, y_{su} = \mathrm{owner}_j \,], \quad s = H / h

    for content tokens; start, end and padding are visible to all, so no row is empty. The label of a cell is that of
    its top-left pixel (``F.interpolate``'s nearest). A class that no cell shows leaves its tokens without readers, and
    a cell whose label owns no token, such as an ignored one, sees start, end and padding only.

    Args:
        labels: (B, H, H) class ids or any other number for "ignore", tensor or array of an integer dtype.
        owners: B sequences of class ids, see :func:`layout_prompt`.
        sizes: grid sides h, divisors of H; Stable Diffusion's are 64, 32, 16 and 8 at H = 512.
        length: number of the text encoder's tokens, padding included.
        shared: whether start, end and padding are visible to all, as in the official code; False: only to cells whose
            label owns no token (why the mini models want that: :mod:`fmseg.layout_model`).

    Returns:
        {h: (B, 1, h * h, length) bool}, True = may look; on the device of ``labels``.

    Raises:
        TypeError, ValueError: ``labels`` are no integer (B, H, H), a size does not divide H, ``owners`` are not B, or
            too many for ``length``.

    Differs from the official code (``CrossAttention.forward``, section "exists(label)"): made once a batch, not in
    each layer and step; any ``length``, not 77; 76 owners for 77 tokens are an error, they do not hide the end token.
    """
    labels = _checked(labels)
    batch, side, width = labels.shape
    if side != width:
        raise ValueError(f"`labels` must be square, as the U-Net's grids are taken to be; got {side}x{width}.")
    if len(owners) != batch:
        raise ValueError(f"`owners` must have one entry for each of the {batch} label maps; got {len(owners)}.")
    owner = torch.zeros(batch, length, dtype=torch.int64)
    free = torch.ones(batch, length, dtype=torch.bool)
    for row, ids in enumerate(owners):
        if len(ids) + 2 > length:
            raise ValueError(f"`owners[{row}]` has {len(ids)} tokens; with start and end they do not fit {length}.")
        content = slice(1, 1 + len(ids))
        owner[row, content] = torch.tensor(ids, dtype=torch.int64)
        free[row, content] = False
    owner, free = owner[:, None].to(labels.device), free[:, None].to(labels.device)
    keep = {}
    for h in sizes:
        if not 1 <= h <= side or side % h:
            raise ValueError(f"`sizes` must divide the label maps' side {side}; got {h}.")
        cells = labels[:, :: side // h, :: side // h].reshape(batch, h * h, 1)
        own = (cells == owner) & ~free
        keep[h] = (own | (free if shared else free & ~own.any(-1, keepdim=True)))[:, None]
    return keep


def with_guidance(keep: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Masks for classifier-free guidance in one batch: {h: (2B, 1, h * h, L) bool}, the first half all True.

    The unconditional half, which reads the empty prompt without rectification, comes first, as in diffusers' batches.
    """
    return {h: torch.cat([torch.ones_like(mask), mask]) for h, mask in keep.items()}


def rectified_attention(query: Tensor, key: Tensor, value: Tensor, keep: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Attention over the tokens that a query may look at.

    .. math:: A = \mathrm{softmax}_j(\hat S), \quad
              \hat S_{u,j} = q_u \cdot k_j / \sqrt d \;\text{if}\; M_{u,j} \;\text{else}\; -\infty, \quad O = A V

    The mask comes before the softmax, so the weights that remain sum to one; the others are exactly 0, and so is the
    gradient of ``value`` through them. All heads share the mask.

    Args:
        query: (B, heads, N, d) float.
        key, value: (B, heads, L, d) float.
        keep: (B, 1, N, L) bool, M; at least one True in each row.
        bias: added to the scores, broadcastable to (B, heads, N, L), same dtype as ``query``.

    Returns:
        (B, heads, N, d).

    Raises:
        TypeError: ``keep`` is not bool; a float mask would be added to the scores.
        ValueError: ``keep`` has another shape. It is not broadcast over the batch.

    Differs from the official code (ldm/modules/attention_ADE20K.py, ``CrossAttention.forward``): a bool mask in torch's
    fused attention, not ``-finfo.max`` filled into the scores; the weights underflow to the same 0.
    """
    if keep.dtype != torch.bool:
        raise TypeError(f"`keep` must be bool, True = may look; got {keep.dtype}.")
    expected = (len(query), 1, query.shape[2], key.shape[2])
    if keep.shape != expected:
        hint = " Is the unconditional half missing? See with_guidance." if 2 * len(keep) == len(query) else ""
        raise ValueError(f"`keep` must be (B, 1, queries, tokens) = {expected}; got {tuple(keep.shape)}.{hint}")
    mask = keep if bias is None else bias.masked_fill(~keep, -math.inf)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class RectifiedAttnProcessor:
    """diffusers' ``AttnProcessor2_0`` with :func:`rectified_attention`: no parameters, the same values without masks.

    Called by diffusers with an ``Attention`` module; ``cross_attention_kwargs={"rectify": keep_masks(...)}`` given to
    the U-Net arrives here as ``rectify``. The mask is the one with as many rows as there are queries.
    Raises ValueError where ``rectify`` has no mask for this number of queries, or one of another batch or length.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, rectify=None):
        residual, shape = hidden_states, hidden_states.shape  # (B, N, C) or (B, C, H, W)
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)

        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query, key, value = heads(attn.to_q(hidden_states)), heads(attn.to_k(context)), heads(attn.to_v(context))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        bias = attn.prepare_attention_mask(attention_mask, key.shape[2], len(key))  # (B * heads, 1 or N, L) or None
        bias = None if bias is None else bias.unflatten(0, (len(key), attn.heads))
        if rectify is None:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            out = rectified_attention(query, key, value, _of_size(rectify, query.shape[2]), bias)

        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
        out = out.transpose(1, 2).reshape(shape) if len(shape) == 4 else out
        return (out + residual if attn.residual_connection else out) / attn.rescale_output_factor


class UnrectifiedAttnProcessor(RectifiedAttnProcessor):
    """For self-attention, which gets ``cross_attention_kwargs`` as well: takes ``rectify`` and leaves it unused."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, rectify=None):
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def install(unet: nn.Module) -> nn.Module:
    """Give every text cross-attention (``attn2``) of a diffusers U-Net the rectified processor; returns the U-Net.

    Stable Diffusion 1.4 has 16 of them. All other attention ignores the masks. Parameters and, without masks, outputs
    stay as they are.

    Raises:
        ValueError: ``unet`` has no attention of that name.
    """
    kinds = {name: name.endswith("attn2.processor") for name in getattr(unet, "attn_processors", ())}
    if not any(kinds.values()):
        raise ValueError(f"`unet` must have text cross-attention, named attn2; this {type(unet).__name__} has none.")
    unet.set_attn_processor(
        {name: RectifiedAttnProcessor() if text else UnrectifiedAttnProcessor() for name, text in kinds.items()}
    )
    return unet


def _of_size(rectify: Mapping[int, Tensor], queries: int) -> Tensor:
    side = math.isqrt(queries)
    if side**2 != queries or side not in rectify:
        raise ValueError(
            f"`rectify` must have a mask for {queries} queries, a square grid; its sides are {[*rectify]}."
        )
    return rectify[side]


def _checked(labels) -> Tensor:
    """(B, H, W) int64."""
    labels = labels if isinstance(labels, Tensor) else torch.tensor(labels.copy())  # arrays may be flipped, read-only
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"`labels` must hold class ids of an integer dtype; got {labels.dtype}.")
    if labels.ndim != 3:
        raise ValueError(f"`labels` must be (B, H, W); got {tuple(labels.shape)}.")
    return labels.long()
