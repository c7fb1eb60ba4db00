"""Foundation models at the papers' size for FMWISS's steps, by name, through :mod:`fmseg.clip` and :mod:`fmseg.vits`.

CLIP ViT-B/16 and a self-supervised ViT (DINO's ViT-B/16, or iBOT's ViT-L/16 as the paper) look at the augmented crop,
before anything is pasted; at stride 16 their grid is the segmenter's. Weights come from the folder FMSEG_WEIGHTS where
they lie there, else from where open_clip and timm get them.
"""

import os
from pathlib import Path
from typing import Any

import torch

from fmseg.clip import MEAN, STD, TEMPLATES, Clip, imagenet_templates, load_clip
from fmseg.evaluation import weights_hash
from fmseg.experts import Experts, gather
from fmseg.settings import check_names
from fmseg.vits import IMAGENET_MEAN, IMAGENET_STD, Vit, load_vit

# VOC's class names as MaskCLIP asks CLIP for them (dossier 2.6); all others are words as they are
SPOKEN = {
    "aeroplane": "airplane", "diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor",
}  # fmt: skip
_TEMPLATES = {"imagenet": imagenet_templates, "plain": lambda: TEMPLATES}


def of_config(
    given: dict[str, Any], names: tuple[str, ...], old_names: tuple[str, ...], *, pretrained: bool = True,
    seed: int = 0, old_rivals: bool = False, **options: Any,
) -> Experts:  # fmt: skip
    """Experts for the classes of a step.

    Args:
        given: ``clip`` and ``vit``, each {"model", "weights"} (:func:`clip_of`, :func:`vit_of`), and ``templates``:
            "imagenet", MaskCLIP's 85 sentences (default), or "plain", the zoo's six.
        names, old_names: the step's classes, and those of earlier steps.
        pretrained: False: random weights, for trials.
        seed: of random weights.
        old_rivals: the old classes' names compete for pixels (knowledge that the paper does not use).
        options: of :func:`fmseg.coseg.co_segment`.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as of the doors; or an unknown key.
    """
    check_names(given, ("clip", "vit", "templates"), "key of `experts`")
    templates = given.get("templates", "imagenet")
    if templates not in _TEMPLATES:
        raise ValueError(f"`experts.templates` must be one of {', '.join(_TEMPLATES)}; got {templates!r}")
    clip = clip_of(given["clip"], pretrained, seed)
    vit = None if options.get("use") == "clip" else vit_of(given["vit"], pretrained, seed)
    rivals = spoken(old_names) if old_rivals else ()
    return gather(clip, vit, spoken(names), rivals=rivals, templates=_TEMPLATES[templates](), **options)


def spoken(names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names as words of English."""
    return tuple(SPOKEN.get(name, name) for name in names)


def identity(experts: Experts) -> dict[str, str]:
    """{model: hash of its weights}, for a run's record."""
    models = {"clip": experts.tower} | ({} if experts.vit is None else {"vit": experts.vit.model})
    return {name: weights_hash(model)[:16] for name, model in models.items()}


def clip_of(given: dict[str, Any], pretrained: bool = True, seed: int = 0) -> Clip:
    """CLIP by name.

    Args:
        given: ``model``: an architecture of open_clip's, or a folder of FMSEG_WEIGHTS in open_clip's layout;
            ``weights`` of an architecture: a file of FMSEG_WEIGHTS, or one of open_clip's tags.
        pretrained: False: an architecture gets random weights.
    """
    folder = _local(given["model"])
    if folder is not None and folder.is_dir():
        return load_clip(folder)
    if pretrained:
        weights = given.get("weights")
        return load_clip(given["model"], _local(weights) or weights)
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(given["model"], pretrained=None, precision="fp32")
    model = model.eval().requires_grad_(False)
    return Clip(model, open_clip.get_tokenizer(given["model"]), MEAN, STD, f"{given['model']}, random")


def vit_of(given: dict[str, Any], pretrained: bool = True, seed: int = 0) -> Vit:
    """A self-supervised transformer by name.

    Args:
        given: ``model``: a timm name, or a folder or official checkpoint in FMSEG_WEIGHTS; ``weights`` of a timm name:
            a file of FMSEG_WEIGHTS, or None for timm's own.
        pretrained: False: a timm name gets random weights.
    """
    here = _local(given["model"])
    if here is not None:
        return load_vit(here)
    if pretrained:
        weights = given.get("weights")
        return load_vit(given["model"], weights and (_local(weights) or weights))
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        model = timm.create_model(given["model"], pretrained=False, num_classes=0)
    return Vit(model.eval().requires_grad_(False), IMAGENET_MEAN, IMAGENET_STD, f"{given['model']}, random")


def _local(name: str | None) -> Path | None:
    """A file or folder of that name in FMSEG_WEIGHTS, if there is one."""
    if not name or "FMSEG_WEIGHTS" not in os.environ:
        return None
    path = Path(os.environ["FMSEG_WEIGHTS"]) / name
    return path if path.exists() else None
