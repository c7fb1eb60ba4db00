"""Exercises in notebooks: an answer is held against the kernel on seeded inputs, and typical mistakes are met by name.

A notebook imports a module of exercises and calls them, with nothing else to register::

    from fmseg import exercises_contrast as check

    def my_loss(vectors, labels, temperature):
        ...

    check.loss_of_points(my_loss)  # a cell tagged "stub"; the folded solution is a cell tagged "solution"

An exercise knows the right answer as a function, and each typical mistake as the function that somebody writes who
makes it. So a wrong answer is recognised by what it computes, however it is written. Calling an exercise never raises:
a notebook with the stub in it runs to its end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

DONE = "Right."


@dataclass(frozen=True)
class Verdict:
    """What an exercise says to an answer; true if the answer is right. A notebook shows the message."""

    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.message}"


@dataclass(frozen=True)
class Exercise:
    """A question with its answer.

    Attributes:
        right: the answer. With ``cases`` a function like the one asked for, best the kernel itself; without, a function
            of nothing that gives the value asked for.
        cases: makes the inputs, a list of argument tuples; called anew for each function that is tried, so that
            generators are fresh and nothing that an answer does to its arguments can be seen by another. None: the
            answer is a plain value (a number, a word, a tensor), not a function.
        mistakes: message -> what somebody answers who makes this mistake, in the form of ``right``. They must differ
            from the right answer, and from each other, on the cases.
        tolerance: absolute and relative, of floats.
        learned: said beside "Right.": what the answer shows.
    """

    right: Callable[..., Any]
    cases: Callable[[], Sequence[tuple]] | None = None
    mistakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    tolerance: float = 1e-5
    learned: str = ""

    def __call__(self, answer: Any) -> Verdict:
        """Judge an answer; never raises."""
        try:
            return self._judge(answer)
        except Exception as error:
            return Verdict(False, f"The answer could not be compared ({type(error).__name__}: {error}).")

    def _judge(self, answer: Any) -> Verdict:
        if self.cases is None:
            if callable(answer):
                return Verdict(False, "A value is asked for, not a function. Did you forget to call it?")
            given = [answer]
        else:
            if answer is None or answer is ...:
                return Verdict(False, "Nothing here yet: give a function.")
            if not callable(answer):
                return Verdict(
                    False, f"A function is asked for; got {type(answer).__name__}. Give it without calling it."
                )
            given = []
            for number, case in enumerate(self.cases(), 1):
                try:
                    given.append(answer(*case))
                except Exception as error:
                    return Verdict(False, f"On input {number} it raises {type(error).__name__}: {error}")
        if any(value is None or value is ... for value in given):
            what = "the answer" if self.cases is None else "the function"
            return Verdict(False, f"Nothing here yet: {what} gives {given[0]!r}.")
        wanted = self._outputs(self.right)
        wrong = [(number, said) for number, (a, b) in enumerate(zip(given, wanted, strict=True), 1)
                 if (said := difference(a, b, self.tolerance))]  # fmt: skip
        if not wrong:
            return Verdict(True, f"{DONE} {self.learned}".strip())
        for message, mistake in self.mistakes.items():
            made = self._outputs(mistake)
            if not any(difference(a, b, self.tolerance) for a, b in zip(given, made, strict=True)):
                return Verdict(False, message)
        number, said = wrong[0]
        return Verdict(False, f"Not yet: {said}." if self.cases is None else f"Not yet: on input {number} {said}.")

    def _outputs(self, function: Callable[..., Any]) -> list:
        return [function()] if self.cases is None else [function(*case) for case in self.cases()]


def difference(got: Any, wanted: Any, tolerance: float = 1e-5) -> str:
    """In words, where an answer is not what is wanted; "" where it is.

    Tensors, arrays and numbers compare by value, whichever of the three they are; booleans are not numbers. Texts
    compare without regard to case and outer blanks, lists and tuples item by item.
    """
    if isinstance(wanted, str):
        if not isinstance(got, str):
            return f"it is {type(got).__name__} where a text is asked for"
        return "" if got.strip().lower() == wanted.strip().lower() else f"it is {got!r}"
    if isinstance(wanted, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(wanted):
            size = f" of {len(got)}" if isinstance(got, list | tuple) else ""
            return f"it is {type(got).__name__}{size} where {len(wanted)} items are asked for"
        found = [(i, difference(a, b, tolerance)) for i, (a, b) in enumerate(zip(got, wanted, strict=True))]
        return next((f"item {i}: {said}" for i, said in found if said), "")
    return _numbers_differ(_array(got), _array(wanted), tolerance)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _numbers_differ(got: np.ndarray, wanted: np.ndarray, tolerance: float) -> str:
    if got.dtype.kind not in "biuf":
        return f"it holds {got.dtype}, not numbers"
    if got.shape != wanted.shape:
        return f"its shape is {got.shape} where {wanted.shape} is asked for"
    if (got.dtype.kind == "b") != (wanted.dtype.kind == "b"):
        return f"it holds {got.dtype} where {wanted.dtype} is asked for"
    apart = ~np.isclose(got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not apart.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(apart)[0])
    place = f" at {list(at)}" if at else ""
    many = f" ({int(apart.sum())} of {apart.size} values differ)" if apart.size > 1 else ""
    return f"it is {got[at]:.6g}{place} where {wanted[at]:.6g} is right{many}"
