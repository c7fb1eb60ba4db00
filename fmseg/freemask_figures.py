"""Figures of FreeMask's notebooks, drawn from tables and records: each gives a matplotlib figure and its rows of data.

A figure of which nothing was measured has no data; a notebook then says so instead of showing it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from fmseg import plots

Made = tuple[Any, list[dict]]  # a matplotlib figure, and what it shows
_SPREAD = 0.12  # of points beside each other
TRAINED_ON = {"real": plots.OKABE_ITO[0], "joint": plots.OKABE_ITO[1], "real as long": plots.OKABE_ITO[2]}


def cells(table: dict) -> dict[str, dict[str, dict]]:
    """{row: {column: cell}} of a table."""
    return {row["label"]: row["cells"] for row in table["rows"]}


def by_seed(cell: dict | None) -> dict[int, float]:
    """{seed: value} of a cell; nothing of one that was not run."""
    return {int(seed): value for seed, value in cell["values"].items()} if cell else {}


def points(table: dict, rows: Sequence[str], columns: Sequence[str], title: str, unit: str | None = None) -> Made:
    """Every seed of some cells: rows side by side, a colour a column, a dash at the mean; ``unit``: the table's."""
    figure, axis = plots.new(7.5, 3.4)
    found, data = cells(table), []
    for j, column in enumerate(columns):
        at = (j - (len(columns) - 1) / 2) * 1.6 * _SPREAD
        for i, row in enumerate(rows):
            values = by_seed(found[row].get(column))
            _dots(axis, i + at, values, plots.OKABE_ITO[j])
            data += [{"row": row, "column": column, "seed": s, "value": v} for s, v in values.items()]
        axis.plot([], [], "o", color=plots.OKABE_ITO[j], label=column)
    axis.set_xticks(range(len(rows)), [row.replace(" with ", "\nwith ") for row in rows], fontsize=8)
    axis.set(ylabel=unit or table["unit"], title=title, xlim=(-0.6, len(rows) - 0.4))
    axis.legend(frameon=False, fontsize=8)
    return figure, data


def gains(pairs: Mapping[str, tuple[dict | None, dict | None]], title: str, unit: str = "points of mIoU") -> Made:
    """What was gained, seed by seed, beside what the paper gained.

    Args:
        pairs: {label: (cell after, cell before)}, or None for a cell that the table lacks.
        title: of the figure. unit: of the axis.
    """
    longest = max(len(line) for label in pairs for line in label.split("\n"))
    figure, axis = plots.new(max(4.5, max(1.2, 0.09 * longest) * len(pairs)), 3.4)
    axis.axhline(0, color="#999999", lw=0.8)
    data = []
    for i, (label, (after, before)) in enumerate(pairs.items()):
        then, first = by_seed(after), by_seed(before)
        values = {seed: then[seed] - first[seed] for seed in then if seed in first}
        paper = _paper_gain(after, before)
        _dots(axis, i, values, plots.OKABE_ITO[0])
        if paper is not None:
            axis.plot(i + 2 * _SPREAD, paper, "D", ms=7, mfc="none", color=plots.OKABE_ITO[3])
        shown = "" if paper is None else round(paper, 2)
        data += [{"pair": label, "seed": s, "gain": round(v, 4), "paper's gain": shown} for s, v in values.items()]
    axis.plot([], [], "o", color=plots.OKABE_ITO[0], label="ours, a point a seed")
    if any(row["paper's gain"] != "" for row in data):
        axis.plot([], [], "D", mfc="none", color=plots.OKABE_ITO[3], label="the paper's")
    axis.set_xticks(range(len(pairs)), list(pairs), fontsize=8)
    axis.set(ylabel=unit, title=title, xlim=(-0.6, len(pairs) - 0.4))
    axis.legend(frameon=False, fontsize=8)
    return figure, data


def _paper_gain(after: dict | None, before: dict | None) -> float | None:
    numbers = [cell["paper"] and cell["paper"]["value"] for cell in (after, before) if cell]
    return numbers[0] - numbers[1] if len(numbers) == 2 and None not in numbers else None


def _dots(axis, at: float, values: Mapping[int, float], colour: str) -> None:
    if values:
        axis.plot([at] * len(values), list(values.values()), "o", ms=5, alpha=0.6, color=colour)
        axis.plot([at - 0.8 * _SPREAD, at + 0.8 * _SPREAD], [np.mean(list(values.values()))] * 2, color=colour, lw=2)


