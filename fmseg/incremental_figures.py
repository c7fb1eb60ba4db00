"""Figures of class-incremental tables. Each takes a table or records and returns a figure with the rows of its csv.

Where nothing was measured the rows are empty, and the notebook says so instead of showing a picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmseg import image_counts, plots
from fmseg.fmwiss_paper import PRINTED
from fmseg.incremental_tables import measured
from fmseg.protocols import get
from fmseg.stats import contrast

PIXELS, WORDS, OURS = plots.OKABE_ITO[0], plots.OKABE_ITO[1], plots.OKABE_ITO[3]  # what a method may see; FMWISS
SUPERVISION = {row.label: row.supervision for rows in PRINTED.values() for row in rows}
GROUPS = {"old": plots.OKABE_ITO[0], "new": plots.OKABE_ITO[1], "all": plots.OKABE_ITO[2]}
STAGE_COLOURS = plots.OKABE_ITO[:3]  # precision, recall, IoU
_LINES = {"FMWISS": OURS, "WILSON": plots.OKABE_ITO[0], "MiB": plots.OKABE_ITO[2], "FT": plots.OKABE_ITO[4]}
LEARNED_FROM = {"CAM": "cam", "SS": "ss", "WILSON": "wilson", "FMWISS": "teacher"}  # row -> masks in its records
_FAULT_COLOURS = (plots.OKABE_ITO[0], "0.75", plots.OKABE_ITO[1])
_MASK_COLOURS = (plots.OKABE_ITO[2], plots.OKABE_ITO[4], plots.OKABE_ITO[0], OURS)
Rows = list[dict[str, Any]]


def cells_of(table: dict) -> dict[str, dict[str, dict]]:
    """{row label: {column: cell}} of a table."""
    return {row["label"]: row["cells"] for row in table["rows"]}


def old_and_new(table: dict, columns: Mapping[str, Mapping[str, str]]) -> tuple[Any, Rows]:
    """What methods keep and what they learn: new classes over old ones; above as measured, below as printed.

    Args:
        table: one of tables 1 to 3. columns: {setting: {"old": column, "new": column, ...}}.
    """
    figure, axes = _panels(2, len(columns), (4.4, 3.5))
    cells, rows = cells_of(table), []
    for k, (setting, names) in enumerate(columns.items()):
        for axis, kind in zip(axes[:, k], ("measured", "paper"), strict=True):
            points = {label: _point(own, names, kind) for label, own in cells.items() if label in SUPERVISION}
            points = {label: point for label, point in points.items() if point}
            for label, (x, y, n) in points.items():
                axis.plot(
                    x, y, "*" if label == "FMWISS" else "o", ms=9 if label == "FMWISS" else 5, color=_colour(label)
                )
                rows.append({"setting": setting, "source": kind, "row": label, "old": x, "new": y, "n": n})
            _name(axis, points)
            axis.set(xlabel="old classes, mIoU (%)", ylabel="new classes, mIoU (%)", title=f"{setting}, {kind}")
    for colour, word in ((PIXELS, "pixel labels"), (WORDS, "image labels"), (OURS, "FMWISS")):
        axes[0][0].plot([], [], "o", color=colour, label=word)
    _legend_below(figure, axes[0][0])
    return figure, rows if any(row["source"] == "measured" for row in rows) else []


def differences(
    table: dict, columns: Mapping[str, Mapping[str, str]], one: str = "FMWISS", other: str = "WILSON"
) -> tuple[Any, Rows]:
    """One row of a table less another, seed by seed, in every setting and group of classes; the paper's difference."""
    cells, asked = cells_of(table), []
    for names in columns.values():
        asked += [names[group] for group in names if group != "forgetting"]
    lines = [(column, _paired(cells[one][column], cells[other][column])) for column in asked]
    printed = {column: _printed(cells[one][column], cells[other][column]) for column in asked}
    figure, rows = _dots(lines, f"{one} less {other}, points of mIoU", printed)
    return figure, rows


def variants(
    table: dict, labels: Sequence[str], standard: str = "FMWISS", columns: Sequence[str] = ("old", "new")
) -> tuple[Any, Rows]:
    """Rows of an ablation less its standard row, seed by seed, a panel a column."""
    cells = cells_of(table)
    return gains(
        {column: [(label, _paired(cells[label][column], cells[standard][column])) for label in labels]
         for column in columns}, "points of mIoU beside the standard row",
    )  # fmt: skip


