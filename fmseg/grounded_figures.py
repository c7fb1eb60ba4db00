"""Figures of Grounded Diffusion's tables: pure functions of a table, or of pictures and masks.

Each gives a matplotlib figure and the rows of the csv beside it, which :func:`fmseg.plots.save` takes. Cells that were
not run are named there with their reason. The paper's values are hollow diamonds; colours are the same in all figures.
"""

from collections.abc import Iterable, Mapping, Sequence
from os.path import commonprefix

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fmseg.grounded_scores import COLUMNS, THRESHOLD
from fmseg.plots import OKABE_ITO, class_colour, grid, new

Drawn = tuple  # (figure, rows of the csv)
ROW_COLOURS = {"DAAM 0.4": OKABE_ITO[5], "DAAM best": OKABE_ITO[0], "head": OKABE_ITO[3], "ceiling": "0.6"}
COLUMN_COLOURS = dict(zip(COLUMNS, OKABE_ITO, strict=False))
_PAPER = "paper"  # stands for the seed in the csv


def points(table: Mapping, labels: Iterable[str], columns: Iterable[str]) -> list[dict]:
    """One row a seed, and one for the paper's value: {"row", "column", "seed", "value"}; a cell that was not run has
    its status for a value.

    Raises:
        ValueError: the table has no such row or column; lists those it has.
    """
    cells, made = {row["label"]: row["cells"] for row in table["rows"]}, []
    for label in labels:
        if label not in cells:
            raise ValueError(f"table {table['id']} has no row {label!r}; it has {', '.join(cells)}")
        for column in columns:
            if column not in table["columns"]:
                raise ValueError(f"table {table['id']} has no column {column!r}; it has {', '.join(table['columns'])}")
            cell = cells[label].get(column)
            if cell is None:
                continue
            at = {"row": label, "column": column}
            made += [at | {"seed": seed, "value": value} for seed, value in cell["values"].items()]
            made += [] if cell["values"] else [at | {"seed": "", "value": cell["status"]}]
            if cell["paper"] and cell["paper"]["value"] is not None:
                made.append(at | {"seed": _PAPER, "value": cell["paper"]["value"]})
    return made


def _values(data: Iterable[Mapping], row: str, column: str, paper: bool = False) -> list[float]:
    mine = [d for d in data if (d["row"], d["column"]) == (row, column) and (d["seed"] == _PAPER) == paper]
    return [d["value"] for d in mine if not isinstance(d["value"], str)]


def dots(table: Mapping, rows: Mapping[str, str], columns: Sequence[str], title: str, wide: float = 7.4) -> Drawn:
    """Seeds as dots, their mean as a bar, row beside row within each column.

    Args:
        table: of :mod:`fmseg.tables`. rows: label -> colour. columns: in their order; what all names begin with is left
            out of the axis.
        title: says what is seen. wide: inches. Rows of one colour have one entry in the legend, what they begin with.
    """
    data, (figure, axis) = points(table, rows, columns), new(wide, 3.2)
    for i, column in enumerate(columns):
        for j, (label, colour) in enumerate(rows.items()):
            at = i * (len(rows) + 1) + j
            ours, said = _values(data, label, column), _values(data, label, column, paper=True)
            axis.plot([at] * len(ours), ours, "o", ms=4, color=colour, alpha=0.8)
            if ours:
                axis.plot([at - 0.35, at + 0.35], [np.mean(ours)] * 2, "-", lw=2, color=colour)
            axis.plot([at] * len(said), said, "D", ms=5, mfc="none", color=colour)
    middle = (len(rows) - 1) / 2
    axis.set_xticks([i * (len(rows) + 1) + middle for i in range(len(columns))], _short(columns))
    axis.set(ylabel=f"{table['unit']}", ylim=(0, 100))
    axis.set_title(title, fontsize=10)
    axis.tick_params(axis="x", labelsize=8)
    alike = {colour: [label for label, its in rows.items() if its == colour] for colour in rows.values()}
    for colour, labels in alike.items():
        axis.plot([], [], "o", ms=4, color=colour, label=commonprefix(labels).strip().removesuffix(" split"))
    longest = max(len(commonprefix(labels)) for labels in alike.values())
    columns_of_legend = max(1, min(len(alike), round(14 * wide / (longest + 4))))  # so many letters fit an inch
    figure.legend(frameon=False, fontsize=7, ncols=columns_of_legend, loc="outside lower center")
    return figure, data


