"""The generator at the paper's size: FreestyleNet in Stable Diffusion 1.4, one picture for a mask and a seed.

FreeMask paints by FreestyleNet's script: names of the classes present as prompt, rectified attention, PLMS with 50
steps, guidance 2, half precision, the mask squashed to 512x512 (dossier 2.1). Weights are looked for in the folder that
FMSEG_WEIGHTS names.

Differs from the official code: every (mask, seed) has noise of its own and goes through the U-Net alone, where one
global seed made a picture depend on its batch; class names are mmsegmentation's, of which FreestyleNet renames some.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy import ndarray

from fmseg.freestyle import load_freestyle
from fmseg.plms import plms_latents
from fmseg.rectify import install, keep_masks, layout_prompt, with_guidance
from fmseg.stable_diffusion import decode, encode_prompts, load_pipeline, sample_noise
from fmseg.synthetic import noise_seed

KEYS = ("base", "weights", "steps", "guidance")
_END = 1 << 20  # bytes at either end of a file that tell it from others


def local(name: str) -> Path | None:
    """A file or folder of that name in FMSEG_WEIGHTS, if there is one."""
    home = os.environ.get("FMSEG_WEIGHTS")
    path = Path(home) / name if home else None
    return path if path is not None and path.exists() else None


def weights_path(name: str) -> Path:
    """A file of FMSEG_WEIGHTS.

    Raises:
        FileNotFoundError: the variable is not set, or there is no such file.
    """
    path = local(name)
    if path is None:
        home = os.environ.get("FMSEG_WEIGHTS")
        where = f"there is no {name} in {home}" if home else "FMSEG_WEIGHTS names no folder of weights"
        raise FileNotFoundError(f"{where}; put {name} there, see fmseg.freestyle and fmseg.paper_segmenters for where "
                                "such files come from")  # fmt: skip
    return path


def file_identity(path: Path) -> list:
    """What tells a large file from another: its name, its size, a hash of its first and last MiB."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(_END))
        file.seek(max(0, size - _END))
        digest.update(file.read(_END))
    return [path.name, size, digest.hexdigest()[:16]]


def identity(generator: dict[str, Any]) -> dict[str, Any]:
    """What a generator's pictures are a function of, besides masks and indices; keys as :func:`pipeline`.

    Raises:
        FileNotFoundError: its weights are not there.
    """
    base, weights = local(generator["base"]), generator["weights"]
    files = sorted(p for p in base.rglob("*") if p.is_file()) if base is not None and base.is_dir() else []
    found = {"base files": [file_identity(path) for path in files]}
    return generator | found | {"weights file": None if weights is None else file_identity(weights_path(weights))}


def pipeline(generator: dict[str, Any], device: str = "auto"):
    """Stable Diffusion with FreestyleNet's U-Net and rectified attention.

    Args:
        generator: ``base``: a folder of FMSEG_WEIGHTS in diffusers' layout, or a name on the hub; ``weights``: file of
            FMSEG_WEIGHTS, FreestyleNet's checkpoint, or None: the base's own U-Net, for trials; ``steps``,
            ``guidance``.
        device: 'cpu', 'cuda', or 'auto'. On a GPU in half precision.

    Raises:
        FileNotFoundError, ValueError: as of the doors.
    """
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    dtype = torch.float16 if cuda else torch.float32
    pipe = load_pipeline(local(generator["base"]) or generator["base"], device="cuda" if cuda else "cpu", dtype=dtype)
    if generator["weights"] is not None:
        load_freestyle(weights_path(generator["weights"]), pipe.unet)
    install(pipe.unet).eval()
    return pipe


def side_of(pipe) -> int:
    """Pixels a side of what a pipeline paints: 512 with Stable Diffusion 1."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def paint(pipe, labels: ndarray, classes: Sequence[str], index: int, *, steps: int, guidance: float) -> ndarray:
    """Picture number ``index`` of a mask.

    Args:
        pipe: of :func:`pipeline`. labels: (H, H) uint8 class ids or 255, H of :func:`side_of`. classes: names by id.
        index: >= 0; the official seed less 42. steps, guidance: of PLMS.

    Returns:
        (H, H, 3) uint8 RGB: a function of weights, mask and index.

    Raises:
        ValueError: the mask has another size, or names that do not fit the text encoder.
    """
    side, unet = side_of(pipe), pipe.unet
    if labels.shape != (side, side):
        raise ValueError(f"`labels` must be {side}x{side}, which this pipeline paints; got {labels.shape}")
    prompts, owners = layout_prompt(labels[None], [name.strip() for name in classes], pipe.tokenizer)
    text = encode_prompts(pipe, prompts)
    latents = unet.config.sample_size
    keep = keep_masks(labels[None], owners, [latents >> k for k in range(len(unet.config.block_out_channels))],
                      text.shape[1])  # fmt: skip
    keep = {size: mask.to(unet.device) for size, mask in (with_guidance(keep) if guidance > 1 else keep).items()}
    noise = sample_noise((unet.config.in_channels, latents, latents), [noise_seed(labels, index)])
    made = plms_latents(
        pipe, text, noise, steps=steps, guidance=guidance, cross_attention_kwargs={"rectify": keep}
    )  # fmt: skip
    return decode(pipe, made)[0]
