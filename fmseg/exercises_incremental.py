"""Exercises of notebooks 10 and 14: protocols and measures of an incremental step, what teacher and student learn."""

import numpy as np
from numpy import ndarray

from fmseg.exercise import Exercise
from fmseg.protocols import Incremental


def _protocol(classes: int, old: int, overlap: bool = True) -> Incremental:
    order = ("background", *(f"class {k}" for k in range(1, classes)))
    return Incremental("exercise", order, (old, classes - old), ("exercise", "exercise"), overlap)


def _ious() -> list[tuple]:
    """IoU before and after a step, and the number of channels before it."""
    rng = np.random.default_rng(10)
    made = []
    for classes, old in ((6, 4), (9, 3)):
        before, after = rng.uniform(0.2, 0.9, classes), rng.uniform(0.1, 0.8, classes)
        before[old:] = np.nan
        made.append((before, after, old))
    return made


def _means(before: ndarray, after: ndarray, old: int) -> tuple:
    groups = _protocol(len(after), old).groups()
    forgotten = (before - after)[groups["old"]].mean()
    return (*(after[groups[name]].mean() for name in ("old", "new", "all")), forgotten)


def _with(**changed):
    """The right four numbers with some of them made otherwise."""

    def answer(before, after, old):
        found = dict(zip(("old", "new", "all", "forgotten"), _means(before, after, old), strict=True))
        found |= {name: make(before, after, old) for name, make in changed.items()}
        return tuple(found.values())

    return answer


def _forgotten_with_background(before: ndarray, after: ndarray, old: int) -> float:
    return (before - after)[:old].mean()


means_of_step = Exercise(
    _means,
    _ious,
    {
        "Background counts in the mean of all classes alone, not in that of the old ones.": _with(
            old=lambda before, after, old: after[:old].mean()
        ),
        "Background counts neither as old nor in what is forgotten.": _with(
            old=lambda before, after, old: after[:old].mean(), forgotten=_forgotten_with_background
        ),
        "Background is no old class: leave it out of what is forgotten.": _with(forgotten=_forgotten_with_background),
        "The mean of all has every class once, background included; it is not the mean of two means.": _with(
            all=lambda before, after, old: (after[1:old].mean() + after[old:].mean()) / 2
        ),
        "Background belongs to the mean of all classes.": _with(all=lambda before, after, old: after[1:].mean()),
        "Forgetting is before less after: what was lost is positive.": _with(
            forgotten=lambda before, after, old: (after - before)[1:old].mean()
        ),
        "New classes were not known before (NaN): forgetting is over the old ones.": _with(
            forgotten=lambda before, after, old: (before - after).mean()
        ),
    },
    learned="So a method can gain in the mean of all by its background alone: look at the three means together.",
)


def _presence() -> list[tuple]:
    """(N, C) which classes are there; channels before the step; overlap or disjoint. Some images have no thing."""
    rng = np.random.default_rng(5)
    made = []
    for classes, old, overlap in ((5, 3, True), (5, 3, False), (8, 6, False), (7, 2, True)):
        present = rng.random((12, classes)) < 0.3
        present[:, 0] = True
        made.append((present, old, overlap))
    return made


def _images(present: ndarray, old: int, overlap: bool) -> tuple[list[int], list[int]]:
    protocol = _protocol(present.shape[1], old, overlap)
    return tuple(protocol.images(step, present, protocol.order).tolist() for step in (0, 1))


def _chosen(first: ndarray, second: ndarray) -> tuple[list[int], list[int]]:
    return np.flatnonzero(first).tolist(), np.flatnonzero(second).tolist()


def _sides(present: ndarray, old: int) -> tuple[ndarray, ndarray]:
    return present[:, 1:old].any(1), present[:, old:].any(1)


def _background_is_old(present: ndarray, old: int, overlap: bool) -> tuple:
    return _images(np.concatenate([present, present[:, :1]], 1)[:, [*range(old), -1, *range(old, present.shape[1])]],
                   old + 1, overlap)  # fmt: skip


def _step_1_without_old(present: ndarray, old: int, overlap: bool) -> tuple:
    had, has = _sides(present, old)
    return _chosen(had if overlap else had & ~has, has if overlap else has & ~had)


def _always_overlap(present: ndarray, old: int, overlap: bool) -> tuple:
    return _chosen(*_sides(present, old))


images_of_steps = Exercise(
    _images,
    _presence,
    {
        "Turned round: disjoint leaves out of step 0 the images with a new class, overlap keeps them.": (
            lambda present, old, overlap: _images(present, old, not overlap)
        ),
        "Overlap and disjoint differ: a disjoint step 0 has no image with a class of the future.": _always_overlap,
        "An image without any old thing does not belong to step 0: background, which is everywhere, does not count.": _background_is_old,
        "An old class in the image does not keep it out of step 1: the two kinds of protocol have the same images "
        "there.": _step_1_without_old,
    },
    learned="With overlap step 0 teaches that new things are background, which step 1 has to undo.",
)
