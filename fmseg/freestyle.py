"""The door to FreestyleNet's checkpoint: Stable Diffusion 1.4's U-Net fine-tuned to draw from label maps.

FreestyleNet (github.com/essunny310/FreestyleNet) saves CompVis' whole model: ``model.diffusion_model.*`` is the U-Net,
``first_stage_model.*`` the autoencoder, ``cond_stage_model.*`` the text encoder. Its rectified attention has no weights
of its own, and its training changes the U-Net alone (dossier 6), so the rest comes from Stable Diffusion 1.4 itself,
through :mod:`fmseg.stable_diffusion`.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PREFIX = "model.diffusion_model."
ORIGIN = (
    "FreestyleNet's checkpoints for COCO-Stuff and ADE20K are linked from github.com/essunny310/FreestyleNet; download "
    "the file once and give its path"
)
# what Lightning writes beside the weights, read as nothing: names of classes and numbers of numpy, never their code
_BESIDE = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
_DAMAGED = (
    RuntimeError, OSError, AttributeError, EOFError, LookupError, ValueError, TypeError, pickle.UnpicklingError,
)  # fmt: skip


class _Nothing:
    """Stands for an object of the file that is not needed."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


def diffusers_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """What diffusers calls the weights of CompVis' U-Net.

    Args:
        names: CompVis' names with :data:`PREFIX`, of a whole U-Net.
        config: of diffusers' U-Net; only ``layers_per_block`` counts.

    Returns:
        CompVis' name -> diffusers' name. A name that has no place in the layout is left out.

    Source: diffusers.loaders.single_file_utils.convert_ldm_unet_checkpoint, private to that library; it only moves
    values about, so it is given names in place of tensors.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    theirs = convert_ldm_unet_checkpoint({name: name for name in names}, config)
    return {name: theirs_of for theirs_of, name in theirs.items() if name is not None}


def load_freestyle(path: str | os.PathLike, unet: nn.Module) -> nn.Module:
    """Fill a U-Net with FreestyleNet's weights, or those of any checkpoint of CompVis' Stable Diffusion 1.

    Args:
        path: .ckpt (a state dict, or Lightning's file around one) or .safetensors. Nothing in it is run. Running means
            of the weights (``model_ema.*``), which FreestyleNet does not have, are passed over.
        unet: diffusers' UNet2DConditionModel of the same size, filled in place; it keeps its dtype and device.

    Returns:
        ``unet``, every weight of it replaced.

    Raises:
        FileNotFoundError: no such file; says where it comes from.
        ValueError: the file is damaged, wants to run code, or does not hold exactly this U-Net: names the file and what
            is missing, left over or of another shape. The U-Net is unchanged then.

    Differs from the official code: it loads with strict=False, which lets a wrong file pass in silence.
    """
    path = Path(path)
    state = {name: v for name, v in _read(path).items() if isinstance(name, str) and isinstance(v, Tensor)}
    theirs = {name: v for name, v in state.items() if name.startswith(PREFIX)}
    if not theirs:
        raise ValueError(f"{path} has no weights named {PREFIX}*{_guess(state)}. {ORIGIN}")
    mine, names = unet.state_dict(), diffusers_names(theirs, unet.config)
    converted = {names[name]: v for name, v in theirs.items() if name in names}
    _check(path, "has no weights for", mine.keys() - converted.keys())
    left = {name for name in theirs if names.get(name) not in mine}
    _check(path, "has weights that this U-Net lacks:", left)
    shapes = {name for name, v in converted.items() if v.shape != mine[name].shape}
    _check(path, "has weights of another shape for", shapes)
    unet.load_state_dict(converted, strict=True)
    return unet


def _check(path: Path, what: str, names: Iterable[str]) -> None:
    names = sorted(names)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"{path} {what} {', '.join(names[:3])}{more}. Is it of Stable Diffusion 1's layout and size?")


def _guess(state: Mapping[str, Tensor]) -> str:
    """What a file without CompVis' U-Net may be."""
    first = next(iter(state), None)
    if any("lora" in name.lower() for name in state):
        return f", but a LoRA's ({first}): changes to some other model, not a model"
    if "conv_in.weight" in state:
        return ", but diffusers' own names: load it with UNet2DConditionModel.from_pretrained"
    return f"; its first is {first}" if first else ", nor any others"


def _read(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}. {ORIGIN}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(_Nothing, name) for name in _BESIDE]):
            # of a file of gigabytes, only what is looked at comes into memory; files older than torch 1.6 cannot do so
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (*_DAMAGED, SafetensorError) as error:
        raise ValueError(f"{path} {_why(error)}. {ORIGIN}") from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, no state dict. {ORIGIN}")
    return content


def _why(error: Exception) -> str:
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked:
        return f"asks for {asked[1]}, which is no tensor; opening it could run code"
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()  # what torch says of it
    return f"is damaged, or no checkpoint ({lines[0] if lines else type(error).__name__})"
