"""The door to CLIP: the zoo's small one, any of open_clip's by name, or a local file; and its prompts."""

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from fmseg.vocabulary import VOCABULARY_SIZE, open_clip_tokenizer
from fmseg.words import STUFF, article, find

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

# {a}: the class name with its article, which grounds (sky, sea, ...) have not; {}: the name alone. Every word is in the
# zoo's vocabulary; the forms are those of the captions its CLIP reads, see fmseg.zoo_clip
TEMPLATES = (
    "a photo of {a}",
    "a photograph of {a}",
    "a picture of {a}",
    "an image of {a}",
    "a drawing of {a}",
    "there is {a} in the scene",
)
# MaskCLIP's own five, tools/maskclip_utils/prompt_engineering.py (chongzhou96/MaskCLIP, 245d31f)
_SCENE = tuple(
    f"{start} {{}} in the scene." for start in ("there is a", "there is the", "this is a", "this is the", "this is one")
)


def preprocess(images: ndarray, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32, normalised as CLIP's training was; sizes stay."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


@dataclass(frozen=True)
class Clip:
    """A CLIP that is ready to use: in eval mode, float32, no gradients to its weights.

    Attributes:
        model: open_clip's, with ``encode_image``, ``encode_text`` and ``visual``.
        tokenizer: texts -> (N, context length) int64.
        mean, std: of its pictures, RGB in [0, 1].
        name: what was loaded.
    """

    model: nn.Module
    tokenizer: Any
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str

    def preprocess(self, images: ndarray) -> Tensor:
        """:func:`preprocess` with this model's own mean and deviation."""
        return preprocess(images, self.mean, self.std)


def load_clip(source: str | PathLike, weights: str | PathLike | None = None) -> Clip:
    """Load a CLIP.

    Args:
        source: a folder in open_clip's layout (open_clip_config.json and open_clip_model.safetensors), as the zoo's is;
            or an architecture of open_clip's, "ViT-B-16", "RN50", ....
        weights: for an architecture: a local file (.safetensors, or a state dict that ``torch.load`` reads with
            ``weights_only=True``), or one of open_clip's tags, "openai", "laion2b_s34b_b88k", ..., which downloads.
            OpenAI's own weights were trained with another activation: "ViT-B-16-quickgelu" is their architecture.

    Raises:
        FileNotFoundError: no such folder or file. ValueError: an unknown name, or a file that does not hold what it
            should. ConnectionError: the download failed; says what to do.
    """
    import open_clip

    import fmseg.convnet  # noqa: F401  registers the trunk of the zoo's CLIP

    if Path(source).is_dir():
        if weights is not None:
            raise ValueError(f"`weights` are in the folder already: {source}; got {weights!r}, too")
        return _from_folder(Path(source))
    name = str(source).replace("/", "-")
    names = tuple(open_clip.list_models())
    try:
        find(name, names, "source")
    except ValueError as error:
        raise FileNotFoundError(
            f"There is no folder {source}, which should hold {CONFIG} and {WEIGHTS}; and as an architecture: {error}"
        ) from error
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = str(weights)
    if weights is None or (tag not in tags and not Path(weights).is_file()):
        raise FileNotFoundError(
            f"`weights` of {name} must be a local file or one of open_clip's tags ({', '.join(tags) or 'none'}); "
            f"there is no {weights!r}"
        )
    return _create(name, tag, f"{name} ({tag if tag in tags else Path(weights).name})", download=tag in tags)


def text_embeddings(clip: Clip, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """One text embedding a class: that of each template at length 1, their mean, at length 1 again.

    open_clip/zero_shot_classifier.py, ``build_zero_shot_classifier``, transposed; FMWISS eq. 2.

    Args:
        clip: of :func:`load_clip`.
        names: C class names.
        templates: sentences with ``{}`` for the name or ``{a}`` for the name with its article, see :data:`TEMPLATES`
            and :func:`imagenet_templates`.

    Returns:
        (C, D) float32, rows of length 1, on the model's device.

    Raises:
        ValueError: no names, no templates, or a template without a place for the name.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"`names` must be one or more class names in a list; got {names!r}")
    if isinstance(templates, str) or not templates:
        raise ValueError(f"`templates` must be one or more sentences in a list; got {templates!r}")
    device = next(clip.model.parameters()).device
    rows = []
    with torch.no_grad():
        for name in names:
            texts = [prompt(template, name) for template in templates]
            each = clip.model.encode_text(clip.tokenizer(texts).to(device), normalize=True)
            rows.append(F.normalize(each.mean(0), dim=0))
    return torch.stack(rows)


def prompt(template: str, name: str) -> str:
    """The sentence: 'a photo of {a}' and 'arch' -> 'a photo of an arch', and 'sky' -> 'a photo of sky'.

    Raises:
        ValueError: the template has no place for the name.
    """
    if "{}" not in template and "{a}" not in template:
        raise ValueError(f"a template must have {{}} or {{a}} in place of the name; got {template!r}")
    return template.format(name, a=name if name in STUFF else article(name))


def imagenet_templates() -> tuple[str, ...]:
    """The 85 sentences of MaskCLIP's text embeddings: CLIP's 80 for ImageNet, and its own 5 of scenes.

    They hold words that the zoo's CLIP has never read, and put 'a' before every name, as they were published.
    """
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return (*(template("{}") for template in OPENAI_IMAGENET_TEMPLATES), *_SCENE)


def zero_shot_scores(clip: Clip, images: ndarray, text: Tensor, batch: int = 64) -> Tensor:
    """Cosine of each whole picture with each text.

    Args:
        clip: of :func:`load_clip`.
        images: (N, H, W, 3) uint8 RGB; resized to the model's size if they have another.
        text: (C, D), as of :func:`text_embeddings`.
        batch: pictures at a time, >= 1.

    Returns:
        (N, C) float32 in [-1, 1], on the model's device.

    Raises:
        ValueError: images of another form.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != "uint8" or not len(images):
        raise ValueError(f"`images` must be (N, H, W, 3) uint8; got {images.shape} of {images.dtype}")
    side = clip.model.visual.image_size
    size = (side, side) if isinstance(side, int) else tuple(side)
    device = next(clip.model.parameters()).device
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (clip.mean, clip.std))
    rows = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            part = torch.from_numpy(images[start : start + batch]).to(device).permute(0, 3, 1, 2).float() / 255
            if tuple(part.shape[2:]) != size:
                part = F.interpolate(part, size=size, mode="bicubic", antialias=True).clamp(0, 1)
            rows.append(clip.model.encode_image((part - mean) / std, normalize=True) @ text.to(device).T)
    return torch.cat(rows)


def _from_folder(folder: Path) -> Clip:
    path = folder / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}; it should hold open_clip's configuration of the model")
    try:
        config = json.loads(path.read_text())["model_cfg"]
        vocabulary = config["text_cfg"].get("vocab_size")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} should be JSON with `model_cfg`, and `text_cfg` in it, as open_clip writes it ({error!r})"
        ) from error
    if not (folder / WEIGHTS).exists() and not [*folder.glob("*.bin"), *folder.glob("*.pth")]:
        raise FileNotFoundError(f"There is no file {folder / WEIGHTS}; it should hold the weights for {path.name}")
    tokenizer = open_clip_tokenizer() if vocabulary == VOCABULARY_SIZE else None
    return _create(f"local-dir:{folder}", None, folder.name, tokenizer=tokenizer)


