"""Exercises of notebook 31: text queries, the mix-convolution's residual, the loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg.exercise import Exercise
from fmseg.grounding_targets import grounding_loss
from fmseg.grounding_text import class_queries


def _states() -> list[tuple]:
    """Text states (L, D), positions of a class's tokens."""
    generator = torch.Generator().manual_seed(31)
    made = [(8, (5,)), (9, (5, 6)), (10, (2, 5, 6))]
    return [(torch.randn(length, 4, generator=generator), positions) for length, positions in made]


def _query(states: Tensor, positions: tuple[int, ...]) -> Tensor:
    return class_queries(states[None], [positions])[0]


query_of_class = Exercise(
    _query,
    _states,
    {
        "One position too early: position 0 is the start token, and positions count it.": lambda states, positions: (
            states[[p - 1 for p in positions]].mean(0)
        ),
        "The last token alone: a class of several tokens is the mean over all of them.": lambda states, positions: (
            states[positions[-1]]
        ),
        "The tokens' states are added up: take their mean.": lambda states, positions: states[list(positions)].sum(0),
        "The mean over the whole prompt: only the class's own tokens count.": lambda states, positions: states.mean(0),
    },
    learned="A query is where the text encoder has read the class, in a prompt of its own.",
)  # fmt: skip


def _grids() -> list[tuple]:
    generator = torch.Generator().manual_seed(32)
    return [(torch.randn(2, 3, 4, 4, generator=generator), 0.5), (torch.randn(1, 2, 3, 3, generator=generator), 2.0)]


def _mixed(x: Tensor, gain: float, added: str = "relu", once: bool = False) -> Tensor:
    """A mix-convolution whose convolutions only multiply by ``gain``."""
    r = F.instance_norm(x, eps=1e-4).relu()
    h = gain * r
    h = h if once else gain * F.instance_norm(h, eps=1e-4).relu()
    return h + {"relu": r, "input": x, "norm": F.instance_norm(x, eps=1e-4)}[added]


mix_by_hand = Exercise(
    _mixed,
    _grids,
    {
        "The raw input is added. The official ReLU overwrites the variable that is added later, so it is ReLU(N(x)): "
        "with x itself a trained head gives something else.": lambda x, gain: _mixed(x, gain, "input"),
        "What is added has been normalised, but not yet cut at 0.": lambda x, gain: _mixed(x, gain, "norm"),
        "One convolution is missing: normalise, cut and convolve twice.": lambda x, gain: _mixed(x, gain, once=True),
        "Statistics over the whole batch: each picture is normalised by itself.": lambda x, gain: (
            gain * F.batch_norm(gain * F.batch_norm(x, None, None, training=True, eps=1e-4).relu(), None, None,
                                training=True, eps=1e-4).relu()
            + F.batch_norm(x, None, None, training=True, eps=1e-4).relu()
        ),
    },
    tolerance=1e-4,
    learned="A quirk of the code that no equation shows, and that a checkpoint rests on.",
)  # fmt: skip


def _answers() -> list[tuple]:
    """Logits (B, O, H, W), masks, and which classes the oracle found (B, O)."""
    generator = torch.Generator().manual_seed(33)
    made = []
    for found in ([[1, 1], [1, 0]], [[1, 0], [0, 0], [0, 1]]):
        detected = torch.tensor(found, dtype=torch.bool)
        logits = torch.randn(*detected.shape, 4, 4, generator=generator)
        masks = torch.rand(*detected.shape, 4, 4, generator=generator) > 0.6
        made.append((logits, masks & detected[:, :, None, None], detected))
    return made


def _each(logits: Tensor, masks: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, masks.float(), reduction="none").mean((2, 3))


loss_of_masks = Exercise(
    lambda logits, masks, detected: grounding_loss(logits, masks, detected),
    _answers,
    {
        "Classes that the oracle did not find count with an empty mask: the row that Table 3 advises against.": (
            lambda logits, masks, detected: grounding_loss(logits, masks, detected, undetected="zero")
        ),
        "The mean over all classes that count: the recipe adds the classes of a picture up and divides by pictures.": (
            lambda logits, masks, detected: grounding_loss(logits, masks, detected, average="objects")
        ),
        "Divided by the pictures in which something was found: the recipe divides by all of the batch.": (
            lambda logits, masks, detected: _each(logits, masks)[detected].sum() / detected.any(1).sum()
        ),
        "Pixels are added up: take their mean within a mask.": lambda logits, masks, detected: (
            grounding_loss(logits, masks, detected) * 16
        ),
    },
    learned="A picture of two objects weighs twice, and a class that was not found teaches nothing.",
)  # fmt: skip
