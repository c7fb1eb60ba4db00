"""How far a reference can be trusted that is itself a model's opinion: painted test pictures, answered by others.

Protocol I compares masks with an oracle's, since nobody knows what a U-Net meant to paint. A second oracle, which has
learned from other pictures, and answers that ask for no name at all say what a score on these pictures can be worth.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fmseg import grounded_scores as scored
from fmseg import grounded_sets as sets
from fmseg import grounded_train
from fmseg.grounded_pictures import Pictures
from fmseg.grounded_runs import TestSet, test_sets
from fmseg.zero_shot_sets import shared_head

SECOND, ANYTHING, DAAM, HEAD = "a second oracle", "every thing in the picture", "DAAM 0.4", "head"


def opinions(config: Mapping) -> tuple[TestSet, dict[str, Tensor]]:
    """Masks of the painted test pictures of a head's run, by who answers.

    Args:
        config: of a head, see :func:`fmseg.grounded_runs.run`. The head is trained once, whoever asks.

    Returns:
        The test pictures that count, and (N, O, H, W) bool of each: :data:`SECOND` (the zoo's judge, by the oracle's
        own rule; empty where it finds nothing), :data:`ANYTHING` (all that the oracle calls a thing, whatever its
        name), :data:`DAAM` at its code's threshold, :data:`HEAD`.
    """
    test = test_sets(config)["painted"]
    place = test.data.features[sets.PLACE].tolist()
    judged = _by_picture(test, config["oracle"] | {"name": "judge"}, place)
    found = [sets.seen_by("oracle", pictures) for pictures in test.several]
    size = test.data.masks.shape[2:]
    every = torch.stack([_united(found[number][row], size) for number, row in place])
    data = sets.read(test.data, test.several, config["step"], keep=config["step"] == 1)
    masks = {SECOND: judged, ANYTHING: every[:, None] & test.data.present[..., None, None]}
    masks[DAAM] = scored.daam_masks(test.pictures, test.data, scored.THRESHOLD)
    return test, masks | {HEAD: grounded_train.answers(shared_head(config), data) > 0}


def _by_picture(test: TestSet, oracle: Mapping, place: list[list[int]]) -> Tensor:
    """Another oracle's masks of the same pictures and names."""
    each = [sets.unread(p, test.data.classes, oracle, text=test.data.text).masks for p in test.several]
    masks = torch.zeros_like(test.data.masks)
    for row, (number, at) in enumerate(place):
        mine = each[number][at]
        masks[row, : len(mine)] = mine
    return masks


def _united(found: list, size) -> Tensor:
    """(H, W) bool: all instances together."""
    together = torch.zeros(*size, dtype=torch.bool)
    for instance in found:
        together |= torch.as_tensor(instance.mask)
    return together


def compared(test: TestSet, masks: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """A row for each who answers and each column of Protocol I.

    Returns:
        ``who``, ``column``, ``pictures``; ``IoU (%)`` with the oracle's mask, as the table has it; with the mask of the
        other thing in the picture, ``of the other (%)``, None for one thing; ``marks nothing (%)`` of the named things.
    """
    swapped = sets.Triplets({}, test.data.named, test.data.masks.flip(1), test.data.detected, test.data.classes,
                            test.data.text, test.data.images)  # fmt: skip
    rows = []
    for who, answers in masks.items():
        own = scored.scores(answers, test.data, test.groups)
        for column in (c for c in scored.COLUMNS if c in own):
            mine = [row for row, group in enumerate(test.groups) if group == column]
            named = test.data.present[mine]
            empty = ~answers[mine].flatten(2).any(2)
            two = bool(named.all())
            other = scored.scores(answers, swapped, test.groups)[column]["miou"] if two else None
            rows.append({
                "who": who, "column": column, "pictures": len(mine), "IoU (%)": round(own[column]["miou"], 2),
                "of the other (%)": None if other is None else round(other, 2),
                "marks nothing (%)": round(100 * float(np.mean(empty[named].numpy())), 2),
            })  # fmt: skip
    return rows


def of_labels(labels: ndarray, pictures: Pictures, classes: Sequence[str], oracle: str = "oracle") -> dict[str, float]:
    """What an oracle says of the pixels that a synthetic set labels as things.

    Args:
        labels: (N, H, W) uint8 into ``classes``; ``len(classes)`` is background. pictures: the N that are labelled.
        classes: names. oracle: of the zoo, must know them.

    Returns:
        Percent of the labelled pixels: ``the same thing``, ``another thing``, ``ground``; and ``nothing labelled``,
        percent of the pictures.

    Raises:
        ValueError: labels and pictures differ in number; no pixel is labelled; a class that the oracle does not know.
    """
    known = sets.load_oracle(oracle)[1]
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ValueError(f"the oracle does not know the class {unknown[0]!r}; ask another, such as the judge")
    if len(labels) != len(pictures):
        raise ValueError(f"`labels` must be of the same pictures; got {len(labels)} maps of {len(pictures)} pictures")
    named = np.array([known.index(name) for name in classes])
    counts = dict.fromkeys(("the same thing", "another thing", "ground"), 0)
    there = labels < len(classes)
    if not there.any():
        raise ValueError("`labels` must name a thing in at least one pixel; all are background")
    for found, answer, mine in zip(sets.seen_by(oracle, pictures), labels, there, strict=True):
        seen = np.full(answer.shape, -1)
        for instance in found:
            seen[instance.mask] = instance.label
        same = seen[mine] == named[answer[mine]]
        counts["the same thing"] += int(same.sum())
        counts["another thing"] += int(((seen[mine] >= 0) & ~same).sum())
        counts["ground"] += int((seen[mine] < 0).sum())
    made = {name: round(100 * count / int(there.sum()), 2) for name, count in counts.items()}
    return made | {"nothing labelled": round(100 * float((~there.any((1, 2))).mean()), 2)}
