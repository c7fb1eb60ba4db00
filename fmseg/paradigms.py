"""What FreeMask's ways to learn have in common, in miniature and at the paper's size."""

from dataclasses import replace

from fmseg.training import TrainResult


def repeats(synthetic_images: int, real_images: int) -> int:
    """How often the real images are repeated beside the synthetic ones, so that both weigh the same: their ratio to the
    nearest whole number, at least 1. 11 for ADE20K and 4 for COCO-Stuff, as in the official configurations."""
    return max(1, round(synthetic_images / real_images))


def after(first: TrainResult, second: TrainResult) -> TrainResult:
    """Two trainings, one after the other, as one."""
    curve = first.curve + [[first.steps + step, value] for step, value in second.curve]
    seconds, steps = first.seconds + second.seconds, first.steps + second.steps
    return replace(second, curve=curve, losses=first.losses + second.losses, seconds=seconds, steps=steps)
