"""Who marks the new classes of an incremental step: a grounding head in the place of FMWISS's co-segmentation.

The head reads the text-to-image model's U-Net while it paints; a real picture is brought there by DDIM inversion. It
has learned the old classes alone, from one of two sources: painted pictures with the oracle's masks, as the paper has
it, or the base step's own pictures with their true masks. Prompts name what the protocol tells: at the base step the
old classes that can be seen, at the later one the new classes of the image-level labels, and no class besides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from fmseg import grounded_inverted, grounded_train, parts
from fmseg.coseg import CoSegmentation
from fmseg.experts import Experts
from fmseg.generation import text_to_image
from fmseg.grounded_pictures import PART, Ask, Pictures, features, numbers, prompt_of
from fmseg.grounding import GroundingHead
from fmseg.incremental_data import Data
from fmseg.train_config import TrainConfig
from fmseg.words import find
from fmseg.zero_shot_sets import labelled_by, shared_head

LEARNS = ("painted pictures, oracle's masks", "base pictures, true masks")
GRID = 16  # cells a side on which the masks' quality is measured, as co-segmentation's


@dataclass(frozen=True, eq=False)
class Told(Experts):
    """Experts who were asked beforehand: ``answers`` are their masks, {:func:`key_of` a picture: (C, H, W) bool}."""

    answers: Mapping[bytes, Tensor] = field(default_factory=dict)

    def co_segment(self, images: Tensor, present: Tensor, generator: torch.Generator) -> CoSegmentation:
        """The masks on :data:`GRID`; there are no stages, all of them are the same, and nothing is drawn."""
        masks = self.masks(images, present, (GRID, GRID), generator)
        return CoSegmentation(masks, None, None, masks, masks)

    def masks(self, images: Tensor, present: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """(B, C, h, w) bool: a cell belongs to a class that covers at least half of it.

        Args:
            images: (B, 3, H, W) uint8, pictures of the step or their mirror images. present: (B, C) bool.
            grid: (h, w). generator: is not used.

        Raises:
            ValueError: a picture that nobody was asked about.
        """
        try:
            found = torch.stack([self.answers[key_of(image)] for image in images])
        except KeyError:
            raise ValueError(
                "`images` must be the step's pictures or their mirror images, which the head was asked about; take no "
                "other augmentation than 'flip'"
            ) from None
        return (F.adaptive_avg_pool2d(found.float(), grid) >= 0.5) & present[:, :, None, None]


def key_of(image: Tensor) -> bytes:
    """The bytes of a picture (3, H, W) uint8."""
    return image.contiguous().numpy().tobytes()


def told(images: ndarray, labels: ndarray, classes: int) -> Told:
    """Experts who give these answers.

    Args:
        images: (N, H, W, 3) uint8. labels: (N, H, W) uint8, new classes from 0 on, ``classes`` for none of them.
        classes: C.
    """
    answers = {}
    for image, label in zip(images, labels, strict=True):
        shown = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        masks = torch.from_numpy(label)[None] == torch.arange(classes).view(-1, 1, 1)
        answers[key_of(shown)] = masks
        answers[key_of(shown.flip(-1))] = masks.flip(-1)
    nothing = (0.0, 0.0, 0.0)
    return Told(torch.nn.Identity(), torch.zeros(classes, 1), nothing, nothing, answers=answers)


def of_head(config: Mapping[str, Any], data: Data) -> Told:
    """The experts of a run whose ``masks`` say "by": "grounding head"; see :func:`answers`."""
    return told(data.step.images, answers(config, data), len(data.new_names()))


def answers(config: Mapping[str, Any], data: Data) -> ndarray:
    """(N, H, W) uint8: what the head finds in the step's pictures; made once, a shared part.

    Args:
        config: a run's; ``masks`` has "learns" (one of :data:`LEARNS`) and "head", the configuration of a head of
            :mod:`fmseg.grounded_runs` that has seen the old classes; of base pictures its ``pictures``, ``draw``,
            ``oracle`` and ``test`` do not count.
        data: the run's pictures.

    Raises:
        ValueError: an unknown source, or a head that has seen other classes than the old ones.
    """
    wanted, asked = config["masks"], config["masks"]["head"]
    find(wanted["learns"], LEARNS, "learns")
    if set(asked["seen"]) != set(data.old_names()):
        raise ValueError(
            f"`head` must have seen the {len(data.old_names())} old classes and no others; it has seen {asked['seen']}"
        )
    key = {"masks": dict(wanted)} | {k: config[k] for k in ("protocol", "images", "share", "size", "seed")}

    def make(number: int) -> parts.Arrays:
        head = shared_head(asked) if wanted["learns"] == LEARNS[0] else of_base(config, data)
        tags, names = data.weak_source().tags, data.new_names()
        shown = [tuple(names[k] for k in np.flatnonzero(row)) for row in tags]
        pictures = real(data.step.images, shown, asked["sampling"]["steps"])
        return {"labels": labelled_by(head, pictures, features(pictures, asked["step"]), names)}

    (found,) = parts.obtain(parts.folder("answers", key, "fmseg.across_experts"), [0], make)
    return found["labels"]


def of_base(config: Mapping[str, Any], data: Data) -> GroundingHead:
    """A head that has learned from the base step's pictures and their labels, and from nothing else."""
    asked, names = config["masks"]["head"], data.old_names()
    labels = data.base_source().labels
    shown = [tuple(data.protocol.order[k] for k in np.unique(mask) if 0 < k <= len(names)) for mask in labels]
    rows = [row for row, some in enumerate(shown) if some]
    pictures = real(data.base.images[rows], [shown[row] for row in rows], asked["sampling"]["steps"], labels[rows])
    learn = grounded_inverted.true_triplets(pictures, data.protocol.order, names, asked["step"], keep=False)
    head = grounded_train.build(text_to_image().unet.config, asked.get("head", {}), asked["seed"])
    options = TrainConfig.from_dict({**asked["train"], "seed": asked["seed"]})
    grounded_train.train(head, learn, options)
    return head.requires_grad_(False)


def real(images: ndarray, names: Sequence[tuple[str, ...]], steps: int, truth: ndarray | None = None) -> Pictures:
    """Real pictures after inversion, with prompts that name the given classes; see :mod:`fmseg.grounded_inverted`.

    Args:
        images: (N, H, W, 3) uint8. names: of each at least one class. steps: of the sampler.
        truth: (N, H, W) uint8 labels, or None.
    """
    asks = tuple(Ask(some, prompt_of(some), 0) for some in names)
    made = [
        grounded_inverted.there_and_back(images[k * PART : (k + 1) * PART], asks[k * PART : (k + 1) * PART], steps)
        for k in numbers(len(images))
    ]
    arrays, nothing = parts.joined(made), np.zeros((len(images), 0, 0, 0), np.float32)
    truth = np.zeros((len(images), 0, 0), np.uint8) if truth is None else truth
    return Pictures(asks, arrays["images"], arrays["latents"], nothing, truth, {})
