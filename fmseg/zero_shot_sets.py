"""Synthetic training sets for a standard segmenter: painted pictures labelled by a grounding head (Protocol II).

Grounded Diffusion, section 4.3; dossier 2.11. The head has learned from seen classes alone and labels pictures of all
classes. Heads and label maps are made once and shared by the rows that use them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray

from fmseg import grounded_pictures, grounded_runs, grounded_train, parts
from fmseg.datasets import Example
from fmseg.generation import text_to_image
from fmseg.grounded_pictures import Pictures, kept_features, painted, queries
from fmseg.grounded_sets import Triplets, named_ids
from fmseg.grounding import GroundingHead
from fmseg.grounding_targets import label_map


@dataclass(frozen=True)
class Pairs:
    """Painted pictures with label maps, in the form that :func:`fmseg.export.write` takes.

    Attributes:
        images: (N, H, W, 3) uint8. labels: (N, H, W) uint8 into ``classes``, whose last is 'background'.
        asks: what was asked for, by picture.
    """

    images: ndarray
    labels: ndarray
    classes: tuple[str, ...]
    asks: tuple
    name: str = "grounded"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        """One picture; its name says what was asked for."""
        words = "-".join(name.replace(" ", "_") for name in self.asks[index].names)
        return Example(self.images[index], self.labels[index], f"{self.name}_{index:06d}_{words}")


def shared_head(config: Mapping) -> GroundingHead:
    """The head of a configuration of :mod:`fmseg.grounded_runs`, trained once whoever asks."""

    def make(number: int) -> parts.Arrays:
        head, _ = grounded_runs.trained(config)
        return {name: tensor.numpy() for name, tensor in head.state_dict().items()}

    (state,) = parts.obtain(parts.folder("heads", config, "fmseg.grounded_runs"), [0], make)
    head = grounded_train.build(text_to_image().unet.config, config.get("head", {}), config["seed"])
    head.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return head.eval().requires_grad_(False)


def labelled_by(head: GroundingHead, pictures: Pictures, features: Mapping, classes: Sequence[str]) -> ndarray:
    """(N, H, W) uint8: the best of a picture's named classes where its logit is above 0, else ``len(classes)``.

    Only classes that the prompt names are asked for, so a picture holds no others.

    Args:
        head: trained. pictures: N painted ones. features: group -> (N, C, h, w) of theirs.
        classes: names; a label is the place in them.
    """
    named = named_ids(pictures.asks, classes)
    size = pictures.images.shape[1:3]
    empty = torch.zeros(*named.shape, *size, dtype=torch.bool)
    data = Triplets(dict(features), named, empty, named >= 0, tuple(classes), queries(classes), pictures.images)
    logits = grounded_train.answers(head, data)
    made = np.empty((len(pictures), *size), np.uint8)
    for row, ids in enumerate(named.tolist()):
        there = [k for k in ids if k >= 0]
        made[row] = label_map(logits[row : row + 1, : len(there)], there, background=len(classes))[0].numpy()
    return made


def synthetic(
    kind: str, classes: Sequence[str], count: int, head: Mapping, *, rich: bool = False, stream: str = "zero-shot"
) -> Pairs:
    """A synthetic set.

    Args:
        kind: 'one' or 'two' objects. classes: all names, seen and unseen; a label is the place in them.
        count: pictures. head: configuration of the head that labels, of :mod:`fmseg.grounded_runs`.
        rich: prompts say more than the classes. stream: see :func:`fmseg.grounded_pictures.ask`.

    Returns:
        :class:`Pairs`; its background is ``len(classes)``.

    Raises:
        ValueError: not whole parts of :data:`fmseg.grounded_pictures.PART` pictures.
    """
    if count % grounded_pictures.PART:
        raise ValueError(f"`count` must be a multiple of {grounded_pictures.PART}, whole parts; got {count}")
    sampling = head["sampling"]
    pictures = painted(
        kind, classes, stream, count, steps=sampling["steps"], guidance=sampling["test"], rich=rich
    )  # fmt: skip
    features, size = {}, grounded_pictures.PART

    def make(number: int) -> parts.Arrays:
        if not features:  # of all pictures at once, and only if a part is missing
            features.update(kept_features(pictures, head["step"]))
        rows = slice(number * size, (number + 1) * size)
        some = {group: tensor[rows] for group, tensor in features.items()}
        return {"labels": labelled_by(shared_head(head), pictures.rows(rows.start, rows.stop), some, classes)}

    path = parts.folder("labels", {"head": dict(head), "pictures": pictures.key}, "fmseg.zero_shot_sets")
    labels = parts.joined(parts.obtain(path, grounded_pictures.numbers(count), make))["labels"]
    name = f"grounded-{kind}" + ("-rich" if rich else "")
    return Pairs(pictures.images, labels, (*classes, "background"), pictures.asks, name)
