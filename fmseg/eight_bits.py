r"""Weights in eight bits, for U-Nets that would not fit the shipped 30 MB otherwise: half the size of half precision.

.. math:: W_{ij} \approx s_i \, q_{ij}, \qquad s_i = \max_j |W_{ij}| / 127, \quad q_{ij} \in \{-127, \dots, 127\}

Every row (output channel) of a matrix or kernel has a scale of its own, so that one large channel does not coarsen the
others. Symmetric, without a zero point; rounding is the whole error, at most half a scale an entry. Small tensors
(biases, norms) stay in half precision.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

SCALE = ":scale"  # what the name of a tensor's scales ends with
LEAST = 512  # entries: smaller tensors would save little
LARGEST = 127
FILE = "eight_bits.safetensors"  # beside config.json, in place of diffusers' own file


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in eight bits.

    Args:
        state: name -> tensor. Floating ones with at least two axes and :data:`LEAST` entries are packed, a row being
            everything at one index of the first axis; other floating ones become half precision, the rest stays.

    Returns:
        name -> int8 tensor of the same shape and ``name + SCALE`` -> (rows,) float16, for those that are packed.

    Raises:
        ValueError: a weight is not finite, or too large for a scale in half precision; or a name ends with ``SCALE``.
    """
    packed = {}
    for name, value in state.items():
        if name.endswith(SCALE):
            raise ValueError(f"`state` must not have names that end with {SCALE!r}, got {name!r}")
        if not value.is_floating_point():
            packed[name] = value.contiguous().clone()
        elif value.ndim < 2 or value.numel() < LEAST:
            packed[name] = value.half().contiguous().clone()
        else:
            rows = value.detach().float().flatten(1)
            scale = (rows.abs().amax(1) / LARGEST).half()
            if not bool(torch.isfinite(scale).all()):
                raise ValueError(f"`state[{name!r}]` must be finite and below {65504 * LARGEST:.2g} in size")
            steps = rows / scale.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            packed[name] = steps.round().clamp(-LARGEST, LARGEST).to(torch.int8).view(value.shape)
            packed[name + SCALE] = scale
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`pack` packed, in single precision.

    Raises:
        ValueError: scales without their tensor, or not one a row.
    """
    state = {name: value for name, value in packed.items() if not name.endswith(SCALE)}
    for name, scale in ((n.removesuffix(SCALE), v) for n, v in packed.items() if n.endswith(SCALE)):
        if name not in state or state[name].dtype != torch.int8 or scale.shape != state[name].shape[:1]:
            raise ValueError(f"{name + SCALE} must have a scale for each row of an int8 tensor {name}")
        state[name] = state[name].float() * scale.float().view(-1, *[1] * (state[name].ndim - 1))
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def save_unet(unet: nn.Module, folder: str | os.PathLike) -> Path:
    """Write a diffusers U-Net in eight bits: config.json as diffusers has it, and :data:`FILE`.

    Args:
        unet: a ``UNet2DConditionModel`` on the CPU, in any floating precision; it is not changed.
        folder: is made; what stands there under these names is replaced, the weights whole or not at all.

    Returns:
        The path of the weights.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unet.save_config(folder)
    partial = folder / f"{FILE}.{os.getpid()}.part"
    save_file(pack(unet.state_dict()), partial)
    os.replace(partial, folder / FILE)
    return folder / FILE


def load_unet(folder: str | os.PathLike) -> nn.Module:
    """A diffusers U-Net from a folder of :func:`save_unet`, or from one in diffusers' own layout.

    Returns:
        ``UNet2DConditionModel`` in single precision and evaluation mode, with diffusers' own attention.

    Raises:
        FileNotFoundError: no such folder, or it lacks config.json or weights.
        ValueError: the weights are not those of the configuration.
    """
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"There is no file {folder / 'config.json'}; it should describe the U-Net")
    if not (folder / FILE).is_file():
        if not (folder / "diffusion_pytorch_model.safetensors").is_file():
            raise FileNotFoundError(f"{folder} has no weights: neither {FILE} nor diffusion_pytorch_model.safetensors")
        return UNet2DConditionModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
    try:
        unet.load_state_dict(unpack(load_file(folder / FILE)))
    except RuntimeError as error:
        raise ValueError(f"{folder / FILE} does not hold the weights of its config.json: {error}") from error
    return unet.eval()
