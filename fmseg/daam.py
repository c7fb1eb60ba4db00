"""DAAM: the text cross-attention of a diffusion U-Net, added up and thresholded. Grounded Diffusion's baseline.

Tang et al. 2023, "What the DAAM: Interpreting Stable Diffusion Using Cross Attention". Official code:
github.com/castorini/daam, daam/trace.py (090f5af), daam/heatmap.py (283f5e3). Nothing is trained::

    with AttentionRecorder(pipe.unet) as recorder:
        latents = generate_latents(pipe, embeds, noise, steps=50, guidance=7.5)
    positions = token_positions(prompt, names, pipe.tokenizer)
    heat = heat_maps(recorder.of(0), positions)      # (O, 64, 64) of the first picture
    masks = heat_masks(heat, (512, 512))             # (O, 512, 512)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

THRESHOLD = 0.4  # the default of daam/utils.py; Grounded Diffusion's is unknown, so sweep it
GRID = 64  # side of the heat maps in Stable Diffusion 1, that of its latents
_PLAIN = ("AttnProcessor", "AttnProcessor2_0")


class AttentionRecorder:
    r"""Adds up what each head of the text cross-attention gives to each token, over the calls between ``with`` and end.

    .. math:: A^{l,h} = \sum_t \mathrm{softmax}(Q_t K^\top / \sqrt d)

    for every cross-attention ``attn2`` l of the U-Net's down and up blocks and every head h. The U-Net's own output
    stays the same up to rounding. Memory: all heads and tokens are kept, 66 MB a picture in Stable Diffusion.

    Args:
        unet: diffusers' UNet2DConditionModel with its plain attention processors.
        guided: calls have 2B rows, the unconditional ones first, and only the others are recorded.

    Attributes:
        maps: one tensor a layer, (B, heads, L, h, w) float32; up blocks first, then down blocks. Kept after the end,
            made anew at the next ``with``.

    Raises:
        ValueError: on construction, there is no text cross-attention, or a processor that this would displace; in a
            call, an odd number of rows with ``guided``, or another batch than before.
        RuntimeError: already recording, or no call was made.

    The middle block is left out, as officially: maps of an eighth of the latents' side are passed over there. Differs
    from the official code: any number of pictures (there, more than one are taken for heads of one), calls without
    guidance (there, half of the heads would be dropped), grids that are not square.
    """

    def __init__(self, unet: nn.Module, *, guided: bool = True):
        self._layers, self._guided, self._undo = _find(unet), guided, []
        self._sums: list[Tensor | None] = []
        self.maps: list[Tensor] = []

    def __enter__(self) -> "AttentionRecorder":
        if self._undo:
            raise RuntimeError("This recorder is recording already; leave the first `with` block, or make another")
        self._sums = [None] * len(self._layers)
        self.maps = []
        for k, (transformer, attention) in enumerate(self._layers):
            grid: list[int] = []
            hook = transformer.register_forward_pre_hook(_note_grid(grid), with_kwargs=True)
            self._undo += [hook.remove, lambda a=attention, p=attention.processor: a.set_processor(p)]
            attention.set_processor(_Recording(self, k, grid))
        return self

    def __exit__(self, kind, error, trace) -> None:
        while self._undo:
            self._undo.pop()()
        if kind is not None:
            return
        if any(total is None for total in self._sums):
            raise RuntimeError("Nothing was recorded: the U-Net was not called, or around its modules (torch.compile?)")
        self.maps = list(self._sums)

    def of(self, picture: int) -> list[Tensor]:
        """The maps of one picture of the batch, (heads, L, h, w) each.

        Raises:
            RuntimeError: nothing has been recorded.
        """
        if not self.maps:
            raise RuntimeError("There are no maps yet: call the U-Net in `with`, and ask after its end")
        return [layer[picture] for layer in self.maps]

    def _add(self, k: int, probabilities: Tensor, grid: Sequence[int]) -> None:
        """Probabilities (rows, heads, N, L) of one layer and call."""
        if self._guided:
            if len(probabilities) % 2:
                raise ValueError(
                    f"the U-Net must be called with 2B rows, unconditional first; got {len(probabilities)}. Without "
                    "guidance record with guided=False"
                )
            probabilities = probabilities[len(probabilities) // 2 :]
        made = probabilities.detach().transpose(2, 3).float().unflatten(3, tuple(grid))
        total = self._sums[k]
        if total is None:
            self._sums[k] = made.contiguous()
        elif total.shape != made.shape:
            raise ValueError(
                f"all recorded calls must be of the same pictures; attention was {tuple(total.shape)}, and is now "
                f"{tuple(made.shape)}. Record each sampling by itself"
            )
        else:
            total += made


class _Recording:
    """diffusers' ``AttnProcessor`` for text cross-attention, handing on the probabilities."""

    def __init__(self, recorder: AttentionRecorder, k: int, grid: list[int]):
        self._recorder, self._k, self._grid = recorder, k, grid

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = encoder_hidden_states
        if attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = (attn.head_to_batch_dim(to(context)) for to in (attn.to_k, attn.to_v))
        mask = attn.prepare_attention_mask(attention_mask, key.shape[1], len(context))
        probabilities = attn.get_attention_scores(query, key, mask)
        self._recorder._add(self._k, probabilities.unflatten(0, (len(context), attn.heads)), self._grid)
        out = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        out = attn.to_out[1](attn.to_out[0](out))
        return (out + hidden_states if attn.residual_connection else out) / attn.rescale_output_factor