def _short(columns: Sequence[str]) -> list[str]:
    words = [column.split() for column in columns]
    common = len({w[0] for w in words}) == 1 and len(words) > 1 and all(len(w) > 1 for w in words)
    return ["\n".join(w[1:] if common else w) for w in words]


def curves(
    table: Mapping, at: Mapping[str, float], columns: Sequence[str], xlabel: str, title: str, theirs: str = ""
) -> Drawn:
    """A line a column over numbered rows: ours on the left with a dot a seed, the paper's on the right.

    Args:
        table: of :mod:`fmseg.tables`. at: row label -> where it stands on the axis. columns: a line each.
        xlabel, title: words; ``theirs`` stands above the paper's half.
    """
    from matplotlib.figure import Figure

    data, figure = points(table, at, columns), Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for column, fallback in zip(columns, OKABE_ITO, strict=False):
        colour = COLUMN_COLOURS.get(column, fallback)
        ours = {x: _values(data, label, column) for label, x in at.items()}
        said = {x: _values(data, label, column, paper=True) for label, x in at.items()}
        for x, values in ours.items():
            left.plot([x] * len(values), values, "o", ms=2.5, color=colour, alpha=0.5)
        for axis, found, marker in ((left, ours, "-"), (right, said, "D--")):
            there = [(x, np.mean(values)) for x, values in sorted(found.items()) if values]
            axis.plot(
                *zip(*there, strict=True), marker, ms=4, mfc="none", color=colour, label=column
            ) if there else None
    for axis, words in ((left, "here"), (right, theirs or "the paper")):
        axis.set(xlabel=xlabel, ylim=(0, 100))
        axis.set_title(words, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    left.set_ylabel(table["unit"])
    if right.lines:
        right.legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure, data


def plane(table: Mapping, labels: Mapping[str, str], draw: str, title: str) -> Drawn:
    """Rows in the plane of seen and unseen, with lines of equal harmonic mean.

    Args:
        table: with columns '<draw> seen' and '<draw> unseen'. labels: row -> colour. title: says what is seen.
    """
    columns = [f"{draw} seen", f"{draw} unseen"]
    data, (figure, axis) = points(table, labels, columns), new(7.4, 4.4)
    along = np.linspace(1, 100, 200)
    for mean in (10, 20, 30, 40, 50, 60, 70, 80):
        across = mean * along / np.maximum(2 * along - mean, 1e-9)
        there = (2 * along > mean) & (across <= 100)
        axis.plot(along[there], across[there], "-", lw=0.6, color="0.85", zorder=0)
        axis.annotate(str(mean), (mean, mean), fontsize=6, color="0.6", ha="center", va="center")
    for k, (label, colour) in enumerate(labels.items()):
        seen, unseen = (_values(data, label, column) for column in columns)
        size = max(3, 8 - 0.6 * k)  # ever smaller, so that rows in one place hide nobody
        axis.plot(seen, unseen, "o", ms=size, color=colour, alpha=0.8, label=label, clip_on=False)
        said = [_values(data, label, column, paper=True) for column in columns]
        axis.plot(*said, "D", ms=6, mfc="none", color=colour)
    axis.set(xlabel=f"seen classes, {table['unit']}", ylabel=f"unseen classes, {table['unit']}", xlim=(0, 100))
    axis.set_ylim(0, 100)
    figure.suptitle(title, fontsize=10)
    figure.legend(frameon=False, fontsize=7, loc="outside right upper")
    return figure, data


def thresholds(records: Iterable[Mapping], title: str) -> Drawn:
    """DAAM's score over its threshold, a line a column, mean over the records (splits).

    Args:
        records: of DAAM, with ``curve`` of the painted set.
    """
    figure, axis = new(6.4, 3.2)
    curves, data = [r["result"]["curve"]["painted"] for r in records], []
    for column, colour in COLUMN_COLOURS.items():
        there = [curve for curve in curves if column in next(iter(curve.values()))]
        if not there:
            continue
        means = {float(t): float(np.mean([curve[t][column] for curve in there])) for t in there[0]}
        axis.plot(list(means), list(means.values()), "o-", ms=3, color=colour, label=column)
        data += [{"column": column, "threshold": t, "IoU (%)": round(v, 3)} for t, v in means.items()]
    axis.axvline(THRESHOLD, lw=0.8, color="0.6", ls=":")
    axis.set(xlabel="threshold, share of a map's range", ylabel="% IoU", ylim=(0, 100))
    axis.set_title(title, fontsize=10)
    if data:
        axis.legend(frameon=False, fontsize=7)
    return figure, data or [{"column": "", "threshold": "", "IoU (%)": "not run"}]


def as_colours(feature: Tensor) -> ndarray:
    """(C, h, w) float as (h, w, 3) uint8: the three directions in which it varies most, as red, green and blue."""
    flat = feature.float().flatten(1).T
    flat = flat - flat.mean(0)
    directions = torch.linalg.svd(flat, full_matrices=False)[2][:3]
    plane = torch.nn.functional.pad(flat @ directions.T, (0, 3 - len(directions)))
    low, high = plane.quantile(0.02, 0), plane.quantile(0.98, 0)
    scaled = ((plane - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return (255 * scaled).byte().unflatten(0, feature.shape[1:]).numpy()


def overlaid(image: ndarray, masks: ndarray, names: Sequence[str]) -> ndarray:
    """The picture dark, its masks light in their classes' colours; where masks overlap, in both.

    Args:
        image: (H, W, 3) uint8. masks: (O, H, W) bool. names: O classes of the world, or other words, which are orange.
    """
    dark, colours = image // 3, np.zeros(image.shape)
    for mask, name in zip(masks, names, strict=True):
        colours += mask[..., None] * np.array(_colour(name))
    count = masks.sum(0)[..., None]
    light = 0.55 * image + 0.45 * colours / np.maximum(count, 1)
    return np.where(count > 0, light, dark).round().astype(np.uint8)


def _colour(name: str) -> tuple[int, ...]:
    try:
        return class_colour(name)
    except ValueError:
        return tuple(int(OKABE_ITO[1][at : at + 2], 16) for at in (1, 3, 5))


def answers(images: ndarray, asked: Sequence[Mapping], rows: Mapping[str, Sequence[ndarray]]) -> Drawn:
    """Pictures with the masks that several answer, one below the other.

    Args:
        images: (N, H, W, 3) uint8. asked: N of {"column", "names"}. rows: label -> N of (names, H, W) bool.
    """
    panels, data = [list(images)], []
    for label, masks in rows.items():
        panels.append([overlaid(i, m, a["names"]) for i, m, a in zip(images, masks, asked, strict=True)])
        data += [
            {"picture": k, "column": a["column"], "asked": " and ".join(a["names"]), "row": label,
             "pixels": " ".join(str(int(one.sum())) for one in m)}
            for k, (m, a) in enumerate(zip(masks, asked, strict=True))
        ]  # fmt: skip
    titles = [f"{a['column']}:\n" + "\n".join(a["names"]) for a in asked]
    return grid(panels, ["painted", *rows], titles), data


def doubts(rows: Sequence[Mapping], title: str) -> Drawn:
    """Who answers what: IoU with the named thing's mask (dots) and with that of the other thing in the picture (rings).

    Args:
        rows: of :func:`fmseg.grounded_doubts.compared`.
    """
    figure, axis = new(7.4, 3.2)
    everyone = list(dict.fromkeys(row["who"] for row in rows))
    columns = list(dict.fromkeys(row["column"] for row in rows))
    for row in rows:
        place, colour = everyone.index(row["who"]), OKABE_ITO[everyone.index(row["who"])]
        at = columns.index(row["column"]) * (len(everyone) + 1) + place
        axis.plot([at], [row["IoU (%)"]], "o", ms=6, color=colour)
        if row["of the other (%)"] is not None:
            axis.plot([at], [row["of the other (%)"]], "o", ms=6, mfc="none", color=colour)
    for who, colour in zip(everyone, OKABE_ITO, strict=False):
        axis.plot([], [], "o", ms=6, color=colour, label=who)
    axis.plot([], [], "o", ms=6, mfc="none", color="0.4", label="with the other thing's mask")
    middle = (len(everyone) - 1) / 2
    axis.set_xticks([k * (len(everyone) + 1) + middle for k in range(len(columns))], columns, fontsize=8)
    axis.set(ylabel="% IoU with the oracle's mask", ylim=(0, 100))
    axis.set_title(title, fontsize=10)
    figure.legend(frameon=False, fontsize=7, ncols=3, loc="outside lower center")
    return figure, [dict(row) for row in rows]
