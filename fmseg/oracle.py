"""Scored instances from a semantic segmenter: what the papers ask a Mask R-CNN for.

A thing's instances are the connected components of the pixels where its class wins; an instance's score is its mean
probability. Two objects of one class that touch are one instance, which the world's rules make rare.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

LEAST_AREA = 12  # pixels of a 64-pixel picture; what counts as visible in the world


@dataclass(frozen=True)
class Instance:
    """One object: class id, score in [0, 1], mask (H, W) bool."""

    label: int
    score: float
    mask: ndarray


def instances(probabilities: ndarray, things: range | tuple[int, ...], least_area: int = LEAST_AREA) -> list[Instance]:
    """The objects in one picture, best first.

    Args:
        probabilities: (C, H, W) float, non-negative, summing to 1 over C.
        things: ids of the classes that have instances; the others are ground.
        least_area: smaller components are dropped, in pixels.

    Raises:
        ValueError: the array is not (C, H, W), or a class id is out of range.
    """
    from scipy.ndimage import label

    if probabilities.ndim != 3:
        raise ValueError(f"`probabilities` must be (C, H, W); got {probabilities.shape}")
    outside = [c for c in things if not 0 <= c < len(probabilities)]
    if outside:
        raise ValueError(f"`things` must be class ids in [0, {len(probabilities)}); got {outside}")
    winner, found = probabilities.argmax(0), []
    for name in np.intersect1d(np.unique(winner), np.asarray(tuple(things))):
        numbered, count = label(winner == name)
        for k in range(1, count + 1):
            mask = numbered == k
            if mask.sum() >= least_area:
                found.append(Instance(int(name), float(probabilities[name][mask].mean()), mask))
    return sorted(found, key=lambda instance: -instance.score)


@torch.no_grad()
def probabilities(model: nn.Module, images: ndarray, batch: int = 50) -> ndarray:
    """(N, C, H, W) float32: class probabilities of a segmenter.

    Args:
        model: has ``log_probabilities``, such as :class:`fmseg.segmenters.Segmenter`; evaluation mode is set inside.
        images: (N, H, W, 3) uint8 RGB.
        batch: images at a time.
    """
    was_training, parts = model.training, []
    model.eval()
    for start in range(0, len(images), batch):
        x = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2)
        parts.append(model.log_probabilities(x).exp().numpy())
    model.train(was_training)
    return np.concatenate(parts)


def detect(model: nn.Module, images: ndarray, things: range | tuple[int, ...]) -> list[list[Instance]]:
    """:func:`instances` of every picture."""
    found = []
    for start in range(0, len(images), 50):  # probabilities of many classes are large
        found += [instances(p, things) for p in probabilities(model, images[start : start + 50])]
    return found


def best_mask(found: list[Instance], label: int) -> ndarray | None:
    """The mask of the best-scored instance of a class; None if there is none."""
    return next((instance.mask for instance in found if instance.label == label), None)


def load_oracle(name: str = "oracle") -> tuple[nn.Module, tuple[str, ...]]:
    """The zoo's oracle (40 things, 8 grounds), or its judge (96 things, 8 grounds), with its class names by id.

    Raises:
        ValueError: the zoo has no such model.
    """
    from fmseg import zoo
    from fmseg.datasets import get_draw
    from fmseg.segmenters import build

    recipe = zoo.card(name)["training"]["recipe"]
    draw = get_draw(name)
    model = build(recipe["method"], recipe["size"], num_classes=draw.num_classes)
    model.load_state_dict(zoo.load_state(name, "model.safetensors"))
    return model.eval().requires_grad_(False), draw.classes


def to_tensor(images: ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) uint8, as segmenters take them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)