def sweep(
    table: dict, places: Mapping[str, float], columns: Sequence[str], title: str, xlabel: str,
    units: Sequence[str] = (), level: str = "",
) -> Made:  # fmt: skip
    """Columns over a number that rows stand for: a line through the means, a point a seed.

    Args:
        table: see :func:`cells`. places: {row: its number}, ascending. columns: lines. title, xlabel: of the figure.
        units: one a column where these differ, each then has an axis of its own; else all have the table's.
        level: a row that has no number; its mean of the first column is a dashed line.
    """
    figure, axis = plots.new(7.6 if units else 5.6, 3.4)
    axes = [axis] * len(columns)
    if units:
        figure.clear()
        axes = figure.subplots(1, len(columns))
    found, data = cells(table), []
    for axis, column, colour in zip(axes, columns, plots.OKABE_ITO, strict=False):
        line = []
        for row, place in places.items():
            values = by_seed(found[row].get(column))
            axis.plot([place] * len(values), list(values.values()), "o", ms=4, alpha=0.5, color=colour)
            if values:
                line.append((place, np.mean(list(values.values()))))
            data += [{xlabel: place, "column": column, "seed": s, "value": v} for s, v in values.items()]
        if line:
            axis.plot(*zip(*line, strict=True), color=colour, label=column)
        axis.set(xlabel=xlabel, ylabel=table["unit"])
    if values := by_seed(found[level].get(columns[0])) if level else {}:
        axes[0].axhline(np.mean(list(values.values())), color="#666666", ls="--", lw=1, label=level)
        axes[0].legend(handles=axes[0].get_lines()[-1:], frameon=False, fontsize=8)
        data += [{xlabel: level, "column": columns[0], "seed": s, "value": v} for s, v in values.items()]
    for axis, column, unit in zip(axes, columns, units, strict=False):
        axis.set(ylabel=f"{column}, {unit}")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    if data and not units:
        axis.legend(frameon=False, fontsize=8)
    return figure, data


def against(table: dict, x: str, y: str, title: str, units: tuple[str, str] | None = None) -> Made:
    """One column against another, a point a seed, a colour a row; ``units``: what the axes say, else the columns."""
    figure, axis = plots.new(5.6, 3.4)
    data = []
    for (row, line), colour in zip(cells(table).items(), plots.OKABE_ITO, strict=False):
        across, up = by_seed(line.get(x)), by_seed(line.get(y))
        shared = [seed for seed in across if seed in up]
        axis.plot([across[s] for s in shared], [up[s] for s in shared], "o", ms=6, color=colour, label=row)
        data += [{"row": row, "seed": s, x: across[s], y: up[s]} for s in shared]
    axis.set(xlabel=units[0] if units else x, ylabel=units[1] if units else y, title=title)
    axis.legend(frameon=False, fontsize=8)
    return figure, data


def class_gains(pairs: Sequence[tuple[dict, dict]], classes: Sequence[str], stuff: Sequence[str], title: str) -> Made:
    """IoU of every class with something less without it, mean over pairs of records, from the largest gain to the
    largest loss.

    Args:
        pairs: (record with, record without), of one seed each. classes: names by id. stuff: those drawn in another
            colour.
    """
    figure, axis = plots.new(9, 3.4)
    data = []
    if len(pairs):
        differences = np.array([_iou(after) - _iou(before) for after, before in pairs])
        there, means = ~np.isnan(differences).any(0), differences.mean(0)
        order = [c for c in np.argsort(-means) if there[c]]
        data = [{"class": classes[c], "gain": round(float(means[c]), 2)} for c in order]
        _bars(axis, [row["gain"] for row in data], [classes[c] in stuff for c in order])
        axis.set_xticks(range(len(order)), [row["class"] for row in data], rotation=90, fontsize=6)
    axis.axhline(0, color="#999999", lw=0.8)
    axis.set(ylabel="points of IoU", title=title)
    return figure, data


def _bars(axis, heights: Sequence[float], ground: Sequence[bool]) -> None:
    """Bars of classes, things and stuff in their two colours, with a legend above them at the right."""
    for name, which, colour in (("things", False, 3), ("stuff", True, 0)):
        at = [k for k, g in enumerate(ground) if g == which]
        axis.bar(at, [heights[k] for k in at], color=plots.OKABE_ITO[colour], label=name)
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)


