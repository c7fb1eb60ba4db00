"""Exercises of notebook 21: the prompt of a mask, rectified attention, the box around a fault."""

import math

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fmseg.exercise import Exercise
from fmseg.freemask_mistakes import fault_boxes
from fmseg.rectify import layout_prompt, rectified_attention

NAMES = ("wood", "plain disc", "sky", "checked ring", "grass")


class _Words:
    """A tokenizer with a token a word."""

    model_max_length = 77
    tokenize = staticmethod(str.split)


def _masks() -> list[tuple]:
    """A label map, class names by id."""
    first = np.full((4, 6), 4, np.uint8)
    first[:2] = 2
    first[1:3, 1:4] = 3
    second = np.full((3, 3), 255, np.uint8)
    second[0], second[2] = 1, 0
    return [(first, NAMES), (second, NAMES)]


def _prompt(labels: ndarray, names: tuple[str, ...]) -> tuple[str, list[int]]:
    made = layout_prompt(labels[None], names, _Words())
    return made.prompts[0], list(made.owners[0])


def _in_order(labels: ndarray, names: tuple[str, ...], ids: list[int]) -> tuple[str, list[int]]:
    return " ".join(names[c] for c in ids), [c for c in ids for _ in names[c].split()]


def _met(labels: ndarray) -> list[int]:
    return list(dict.fromkeys(int(c) for c in labels.ravel() if c != 255))


prompt_of_mask = Exercise(
    _prompt,
    _masks,
    {
        "A name of two words has two tokens, and both belong to its class.": lambda labels, names: (
            _prompt(labels, names)[0], sorted(set(_prompt(labels, names)[1]))
        ),
        "Names go by ascending class id, not as they are met in the mask.": lambda labels, names: _in_order(
            labels, names, _met(labels)
        ),
        "Names go by class id, not by the alphabet.": lambda labels, names: _in_order(
            labels, names, sorted(_met(labels), key=lambda c: names[c])
        ),
        "All names of the data set are in the prompt; only those of classes that the mask holds should be.": (
            lambda labels, names: _in_order(labels, names, list(range(len(names))))
        ),
    },
    learned="Every picture of a mask has this same prompt: what differs from one to the next is the noise alone.",
)  # fmt: skip


def _scores() -> list[tuple]:
    """Scores (pixels, tokens), classes of the pixels, owners of the tokens between start and end."""
    generator = torch.Generator().manual_seed(21)
    return [
        (torch.randn(len(pixels), len(owners) + 2, generator=generator), torch.tensor(pixels), torch.tensor(owners))
        for pixels, owners in (([7, 7, 5, 5], [5, 7]), ([3, 255, 3, 8, 8, 9], [3, 3, 8, 9, 9]))
    ]


def _readable(pixels: Tensor, owners: Tensor) -> Tensor:
    """(pixels, tokens) bool: the own words, and start and end."""
    free = torch.ones(len(pixels), 1, dtype=torch.bool)
    return torch.cat([free, pixels[:, None] == owners[None], free], 1)


def _weights(scores: Tensor, pixels: Tensor, owners: Tensor) -> Tensor:
    tokens = torch.eye(scores.shape[1])[None, None]  # keys and values that give the scores and show the weights
    query = (scores * math.sqrt(scores.shape[1]))[None, None]
    return rectified_attention(query, tokens, tokens, _readable(pixels, owners)[None, None])[0, 0]


rectified_weights = Exercise(
    _weights,
    _scores,
    {
        "The mask comes after the softmax, so what was cut off is lost and rows no longer sum to one.": (
            lambda s, p, o: s.softmax(1) * _readable(p, o)
        ),
        "A score of 0 is a score like any other: what may not be read gets minus infinity.": lambda s, p, o: (
            s * _readable(p, o)
        ).softmax(1),
        "Start and end are cut off, too; a pixel without a class then has nothing to read.": lambda s, p, o: (
            s.masked_fill(~_readable(p, o) | torch.eye(s.shape[1], dtype=torch.bool)[[0, -1]].any(0), -math.inf)
        ).softmax(1),
        "The weights of a *pixel* sum to one over the tokens; this sums over pixels.": lambda s, p, o: s.masked_fill(
            ~_readable(p, o), -math.inf
        ).softmax(0),
        "Nothing is rectified: every pixel reads every word.": lambda s, p, o: s.softmax(1),
    },
    tolerance=1e-4,
    learned="What is left of a row sums to one again, so a pixel reads its own word more strongly than before.",
)


def _wrong() -> list[tuple]:
    """A map of wrong pixels: a block, a larger box with fewer pixels, and a pixel that touches the block's corner."""
    made = np.zeros((12, 12), bool)
    made[1:5, 2:5] = True
    made[5, 5] = True
    made[7, 6:12] = True
    made[7:11, 6] = True
    return [(made,), (made.T[::-1].copy(),)]


def _largest(wrong: ndarray) -> tuple[int, ...]:
    return fault_boxes(wrong, least=1)[0]


def _around(pixels: ndarray) -> tuple[int, ...]:
    rows, columns = np.nonzero(pixels)
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def _corners_touch(wrong: ndarray) -> tuple[int, ...]:
    from scipy.ndimage import label

    numbered, _ = label(wrong, np.ones((3, 3)))
    return _around(numbered == np.bincount(numbered.ravel())[1:].argmax() + 1)


def _largest_box(wrong: ndarray) -> tuple[int, ...]:
    return max(fault_boxes(wrong, least=1), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))


box_of_fault = Exercise(
    _largest,
    _wrong,
    {
        "This is a box around everything that is wrong: number the connected regions first.": _around,
        "Bottom and right are one beyond the last row and column, as slices have it.": lambda wrong: (
            *_largest(wrong)[:2], *(v - 1 for v in _largest(wrong)[2:])
        ),
        "Rows come first: top, left, bottom, right.": lambda wrong: tuple(_largest(wrong)[k] for k in (1, 0, 3, 2)),
        "This is the largest box, not the region of most pixels.": _largest_box,
        "Pixels that touch by their corners alone are two regions, as scipy's `label` has it.": _corners_touch,
    },
    learned="A box is for the eye: the filter of the next notebook drops pixels, not boxes.",
)  # fmt: skip
