"""What a diffusion U-Net knows of a picture: the outputs of its 25 blocks, which Grounded Diffusion segments with.

The U-Net must have Stable Diffusion 1's layout: four levels of two residual blocks, attention on all but the lowest.
Widths do not matter. Dossier 2.3 and 7.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

GROUPS = ("low", "mid", "high", "highest")  # by size: an eighth, a quarter, a half, the whole of the latents' side
# CompVis' block, diffusers' module with the same output, group; in order of execution
TAPS = (
    ("in0", "conv_in", "highest"),
    ("in1", "down_blocks.0.attentions.0", "highest"),
    ("in2", "down_blocks.0.attentions.1", "highest"),
    ("in3", "down_blocks.0.downsamplers.0", "high"),
    ("in4", "down_blocks.1.attentions.0", "high"),
    ("in5", "down_blocks.1.attentions.1", "high"),
    ("in6", "down_blocks.1.downsamplers.0", "mid"),
    ("in7", "down_blocks.2.attentions.0", "mid"),
    ("in8", "down_blocks.2.attentions.1", "mid"),
    ("in9", "down_blocks.2.downsamplers.0", "low"),
    ("in10", "down_blocks.3.resnets.0", "low"),
    ("in11", "down_blocks.3.resnets.1", "low"),
    ("mid", "mid_block", "low"),
    ("out0", "up_blocks.0.resnets.0", "low"),
    ("out1", "up_blocks.0.resnets.1", "low"),
    ("out2", "up_blocks.0.upsamplers.0", "mid"),  # after the third residual block, as CompVis' block ends
    ("out3", "up_blocks.1.attentions.0", "mid"),
    ("out4", "up_blocks.1.attentions.1", "mid"),
    ("out5", "up_blocks.1.upsamplers.0", "high"),
    ("out6", "up_blocks.2.attentions.0", "high"),
    ("out7", "up_blocks.2.attentions.1", "high"),
    ("out8", "up_blocks.2.upsamplers.0", "highest"),
    ("out9", "up_blocks.3.attentions.0", "highest"),
    ("out10", "up_blocks.3.attentions.1", "highest"),
    ("out11", "up_blocks.3.attentions.2", "highest"),
)
# where a larger U-Net has blocks that the table would silently leave out
_TOO_MUCH = (
    "down_blocks.4", "down_blocks.0.resnets.2", "down_blocks.3.attentions", "down_blocks.3.downsamplers",
    "up_blocks.0.resnets.3", "up_blocks.0.attentions", "up_blocks.3.upsamplers",
)  # fmt: skip
_LAYOUT = (
    "Taps are defined for Stable Diffusion 1's layout: four levels, layers_per_block=2, cross-attention on all but the "
    "lowest level (see UNET in fmseg.zoo_configs)"
)


class Taps:
    """Records the block outputs of one call of a U-Net.

    ::

        with Taps(unet) as features:
            noise = unet(latents, timestep, text).sample
        by_scale = grouped(fold_guidance(features))

    Hooks are on the U-Net only between ``with`` and the end of its block, so exactly one call belongs in there. A
    ``Taps`` may be entered again; each time it makes new lists, and ``features`` are the latest.

    Args:
        unet: diffusers' UNet2DConditionModel, not compiled: compiled modules may skip hooks.
        keep_grad: leave features in the graph of autograd; otherwise they are detached. They are never copied.

    Attributes:
        features: group -> list of (B', C, h, w) tensors in order of execution, in the U-Net's own dtype and device;
            6 tensors in each of low, mid and high, 7 in highest.

    Raises:
        ValueError: on construction, if the U-Net has another layout; names the module that is missing or too much.
        RuntimeError: a second call while armed, at once; no call, or one that went around the modules, at the end.

    Source: ldm/modules/diffusionmodules/openaimodel.py, UNetModel.forward. Differs from the official code: there, the
    features of the latest call stand in a dict of the module's own, which is never emptied by itself.
    """

    def __init__(self, unet: nn.Module, *, keep_grad: bool = False):
        self._modules = _find(unet)
        self._keep_grad, self._hooks = keep_grad, []
        self.features: dict[str, list[Tensor]] = {}

    def __enter__(self) -> dict[str, list[Tensor]]:
        if self._hooks:
            raise RuntimeError("These taps are armed already; leave the first `with` block, or make other Taps")
        self.features = {group: [] for group in GROUPS}
        seen: set[str] = set()
        for (name, _, group), module in zip(TAPS, self._modules, strict=True):
            self._hooks.append(module.register_forward_hook(self._recorder(name, self.features[group], seen)))
        return self.features

    def __exit__(self, kind, error, trace) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        count = sum(map(len, self.features.values()))
        if kind is None and count != len(TAPS):
            why = "the U-Net was not called" if count == 0 else "the call went around the others (torch.compile?)"
            raise RuntimeError(f"{count} of {len(TAPS)} taps recorded anything while armed: {why}")

    def _recorder(self, name: str, into: list[Tensor], seen: set[str]):
        def record(module, args, output) -> None:
            if name in seen:
                raise RuntimeError(
                    "The U-Net was called a second time while its taps were armed; arm them for one call"
                )
            seen.add(name)
            tensor = output[0] if isinstance(output, tuple) else output  # attentions answer in a tuple
            into.append(tensor if self._keep_grad else tensor.detach())

        return record


def guidance_halves(features: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
    """What a picture gave without and with its prompt, as views: nothing is copied.

    Over channels the views are in the order of ``grouped(fold_guidance(features))``, and
    :class:`fmseg.grounding.GroundingHead` gives the same for both; those two copy all features twice, 136 MB a picture
    in Stable Diffusion.

    Args:
        features: group -> list of (2B, C, h, w), the B unconditional rows first, as :class:`Taps` records.

    Returns:
        group -> list, twice as long, of (B, C, h, w): first without, first with, second without, ...

    Raises:
        ValueError: a tensor has an odd number of rows: guidance was off.
    """
    for group, tensors in features.items():
        for tensor in tensors:
            if tensor.ndim != 4 or len(tensor) % 2 or not len(tensor):
                raise ValueError(
                    f"features of '{group}' must be (2B, C, h, w), unconditional rows first; got "
                    f"{tuple(tensor.shape)}. Was the U-Net called without classifier-free guidance?"
                )
    return {group: [half for tensor in tensors for half in tensor.chunk(2)] for group, tensors in features.items()}


def fold_guidance(features: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Put what a picture gave without and with its prompt side by side, tensor by tensor.

    Classifier-free guidance runs 2B rows, the B unconditional ones first. Concatenated over a group afterwards, the
    channels are f1 without, f1 with, f2 without, f2 with, ...

    Args:
        features: group -> list of (2B, C, h, w), any float dtype, as :class:`Taps` records them.

    Returns:
        group -> list of (B, 2C, h, w), channels [0, C) unconditional; row b of every tensor is of picture b.

    Raises:
        ValueError: a tensor has another number of dimensions, or an odd number of rows: guidance was off.

    Source: ldm/modules/diffusionmodules/openaimodel.py, UNetModel.forward. Differs from the official code: its reshape
    is the same for B = 1, but pairs rows of different pictures for B > 1.
    """
    halves = guidance_halves(features)
    return {g: [torch.cat(pair, 1) for pair in zip(h[::2], h[1::2], strict=True)] for g, h in halves.items()}


def grouped(features: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Concatenate each group's tensors over channels, in their order.

    Args:
        features: group -> list of (B, C_k, h, w), h and w the same within a group.

    Returns:
        group -> (B, sum of C_k, h, w). Of Stable Diffusion 1, unfolded: low 7680, mid 7040, high 4160, highest 2560.

    Raises:
        ValueError: a group is empty, or its tensors differ in rows or size.
    """
    for group, tensors in features.items():
        shapes = {(t.shape[0], *t.shape[2:]) for t in tensors}
        if len(shapes) != 1:
            raise ValueError(f"tensors of '{group}' must agree in rows and size; got (B, h, w) of {sorted(shapes)}")
    return {group: torch.cat(tensors, dim=1) for group, tensors in features.items()}


def _find(unet: nn.Module) -> list[nn.Module]:
    found = []
    for _, path, _ in TAPS:
        try:
            found.append(unet.get_submodule(path))
        except AttributeError:
            raise ValueError(f"{type(unet).__name__} has no module {path}. {_LAYOUT}") from None
    for path in _TOO_MUCH:
        try:
            unet.get_submodule(path)
        except AttributeError:
            continue
        raise ValueError(f"{type(unet).__name__} has a module {path}, which has no tap. {_LAYOUT}")
    return found