def _create(source: str, weights: str | None, name: str, *, tokenizer: Any = None, download: bool = False) -> Clip:
    import open_clip
    from safetensors import SafetensorError

    try:
        model = open_clip.create_model(source, pretrained=weights, precision="fp32", require_pretrained=True)
    except (
        RuntimeError, ValueError, TypeError, AttributeError, KeyError, EOFError, StopIteration, OSError,
        pickle.UnpicklingError, SafetensorError,
    ) as error:  # fmt: skip
        what = " ".join(str(error).split())[:400] or type(error).__name__
        if download:
            raise ConnectionError(
                f"open_clip could not get {name} ({what}). Without a network: download its weights elsewhere, from the "
                "tag's page on huggingface.co, and give the file: load_clip(architecture, weights=file)"
            ) from error
        where = weights or f"{source.removeprefix('local-dir:')}/{WEIGHTS}"
        raise ValueError(
            f"{where} does not hold the weights of {name}: a state dict with open_clip's names, as safetensors or as "
            f"torch.load(weights_only=True) reads it, no TorchScript archive ({what})"
        ) from error
    facts = open_clip.get_model_preprocess_cfg(model)
    tokenizer = tokenizer or open_clip.get_tokenizer(source)
    return Clip(
        model.eval().float().requires_grad_(False), tokenizer,
        tuple(facts.get("mean", MEAN)), tuple(facts.get("std", STD)), name,
    )  # fmt: skip
