r"""The grounding head: reads a frozen text-to-image U-Net while it paints, and segments what a text query names.

Li et al. 2023, "Open-vocabulary Object Segmentation with Diffusion Models" (Grounded Diffusion), section 3. Official
code: github.com/Lipurple/Grounded-Diffusion (5680115), ldm/models/seg_module.py; see also
:mod:`fmseg.grounding_official`. From a step of the sampler to masks::

    head = GroundingHead.for_unet(pipe.unet.config)
    with Taps(pipe.unet) as features:                       # of one guided call, 2B rows
        pipe.unet(rows, timestep, states)
    logits = head(guidance_halves(features), text, size=512)  # text (B, O, D) from fmseg.grounding_text
    masks = logits > 0                                      # the paper's sigmoid above 0.5, class by class

Where the work is done. A 1x1 convolution without bias weighs channels, bilinear resizing weighs places, so the two
commute: :math:`W U(F) = U(W F)`. The head convolves thousands of channels on their own small grid and resizes the few
that are left. For the same reason the dot product with a mask's embedding comes before the resize to the picture,
:math:`\langle U(V), \varepsilon \rangle = U(\langle V, \varepsilon \rangle)`. What does not commute stays where the
paper has it: the mix-convolutions (3x3 kernels, normalisation, ReLU), the patches, and the two resizes of the lowest
group, which are not one resize by four.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmseg.grounding_layers import DecoderLayer, MixConv
from fmseg.taps import GROUPS

WIDTHS = (16, 32, 64, 128)  # channels that are left of low, mid, high, highest

Features = Mapping[str, Tensor | Sequence[Tensor]]


def feature_channels(config: Mapping[str, Any], *, guided: bool = True) -> dict[str, int]:
    """Channels of each group that :class:`fmseg.taps.Taps` records of a U-Net, from its configuration alone.

    Args:
        config: of diffusers' UNet2DConditionModel; ``block_out_channels`` and ``layers_per_block`` count.
        guided: twice as many, rows without and with prompt side by side.

    Returns:
        group -> channels. Stable Diffusion 1, guided: low 15360, mid 14080, high 8320, highest 5120.

    Raises:
        ValueError: the U-Net has not Stable Diffusion 1's layout.
    """
    widths, depth = list(config["block_out_channels"]), config.get("layers_per_block", 2)
    if len(widths) != 4 or depth != 2:
        raise ValueError(
            "`config` must be of Stable Diffusion 1's layout, four levels with layers_per_block=2; got "
            f"block_out_channels {widths} and layers_per_block {depth}"
        )
    a, b, c, d = widths
    sums = (c + 5 * d, b + 4 * c + d, a + 4 * b + c, 6 * a + b)  # see the table in fmseg.taps
    return {group: (2 if guided else 1) * n for group, n in zip(GROUPS, sums, strict=True)}


class GroundingHead(nn.Module):
    r"""Mask logits of queried classes from U-Net features (Grounded Diffusion, section 3.2; dossier 2.4 to 2.6).

    .. math:: l = U U W_L F_L, \quad d = M[l, U W_M F_M], \quad h = M[U d, U W_H F_H], \quad V = M[h, W_T F_T]
    .. math:: \varepsilon = \mathrm{MLP}(\mathrm{Decoder}(E W_q, \mathrm{patches}(V) W_k)), \quad
              S = U \langle V, \varepsilon \rangle

    U resizes (bilinear, align_corners=False) to the size of the next group, the last one to the picture's; W are 1x1
    convolutions without bias, M is :class:`fmseg.grounding_layers.MixConv`; queries of one picture attend to each
    other, so its masks depend on all classes that are asked for, but not on their order. Pictures do not depend on each
    other.

    Args:
        channels: group -> channels of its features, see :func:`feature_channels`.
        text_dim: D of the text encoder's states.
        widths: channels that are left of low, mid, high, highest.
        dim, heads, layers, hidden: of the decoder; ``heads`` divides ``dim``.
        patch: side of a patch; must divide the sides of the highest group.
        residual, frozen_stats: see :class:`fmseg.grounding_layers.MixConv`. The defaults are what the official
            checkpoints need: statistics of the picture, in training and evaluation alike. With running means a trained
            head is another function: it has only ever seen pictures normalised by themselves.

    Weights are drawn from torch's global generator. In evaluation mode buffers are read only, and equal calls give
    equal results. In training mode each call moves them; officially inference runs in that mode, and to repeat it call
    by call use ``head.train()`` under ``torch.no_grad()``.

    Raises:
        ValueError: an argument is out of range.

    Source: ``Segmodule``, whose channels are Stable Diffusion 1's and whose sizes are 16, 32, 64 and 512. Differs from
    the official code: one class for U-Nets of any width and pictures of any size; for B > 1 pictures are kept apart,
    there all queries and patches of a batch attend to each other; the layers of the decoder start from different
    weights, there from copies of one; order of operations as said at the top of this module.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        text_dim: int,
        *,
        widths: Sequence[int] = WIDTHS,
        dim: int = 512,
        heads: int = 8,
        layers: int = 3,
        hidden: int = 2048,
        patch: int = 4,
        residual: str = "relu",
        frozen_stats: bool = False,
    ):
        super().__init__()
        _check_options(channels, widths, residual)
        sizes = dict(text_dim=text_dim, dim=dim, heads=heads, layers=layers, hidden=hidden, patch=patch)
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1; got {value!r}")
        if dim % heads:
            raise ValueError(f"`heads` must divide `dim`, {dim}; got {heads}")
        self.text_dim, self.patch = text_dim, patch
        self.squeeze = nn.ModuleDict(
            {g: nn.Conv2d(channels[g], w, 1, bias=False) for g, w in zip(GROUPS, widths, strict=True)}
        )
        together = {group: sum(widths[: k + 1]) for k, group in enumerate(GROUPS)}
        self.mix = nn.ModuleDict({g: MixConv(together[g], residual, frozen_stats) for g in GROUPS[1:]})
        width = together[GROUPS[-1]]
        self.to_query = nn.Linear(text_dim, dim, bias=False)
        self.to_memory = nn.Conv2d(width, dim, patch, stride=patch, bias=False)  # patches and their projection at once
        self.decoder = nn.ModuleList(DecoderLayer(dim, heads, hidden) for _ in range(layers))
        steps = nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, width)
        self.mlp = nn.Sequential(*steps)

    @classmethod
    def for_unet(cls, config: Mapping[str, Any], **options) -> "GroundingHead":
        """The head for a U-Net called with guidance, from its configuration; ``options`` as of the class.

        Raises:
            ValueError: the U-Net has not Stable Diffusion 1's layout, or an option is out of range.
        """
        return cls(feature_channels(config), config["cross_attention_dim"], **options)

    def forward(
        self,
        features: Features,
        text: Tensor,
        *,
        size: int | Sequence[int] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Logits of each queried class.

        Args:
            features: group -> (B, C, h, w), or a list of tensors that are so over channels; any float dtype, computed
                with in that of the weights. See :func:`fmseg.taps.guidance_halves`.
            text: (B, O, D) float, a vector a class, see :func:`fmseg.grounding_text.class_queries`.
            size: (H, W) or one side of the answer; None: the grid of the highest group.
            present: (B, O) bool, False where a picture has fewer classes than O: such a query is seen by no other, and
                its logits are 0, which is no mask. None: all are there.

        Returns:
            (B, O, H, W) logits. A pixel is of the class where they are above 0.

        Raises:
            ValueError: shapes do not fit, features or text are not finite, or a picture has no class.
        """
        return self.segment(self.reduce(features), text, size=size, present=present)

    def reduce(self, features: Features) -> dict[str, Tensor]:
        """The 1x1 convolutions alone, each group on its own grid: group -> (B, width, h, w).

        With the head frozen, these are all that must be kept of a picture: 2.5 MB in Stable Diffusion, not 136.
        Tensors of a list are convolved one by one with their part of the kernel and added up, so nothing is
        concatenated.
        """
        parts = {g: _as_list(features, g) for g in GROUPS}
        _check_features(parts, self.squeeze)
        made = {}
        for group in GROUPS:
            kernel, start, total = self.squeeze[group].weight, 0, None
            for part in parts[group]:
                end = start + part.shape[1]
                term = F.conv2d(part.to(kernel.dtype), kernel[:, start:end])
                total, start = term if total is None else total.add_(term), end
            if not bool(torch.isfinite(total.detach()).all()):
                raise ValueError(f"features of '{group}' must be finite. Did the U-Net run in half precision?")
            made[group] = total
        return made

    def encode(self, reduced: Mapping[str, Tensor]) -> Tensor:
        """V: the picture's features (B, sum of widths, h, w) on the grid of the highest group, from :meth:`reduce`."""
        low, mid, high, highest = (reduced[group] for group in GROUPS)
        x = _resized(_resized(low, mid.shape[2:]), high.shape[2:])
        x = self.mix["mid"](torch.cat([x, _resized(mid, high.shape[2:])], 1))
        x = _resized(torch.cat([x, high], 1), highest.shape[2:])
        return self.mix["highest"](torch.cat([self.mix["high"](x), highest], 1))

    def segment(
        self,
        reduced: Mapping[str, Tensor],
        text: Tensor,
        *,
        size: int | Sequence[int] | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """All but the 1x1 convolutions: from :meth:`reduce` to logits; arguments as of :meth:`forward`."""
        grid = reduced[GROUPS[-1]]
        _check_text(text, present, len(grid), self.text_dim)
        if grid.shape[2] % self.patch or grid.shape[3] % self.patch:
            raise ValueError(
                f"sides of 'highest' must be multiples of the patch, {self.patch}; got {tuple(grid.shape[2:])}. Give "
                "latents of another size, or the head another `patch`"
            )
        grid = self.encode(reduced)
        memory = self.to_memory(grid).flatten(2).transpose(1, 2)
        queries = self.to_query(text.to(grid.dtype))
        absent = None if present is None or bool(present.all()) else ~present
        for layer in self.decoder:
            queries = layer(queries, memory, absent)
        logits = (self.mlp(queries) @ grid.flatten(2)).unflatten(2, grid.shape[2:])
        if absent is not None:
            logits = logits.masked_fill(absent[:, :, None, None], 0)
        return logits if size is None else _resized(logits, (size, size) if isinstance(size, int) else tuple(size))


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _as_list(features: Features, group: str) -> list[Tensor]:
    if group not in features:
        raise ValueError(f"`features` must have the groups {', '.join(GROUPS)}; got {', '.join(features) or 'none'}")
    return [features[group]] if isinstance(features[group], Tensor) else list(features[group])


def _check_options(channels: Mapping[str, int], widths: Sequence[int], residual: str) -> None:
    if set(channels) != set(GROUPS) or any(n < 1 for n in channels.values()):
        raise ValueError(f"`channels` must give a number >= 1 for each of {', '.join(GROUPS)}; got {dict(channels)}")
    if len(widths) != len(GROUPS) or any(w < 1 for w in widths):
        raise ValueError(f"`widths` must be four numbers >= 1, of {', '.join(GROUPS)}; got {tuple(widths)}")
    if residual not in ("relu", "input"):
        raise ValueError(f"`residual` must be 'relu' (official) or 'input'; got {residual!r}")


def _check_features(parts: dict[str, list[Tensor]], squeeze: nn.ModuleDict) -> None:
    batch = {len(part) for tensors in parts.values() for part in tensors if part.ndim}
    if len(batch) != 1:
        raise ValueError(f"`features` must all have the same number of pictures; got {sorted(batch)}")
    for group, tensors in parts.items():
        shapes = sorted({tuple(t.shape[2:]) for t in tensors})
        if any(t.ndim != 4 or not t.is_floating_point() for t in tensors) or len(shapes) != 1 or 0 in shapes[0]:
            raise ValueError(
                f"features of '{group}' must be floats (B, C, h, w), the same h and w in all; got sizes {shapes}"
            )
        wanted, got = squeeze[group].in_channels, sum(t.shape[1] for t in tensors)
        if got != wanted:
            hint = (
                " Rows without and with prompt go side by side, see fmseg.taps.guidance_halves."
                if 2 * got == wanted
                else ""
            )
            raise ValueError(f"features of '{group}' must have {wanted} channels in all; got {got}.{hint}")


def _check_text(text: Tensor, present: Tensor | None, batch: int, width: int) -> None:
    if text.ndim != 3 or len(text) != batch or text.shape[2] != width or not text.shape[1]:
        raise ValueError(
            f"`text` must be (B, O, D) with B = {batch}, D = {width} and O >= 1, a vector a class; got "
            f"{tuple(text.shape)}. One picture's queries are text[None]"
        )
    if not bool(torch.isfinite(text.detach()).all()):
        raise ValueError("`text` must be finite. Did the text encoder run in half precision?")
    if present is None:
        return
    if present.dtype != torch.bool or present.shape != text.shape[:2]:
        raise ValueError(
            f"`present` must be bool of (B, O) = {tuple(text.shape[:2])}; got {tuple(present.shape)} of {present.dtype}"
        )
    empty = ~present.any(1)
    if bool(empty.any()):
        raise ValueError(
            f"`present` must name at least one class a picture; picture {int(empty.nonzero()[0])} has none"
        )
