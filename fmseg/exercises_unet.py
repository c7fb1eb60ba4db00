"""Exercises of notebook 30: what a U-Net's call gives, when, and what a map is worth."""

import torch
from torch import Tensor

from fmseg.daam import normalised_heat
from fmseg.exercise import Exercise
from fmseg.taps import fold_guidance


def _rows() -> list[tuple]:
    """Features of one tap, (2B, C, h, w), for one, two and three pictures."""
    generator = torch.Generator().manual_seed(30)
    return [(torch.randn(2 * b, c, 2, 2, generator=generator),) for b, c in ((1, 3), (2, 2), (3, 4))]


def _folded(rows: Tensor) -> Tensor:
    return fold_guidance({"low": [rows]})["low"][0]


fold_halves = Exercise(
    _folded,
    _rows,
    {
        "Two neighbouring rows are put together, as the official code does: right for one picture, but for more the "
        "row without prompt of one meets that of another.": lambda rows: rows.reshape(-1, 2 * rows.shape[1], 2, 2),
        "The rows without prompt come first, both in the batch and in the channels: you turned them round.": (
            lambda rows: torch.cat(rows.chunk(2)[::-1], 1)
        ),
        "Channels of the two halves are interleaved: they stand side by side, first all without prompt.": (
            lambda rows: torch.stack(rows.chunk(2), 2).flatten(1, 2)
        ),
        "This is what guidance does with the predicted noise; the head reads both halves, not their mean.": (
            lambda rows: sum(rows.chunk(2)) / 2
        ),
    },
    learned="Twice as many channels, and picture b is row b.",
)


def _schedules() -> list[tuple]:
    return [(50, 1), (50, 5), (50, 50), (12, 1), (12, 4), (20, 7)]


def _timestep(steps: int, step: int) -> int:
    """As diffusers' DDIMScheduler with steps_offset 1 and leading spacing."""
    return (step - 1) * (1000 // steps) + 1


timestep_of = Exercise(
    _timestep,
    _schedules,
    {
        "Counted from the noisy end: step 1 is the last call, whose timestep is the smallest.": lambda steps, step: (
            _timestep(steps, steps + 1 - step)
        ),
        "The schedule's offset of 1 is missing.": lambda steps, step: _timestep(steps, step) - 1,
        "One step too noisy: step 1 itself is at timestep 1.": lambda steps, step: 1 + step * (1000 // steps),
        "Steps are spread over the whole range; this is the step itself.": lambda steps, step: step,
    },
    learned="So the paper's fifth step of fifty has timestep 81, and not much noise is left there.",
)  # fmt: skip


def _maps() -> list[tuple]:
    """A heat map, a mask of the same size, a threshold."""
    generator = torch.Generator().manual_seed(31)
    made = []
    for scale, offset, threshold in ((3.0, 0.0, 0.4), (0.2, 1.5, 0.3), (40.0, -2.0, 0.6)):
        heat = torch.rand(6, 6, generator=generator) * scale + offset
        made.append((heat, torch.rand(6, 6, generator=generator) > 0.5, threshold))
    return made


def _iou(kept: Tensor, mask: Tensor) -> Tensor:
    return (kept & mask).sum() / (kept | mask).sum()


def _iou_of_map(heat: Tensor, mask: Tensor, threshold: float) -> Tensor:
    return _iou(normalised_heat(heat[None], mask.shape)[0] > threshold, mask)


iou_of_map = Exercise(
    _iou_of_map,
    _maps,
    {
        "The threshold meets the map as it is: first bring it to the range from 0 to 1.": lambda heat, mask, t: _iou(
            heat > t, mask
        ),
        "Divided by the largest value alone: subtract the smallest first.": lambda heat, mask, t: _iou(
            heat / heat.max() > t, mask
        ),
        "This is the share of right pixels; intersection over union leaves pixels out that neither has.": (
            lambda heat, mask, t: ((normalised_heat(heat[None], mask.shape)[0] > t) == mask).float().mean()
        ),
        "This is recall: pixels that are wrongly kept must cost something, too.": lambda heat, mask, t: (
            ((normalised_heat(heat[None], mask.shape)[0] > t) & mask).sum() / mask.sum()
        ),
    },
    learned="A map has no unit, so its threshold is a share of its own range, and somebody has to choose it.",
)
