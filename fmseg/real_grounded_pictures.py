"""Test pictures of Grounded Diffusion's Protocol I at the paper's size, painted once and shared by all runs.

The counterpart of :mod:`fmseg.grounded_pictures` for a Stable Diffusion from disk and a detector of COCO. Pictures come
in parts of :data:`fmseg.grounded_pictures.PART`, which any number of processes share, and are handed on part by part:
the features of one picture are 68 MB in half precision.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from fmseg import names, parts
from fmseg.evaluation import weights_hash
from fmseg.grounded_online import spoken
from fmseg.grounded_pictures import MOST, PART, Ask, Pictures, ask, numbers, paint
from fmseg.grounded_sets import Triplets, named_ids, oracle_masks
from fmseg.grounding_text import image_prompt
from fmseg.words import find

MODULE = "fmseg.real_grounded_pictures"


@dataclass(frozen=True)
class Models:
    """What paints and what looks.

    Attributes:
        pipe: Stable Diffusion. oracle: picture (H, W, 3) uint8 -> instances, ``label`` a place in ``known``.
        known: the oracle's class names. about: tells models apart, as JSON values.
    """

    pipe: Any
    oracle: Callable[[ndarray], Sequence]
    known: tuple[str, ...]
    about: dict[str, str]


@lru_cache(maxsize=1)
def load(diffusion: str, oracle: str) -> Models:
    """Models from folders or names, on a GPU where there is one.

    Raises:
        ValueError, OSError: one of them can't be read; says which, and how to get it.
    """
    from fmseg import grounded_detector
    from fmseg.stable_diffusion import load_pipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(diffusion, device=device)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    detect, known = grounded_detector.load(oracle, device=device)
    return Models(pipe, detect, known, {"diffusion": weights_hash(pipe.unet)[:16], "oracle": oracle})


def detector_names(classes: Sequence[str], known: Sequence[str]) -> list[str]:
    """The detector's names of a data set's classes: it knows COCO's words, VOC has others for some.

    Raises:
        ValueError: a class that the detector does not know.
    """
    made = [names.VOC_IN_COCO.get(name, name) for name in classes]
    for name in made:
        find(name, tuple(known), "class of the oracle")
    return made


@dataclass(frozen=True)
class Part:
    """Some test pictures: what was asked for, images, latents and heat maps, and the oracle's masks of what was named.

    ``data`` has no features: they are read where they are used.
    """

    pictures: Pictures
    data: Triplets


def test_parts(models: Models, config: Mapping, classes: Sequence[str]) -> Iterator[Part]:
    """The test pictures of a run, part by part, from the shared parts or painted now.

    Args:
        models: what paints and looks.
        config: of a run (:func:`fmseg.real_grounded.run`): ``sampling``, ``oracle``, and ``test`` with the numbers of
            pictures ``one`` and ``two`` of all classes and ``unseen`` of pairs of each group in ``groups``.
        classes: the data set's names.
    """
    test, text = config["test"], torch.zeros(len(classes), 1)
    wanted = [(kind, tuple(classes), "test", test[kind]) for kind in ("one", "two") if test.get(kind)]
    if test.get("unseen"):
        wanted += [("two", tuple(group), f"test with {group[0]}", test["unseen"]) for group in test["groups"]]
    for kind, group, stream, count in wanted:
        for number in numbers(count):
            asks = [said(ask(kind, group, stream, number * PART + k)) for k in range(PART)]
            pictures = _painted(models, config["sampling"], (kind, group, stream), number, asks)
            masks, detected = _looked_at(models, config["oracle"], pictures, asks)
            left = range(min(PART, count - number * PART))
            named = named_ids([replace(a, names=n) for n, a in asks], classes)
            named = torch.nn.functional.pad(named, (0, MOST - named.shape[1]), value=-1)
            data = Triplets({}, named, masks, detected, tuple(classes), text, pictures.images)
            yield Part(pictures.rows(0, len(left)), data.subset(list(left)))


def said(asked: Ask) -> tuple[tuple[str, ...], Ask]:
    """The data set's names of a picture, and what is asked for in the official words."""
    words = tuple(spoken(name) for name in asked.names)
    return asked.names, Ask(words, image_prompt(words), asked.seed)


def _painted(models: Models, sampling: Mapping, of: tuple, number: int, asks: Sequence[tuple]) -> Pictures:
    kind, group, stream = of
    how = {"steps": sampling["steps"], "guidance": float(sampling["test"])}
    key = {"kind": kind, "classes": list(group), "stream": stream, "model": models.about["diffusion"]} | how
    path = parts.folder("pictures", key, MODULE)
    wanted = [asked for _, asked in asks]
    (made,) = parts.obtain(path, [number], lambda k: paint(wanted, **how, pipe=models.pipe))
    none = np.zeros((len(asks), 0, 0), np.uint8)
    heat = made["heat"].astype(np.float32)
    return Pictures(tuple(wanted), made["images"], made["latents"], heat, none, key | {"part": number})


def _looked_at(models: Models, oracle: Mapping, pictures: Pictures, asks: Sequence[tuple]):
    """Masks (N, 2, H, W) bool of the named classes, and whether each was found (N, 2) bool."""
    size = pictures.images.shape[1:3]

    def look(number: int) -> parts.Arrays:
        images = pictures.images[..., ::-1] if oracle.get("swapped") else pictures.images
        found = [models.oracle(np.ascontiguousarray(image)) for image in images]
        wanted = [replace(asked, names=tuple(detector_names(shown, models.known))) for shown, asked in asks]
        options = {name: oracle[name] for name in ("rule", "score", "area")}
        masks, detected = oracle_masks(found, wanted, models.known, size, **options)
        return {"masks": np.packbits(masks.numpy(), axis=-1), "detected": detected.numpy()}

    key = {"pictures": pictures.key, "oracle": dict(oracle), "model": models.about["oracle"]}
    (made,) = parts.obtain(parts.folder("oracle", key, MODULE), [0], look)
    masks = torch.from_numpy(np.unpackbits(made["masks"], axis=-1, count=size[1]).astype(bool))
    detected = torch.from_numpy(made["detected"])
    empty = MOST - masks.shape[1]
    return torch.nn.functional.pad(masks, (0, 0, 0, 0, 0, empty)), torch.nn.functional.pad(detected, (0, empty))


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` rows that cover ``count``."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


