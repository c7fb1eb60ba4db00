"""What class-incremental tables say, in sentences that are computed from their cells; and the pictures beside them."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fmseg import claims
from fmseg.datasets import draw_set
from fmseg.estimand import parse
from fmseg.experiment import Experiment, behind, judge, on_real_data
from fmseg.fmwiss_paper import PRINTED
from fmseg.incremental_configs import protocol_of
from fmseg.incremental_data import STEP, draws_of
from fmseg.incremental_figures import cells_of
from fmseg.ledger import effect
from fmseg.ledger import paper_values as _paper_values
from fmseg.protocols import get
from fmseg.settings import Settings

METHODS = {row.label for rows in PRINTED.values() for row in rows}  # all other rows are bounds, or before the step


def judged(
    id: str, settings: Settings, tables: Mapping[str, dict], experiments: Mapping[str, Experiment]
) -> list[dict]:  # fmt: skip
    """Verdicts of the claims that a table decides, alone or with tables made before it, as the ledger has them.

    Args:
        id: of the table; a claim belongs to the first table of its estimand.
        settings: the profile.
        tables: {id: table}, those that such claims read. experiments: the same ids; their records name the rules.
    """
    listed = claims.testable(claims.load(settings.root / "claims.yaml"))
    listed = [c for c in listed if parse(c["estimand"]).tables[0] == id]
    records = {k: behind(experiments[k], settings) for k in tables}
    return judge(listed, tables, records, experiments, settings)


def verdict_lines(found: Iterable[dict]) -> str:
    """Markdown: a line a claim with its verdict, the measured effect and the paper's difference."""
    lines = []
    for entry in found:
        printed = entry["paper_values"].get("difference")
        paper = f"; the paper's {_paper_values({'difference': printed})}" if printed else ""
        measured = f": {effect(entry)} over {entry['n']} pairs" if entry["mean"] is not None else ""
        lines.append(f"* {entry['says']}: **{entry['text']}**{measured}{paper} (`{entry['id']}`)")
    return "\n".join(lines) or "No claim rests on this table."


def ranking(table: dict, column: str) -> str:
    """The methods of a column, best first, with their means; the other rows are left out."""
    there = {label: own[column]["mean"] for label, own in cells_of(table).items()
             if label in METHODS and column in own and own[column]["n"]}  # fmt: skip
    if not there:
        return f"{column}: nothing was run in this profile"
    return f"{column}: " + ", ".join(f"{k} {v:.1f}" for k, v in sorted(there.items(), key=lambda pair: -pair[1]))


def agreement(table: dict, column: str) -> tuple[float, int]:
    """Spearman's rank correlation of our means with the paper's over the rows that have both, and how many these are.

    NaN with fewer than three rows, or where all are level.
    """
    pairs = [(own[column]["mean"], own[column]["paper"]["value"]) for own in cells_of(table).values()
             if column in own and own[column]["n"] and own[column]["paper"]]  # fmt: skip
    pairs = [pair for pair in pairs if pair[1] is not None]
    if len(pairs) < 3 or min(len(set(side)) for side in zip(*pairs, strict=True)) == 1:
        return float("nan"), len(pairs)
    from scipy.stats import spearmanr

    return float(spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)


def kept(table: dict, columns: Mapping[str, Mapping[str, str]], methods: Sequence[str]) -> str:
    """For each setting and method: old classes after the step, new ones, and points forgotten."""
    cells, lines = cells_of(table), []
    for setting, names in columns.items():
        for label in methods:
            own = {group: cells[label][names[group]] for group in ("old", "new", "forgetting")}
            if own["old"]["n"]:
                lost = f", {own['forgetting']['mean']:.1f} forgotten" if own["forgetting"]["n"] else ""
                lines.append(
                    f"{setting:15} {label:7} old {own['old']['mean']:5.1f}, new {own['new']['mean']:5.1f}{lost}"
                )
    return "\n".join(lines) or "nothing was run in this profile"


def masks(rows: Sequence[Mapping]) -> str:
    """Rows of :func:`fmseg.incremental_figures.masks_and_students` in a line a method and setting, the best masks last,
    and for each setting the rank correlation of masks and students over its runs."""
    shown, learned, lines = "masks (IoU, %)", "new classes (mIoU, %)", []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == setting]
        means = {}
        for label in dict.fromkeys(row["row"] for row in own):
            mine = [row for row in own if row["row"] == label]
            means[label] = [float(np.mean([row[key] for row in mine])) for key in (shown, learned)]
        lines += [
            f"{setting:15} {label:7} masks {x:5.1f} IoU, their student {y:5.1f} on new classes"
            for label, (x, y) in sorted(means.items(), key=lambda item: item[1])
        ]
        sides = [[row[key] for row in own] for key in (shown, learned)]
        if len(own) > 2 and min(len(set(side)) for side in sides) > 1:
            from scipy.stats import spearmanr

            lines.append(f"{setting:15} rank correlation over {len(own)} runs: {spearmanr(*sides).statistic:.2f}")
    return "\n".join(lines) or "nothing was run in this profile"


def explained(table: dict, stages: Sequence[str]) -> list[dict]:
    """What each stage of the pseudo-labels adds to the student on new classes.

    Args:
        table: ``fmwiss-pseudo``. stages: its rows that have a student, in order.

    Returns:
        A dict a stage: stage, IoU of its masks, student, gain over the stage before (None for the first), share of the
        whole gain from the first to the last (None where that is nothing).
    """
    cells, column = cells_of(table), table["columns"][-1]
    there = [label for label in stages if column in cells[label] and cells[label][column]["n"]]
    students = [cells[label][column]["mean"] for label in there]
    whole = students[-1] - students[0] if students else 0.0
    rows = []
    for k, label in enumerate(there):
        gain = students[k] - students[k - 1] if k else None
        rows.append({
            "stage": label, "IoU": cells[label]["IoU"]["mean"], "student": students[k],
            "gain": None if gain is None else round(gain, 4),
            "share": round(gain / whole, 4) if k and whole else None,
        })  # fmt: skip
    return rows


def validation(settings: Settings, setting: str, count: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The first validation pictures of a setting with their truth, as predictions in records are kept.

    Args:
        setting: as tables call it. count: how many; of a data set on disk as many as records keep.

    Returns:
        images (n, H, W, 3) uint8, truth (n, H, W) uint8 of logits (255: void), class names by logit.
    """
    real = on_real_data(settings)
    protocol = get(protocol_of(setting, real))
    if real:
        from fmseg import on_disk, real_supervised

        name = protocol.datasets[0]
        held_out = on_disk.open_set(name, on_disk.root_of(name), settings.get(f"data.{name}.validation"))
        images, labels = (part[:count] for part in real_supervised.examples(held_out))
        return images, protocol.evaluation(STEP, held_out.classes)[labels], protocol.order
    drawn = draw_set(draws_of(protocol)[0], "val", count, size=settings.get("world.size"))
    return drawn.images, protocol.evaluation(STEP, drawn.classes)[drawn.labels], protocol.order