def gains(panels: Mapping[str, Sequence[tuple[str, Mapping]]], words: str) -> tuple[Any, Rows]:
    """Differences {seed: points} by label, a panel a group of classes; ``words`` name the axis."""
    most, rows = max(map(len, panels.values())), []
    figure, axes = _panels(1, len(panels), (3.9, 0.3 * most + 1.1), sharey=True)
    for axis, (group, lines) in zip(axes[0], panels.items(), strict=True):
        rows += [{"column": group} | row for row in _draw_dots(axis, lines, {})]
        axis.set(title=f"{group} classes", xlabel=words)
    return figure, rows


def course(
    table: dict, points: Mapping[float, str], words: str, columns: Sequence[str] = ("old", "new", "all"),
    standard: float | None = None,
) -> tuple[Any, Rows]:  # fmt: skip
    """mIoU over the values of one option, evenly spaced; points are seeds, lines their means.

    Args:
        table: an ablation. points: {value: row label}. words: what the option is called. standard: its usual value.
    """
    figure, axis = plots.new(6.4, 3.2)
    cells, rows, values = cells_of(table), [], sorted(points)
    for column in columns:
        at, heights = [], []
        for k, value in enumerate(values):
            seeds = cells[points[value]][column]["values"]
            axis.plot([k] * len(seeds), list(seeds.values()), "o", ms=3, color=GROUPS[column], alpha=0.5)
            rows += [{words: value, "column": column, "seed": s, "mIoU (%)": v} for s, v in seeds.items()]
            at, heights = (at + [k], heights + [float(np.mean(list(seeds.values())))]) if seeds else (at, heights)
        axis.plot(at, heights, "-", color=GROUPS[column], label=column)
    if standard in values:
        axis.axvline(values.index(standard), color="0.7", ls=":", label="standard")
    axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axis.set(xlabel=words, ylabel="mIoU (%)", title=f"{words.capitalize()}: lines are means, points seeds")
    axis.legend(frameon=False, fontsize=7)
    return figure, rows


def efficiency(table: dict, shares: Mapping[float, Mapping[str, str]], column: str = "new") -> tuple[Any, Rows]:
    """How far do fewer pictures carry? Two methods over the share of the step's pictures; dashed: the second with all.

    Args:
        table: ``fmwiss-ab-data``. shares: {share: {method: row label}}, in (0, 1]. column: of the table.
    """
    figure, axis = plots.new(6.4, 3.4)
    cells, rows = cells_of(table), []
    for method in next(iter(shares.values())):
        there = {share: cells[own[method]][column]["values"] for share, own in sorted(shares.items())}
        there = {share: seeds for share, seeds in there.items() if seeds}
        heights = [float(np.mean(list(seeds.values()))) for seeds in there.values()]
        axis.plot([100 * share for share in there], heights, "o-", color=_LINES[method], label=method)
        for share, seeds in there.items():
            axis.plot([100 * share] * len(seeds), list(seeds.values()), ".", color=_LINES[method], alpha=0.5)
            rows += [{"method": method, "share": share, "seed": s, "mIoU (%)": v} for s, v in seeds.items()]
        if there and method != "FMWISS":
            axis.axhline(heights[-1], color=_LINES[method], ls="--", lw=0.8)
    axis.set(xlabel="% of the step's pictures", ylabel=f"{column} classes, mIoU (%)", ylim=(0, None))
    axis.set_title("With fewer pictures; dashed: WILSON with all")
    if rows:
        axis.legend(frameon=False, fontsize=8)
    return figure, rows


