"""FMWISS with its old classes bounded, in all five settings: does what one setting taught hold where nobody had looked?

Table `fmwiss-causes` was made when tables 1 to 3 were known, in 10-10 disjoint alone. The claims that read this table
were written before its runs in the other four settings, and leave that one out. Ours.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fmseg import fmwiss_causes_table, fmwiss_tables, incremental_tables
from fmseg.experiment import on_real_data, provenance
from fmseg.fmwiss_ablations import STAGE
from fmseg.fmwiss_causes import OLD
from fmseg.fmwiss_causes_table import CALLED, Cause, said
from fmseg.incremental_configs import SETTINGS, ablation_seeds
from fmseg.incremental_tables import MISSING, Entry, by_place, measured
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row, table

ID = "fmwiss-bounded"
CAUSE = Cause("old classes bounded", bound=OLD)
GROUPS = {"old": "old", "new": "new", "all": "all", "forgetting": "forgetting"}
COLUMNS = (*GROUPS, *CALLED)
BESIDE = ("FMWISS", "WILSON")  # rows of tables 1 to 3
LATER = tuple(setting for setting in SETTINGS if setting != fmwiss_causes_table.SETTING)  # where claims were made first


def config_of(settings: Settings, setting: str, seed: int) -> dict[str, Any]:
    """The run of a setting at a seed."""
    return fmwiss_causes_table.config_of(settings, CAUSE, seed, setting)


def entries(settings: Settings) -> list[Entry]:
    """Every run of the table with its place: a row is a setting."""
    seeds = ablation_seeds(settings, CAUSE.judged)
    return [Entry(setting, setting, config_of(settings, setting, seed)) for setting in SETTINGS for seed in seeds]


def build(settings: Settings, records: list[dict | None]) -> dict:
    """The table from its records; pure."""
    found = {} if on_real_data(settings) else by_place(entries(settings), records)
    rows = [row(setting, _cells(setting, found.get((setting, setting), {}))) for setting in SETTINGS]
    return table(
        ID, "FMWISS with its old classes bounded", "No counterpart in the paper", "% mIoU; called: %", list(COLUMNS),
        rows,
        note=(
            "FMWISS's step in whose targets no old class is likelier than the new ones leave room for (row `old "
            "classes bounded` of `fmwiss-causes`, whose runs 10-10 disjoint borrows). FMWISS as it is and WILSON stand "
            "in tables `fmwiss-t1`, `-t2` and `-t3`, with the same seeds, pictures and base models. Called: "
            "the share of the cells of new things in the step's own pictures the student calls so."
        ),
        provenance=provenance(EXPERIMENT, settings, records),
    )  # fmt: skip


def less(bounded: dict, others: Mapping[str, dict], group: str) -> list[tuple[str, dict[int, float]]]:
    """By setting and row of tables 1 to 3: this table's cell less FMWISS's as it is, and less WILSON's, by seed.

    Args:
        bounded: this table. others: {id: table} of tables 1 to 3. group: old, new or all.
    """
    mine = {r["label"]: r["cells"][group]["values"] for r in bounded["rows"]}
    found = []
    for row_ in BESIDE:
        for id, settings in fmwiss_tables.COLUMNS.items():
            cells = next(r["cells"] for r in others[id]["rows"] if r["label"] == row_)
            for setting, columns in settings.items():
                theirs = cells[columns[group]]["values"]
                both = {s: mine[setting][s] - theirs[s] for s in mine[setting] if s in theirs}
                found.append((f"{setting}, less {row_}", both))
    return found


def _cells(setting: str, runs: Mapping[int, dict]) -> dict[str, dict]:
    values = {seed: measured(record, setting) | said(record["result"]) for seed, record in runs.items()}
    cells = {}
    for column in COLUMNS:
        mine = {seed: v[column] for seed, v in values.items() if column in v}
        cells[column] = cell(mine) if mine else not_run(MISSING)
    return cells


EXPERIMENT = replace(
    incremental_tables.experiment(ID, STAGE, entries, build, columns={setting: GROUPS for setting in SETTINGS}),
    module=fmwiss_causes_table.MODULE, lenders=tuple(fmwiss_causes_table.EXPERIMENTS), headline=False,
)  # fmt: skip
