"""Checkpoints of the official grounding module: read strictly, and written for its own code.

github.com/Lipurple/Grounded-Diffusion (5680115) saves the bare state dict of ``Segmodule``: 90 tensors for Stable
Diffusion 1.4 (dossier 3.1). Its README links them.
"""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fmseg.grounding import GroundingHead

SD1 = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 768}
_RULES = (
    (r"^squeeze\.(\w+)\.", r"\1_feature_conv.0."),
    (r"^mix\.(\w+)\.", r"\1_feature_mix_conv."),
    (r"\.(mean|var)(\d)$", r".stored_\1\2"),
    (r"\.u$", ".u0"),
    (r"\.sigma$", ".sv0"),
    (r"^decoder\.", "transfromer_decoder.layers."),  # spelt so
    (r"\.self_attention\.", ".self_attn."),
    (r"\.cross_attention\.", ".multihead_attn."),
    (r"\.inner\.", ".linear1."),
    (r"\.outer\.", ".linear2."),
    (r"\.norms\.(\d)\.", lambda found: f".norm{int(found[1]) + 1}."),
    (r"^mlp\.(\d)\.", lambda found: f"mlp.layers.{int(found[1]) // 2}."),
    (r"^to_query\.", "to_q."),
    (r"^to_memory\.", "to_k."),
)
_ORIGIN = (
    "Official checkpoints are linked from github.com/Lipurple/Grounded-Diffusion; download the file once and give its "
    "path"
)


def official_head() -> GroundingHead:
    """A :class:`fmseg.grounding.GroundingHead` of the official sizes and behaviour, with weights of its own.

    For Stable Diffusion 1; residual after the ReLU, unconditional normalisation with the picture's own statistics
    whatever the mode. Ask for ``size=512``. Equal to the official module, in its training mode, at one picture a call;
    a batch equals its pictures one by one, where the official code mixes them.
    """
    return GroundingHead.for_unet(SD1, residual="relu", frozen_stats=False)


def official_names(head: GroundingHead) -> dict[str, str]:
    """Name in ``head.state_dict()`` -> name in the official module's."""
    names = {}
    for name in head.state_dict():
        theirs = name
        for pattern, replacement in _RULES:
            theirs = re.sub(pattern, replacement, theirs)
        names[name] = theirs
    return names


def official_state(head: GroundingHead) -> dict[str, Tensor]:
    """The head's weights under official names and in official shapes, for the official ``test.py``; nothing is copied.

    The patches' projection is (dim, c * p * p) there, channels first within a patch; here it is the same numbers as a
    convolution of stride p, (dim, c, p, p).
    """
    names = official_names(head)
    return {names[k]: v.flatten(1) if k == "to_memory.weight" else v for k, v in head.state_dict().items()}


def load_official(source: str | os.PathLike | Mapping[str, Tensor], head: GroundingHead | None = None) -> GroundingHead:
    """Fill a head with an official checkpoint.

    Args:
        source: a file as the official ``train.py`` saves it (read without running anything in it), or its state dict.
        head: filled in place; it keeps its dtype and device. None: a new :func:`official_head`.

    Returns:
        The head, in evaluation mode, in which calls leave its buffers alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as tensors, or names or shapes are not exactly those of the head: says which
            are missing, too many or of another shape. The head is unchanged then.
    """
    head = official_head() if head is None else head
    what = "The state dict" if isinstance(source, Mapping) else str(source)
    state = source if isinstance(source, Mapping) else _read(Path(source))
    wanted = official_state(head)
    _check(what, "lacks", wanted.keys() - state.keys())
    _check(what, "has, and the head has not,", state.keys() - wanted.keys())
    strange = {name for name, value in state.items() if not isinstance(value, Tensor)}
    _check(what, "has something else than a tensor for", strange)
    shapes = [
        f"{name} {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if state[name].shape != value.shape
    ]
    _check(what, "has other shapes than the head:", shapes)
    mine, names = head.state_dict(), official_names(head)
    head.load_state_dict({name: state[theirs].reshape(mine[name].shape) for name, theirs in names.items()})
    return head.eval()


def _check(what: str, verb: str, names) -> None:
    names = sorted(map(str, names))
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"{what} {verb} {'; '.join(names[:3])}{more}. Is it of Segmodule for Stable Diffusion 1?")


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}. {_ORIGIN}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is damaged, or no file of tensors alone (nothing else is opened, because opening it could run "
            f"code). {_ORIGIN}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, no state dict. {_ORIGIN}")
    return content