def stages(table: dict, measures: Sequence[str] = ("precision", "recall", "IoU")) -> tuple[Any, Rows]:
    """Pseudo-labels after each stage, and the student that learned from them (diamonds)."""
    cells = cells_of(table)
    students, rows = table["columns"][-1], []
    figure, axis = plots.new(8, 3.4)
    for k, (measure, colour) in enumerate(zip(measures, STAGE_COLOURS, strict=True)):
        for at, (label, own) in enumerate(cells.items()):
            if own[measure]["n"]:
                axis.bar(at + 0.26 * (k - 1), own[measure]["mean"], 0.24, color=colour, label=None if at else measure)
                rows.append({"stage": label, "what": measure, "mean": own[measure]["mean"], "n": own[measure]["n"]})
    for at, (label, own) in enumerate(cells.items()):
        if students in own and own[students]["n"]:
            axis.plot(at, own[students]["mean"], "D", color="black", label=None if at else students)
            rows.append({"stage": label, "what": students, "mean": own[students]["mean"], "n": own[students]["n"]})
    axis.set_xticks(range(len(cells)), list(cells), fontsize=7)
    axis.set(ylabel="%", ylim=(0, 118), title="From words to masks: how right each stage is")
    if rows:
        axis.legend(frameon=False, ncols=4, fontsize=7, loc="upper center")
    return figure, rows


def by_class(listed: Mapping[str, Sequence[dict]]) -> tuple[Any, Rows]:
    """IoU of every class, new ones right of the dotted line; the grey step is the first method's base model.

    Args:
        listed: {row label: :func:`fmseg.fmwiss_tables.per_class`}.
    """
    figure, axis = plots.new(9, 3.4)
    listed = {label: found for label, found in listed.items() if any(c["n"] for c in found)}
    rows = [{"row": label} | c for label, found in listed.items() for c in found]
    if not rows:
        return figure, []
    first = next(iter(listed.values()))
    before = [np.nan if c["forgotten"] is None else c["iou"] + c["forgotten"] for c in first]
    base = f"{next(iter(listed))} before the step"
    axis.step(np.arange(-0.5, len(first)), [*before, np.nan], where="post", color="0.6", lw=1, label=base)
    beside = np.linspace(-0.2, 0.2, len(listed))  # or markers would hide each other
    for (label, found), marker, shift in zip(listed.items(), "*o^sDv", beside, strict=False):
        heights = [np.nan if c["iou"] is None else c["iou"] for c in found]
        at = np.arange(len(heights)) + shift
        axis.plot(at, heights, marker, ms=5, color=_LINES.get(label, "0.3"), label=label)
    axis.axvline(sum(c["step"] == 0 for c in first) - 0.5, color="0.6", ls=":")
    axis.set_xticks(range(len(first)), [c["name"] for c in first], rotation=90, fontsize=6)
    axis.set(ylabel="IoU (%)", ylim=(-2, 118), title="Class by class: old to the left of the line, new to the right")
    axis.legend(frameon=False, fontsize=7, ncols=5, loc="upper center")
    return figure, rows


def two_sets(table: dict, first: str, second: str) -> tuple[Any, Rows]:
    """The same classes judged on two validation sets: a line a method, from one column to the other."""
    cells = {label: own for label, own in cells_of(table).items() if label in SUPERVISION}
    there = {label: own for label, own in cells.items() if own[first]["n"] and own[second]["n"]}
    figure, axis = plots.new(6, 0.3 * len(there) + 1.2)
    rows = []
    for at, (label, own) in enumerate(there.items()):
        pair = own[first]["mean"], own[second]["mean"]
        axis.plot(pair, [at, at], "-", color=_colour(label), lw=1)
        for value, column, marker in zip(pair, (first, second), "os", strict=True):
            axis.plot(value, at, marker, color=_colour(label))
            rows.append({"row": label, "column": column, "mIoU (%)": value, "n": own[column]["n"]})
    axis.set_yticks(range(len(there)), list(there), fontsize=8)
    axis.set(xlabel="new classes, mIoU (%)", title=f"Circles: {first}; squares: {second}")
    axis.invert_yaxis()
    return figure, rows


def predictions(
    images: np.ndarray, truth: np.ndarray, maps: Mapping[str, np.ndarray], order: Sequence[str]
) -> tuple[Any, Rows]:
    """Pictures in rows: the image, what each method says, the truth, in the colours of the classes.

    Args:
        images: (n, H, W, 3) uint8. truth: (n, H, W) uint8 logits or 255. maps: {method: the same form}.
        order: class names by logit.
    """
    rows, pictures, names = [], [], []
    for i in range(len(images)):
        pictures.append(
            [images[i], *(plots.paint(own[i], order) for own in maps.values()), plots.paint(truth[i], order)]
        )
        seen = [order[c] for c in np.unique(truth[i]) if 0 < c < len(order)]
        names.append("\n".join(seen))
        for method, own in maps.items():
            right = (own[i] == truth[i])[truth[i] != 255].mean()
            rows.append({"image": i, "classes": "; ".join(seen), "method": method, "pixels right (%)": 100 * right})
    rows = [row | {"pixels right (%)": round(float(row["pixels right (%)"]), 2)} for row in rows]
    return plots.grid(pictures, names, ["image", *maps, "truth"], 1.3), rows


