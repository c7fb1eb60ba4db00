"""The door to self-supervised vision transformers: the zoo's, DINO's and iBOT's checkpoints, and timm's by name."""

import argparse
import json
import pickle
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # DINO's and iBOT's
ORIGIN = (
    "Official weights: the tables in the READMEs of github.com/facebookresearch/dino (backbone only) and "
    "github.com/bytedance/ibot (teacher); download the file once and give its path"
)
_NOT_THE_BACKBONE = ("head.", "masked_embed", "mask_token")  # projection heads, masked image modelling


@dataclass(frozen=True)
class Vit:
    """A vision transformer that is ready to use: in eval mode, float32, no gradients to its weights.

    Attributes:
        model: timm's VisionTransformer without a head.
        mean, std: of its pictures, RGB in [0, 1].
        name: what was loaded.
    """

    model: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str

    def preprocess(self, images: ndarray) -> Tensor:
        """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32, normalised as its training was; sizes stay."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def load_vit(source: str | PathLike, weights: str | PathLike | None = None) -> Vit:
    """Load a vision transformer.

    Args:
        source: a folder of the zoo's form: config.json with "architecture": "vit", "kwargs" (of timm's
            VisionTransformer), "mean" and "std", and model.safetensors; or an official DINO or iBOT checkpoint, whose
            architecture is read off its weights; or a timm name, "vit_base_patch16_224.dino", ....
        weights: for a timm name: a local file instead of a download, an official checkpoint or timm's own.

    Raises:
        FileNotFoundError: no such folder or file. ValueError: an unknown name, or a file that does not hold what it
            should: names what is missing, left over or of another shape. ConnectionError: the download failed.
    """
    path = Path(source)
    if path.is_dir() or path.is_file():
        if weights is not None:
            raise ValueError(f"`weights` are for a timm name; {source} holds its own; got {weights!r}, too")
        return _from_folder(path) if path.is_dir() else _from_checkpoint(path)
    return _from_timm(str(source), weights)


def _from_folder(folder: Path) -> Vit:
    from timm.models.vision_transformer import VisionTransformer

    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}; it should hold architecture, kwargs, mean and std")
    try:
        config = json.loads(path.read_text())
        if config["architecture"] != "vit":
            raise ValueError(f"architecture {config['architecture']!r}")
        model = VisionTransformer(**{"num_classes": 0} | config["kwargs"])
        mean, std = tuple(config["mean"]), tuple(config["std"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} should be JSON with "architecture": "vit", "kwargs" (timm VisionTransformer), "mean" and "std" '
            f"({error!r})"
        ) from error
    return _filled(model, folder / "model.safetensors", mean, std, folder.name)


def _from_checkpoint(path: Path) -> Vit:
    """An official one. All of DINO's and iBOT's transformers have heads of 64 channels."""
    from timm.models.vision_transformer import VisionTransformer

    state = _state(path)
    try:
        patch, positions = state["patch_embed.proj.weight"], state["pos_embed"].shape[1] - 1
        model = VisionTransformer(
            img_size=patch.shape[3] * round(positions**0.5),
            patch_size=patch.shape[3],
            embed_dim=patch.shape[0],
            depth=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
            num_heads=patch.shape[0] // 64,
            init_values=1.0 if "blocks.0.ls1.gamma" in state else None,
            num_classes=0,
        )
    except (KeyError, ValueError, IndexError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(f"{path} is no checkpoint of a DINO or iBOT transformer ({error!r}). {ORIGIN}") from error
    return _filled(model, path, IMAGENET_MEAN, IMAGENET_STD, path.stem, state)


def _from_timm(name: str, weights: str | PathLike | None) -> Vit:
    import timm

    from fmseg.words import find

    if not timm.is_model(name):
        try:
            find(name, tuple(timm.list_models("*vit*")), "source")
        except ValueError as error:
            raise FileNotFoundError(f"There is no folder or file {name}; and as a name of timm's: {error}") from error
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"There is no file {weights}. {ORIGIN}")
    try:
        model = timm.create_model(name, pretrained=weights is None, num_classes=0)
    except (OSError, RuntimeError) as error:
        what = " ".join(str(error).split())[:300]
        raise ConnectionError(
            f"timm could not get {name} ({what}). Without a network: download its weights elsewhere and give the file, "
            f"load_vit({name!r}, weights=file). {ORIGIN}"
        ) from error
    mean, std = tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])
    return Vit(_ready(model), mean, std, name) if weights is None else _filled(model, Path(weights), mean, std, name)


def _filled(
    model: nn.Module, path: Path, mean: tuple, std: tuple, name: str, state: dict[str, Tensor] | None = None
) -> Vit:  # fmt: skip
    state = _state(path) if state is None else state
    mine = model.state_dict()
    shapes = [k for k in mine.keys() & state.keys() if mine[k].shape != state[k].shape]
    wrong = shapes or mine.keys() - state.keys() or state.keys() - mine.keys()
    if wrong:
        how = "has another shape" if shapes else "is missing" if mine.keys() - state.keys() else "is left over"
        raise ValueError(
            f"{path} does not hold the weights of {name}: {sorted(wrong)[0]} {how} ({len(wrong)} such entries)"
        )
    model.load_state_dict(state)
    return Vit(_ready(model), mean, std, name)


def _ready(model: nn.Module) -> nn.Module:
    return model.eval().float().requires_grad_(False)


def _state(path: Path) -> dict[str, Tensor]:
    """The backbone's state dict in timm's names, from a file that may hold more."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; it should hold a transformer's weights. {ORIGIN}")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # whole checkpoints keep their arguments
                state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("teacher", "student", "state_dict", "model"):
            state = state[key] if isinstance(state.get(key), dict) else state
        state = {key.removeprefix("module."): value for key, value in state.items()}
    except (
        RuntimeError, AttributeError, EOFError, KeyError, ValueError, pickle.UnpicklingError, SafetensorError
    ) as error:  # fmt: skip
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no file of weights ({what}). {ORIGIN}") from error
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    state = {key.replace(".gamma_1", ".ls1.gamma").replace(".gamma_2", ".ls2.gamma"): v for key, v in state.items()}
    return {key: value for key, value in state.items() if not key.startswith(_NOT_THE_BACKBONE)}