def kept_and_gained(
    pairs: Sequence[tuple[dict, dict]], classes: Sequence[str], stuff: Sequence[str], title: str
) -> Made:
    """Gain of a class against what the filter left of it in the synthetic pictures, mean over pairs of records, and
    Spearman's rank correlation of the two over things (in the legend); arguments as of :func:`class_gains`."""
    from scipy.stats import spearmanr

    figure, axis = plots.new(6, 3.6)
    axis.set(xlabel="pixels kept (%)", ylabel="points of IoU gained", title=title)
    axis.axhline(0, color="#999999", lw=0.8)
    if not len(pairs):
        return figure, []
    gained = np.mean([_iou(after) - _iou(before) for after, before in pairs], 0)
    kept = [[np.nan if v is None else 100 * v for v in r["result"]["synthetic"]["kept by class"]] for r, _ in pairs]
    kept = np.mean(kept, 0)
    there = ~np.isnan(gained) & ~np.isnan(kept)
    ground = np.array([name in stuff for name in classes])
    for which, name, colour in ((~ground, "things", 3), (ground, "stuff", 0)):
        rank = spearmanr(kept[which & there], gained[which & there]).statistic if (which & there).sum() > 2 else np.nan
        label = f"{name}, rank correlation {rank:.2f}" if name == "things" and not np.isnan(rank) else name
        axis.plot(kept[which & there], gained[which & there], "o", ms=4, color=plots.OKABE_ITO[colour], label=label)
    axis.legend(frameon=False, fontsize=8)
    return figure, [
        {"class": classes[c], "kept (%)": round(float(kept[c]), 2), "gain": round(float(gained[c]), 2)}
        for c in np.flatnonzero(there)
    ]


def _iou(record: dict) -> ndarray:
    return np.array([np.nan if v is None else 100 * v for v in record["result"]["iou"]])


def class_losses(record: dict, classes: Sequence[str], stuff: Sequence[str]) -> Made:
    """The paper's illustration that loss depends on the class: mean loss of every class, and what the filter leaves of
    its right pixels in generated pictures at the first margin (dossier F6). A record of `freemask-filter-truth`."""
    figure, axis = plots.new(9, 3.8)
    means = np.array(record["result"]["means"]["training"])
    counts = np.array(record["result"]["by class"].get("generated", np.zeros((len(means), 4))), float)
    right, kept = counts[:, 0] - counts[:, 1], (counts[:, 0] - counts[:, 1]) - (counts[:, 2] - counts[:, 3])
    share = np.divide(100 * kept, right, out=np.full(len(means), np.nan), where=right > 0)
    order = [c for c in np.argsort(means) if means[c] > 0]
    data = [{"class": classes[c], "mean loss": round(float(means[c]), 4),
             "right pixels kept (%)": "" if np.isnan(share[c]) else round(float(share[c]), 2)}
            for c in order]  # fmt: skip
    _bars(axis, means[order], [classes[c] in stuff for c in order])
    axis.set_xticks(range(len(order)), [classes[c] for c in order], rotation=90, fontsize=6)
    axis.set(ylabel="mean loss (nats)", title="Loss depends on the class; dots: what the filter keeps")
    other = axis.twinx()
    other.plot(range(len(order)), share[order], "o", ms=3, color="black")
    other.set(ylabel=f"right pixels kept at margin {record['config']['alphas'][0]:g} (%)", ylim=(0, 105))
    other.spines["top"].set_visible(False)
    return figure, data


def rates(table: dict, rows: Mapping[str, Sequence[str]], title: str) -> Made:
    """Recall against precision and against the right things kept, means over seeds, a line a group of rows.

    Args:
        table: `freemask-filter-truth`. rows: {group: its rows, along the line}.
    """
    figure, axis = plots.new(8, 3.6)
    figure.clear()
    axes, found, data = figure.subplots(1, 2), cells(table), []
    for (group, labels), colour in zip(rows.items(), plots.OKABE_ITO, strict=False):
        lines = [(label, found[label]) for label in labels if found[label]["recall"]["n"]]
        for axis, column in zip(axes, ("precision", "right things kept"), strict=True):
            there = [cell for _, cell in lines if cell[column]["n"]]
            axis.plot([c["recall"]["mean"] for c in there], [c[column]["mean"] for c in there], "o-", ms=4,
                      color=colour, label=group)  # fmt: skip
            axis.set(xlabel="recall of wrong pixels (%)", ylabel=f"{column} (%)", xlim=(0, 102), ylim=(-2, 102))
            axis.spines[["top", "right"]].set_visible(False)
        data += [{"group": group, "row": label} | {c: cell[c]["mean"] for c in ("recall", "precision")
                                                  if cell[c]["n"]} for label, cell in lines]  # fmt: skip
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure, [row for row in data if "precision" in row]