def masks_and_students(found: Mapping[tuple[str, str], Mapping[int, dict]]) -> tuple[Any, Rows]:
    """What students of image labels were shown and what they made of it, a point a run: IoU of the masks of new classes
    on the step's own pictures against the truth, and mIoU of new classes on the validation set.

    Args:
        found: {(row, setting): {seed: record}}, as of :func:`fmseg.incremental_tables.by_place`.
    """
    rows = [
        {"setting": setting, "row": label, "seed": seed, "masks (IoU, %)": round(100 * masks["iou"], 4),
         "new classes (mIoU, %)": round(measured(record, setting)["new"], 4)}
        for (label, setting), runs in found.items() if label in LEARNED_FROM
        for seed, record in runs.items() if (masks := record["result"].get("masks", {}).get(LEARNED_FROM[label]))
    ]  # fmt: skip
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure, axes = _panels(1, max(1, len(settings)), (3.8, 3.3), sharey=True)
    for axis, setting in zip(axes[0], settings, strict=False):
        for label, colour in zip(LEARNED_FROM, _MASK_COLOURS, strict=True):
            own = [row for row in rows if (row["setting"], row["row"]) == (setting, label)]
            x, y = ([row[key] for row in own] for key in ("masks (IoU, %)", "new classes (mIoU, %)"))
            form = {"marker": "*", "ms": 8} if label == "FMWISS" else {"marker": "o", "ms": 5}
            axis.plot(x, y, ls="", color=colour, label=label, **form)
        axis.set(xlabel="masks learned from, IoU (%)", title=setting)
    axes[0][0].set(ylabel="new classes, mIoU (%)")
    if rows:
        axes[0][0].legend(frameon=False, fontsize=7)
    return figure, rows


def faults(found: Mapping[tuple[str, str], Mapping[int, dict]]) -> tuple[Any, Rows]:
    """What pixels are wrongly called, a bar a row of a table: something old, background, or something new that is not
    there; in percent of the pixels of new classes, means over seeds. The rows also say how many of these were found.

    Args:
        found: as :func:`masks_and_students`; records without counts of images, and joint training, are passed over.
    """
    rows = []
    for (label, setting), runs in found.items():
        counted = [r for r in runs.values() if "images" in r["result"] and r["config"]["base"] is not None]
        shares = np.mean([_wrongly(record) for record in counted], axis=0) if counted else ()
        if len(shares):
            names = ("wrongly old", "wrongly background", "wrongly new", "new found")
            rows.append({"setting": setting, "row": label} | {f"{n} (%)": round(100 * float(v), 2) for n, v in
                        zip(names, shares, strict=True)})  # fmt: skip
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure, axes = _panels(1, max(1, len(settings)), (4.6, 3.6), sharex=True, sharey=True)
    for axis, setting in zip(axes[0], settings, strict=False):
        own = [row for row in rows if row["setting"] == setting]
        left = np.zeros(len(own))
        for name, colour in zip(("wrongly old", "wrongly background", "wrongly new"), _FAULT_COLOURS, strict=True):
            wide = np.array([row[f"{name} (%)"] for row in own])
            axis.barh([row["row"] for row in own], wide, 0.7, left=left, color=colour, label=name)
            left += wide
        axis.set(xlabel="% of the pixels of new classes", title=setting)
        axis.tick_params(axis="y", labelsize=7)
    if rows:
        axes[0][0].invert_yaxis()
        _legend_below(figure, axes[0][0])
    return figure, rows


# -- parts ------------------------------------------------------------------------------------------------------------


