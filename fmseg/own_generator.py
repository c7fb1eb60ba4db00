"""Layout-to-image models that a table needs besides the zoo's: of fewer pictures, or without what `web` taught.

The recipe of :mod:`fmseg.zoo_layouts`, on the first pictures of a draw's training split. They belong
to runs, so they are made where a run needs them, once, and kept beside its pictures; they are not shipped.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fmseg import freemask_data, parts, zoo
from fmseg.evaluation import weights_hash
from fmseg.fitting import Recipe, batch_indices, fit
from fmseg.layout_model import Lesson
from fmseg.rectify import install
from fmseg.settings import check_config
from fmseg.stable_diffusion import load_pipeline

KEYS = (
    "start",
    "base",
    "steps",
    "batch_size",
    "lr",
    "average",
    "seed",
)  # and the keys of real images that are learned from
STARTS = ("zoo", "scratch")
CARD = "card"


def key(recipe: dict[str, Any]) -> dict[str, Any]:
    """What a recipe's model is a function of, as JSON values; arguments and errors as :func:`trained`."""
    learned = tuple(name for name in freemask_data.keys(recipe) if name != "validation")
    check_config(recipe, KEYS + learned)
    if recipe["start"] not in STARTS:
        raise ValueError(f"`start` must be one of {', '.join(STARTS)}; got {recipe['start']!r}")
    if recipe["base"] != zoo.weights_hash("diffusion"):
        raise ValueError(
            f"`base` must be {zoo.weights_hash('diffusion')!r}, the zoo's text-to-image model; got {recipe['base']!r}. "
            "Weights that a record means are in the commit that made it"
        )
    return {
        "recipe": recipe,
        "content": freemask_data.content(recipe, ("train",)),
        "code": parts.code("fmseg.own_generator"),
    }


def trained(recipe: dict[str, Any], *, progress: bool = False):
    """The zoo's text-to-image pipeline with the U-Net of a recipe, trained now if it is not there (a shared part).

    Args:
        recipe: real images as in :func:`fmseg.freemask_data.real_set`; ``start`` ("zoo": from the zoo's text-to-image
            U-Net, or "scratch": from random weights of the same form), ``base`` (hash of the zoo's text-to-image model,
            whose autoencoder and text encoder stay), ``steps``, ``batch_size``, ``lr``, ``average``, ``seed``.
        progress: show a bar.

    Returns:
        The pipeline, its U-Net in evaluation mode with rectified attention.

    Raises:
        ValueError: a key is missing or unknown, another ``start``, a ``base`` that the zoo no longer has.
    """
    state = _made(recipe, progress)
    state.pop(CARD)
    pipe = load_pipeline(zoo.folder("diffusion"))
    install(pipe.unet).load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    pipe.unet.eval()
    return pipe


def card(recipe: dict[str, Any]) -> dict[str, Any]:
    """What :func:`trained` made of a recipe, for a record: hash of the weights, steps, pictures seen, losses."""
    return json.loads(str(_made(recipe)[CARD]))


def _made(recipe: dict[str, Any], progress: bool = False) -> parts.Arrays:
    folder = parts.folder("generators", key(recipe), "fmseg.own_generator")
    (made,) = parts.obtain(folder, [0], lambda _: _train(recipe, folder / "training.pt", progress))
    return made


def _train(recipe: dict[str, Any], checkpoint: Path, progress: bool) -> parts.Arrays:
    from diffusers import UNet2DConditionModel

    training = Recipe(**{k: recipe[k] for k in ("steps", "batch_size", "lr", "average", "seed")})
    real = freemask_data.real_set(recipe)
    pipe = load_pipeline(zoo.folder("diffusion"))
    torch.manual_seed(training.seed)
    unet = pipe.unet if recipe["start"] == "zoo" else UNet2DConditionModel.from_config(pipe.unet.config)
    install(unet).requires_grad_(True)
    lesson = Lesson(pipe, real.images, real.labels, freemask_data.words(real.classes))

    def loss(step):
        return lesson.loss(unet, batch_indices(len(lesson), training, step))

    facts = fit(
        nn.ModuleDict({"unet": unet}), training, loss, count=len(real), checkpoint=checkpoint,
        identity={"recipe": recipe}, progress=progress,
    )  # fmt: skip
    checkpoint.unlink(missing_ok=True)
    about = {"weights": weights_hash(unet)[:16], "images": len(real)}
    about |= {name: facts[name] for name in ("steps", "exposures", "loss")}
    state = {name: value.numpy() for name, value in unet.state_dict().items()}
    return state | {CARD: np.array(json.dumps(about))}
