"""Estimands: what a claim measures, as a formula over table cells, evaluated once for each seed.

``freemask-real[Mask2Former, mIoU] - freemask-real[SegFormer, mIoU]`` is the paired difference of two rows. Allowed are
references ``table-id[row, column]``, numbers, ``+ - * /``, parentheses and ``mean(a, b, ...)``. A formula is parsed,
never run: anything else in it is refused.
"""

import ast
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

_REFERENCE = re.compile(r"(?<!\w)([a-z][a-z0-9-]*)\s*\[([^\[\],]+),([^\[\],]+)\]")
_BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_UNARY = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_LONGEST = 2000  # characters
_DECIMALS = 9  # of a value: what lies below is rounding of the formula, not of the runs


@dataclass(frozen=True)
class Estimand:
    """A parsed formula: its text (blanks normalised) and the cells (table, row, column) that it names, each once."""

    formula: str
    cells: tuple[tuple[str, str, str], ...]
    _tree: ast.expr = field(repr=False, compare=False)

    @property
    def tables(self) -> tuple[str, ...]:
        """The ids of its tables, in the order in which they appear."""
        return tuple(dict.fromkeys(table for table, _, _ in self.cells))


def parse(formula: str) -> Estimand:
    """Parse a formula.

    Raises:
        TypeError: it is no text.
        ValueError: it names no cell, is no formula, or holds something that is not allowed; the message says what.
    """
    if not isinstance(formula, str):
        raise TypeError(f"`estimand` must be a text, got {formula!r}.")
    text = " ".join(formula.split())
    if len(text) > _LONGEST:
        raise ValueError(f"`estimand` must have at most {_LONGEST} characters, got {len(text)}.")
    cells = {}

    def number_it(match):
        key = tuple(part.strip() for part in match.groups())
        return f" _{cells.setdefault(key, len(cells))} "

    plain = _REFERENCE.sub(number_it, text)
    for name in re.findall(r"\b[^\W\d]\w*", _REFERENCE.sub(" ", text)):
        if name != "mean":
            raise _refused(text, f"the name {name!r}")
    try:
        tree = ast.parse(plain.strip(), mode="eval").body
        _check(tree, text)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise _refused(text, f"something that is no formula ({error})") from error
    if not cells:
        raise ValueError(f"`estimand` must name at least one cell as table-id[row, column]; got {text!r}.")
    return Estimand(text, tuple(cells), tree)


def find_cells(estimand: Estimand, tables: Mapping[str, dict]) -> list[dict]:
    """The cells that an estimand names, in the order of ``estimand.cells``.

    Args:
        tables: {id: table}, as :func:`fmseg.tables.read_all` returns.

    Raises:
        ValueError: there is no such table, row or column; the message lists those that exist.
    """
    return [_find(reference, estimand.formula, tables) for reference in estimand.cells]


def evaluate(estimand: Estimand, tables: Mapping[str, dict]) -> dict[str, float]:
    """The estimand's value for every seed that all its cells have.

    ``mean(a, b)`` is the mean of its arguments within a seed; the mean over seeds is the test's business.

    Returns:
        {seed: value}, in the unit of the tables; empty if the cells share no seed or one was not run.

    Raises:
        ValueError: an unknown cell (see :func:`find_cells`), or a division by zero; the message names the seed.
    """
    values = [cell["values"] for cell in find_cells(estimand, tables)]
    return {
        seed: _value_at(seed, estimand, {f"_{i}": v[seed] for i, v in enumerate(values)})
        for seed in values[0]
        if all(seed in v for v in values)
    }


def evaluate_arrays(estimand: Estimand, values: Mapping[tuple[str, str, str], ndarray]) -> ndarray:
    """The formula on whole arrays, element by element: say one value a resample, or one a simulated seed.

    Args:
        values: {cell: array}, all cells of ``estimand.cells``; shapes must broadcast.

    Returns:
        An array of the common shape, not rounded; not finite where the formula divides by zero or a cell is NaN.

    Raises:
        ValueError: a cell has no array; the message names it.
    """
    missing = [cell for cell in estimand.cells if cell not in values]
    if missing:
        raise ValueError(f"`values` lacks {missing[0]} of estimand {estimand.formula!r}; it has {list(values)}.")
    named = {f"_{i}": np.asarray(values[cell], dtype=np.float64) for i, cell in enumerate(estimand.cells)}
    with np.errstate(all="ignore"):
        return np.asarray(_value(estimand._tree, named))


def _find(reference, formula, tables):
    table_id, label, column = reference
    name = f"`{table_id}[{label}, {column}]` in estimand {formula!r}"
    if table_id not in tables:
        raise ValueError(f"{name}: there is no table {table_id!r}; there are {sorted(tables)}.")
    rows = {row["label"]: row["cells"] for row in tables[table_id]["rows"]}
    if label not in rows:
        raise ValueError(f"{name}: {table_id} has no row {label!r}; its rows are {list(rows)}.")
    if column not in rows[label]:
        raise ValueError(f"{name}: row {label} has no cell in column {column!r}; it has {list(rows[label])}.")
    return rows[label][column]


def _value_at(seed, estimand, names):
    try:
        value = _value(estimand._tree, names)
    except ZeroDivisionError:
        raise ValueError(f"estimand {estimand.formula!r} divides by zero at seed {seed}.") from None
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"estimand {estimand.formula!r} is not finite at seed {seed}: {value}.")
    return round(value, _DECIMALS) + 0.0


def _value(node, names):
    match node:
        case ast.Constant():
            return float(node.value)
        case ast.Name():
            return names[node.id]
        case ast.UnaryOp():
            return _UNARY[type(node.op)](_value(node.operand, names))
        case ast.BinOp():
            return _BINARY[type(node.op)](_value(node.left, names), _value(node.right, names))
        case ast.Call():  # `_check` let only mean through
            return _sum([_value(a, names) for a in node.args]) / len(node.args)


def _sum(values):
    return sum(values) if any(isinstance(v, ndarray) for v in values) else math.fsum(values)


def _check(node, formula):
    match node:
        case ast.Constant() if type(node.value) in (int, float):
            return
        case ast.Name() if node.id != "mean":
            return
        case ast.UnaryOp() if type(node.op) in _UNARY:
            children = [node.operand]
        case ast.BinOp() if type(node.op) in _BINARY:
            children = [node.left, node.right]
        case ast.Call(func=ast.Name(id="mean"), keywords=[]) if node.args:
            children = node.args
        case _:
            raise _refused(formula, f"`{ast.unparse(node)}` ({type(node).__name__})")
    for child in children:
        _check(child, formula)


def _refused(formula, what):
    return ValueError(
        f"`estimand` {formula!r} holds {what}. "
        "Allowed: table-id[row, column], numbers, + - * /, parentheses, mean(a, b)."
    )