def _legend_below(figure, axis) -> None:
    words = axis.get_legend_handles_labels()
    figure.legend(*words, loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _wrongly(record: dict) -> tuple[float, float, float, float]:
    """Pixels wrongly called old, background, new, and those of new classes that were found; by the number of these."""
    groups = get(record["config"]["protocol"]).groups()
    right, truth, guess = image_counts.unpack(record["result"]["images"]).sum(0).T
    new, old, wrong = groups["new"], groups["old"], guess - right
    return tuple(part / truth[new].sum() for part in (wrong[old].sum(), wrong[0], wrong[new].sum(), right[new].sum()))


def _panels(high: int, wide: int, each: tuple[float, float], **options):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(each[0] * wide, each[1] * high), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colour(label: str) -> str:
    return OURS if label == "FMWISS" else PIXELS if SUPERVISION.get(label) == "P" else WORDS


def _point(cells: dict, names: Mapping[str, str], kind: str) -> tuple[float, float, int] | None:
    """(old, new, seeds) of a row in a setting."""
    old, new = (cells[names[group]] for group in ("old", "new"))
    if kind == "measured":
        return (old["mean"], new["mean"], min(old["n"], new["n"])) if old["n"] and new["n"] else None
    return (old["paper"]["value"], new["paper"]["value"], 0) if old["paper"] and new["paper"] else None


def _name(axis, points: Mapping[str, tuple[float, float, int]]) -> None:
    """Names at the right margin, in the points' order and apart from each other, with thin lines to the points."""
    if not points:
        return
    ordered = sorted(points, key=lambda label: points[label][1])
    low, high = axis.get_ylim()
    right, step = axis.get_xlim()[1], (high - low) / 17
    spread = [points[label][1] for label in ordered]
    for _ in range(200):  # neighbours that are too near push each other away
        for k in range(1, len(spread)):
            push = max(0.0, step - (spread[k] - spread[k - 1])) / 2
            spread[k], spread[k - 1] = spread[k] + push, spread[k - 1] - push
    left = axis.get_xlim()[0]
    axis.set_xlim(left, right + 0.3 * (right - left))
    axis.set_ylim(min(low, spread[0] - step / 2), max(high, spread[-1] + step / 2))
    for label, y in zip(ordered, spread, strict=True):
        axis.annotate(
            label, points[label][:2], (right + 0.05 * (right - left), y), fontsize=6.5, va="center",
            color=_colour(label), arrowprops={"arrowstyle": "-", "color": "0.85", "lw": 0.6},
        )  # fmt: skip


def _paired(one: dict, other: dict) -> dict[str, float]:
    """{seed: difference} over the seeds that both cells have."""
    return {s: one["values"][s] - other["values"][s] for s in one["values"] if s in other["values"]}


def _printed(one: dict, other: dict) -> float | None:
    there = one["paper"] and other["paper"] and None not in (one["paper"]["value"], other["paper"]["value"])
    return one["paper"]["value"] - other["paper"]["value"] if there else None


def _dots(lines: Sequence[tuple], words: str, printed: Mapping[str, float | None]) -> tuple[Any, Rows]:
    figure, axis = plots.new(7, 0.32 * len(lines) + 1.1)
    rows = _draw_dots(axis, lines, printed)
    axis.set(xlabel=words)
    axis.set_title("Points: seeds; bars: mean and interval; diamonds: the paper", fontsize=9)
    return figure, rows


def _draw_dots(axis, lines: Sequence[tuple], printed: Mapping[str, float | None]) -> Rows:
    """Differences by seed with mean and 95 % interval, a line a label; the csv's rows."""
    rows = []
    for at, (label, values) in enumerate(lines):
        axis.plot(list(values.values()), [at] * len(values), "o", ms=4, color="0.6")
        if len(values) > 1:
            found = contrast(values)
            axis.plot([found.low, found.high], [at, at], "-", color="black", lw=1.2)
            axis.plot(found.mean, at, "|", ms=9, color="black")
        if values and printed.get(label) is not None:
            axis.plot(printed[label], at, "D", ms=5, mfc="none", color=OURS)
        paper = printed.get(label)
        shown = "" if paper is None else round(paper, 4)
        rows += [{"what": label, "seed": s, "difference": round(v, 4), "paper": shown} for s, v in values.items()]
    axis.axvline(0, color="0.7", lw=0.8)
    axis.set_yticks(range(len(lines)), [label for label, _ in lines], fontsize=7)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    return rows
