import ast
import importlib
import json

import numpy as np
import pytest
import torch
from toys import ROOT

from fmseg.exercise import Exercise, Verdict, difference

MODULES = [importlib.import_module(f"fmseg.{p.stem}") for p in sorted((ROOT / "fmseg").glob("exercises_*.py"))]
EVERY = {f"{m.__name__.removeprefix('fmseg.')}.{name}": e for m in MODULES for name, e in vars(m).items()
         if isinstance(e, Exercise)}  # fmt: skip


def cases():
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(3, 4, generator=generator),), (torch.rand(5, 2, generator=generator),)]


ROWS = Exercise(
    lambda x: x.mean(1),
    cases,
    {"You averaged columns.": lambda x: x.mean(0), "You added up.": lambda x: x.sum(1)},
    learned="A row has one mean.",
)


def test_the_right_answer_passes_however_it_is_written():
    assert ROWS(lambda x: x.sum(1) / x.shape[1]) and ROWS(lambda x: x.numpy().mean(1))
    assert repr(ROWS(lambda x: x.mean(1))) == "✓ Right. A row has one mean."


def test_mistakes_are_met_by_name_and_other_wrong_answers_by_where_they_differ():
    assert repr(ROWS(lambda x: x.T.mean(1))) == "✗ You averaged columns."
    assert ROWS(lambda x: sum(x.T)).message == "You added up."
    said = ROWS(lambda x: x.mean(1) + 1)
    assert not said and "Not yet: on input 1 it is" in said.message and "3 of 3 values differ" in said.message
    assert "its shape is (3, 1) where (3,)" in ROWS(lambda x: x.mean(1, keepdim=True)).message


class Strange:
    def __array__(self, *_, **__):
        raise RuntimeError("no array")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "Nothing here yet"),
        (..., "Nothing here yet"),
        (lambda x: None, "Nothing here yet: the function gives None"),
        (lambda x: ..., "Nothing here yet: the function gives Ellipsis"),
        (torch.zeros(3), "A function is asked for; got Tensor"),
        (lambda: 1, "raises TypeError"),
        (lambda x: 1 / 0, "On input 1 it raises ZeroDivisionError"),
        (lambda x: "three", "not numbers"),
        (lambda x: Strange(), "could not be compared (RuntimeError: no array)"),
        (lambda x: x.mean(1) > 0, "holds bool"),
    ],
)
def test_nothing_raises(answer, said):
    verdict = ROWS(answer)
    assert isinstance(verdict, Verdict) and not verdict and said in verdict.message


def test_an_answer_that_spoils_its_arguments_spoils_them_for_itself_alone():
    assert "Not yet" in ROWS(lambda x: x.zero_().mean(1)).message
    assert ROWS(lambda x: x.mean(1))


def test_values_and_words():
    third = Exercise(lambda: 1 / 3, None, {"You gave the odds.": lambda: 0.5})
    assert third(0.3333333) and third(np.float32(1 / 3)) and third(torch.tensor(1 / 3))
    assert third(0.5).message == "You gave the odds." and "it is 0.4 where" in third(0.4).message
    assert "Nothing here yet" in third(...).message and "not a function" in third(lambda: 1 / 3).message
    word = Exercise(lambda: "falls", None, {"Think again.": lambda: "rises"})
    assert word(" Falls") and word("rises").message == "Think again." and "'stays'" in word("stays").message
    pair = Exercise(lambda: (1, 2))
    assert pair([1, 2]) and "item 1" in pair((1, 3)).message and "2 items" in pair((1, 2, 3)).message


def test_differences_are_told():
    nan = np.array([np.nan, 1.0])
    assert difference(nan, nan) == "" and "at [0]" in difference(np.ones(2), nan)
    assert difference(torch.tensor([1, 2]), [1, 2]) and difference(3, torch.tensor(3)) == ""


@pytest.mark.parametrize("name", EVERY)
def test_every_mistake_of_every_exercise_gets_its_message(name):
    exercise = EVERY[name]
    assert exercise.mistakes, "a typical wrong answer to meet by name"
    for message, mistake in exercise.mistakes.items():
        verdict = exercise(mistake() if exercise.cases is None else mistake)
        assert verdict.message == message and not verdict
    assert exercise(exercise.right() if exercise.cases is None else exercise.right)


def tagged(cells, tag):
    """{exercise: code cell} of a notebook; a cell's last line calls its exercise, `check.name(answer)`."""
    found = {}
    for cell in cells:
        if tag in cell["metadata"].get("tags", []):
            call = ast.parse("".join(cell["source"])).body[-1].value
            assert call.func.value.id == "check" and call.func.attr not in found
            found[call.func.attr] = cell
    return found


def imports(cells):
    """The import statements of a notebook: all that stubs and solutions may build on."""
    nodes = [n for c in cells if c["cell_type"] == "code" for n in ast.parse("".join(c["source"])).body]
    return "\n".join(ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom))


def outcome(cells, cell):
    names = {}
    exec(imports(cells), names)
    *body, last = ast.parse("".join(cell["source"])).body
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return names["check"], eval(compile(ast.Expression(last.value), "cell", "eval"), names)


NOTEBOOKS = {p.stem: json.loads(p.read_text())["cells"] for p in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
WITH_EXERCISES = [name for name, cells in NOTEBOOKS.items() if tagged(cells, "stub") or tagged(cells, "solution")]


@pytest.mark.parametrize("name", WITH_EXERCISES)
def test_every_stub_is_refused_and_every_solution_passes(name):
    cells = NOTEBOOKS[name]
    stubs, solutions = tagged(cells, "stub"), tagged(cells, "solution")
    assert list(stubs) == list(solutions)
    for exercise in stubs:
        check, refused = outcome(cells, stubs[exercise])
        assert f"{check.__name__.removeprefix('fmseg.')}.{exercise}" in EVERY
        assert not refused and refused.message.startswith("Nothing here yet")
        assert solutions[exercise]["metadata"]["jupyter"]["source_hidden"], "a solution is folded"
        assert outcome(cells, solutions[exercise])[1]


@pytest.mark.parametrize("name", WITH_EXERCISES)
def test_every_exercise_says_how_hard_and_how_long_it_is(name):
    """The cell before a stub is its statement: '## Exercise 1: title (difficulty 2 of 5, 10 minutes)'."""
    import re

    cells, number = NOTEBOOKS[name], 0
    for before, cell in zip(cells, cells[1:], strict=False):
        if "stub" in cell["metadata"].get("tags", []):
            number += 1
            said = rf"#+ Exercise {number}: .+ \(difficulty [1-5] of 5, \d+ minutes\)\n"
            assert re.match(said, "".join(before["source"]))


def test_every_exercise_is_in_a_notebook():
    used = {f"{outcome(NOTEBOOKS[n], c)[0].__name__.removeprefix('fmseg.')}.{e}"
            for n in WITH_EXERCISES for e, c in tagged(NOTEBOOKS[n], "stub").items()}  # fmt: skip
    assert used == set(EVERY) and len(used) > 0