def heat_maps(maps: Sequence[Tensor], positions: Sequence[Sequence[int]], grid: int | Sequence[int] = GRID) -> Tensor:
    r"""What a class's tokens were given, place by place, averaged over layers, heads and the tokens.

    .. math:: D_o = \frac{1}{|T_o|} \sum_{k \in T_o} \frac{1}{n} \sum_{l,h} \max(0, U(A^{l,h}_k))

    U resizes (bicubic) to the grid; the maximum cuts its undershoot.

    Args:
        maps: one tensor a layer, (heads, L, h, w) float, of one picture, as :meth:`AttentionRecorder.of` gives them.
        positions: O sequences of token positions in [0, L), see :func:`fmseg.grounding_text.token_positions`.
        grid: (h', w') or one side; officially that of the latents.

    Returns:
        (O, h', w') float32 >= 0. It grows with the number of recorded calls, which :func:`heat_masks` undoes.

    Raises:
        ValueError: no maps, maps that differ in tokens, no class, no tokens for one, or a position outside the text.

    Source: ``compute_global_heat_map`` and ``compute_word_heat_map``, the latter after a search of its own for the
    word.
    """
    if not len(maps) or any(m.ndim != 4 or m.shape[1] != maps[0].shape[1] for m in maps):
        raise ValueError(
            f"`maps` must be at least one (heads, L, h, w), L the same in all; got {[tuple(m.shape) for m in maps]}"
        )
    length = maps[0].shape[1]
    if not len(positions):
        raise ValueError("`positions` must be of at least one class; see fmseg.grounding_text.token_positions")
    for k, places in enumerate(positions):
        if not len(places) or not all(0 <= at < length for at in places):
            raise ValueError(f"`positions[{k}]` must be at least one number in [0, {length}); got {list(places)}")
    wanted = sorted({at for places in positions for at in places})
    grid = (grid, grid) if isinstance(grid, int) else tuple(grid)
    total = torch.zeros(len(wanted), *grid, device=maps[0].device)
    for layer in maps:
        resized = F.interpolate(layer[:, wanted].float(), grid, mode="bicubic", align_corners=False)
        total += resized.clamp_(min=0).sum(0)
    total /= sum(len(layer) for layer in maps)
    return torch.stack([total[[wanted.index(at) for at in places]].mean(0) for places in positions])


def normalised_heat(heat: Tensor, size: Sequence[int]) -> Tensor:
    r"""Heat maps on the picture's grid, each from 0 to 1: bicubic, then :math:`(D - \min D) / (\max D - \min D)`.

    Args:
        heat: (O, h, w) float.
        size: (H, W).

    Returns:
        (O, H, W); 0 where a map is the same everywhere.

    Raises:
        ValueError: heat is not (O, h, w).

    Source: ``WordHeatMap.expand_as``. Differs from the official code: it takes width for height.
    """
    if heat.ndim != 3 or not heat.is_floating_point():
        raise ValueError(f"`heat` must be floats (O, h, w); got {tuple(heat.shape)} of {heat.dtype}")
    heat = F.interpolate(heat[None], tuple(size), mode="bicubic", align_corners=False)[0]
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    return (heat - low) / (high - low + 1e-8)


def heat_masks(heat: Tensor, size: Sequence[int], threshold: float = THRESHOLD) -> Tensor:
    """(O, H, W) bool: where :func:`normalised_heat` is above the threshold, class by class.

    Raises:
        ValueError: the threshold is not in [0, 1), or heat is not (O, h, w).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"`threshold` must be in [0, 1), a share of the map's range; got {threshold}")
    return normalised_heat(heat, size) > threshold


def _note_grid(grid: list[int]):
    def note(module, args, kwargs) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        grid[:] = hidden.shape[2:]

    return note


def _find(unet: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """(spatial transformer, its text attention), up blocks first."""
    layers = []
    for block in (*getattr(unet, "up_blocks", ()), *getattr(unet, "down_blocks", ())):
        for transformer in getattr(block, "attentions", ()):
            for inner in getattr(transformer, "transformer_blocks", ()):
                layers.append((transformer, inner.attn2))
    if not layers:
        raise ValueError(f"`unet` must have text cross-attention, named attn2; this {type(unet).__name__} has none")
    for _, attention in layers:
        kind = type(attention.processor).__name__
        if kind not in _PLAIN:
            raise ValueError(
                f"`unet` must have diffusers' plain attention processors, which this displaces for a while; got "
                f"{kind}. Call unet.set_default_attn_processor() first"
            )
    return layers
