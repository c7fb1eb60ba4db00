"""Exercises of notebooks 10 and 14: protocols and measures of an incremental step, what teacher and student learn."""

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fmseg.exercise import Exercise
from fmseg.incremental import IGNORE, dense_labels, student_targets
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
        "An image without any old thing does not belong to step 0: background, which is everywhere, does not count.": (
            _background_is_old
        ),
        "An old class in the image does not keep it out of step 1: the two kinds of protocol have the same images "
        "there.": _step_1_without_old,
    },
    learned="With overlap step 0 teaches that new things are background, which step 1 has to undo.",
)


def _scores_of_teacher() -> list[tuple]:
    """Teacher's scores (O + C, h, w), O, words (C,), alpha."""
    generator = torch.Generator().manual_seed(14)
    made = []
    for old, words, alpha in ((3, (1, 0), 0.5), (2, (1, 1, 0), 0.8), (4, (0, 1), 0.3)):
        made.append((torch.randn(old + len(words), 4, 5, generator=generator), old, torch.tensor(words).bool(), alpha))
    return made


def _targets(teacher: Tensor, old: int, present: Tensor, alpha: float) -> Tensor:
    nothing = torch.zeros(1, old, *teacher.shape[1:])
    return student_targets(teacher[None], nothing, present[None], alpha=alpha)[0, old:]


def _other_targets(
    teacher: Tensor, old: int, present: Tensor, alpha: float, *, among_new: bool = False, named: bool = True,
    named_soft: bool = True, softmax: bool = False, raw: bool = False,
) -> Tensor:  # fmt: skip
    """The same by hand, with a mistake if one is named."""
    there = present[:, None, None]
    rivals = teacher[old:] if among_new else teacher
    hard = (rivals == rivals.amax(0)).float()[-len(present) :]
    soft = teacher if raw else teacher.softmax(0) if softmax else teacher.sigmoid()
    return alpha * hard * (there if named else 1) + (1 - alpha) * soft[old:] * (there if named_soft else 1)


targets_of_new = Exercise(
    _targets,
    _scores_of_teacher,
    {
        "The hard label is won among *all* channels: where background or an old class is highest, no new class has "
        "it.": lambda *x: _other_targets(*x, among_new=True),
        "The words are not used: a class that the image does not name has target 0 everywhere.": lambda *x: (
            _other_targets(*x, named=False, named_soft=False)
        ),
        "Both parts of a class that is not named are 0, the soft one too.": lambda *x: _other_targets(
            *x, named_soft=False
        ),
        "Both parts of a class that is not named are 0, the hard one too.": lambda *x: _other_targets(*x, named=False),
        "The teacher learned with a yes or no for each class: its soft label is a sigmoid, not a softmax.": lambda *x: (
            _other_targets(*x, softmax=True)
        ),
        "Scores are no labels yet: take their sigmoid.": lambda *x: _other_targets(*x, raw=True),
        "alpha is the share of the hard label; you gave it to the soft one.": (
            lambda teacher, old, present, alpha: _targets(teacher, old, present, 1 - alpha)
        ),
    },
    learned="With alpha at 1 the student repeats the teacher's guesses; with 0 it never has to decide.",
)


def _masked() -> list[tuple]:
    """Masks (C, h, w) bool that overlap in places, the old model's scores (O, h, w), what was pasted (h, w)."""
    generator = torch.Generator().manual_seed(8)
    made = []
    for new, old in ((2, 3), (3, 2), (2, 5)):
        masks = torch.rand(new, 6, 6, generator=generator) < 0.35
        scores = torch.randn(old, 6, 6, generator=generator)
        scores[0] += 0.5
        pasted = torch.where(torch.rand(6, 6, generator=generator) < 0.25, old - 1, IGNORE)
        made.append((masks, scores, pasted))
    return made


def _labels(masks: Tensor, old: Tensor, pasted: Tensor) -> Tensor:
    return dense_labels(masks[None], old[None], pasted[None])[0]


def _first_of_many(masks: Tensor, old: Tensor, pasted: Tensor) -> Tensor:
    first = masks.int().argmax(0)
    return _labels(masks & (torch.arange(len(masks))[:, None, None] == first), old, pasted)


def _new_from_zero(masks: Tensor, old: Tensor, pasted: Tensor) -> Tensor:
    labels = _labels(masks, old, torch.full_like(pasted, IGNORE))
    new = (labels >= len(old)) & (labels != IGNORE)
    return torch.where(pasted != IGNORE, pasted, torch.where(new, labels - len(old), labels))


def _old_guesses_too(masks: Tensor, old: Tensor, pasted: Tensor) -> Tensor:
    guess = torch.where(masks.any(0), _labels(masks, old, torch.full_like(pasted, IGNORE)), old.argmax(0))
    return torch.where(pasted != IGNORE, pasted, guess)


def _all_background(masks: Tensor, old: Tensor, pasted: Tensor) -> Tensor:
    certain = torch.zeros_like(old)
    certain[0] = 1
    return _labels(masks, certain, pasted)


def _paste_last(masks: Tensor, old: Tensor, pasted: Tensor) -> Tensor:
    labels = _labels(masks, old, torch.full_like(pasted, IGNORE))
    return torch.where(labels == IGNORE, pasted, labels)


labels_for_contrast = Exercise(
    _labels,
    _masked,
    {
        "Two masks on a pixel: nobody knows which is right, so it does not count.": _first_of_many,
        "New classes are counted from O on; as you have it they are taken for background and old classes.": (
            _new_from_zero
        ),
        "The old model's guess of an old class is no label here: only what was pasted is sure.": _old_guesses_too,
        "Where no mask is, it need not be background: ask the old model, and leave out what it calls an old class.": (
            _all_background
        ),
        "What was pasted is sure and comes first.": _paste_last,
        "The paste is not used yet.": lambda masks, old, pasted: _labels(masks, old, torch.full_like(pasted, IGNORE)),
    },
    learned="The loss compares few points, so it can afford to take only those that are sure.",
)