def rates_by_class(rows: Sequence[Mapping[str, Any]], stuff: Sequence[str], marked: float) -> Made:
    """Precision and recall of the filter over the margin, a line a class; a dotted line at the paper's margin.

    Args:
        rows: "class", "alpha", "precision" and "recall" in percent; NaN where a class has nothing to find or drops
            nothing. stuff: classes drawn in another colour. marked: the paper's margin.
    """
    figure, axis = plots.new(8, 3.6)
    figure.clear()
    axes = figure.subplots(1, 2, sharey=True)
    for name in dict.fromkeys(row["class"] for row in rows):
        own = [row for row in rows if row["class"] == name]
        for axis, measure in zip(axes, ("precision", "recall"), strict=True):
            axis.plot([r["alpha"] for r in own], [r[measure] for r in own], "-", lw=0.8, alpha=0.6,
                      color=plots.OKABE_ITO[0 if name in stuff else 3])  # fmt: skip
    for axis, measure in zip(axes, ("precision", "recall"), strict=True):
        axis.axvline(marked, color="#666666", ls=":", lw=1)
        axis.set(xscale="log", xlabel="margin", ylabel=f"{measure} (%)", ylim=(-2, 102))
        alphas = sorted({row["alpha"] for row in rows})[::2]  # the others' labels would run into these
        axis.set_xticks(alphas, [f"{a:g}" for a in alphas], fontsize=7)
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    for name, colour in (("things", 3), ("stuff", 0)):
        axes[1].plot([], [], color=plots.OKABE_ITO[colour], label=name)
    axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle("One margin, as many detectors as classes", fontsize=10)
    measured = [{k: row[k] for k in ("class", "alpha", "precision", "recall")} for row in rows]
    return figure, [{k: "" if v != v else round(v, 2) if k in ("precision", "recall") else v for k, v in row.items()}
                    for row in measured]  # fmt: skip


def chain(real: ndarray, mask: ndarray, painted: Sequence[ndarray], filtered: Sequence[ndarray]) -> Made:
    """The paper's figure of the whole chain (F2 of the dossier) with real pictures in it.

    Args:
        real, mask: (H, W, 3) uint8 pictures of an image and its mask. painted: pictures made for the mask. filtered:
            the mask as the filter leaves it, one a picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4))
    places = {  # what: left, bottom, width of an axis; in shares of the figure
        "real image": (real, 0.02, 0.56), "its mask": (mask, 0.02, 0.1),
        **{f"synthetic {k + 1}": (p, 0.36 + 0.11 * k, 0.56) for k, p in enumerate(painted)},
        **{f"filtered {k + 1}": (p, 0.36 + 0.11 * k, 0.1) for k, p in enumerate(filtered)},
    }  # fmt: skip
    for title, (picture, left, bottom) in places.items():
        axis = figure.add_axes((left, bottom, 0.1, 0.28))
        axis.imshow(picture, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_title(title, fontsize=7)
    words = {"generator": (0.24, 0.46), "segmenter": (0.9, 0.46)}
    for word, (left, bottom) in words.items():
        figure.text(
            left, bottom, word, ha="center", va="center", fontsize=9, bbox={"boxstyle": "round", "fc": "#eeeeee"}
        )
    figure.text(0.27, 0.33, "mask and noise in,\npicture out", ha="center", fontsize=7)
    figure.text(
        0.9, 0.3, "before the real images\n(pre-training) or with\nthem (joint training)", ha="center", fontsize=7
    )
    for start, end in (((0.125, 0.28), (0.185, 0.43)), ((0.29, 0.46), (0.35, 0.46)),
                       ((0.37 + 0.11 * len(painted), 0.46), (0.84, 0.46))):  # fmt: skip
        _arrow(figure, start, end)
    figure.text(0.36, 0.45, "a filter ignores what went wrong, hard masks get more pictures", fontsize=7)
    return figure, [{"panel": title} for title in (*places, *words)]


def frame(axis, boxes: Sequence[tuple[int, int, int, int]], colour: str = "#ff00ff") -> None:
    """Draw boxes, as :func:`fmseg.freemask_mistakes.fault_boxes` gives them, round pixels of an axis's picture."""
    from matplotlib.patches import Rectangle

    for top, left, bottom, right in boxes:
        corner, wide, high = (left - 0.5, top - 0.5), right - left, bottom - top  # pixel k reaches from k - 0.5
        axis.add_patch(Rectangle(corner, wide, high, fill=False, ec=colour, lw=1.6, clip_on=False))


def _arrow(figure, start: tuple[float, float], end: tuple[float, float]) -> None:
    from matplotlib.patches import FancyArrowPatch

    figure.add_artist(
        FancyArrowPatch(start, end, transform=figure.transFigure, arrowstyle="-|>", mutation_scale=12, color="#555555")
    )
