"""Figures across the papers: pure functions of a table, or of records; each gives a matplotlib figure and its rows of
data, none where nothing was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from fmseg import plots
from fmseg.freemask_figures import cells
from fmseg.labelmaps import unpack

Made = tuple[Any, list[dict[str, Any]]]
_APART = 0.26  # of columns within a row, at most


def by_seed(cell: Mapping | None) -> dict[int, float]:
    """{seed: value} of a cell; nothing of one that was not run, or that has no seeds, as ceilings have none."""
    return {int(seed): value for seed, value in cell["values"].items() if seed.isdecimal()} if cell else {}


def dots(table: dict, columns: Sequence[str], title: str, unit: str = "% mIoU") -> Made:
    """Rows from above, a point a seed, a stroke at the mean, a colour a column.

    Args:
        table: of :mod:`fmseg.tables`; a row without a measured cell of ``columns`` is left out.
        columns: what is shown. title: says what is seen. unit: of the axis.
    """
    found, rows = cells(table), []
    for label, line in found.items():
        for column in columns:
            values = by_seed(line.get(column))
            rows += [{"row": label, "column": column, "seed": s, "value": v} for s, v in values.items()]
    if not rows:
        return None, []
    labels = list(dict.fromkeys(line["row"] for line in rows))
    figure, axis = plots.new(8, max(0.42, 0.16 * len(columns)) * len(labels) + 1.1)
    for number, column in enumerate(columns):
        colour = plots.OKABE_ITO[number]
        for place, label in enumerate(labels):
            own = [line["value"] for line in rows if (line["row"], line["column"]) == (label, column)]
            at = place + (number - (len(columns) - 1) / 2) * min(_APART, 0.8 / len(columns))
            axis.plot(own, [at] * len(own), "o", ms=4, color=colour, alpha=0.6)
            if own:
                axis.plot([np.mean(own)], [at], "|", ms=12, color=colour)
        axis.plot([], [], "o", ms=4, color=colour, label=column)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel=f"{unit}; points: seeds, strokes: means", title=title)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure, rows


def one_by_another(table: dict, x: str, y: str, title: str) -> Made:
    """Two columns against each other, a colour a row, a point a seed."""
    rows = []
    for label, line in cells(table).items():
        first, then = by_seed(line.get(x)), by_seed(line.get(y))
        rows += [{"row": label, "seed": s, x: first[s], y: then[s]} for s in first if s in then]
    if not rows:
        return None, []
    figure, axis = plots.new(8, 3.6)
    for number, label in enumerate(dict.fromkeys(line["row"] for line in rows)):
        own = [line for line in rows if line["row"] == label]
        axis.plot(
            [p[x] for p in own], [p[y] for p in own], "o", ms=5, alpha=0.8, color=plots.OKABE_ITO[number], label=label
        )  # fmt: skip
    axis.set(xlabel=f"{x} (%)", ylabel=f"{y} (% mIoU)", title=title)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure, rows


def label_maps(
    images: Sequence[ndarray], maps: Mapping[str, ndarray], classes: Sequence[str], truth: ndarray | None = None
) -> Made:  # fmt: skip
    """Pictures, and below them a row of label maps of every kind; ids without a label are grey.

    Args:
        images: (H, W, 3) uint8 each. maps: {name of the row: (N, H, W) uint8 into ``classes``, 255 where nothing is
            known}. classes: names. truth: (N, H, W) uint8 that the csv compares with; None: there is none.
    """
    if not maps:
        return None, []
    pictures = [list(images), *(list(plots.paint(m, classes)) for m in maps.values())]
    rows = []
    for name, found in maps.items():
        for number, labels in enumerate(found):
            line = {"labels": name, "picture": number, "labelled (%)": round(100 * float((labels != 255).mean()), 2)}
            if truth is not None:
                line["right (%)"] = round(100 * float((labels == truth[number]).mean()), 2)
            rows.append(line)
    return plots.grid(pictures, ["image", *maps]), rows


def kept_maps(found: Mapping[str, Mapping[int, dict]], seed: int, read) -> dict[str, ndarray]:
    """{row: label maps} that the records of a seed keep.

    Args:
        found: {row: {seed: record}}. seed: whose. read: result -> packed label maps.
    """
    return {label: unpack(read(runs[seed]["result"])) for label, runs in found.items() if seed in runs}
