"""What Grounded Diffusion's tables say, in computed sentences: differences between rows, falls between columns."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fmseg import image_counts
from fmseg.datasets import get_draw
from fmseg.grounded_images import MILLION
from fmseg.names import COCO, VOC
from fmseg.tables import cell as cell_of
from fmseg.tables import mean_sd

NOT_RUN = "not run"


def difference(one: Mapping, other: Mapping) -> str:
    """The mean difference of two cells over the seeds that both have: "+3.1 ± 0.4"; or "not run".

    Args:
        one, other: cells of :mod:`fmseg.tables`.
    """
    shared = [seed for seed in one["values"] if seed in other["values"]]
    if not shared:
        return NOT_RUN
    values = {seed: one["values"][seed] - other["values"][seed] for seed in shared}
    text = mean_sd(cell_of(values))
    return text if text.startswith("-") else f"+{text}"


def between_rows(table: Mapping, row: str, other: str, columns: Iterable[str]) -> str:
    """A line a column: how far ``row`` lies above ``other``, here and in the paper."""
    cells = _cells(table, row, other)
    lines = []
    for column in columns:
        a, b = cells[row][column], cells[other][column]
        printed = [c["paper"]["value"] for c in (a, b) if c["paper"] and c["paper"]["value"] is not None]
        said = f"; paper {printed[0] - printed[1]:+.1f}" if len(printed) == 2 else ""
        lines.append(f"  {column}: {difference(a, b)}{said}")
    return "\n".join([f"{row} minus {other}", *lines])


def between_columns(table: Mapping, rows: Iterable[str], pairs: Sequence[tuple[str, str]]) -> str:
    """A line a row and pair of columns: how much is lost from the first column to the second."""
    lines = []
    for row in rows:
        cells = _cells(table, row)[row]
        for first, second in pairs:
            lines.append(f"{row}, from {first} to {second}: {difference(cells[second], cells[first])}")
    return "\n".join(lines)


def of_classes(record: Mapping, column: str, names: Sequence[str], known: Sequence[str]) -> float | None:
    """Percent: a run's mean IoU over some classes of a column, from what its record says of each test picture.

    Table 4 means over all seen, or all unseen, classes, which are others in every row; the same ones can be compared.

    Args:
        record: of a head on painted test pictures. column: of Protocol I. names: classes; those that no test picture of
            the column shows are left out, and None is returned where that is all of them.
        known: all classes of the draw or data set, in any order.
    """
    kept, draw = record["result"]["images"]["painted"], record["config"]["draw"]
    by_id = (get_draw(draw).classes, {"voc": VOC, "coco": COCO}[draw])
    things = next([c for c in classes if c != "background"] for classes in by_id if set(known) <= set(classes))
    sums = image_counts.unpack(kept["counts"]).sum(0).reshape(len(kept["columns"]), len(things), -1)
    total, count = sums[kept["columns"].index(column), [things.index(name) for name in names], :2].T
    there = count > 0
    return float(100 * np.mean(total[there] / count[there]) / MILLION) if there.any() else None


def answered(record: Mapping, first: int) -> float:
    """Percent: pixels on which a segmenter of Protocol II answers with a class from id ``first`` on, of the pixels that
    show one. 100 where it names unseen classes as often as they are there, 0 where it has given them up."""
    _, truth, guess = image_counts.unpack(record["result"]["images"]).sum(0)[first:].sum(0)
    return 100 * float(guess / truth)


def order(table: Mapping, rows: Iterable[str], column: str) -> str:
    """The rows from best to worst in a column, with their means; those that were not run come last."""
    cells = _cells(table, *rows)
    ran = sorted((r for r in cells if cells[r][column]["n"]), key=lambda r: -cells[r][column]["mean"])
    idle = [r for r in cells if not cells[r][column]["n"]]
    best = " > ".join(f"{r} {cells[r][column]['mean']:.1f}" for r in ran)
    return f"{column}: " + "; ".join(filter(None, [best, f"{NOT_RUN}: {', '.join(idle)}" if idle else ""]))


def _cells(table: Mapping, *rows: str) -> dict[str, dict]:
    there = {row["label"]: row["cells"] for row in table["rows"]}
    missing = [row for row in rows if row not in there]
    if missing:
        raise ValueError(f"table {table['id']} has no row {missing[0]!r}; it has {', '.join(there)}")
    return {row: there[row] for row in rows}
