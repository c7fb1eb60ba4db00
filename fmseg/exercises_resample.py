"""Exercises of notebook 23: a mask's hardness, the counts by rank, the repetition of the real images."""

import numpy as np
from numpy import ndarray

from fmseg.exercise import Exercise
from fmseg.resample import counts_by_rank, hardness


def _masks() -> list[tuple]:
    """Pixels by class of a few masks, (N, C), and class means."""
    rng = np.random.default_rng(23)
    counts = rng.integers(0, 400, (4, 5))
    counts[1, 2:] = 0
    return [(counts, rng.uniform(0.1, 3.0, 5)), (rng.integers(1, 50, (2, 3)), np.array([0.2, 1.0, 2.5]))]


def _over_present(counts: ndarray, means: ndarray) -> ndarray:
    there = counts > 0
    return (there * means).sum(-1) / there.sum(-1)


mask_hardness = Exercise(
    hardness,
    _masks,
    {
        "Every class of the mask weighs the same here; each should weigh by its pixels.": _over_present,
        "This is a sum: divide by the number of labelled pixels, or a large mask is hard by its size.": (
            lambda counts, means: (counts * means).sum(-1)
        ),
        "This divides by the number of classes, not of pixels.": lambda counts, means: (
            (counts * means).sum(-1) / len(means)
        ),
        "Easy and hard are turned round: a large mean loss makes a mask hard.": lambda counts, means: hardness(
            counts, means.max() - means
        ),
    },
    tolerance=1e-5,
    learned="No network and no picture enters: only the mask and a mean loss for each class.",
)


def _sizes() -> list[tuple]:
    """Numbers of masks and N_max."""
    return [(10, 20), (12, 6), (40, 20), (7, 10), (1, 20)]


def _ranks(masks: int) -> ndarray:
    return np.arange(1, masks + 1)


def _half_up(masks: int, most: int) -> ndarray:
    return np.minimum(1 + np.floor(_ranks(masks) / masks * most + 0.5).astype(int), most)


images_of_rank = Exercise(
    lambda masks, most: counts_by_rank(masks, most),
    _sizes,
    {
        "Halves are rounded up; Python's round, and the official code, take the even neighbour.": _half_up,
        "The hardest masks get one more than there are: N_max is the most.": lambda masks, most: (
            1 + np.rint(_ranks(masks) / masks * most).astype(int)
        ),
        "Ranks count from 1 (the easiest), not from 0.": lambda masks, most: np.minimum(
            1 + np.rint(np.arange(masks) / masks * most).astype(int), most
        ),
        "The easiest mask comes first, with the fewest pictures; this is the other way round.": lambda masks, most: (
            counts_by_rank(masks, most)[::-1].copy()
        ),
        "This cuts off where it should round.": lambda masks, most: counts_by_rank(masks, most, rounding="floor"),
    },
    learned="Every mask gets at least one picture, and on average a little more than half of N_max.",
)


def _sets() -> list[tuple]:
    """Masks and N_max of three data sets."""
    return [(20210, 20), (118287, 6), (320, 10)]


def _ratio(masks: int, most: int) -> float:
    return float(counts_by_rank(masks, most).sum()) / masks


real_repeats = Exercise(
    lambda masks, most: (round(_ratio(masks, most)), _ratio(masks, most) / most),
    _sets,
    {
        "The real images are repeated N_max times: but re-sampling draws fewer than N_max of a mask.": (
            lambda masks, most: (most, _ratio(masks, most) / most)
        ),
        "Half of N_max is near, and not it: add up the counts.": lambda masks, most: (
            round(most / 2), _ratio(masks, most) / most
        ),
        "The second number is the share of all N N_max pictures that are drawn; this one is not divided by N_max.": (
            lambda masks, most: (round(_ratio(masks, most)), _ratio(masks, most))
        ),
    },
    learned="The configurations of the official code repeat the real images 11 and 4 times.",
)  # fmt: skip
