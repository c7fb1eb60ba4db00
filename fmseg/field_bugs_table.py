"""What the field's mistakes are worth in points: the table `field-bugs`, each row the same runs right and wrong.

No claim of a paper: a lesson in reading scores. A row's difference is taken seed by seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fmseg import configs, freemask_configs, plots, zoo
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.field_bug_runs import ANOTHER_DRAW, BATCHES, SUPCON
from fmseg.incremental_configs import ABLATED, run_config
from fmseg.incremental_tables import measured
from fmseg.records import run_key
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row, table

ID, STAGE = "field-bugs", "91_bugs_of_the_field"
COLUMNS = ("right", "with the mistake", "moved by")
MISSING = "no record of its runs"
NEAR = 2  # points: the second panel of the figure shows what moves less
Make = Callable[[Settings, int, str | None], dict[str, Any]]
Value = Callable[[dict], float]


@dataclass(frozen=True)
class Row:
    """A mistake: the runs that it is measured on; which run has it (None: the right one, evaluated wrongly); the value
    of a record, right and wrong."""

    make: Make
    mistake: str | None
    right: Value
    wrong: Value


def _score(record):
    return record["result"]["miou"]


def _evaluated(name: str) -> Value:
    return lambda record: record["result"]["measured"][name]


def _best(record):
    return max(value for _, value in record["curve"])


def _group(name: str) -> Value:
    return lambda record: measured(record, ABLATED)[name]


def segmenter(settings: Settings, seed: int, mistake: str | None) -> dict[str, Any]:
    """A supervised run whose masks have rims without a label."""
    own = settings.get("bugs")
    images = settings.get(f"world.train.{own['draw']}")
    made = configs.supervised(settings, own["method"], seed, own["draw"], images, own["exposures"])
    return made | {"rim": own["rim"], "mistake": mistake}


def incremental(settings: Settings, seed: int, mistake: str | None) -> dict[str, Any]:
    """FMWISS as in the ablations."""
    return run_config(settings, "fmwiss", seed, ABLATED) | {"mistake": mistake}


def joint(settings: Settings, seed: int, mistake: str | None) -> dict[str, Any]:
    """FreeMask's joint training on `ade`, filtered and re-sampled."""
    return freemask_configs.with_pictures(settings, "joint", "ade", seed) | {"mistake": mistake}


ROWS = {
    "ignored rims learned as background": Row(segmenter, "as background", _score, _score),
    "ignored rims learned as the last class": Row(segmenter, "as the last class", _score, _score),
    **{
        f"batch statistics of {n} pictures at inference": Row(segmenter, None, _score, _evaluated(f"statistics of {n}"))
        for n in BATCHES
    },
    "running statistics not in the checkpoint": Row(segmenter, None, _score, _evaluated("no statistics")),
    "mean of each picture's mIoU": Row(segmenter, None, _score, _evaluated("mean of pictures")),
    "best step chosen on the validation set": Row(segmenter, None, _score, _best),
    "SupCon for the dense contrastive loss: new": Row(incremental, SUPCON, _group("new"), _group("new")),
    "SupCon for the dense contrastive loss: all": Row(incremental, SUPCON, _group("all"), _group("all")),
    "re-sampling drawn again": Row(joint, ANOTHER_DRAW, _score, _score),
}


def lacking(settings: Settings, make: Make) -> str | None:
    """Why this profile has no such runs; None where it has."""
    if on_real_data(settings) or "bugs" not in settings.values:
        return "its runs are those of the mini world"
    if make is joint:
        return freemask_configs.lacking(settings)
    if make is incremental:
        return zoo.lacking("clip", "mim", "backbone-deeplabv3")
    return zoo.lacking(f"backbone-{settings.get('bugs.method')}")


def run_configs(settings: Settings) -> list[dict]:
    """The runs, each once: of every kind the right one and those with a mistake, for every seed."""
    made = [
        line.make(settings, seed, mistake)
        for line in ROWS.values()
        if lacking(settings, line.make) is None
        for mistake in dict.fromkeys((None, line.mistake))
        for seed in settings.get("seeds")
    ]
    return list({run_key(config): config for config in made}.values())


def build(settings: Settings, records: list[dict | None]) -> dict:
    """The table from its records; pure."""
    found = {record["key"]: record for record in records if record}
    lines = []
    for label, line in ROWS.items():
        why = lacking(settings, line.make)
        if why:
            lines.append(row(label, {column: not_run(why) for column in COLUMNS}))
            continue
        right, wrong = {}, {}
        for seed in settings.get("seeds"):
            before = found.get(run_key(line.make(settings, seed, None)))
            after = found.get(run_key(line.make(settings, seed, line.mistake)))
            if before and after:
                right[seed], wrong[seed] = line.right(before), line.wrong(after)
        moved = {seed: wrong[seed] - right[seed] for seed in right}
        values = (right, wrong, moved)
        lines.append(row(label, {c: cell(v) if v else not_run(MISSING) for c, v in zip(COLUMNS, values, strict=True)}))
    own = settings.values.get("bugs", {})
    return table(
        ID, "What the field's mistakes move", "No counterpart in the papers", "% mIoU", list(COLUMNS), lines,
        note=(
            f"The first rows: {own.get('method')} on `{own.get('draw')}`, its training masks with a rim of "
            f"{own.get('rim')} pixel on either side of an outline without a label, judged on full masks. SupCon: "
            f"FMWISS in {ABLATED}. Drawn again: joint training with as many painted pictures a mask, other ones. Moved "
            "by: wrong less right, seed by seed."
        ),
        provenance=provenance(EXPERIMENT, settings, records),
    )  # fmt: skip


def cell_of(config: dict) -> str:
    """Runs of the same cell differ by their seed alone."""
    kind = "FMWISS" if "protocol" in config else config.get("paradigm", "supervised")
    return f"{kind}, {config['mistake'] or 'right'}"


EXPERIMENT = Experiment(ID, STAGE, "fmseg.field_bug_runs", run_configs, build, cell_of, headline=False)


def moved(found: dict) -> tuple[Any, list[dict[str, Any]]]:
    """Figure of the column "moved by", a point a seed, and the rows of its csv; (None, []) of a table without runs."""
    rows = []
    for line in found["rows"]:
        values = line["cells"]["moved by"]["values"]
        rows += [{"row": line["label"], "seed": seed, "points": value} for seed, value in values.items()]
    labels = list(dict.fromkeys(line["row"] for line in rows))
    if not rows:
        return None, []
    figure, axis = plots.new(8.5, 0.32 * len(labels) + 1.2)
    figure.clear()
    whole, near = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for axis in (whole, near):
        for place, label in enumerate(labels):
            own = [line["points"] for line in rows if line["row"] == label]
            mean = sum(own) / len(own)
            if axis is whole or abs(mean) <= NEAR:  # a far row's stray point alone would say something else
                axis.plot(own, [place] * len(own), "o", ms=4, color=plots.OKABE_ITO[0], alpha=0.6)
                axis.plot([mean], [place], "|", ms=14, color="black")
        axis.axvline(0, color="0.8", zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set(xlabel="moved by, points of mIoU")
    whole.set_yticks(range(len(labels)), labels, fontsize=8)
    whole.invert_yaxis()
    near.set(xlim=(-NEAR, NEAR), title=f"those with means within {NEAR}")
    whole.set(title="How far mistakes move a score (points: seeds, strokes: means)")
    for axis in (whole, near):
        axis.title.set_fontsize(9)
    return figure, rows
