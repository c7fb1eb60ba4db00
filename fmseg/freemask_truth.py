"""FreeMask's filter held against the truth: the table `freemask-filter-truth`, from measurements of several filter
models. The paper has no such table: it does not know where its pictures are wrong."""

from functools import partial

import numpy as np

from fmseg import freemask_configs, tables
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.filter_truth import FAULTS, ONE, rates
from fmseg.freemask_layout import MISSING
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row

ID = "freemask-filter-truth"
COLUMNS = ("precision", "recall", "right things kept", "right stuff kept", "training loss", "validation loss")
GENERATED = "generated pictures, by the oracle"
MEANS = {"training": "class means", "cross-fitted": "cross-fitted class means", ONE: "one threshold"}


def seeds(settings: Settings) -> list[int]:
    """Seeds of the measurements: filter models."""
    return settings.get("seeds")[: settings.get("freemask.truth.seeds")]


def run_configs(settings: Settings) -> list[dict]:
    """The measurements; [] in a profile or with a zoo that has none."""
    if on_real_data(settings) or freemask_configs.lacking(settings):
        return []
    return [freemask_configs.truth(settings, seed) for seed in seeds(settings)]


def labels(settings: Settings) -> dict[str, tuple[str, str, float]]:
    """{row label: (pictures, means, margin)}: every kind of fault at the paper's margin, then all faults together by
    margin and by means, then the generator's own pictures."""
    own = settings.get("freemask")
    chosen, margins = own["alpha"], sorted({own["alpha"], *own["alphas"]})
    rows = {f"a thing {fault}": (fault, "training", chosen) for fault in FAULTS}
    for pictures, name in (("faults", "all faults"), ("generated", GENERATED)):
        rows |= {f"{name}: margin {alpha:g}": (pictures, "training", alpha) for alpha in margins}
        rows |= {f"{name}: {MEANS[kind]}": (pictures, kind, chosen) for kind in MEANS if kind != "training"}
    return {label.replace(",", ""): what for label, what in rows.items()}


def measured(record: dict, pictures: str, means: str, alpha: float) -> dict[str, float]:
    """{column: percent} of one measurement; columns whose denominator is empty are left out."""
    truth = record["result"]["truth"]
    number = record["config"]["alphas"].index(alpha)
    sets = FAULTS if pictures == "faults" else (pictures,)
    counts = np.sum([np.array(truth[name][means][number]) for name in sets], axis=0)
    found = rates(counts)
    found |= {f"right {kind} kept": rates(counts[k])["right pixels kept"] for k, kind in enumerate(("things", "stuff"))}
    return {column: found[column] for column in COLUMNS if column in found and found[column] == found[column]}


def build_table(settings: Settings, records: list[dict | None]) -> dict:
    """The table from its records; pure."""
    there = [r for r in records if r]
    why = "it is the mini world's" if on_real_data(settings) else freemask_configs.lacking(settings)
    rows = []
    if "freemask" in settings.values:
        for label, what in labels(settings).items():
            rows.append(row(label, _cells(there, partial(_one, what=what), COLUMNS[:4], why)))
        rows.append(row("the filter model", _cells(there, lambda r: r["result"]["losses"], COLUMNS[4:], why)))
    return tables.table(
        ID, "What the filter drops, and what is wrong", "FreeMask, class-wise filter; no counterpart in the paper",
        "% of pixels; losses in nats", list(COLUMNS), rows, digits=1, note=NOTE,
        provenance=provenance(EXPERIMENT, settings, records),
    )  # fmt: skip


def _one(record, what):
    return measured(record, *what)


def _cells(records, of, columns, why):
    values = {column: {} for column in columns}
    for record in records:
        found = of(record)
        for column in columns:
            if column in found:
                values[column][record["config"]["seed"]] = found[column]
    return {c: cell(v) if v else not_run(why or MISSING) for c, v in values.items()}


def describe(config: dict) -> str:
    """What a measurement is; those of one description differ by the seed of the filter model."""
    return f"{config['method']} as filter on {config['images']} images of {config['draw']}"


NOTE = (
    "A thing of a scene is painted as another class, left out, or elsewhere while the mask stays, so that wrong pixels "
    "are known by construction. Precision: share of dropped pixels that are wrong; recall: share of wrong pixels that "
    "are dropped. On generated pictures the oracle's class takes the truth's part: what it misreads counts as wrong. "
    "The oracle has learned from other pictures than the filter model, in the same architecture. A seed is a filter "
    "model."
)
EXPERIMENT = Experiment(
    ID, "25_freemask_ablations", "fmseg.filter_truth", run_configs, build_table, describe, headline=False
)  # fmt: skip
