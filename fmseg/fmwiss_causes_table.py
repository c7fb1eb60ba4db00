"""Why new classes end lower with FMWISS than with WILSON in steps of ten: suspected causes are taken away one by one.

Two tables: in 10-10 disjoint, and in 10-10 overlap, where what explains the first explains little. Ours, made after
tables 1 to 3 were known, and no claim rests on them: they measure what would otherwise be a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fmseg import incremental_tables
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.fmwiss_ablations import STAGE, STANDARD
from fmseg.fmwiss_causes import BACKGROUND, EXPERTS, OLD, TRUTH
from fmseg.incremental_configs import ablation_seeds, run_config
from fmseg.incremental_tables import MISSING, Entry, by_place, measured
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row, table

ID, OVERLAP_ID, MODULE = "fmwiss-causes", "fmwiss-causes-overlap", "fmseg.fmwiss_causes"
SETTING = "10-10 disjoint"  # where the gap is widest
GROUPS = ("old", "new", "all")
TEACHER = ("teacher's masks", "old classes left out", "teacher's score")  # columns: what the teacher says
CALLED = {"called old": "old class", "called background": "background"}  # columns: the student's -> its word
COLUMNS = (*GROUPS, *TEACHER, *CALLED)


@dataclass(frozen=True)
class Cause:
    """A row: what is taken away, changes to options, how long the step takes; ``judged``: as many seeds as a claim
    needs."""

    label: str
    marks: str = EXPERTS
    bound: str = BACKGROUND
    changes: dict[str, Any] = field(default_factory=dict)
    length: int = 1
    judged: bool = True
    method: str = "fmwiss"


DISJOINT_ROWS = (
    Cause(STANDARD),
    Cause("true marks", TRUTH),
    Cause("true marks without teacher", TRUTH, changes={"teacher": False}),
    Cause("old classes bounded", bound=OLD),
    Cause("true marks and old classes bounded", TRUTH, OLD),
    Cause("FMWISS twice as long", length=2, judged=False),
    Cause("WILSON", method="wilson"),
    Cause("WILSON twice as long", length=2, judged=False, method="wilson"),
)
OVERLAP_ROWS = DISJOINT_ROWS[:5]  # WILSON stands in `fmwiss-t2`, steps of twice the length in `fmwiss-ab-data`
TABLES = {ID: (SETTING, DISJOINT_ROWS), OVERLAP_ID: ("10-10 overlap", OVERLAP_ROWS)}  # {id: (setting, rows)}
FAMILY = (ID, OVERLAP_ID, "fmwiss-bounded")  # tables of runs by this module, which lend one another runs


def config_of(settings: Settings, cause: Cause, seed: int, setting: str = SETTING) -> dict[str, Any]:
    """The run of a row at a seed."""
    made = run_config(settings, cause.method, seed, setting, length=cause.length, **cause.changes)
    return made | ({"causes": {"marks": cause.marks, "bound": cause.bound}} if cause.method == "fmwiss" else {})


def entries(settings: Settings, id: str = ID) -> list[Entry]:
    """Every run of a table with its place."""
    setting, rows = TABLES[id]
    return [
        Entry(cause.label, setting, config_of(settings, cause, seed, setting))
        for cause in rows
        for seed in ablation_seeds(settings, cause.judged)
    ]


def build(settings: Settings, records: list[dict | None], id: str = ID) -> dict:
    """A table from its records; pure."""
    setting, causes = TABLES[id]
    found = {} if on_real_data(settings) else by_place(entries(settings, id), records)
    rows = [row(cause.label, _cells(cause, setting, found.get((cause.label, setting), {}))) for cause in causes]
    beside = "" if id == ID else (
        " WILSON stands in `fmwiss-t2`, with the same seeds, pictures and base models; row `old classes bounded` is "
        "that of `fmwiss-bounded`."
    )  # fmt: skip
    return table(
        id, f"What keeps FMWISS's new classes low (VOC {setting})", "No counterpart in the paper", "% mIoU; from "
        "`teacher's masks` on: %", list(COLUMNS), rows,
        note=(
            "FMWISS's step with one suspected cause taken away. True marks: the truth on the grid in the place of "
            "co-segmentation's masks. Old classes bounded: in the teacher's and the student's targets no old class is "
            "likelier than the new ones leave room for; in the standard that holds for background alone. On new things "
            "in the step's own pictures: IoU of the teacher's masks, old classes competing (as in `fmwiss-pseudo`) and "
            "left out of the contest; the mean probability that it gives the right class; and what share of their "
            "cells the student calls an old class, or background." + beside
        ),
        provenance=provenance(EXPERIMENTS[id], settings, records),
    )  # fmt: skip


def said(result: Mapping[str, Any]) -> dict[str, float]:
    """{column: percent} of what a run's teacher, if it has one, and its student say of new things."""
    found, both = {}, result.get("said", {})
    if "teacher" in both:
        teacher = both["teacher"]
        values = (result["masks"]["teacher"]["iou"], teacher["masks"]["iou"], teacher["score"])
        found = dict(zip(TEACHER, values, strict=True))
    if "student" in both:
        found |= {column: both["student"]["called"][word] for column, word in CALLED.items()}
    return {column: 100 * value for column, value in found.items() if value is not None}


def _cells(cause: Cause, setting: str, runs: Mapping[int, dict]) -> dict[str, dict]:
    values = {s: measured(record, setting) | said(record["result"]) for s, record in runs.items()}
    why = MISSING
    if values:
        why = "there is no teacher" if cause.method == "fmwiss" else "WILSON has no such teacher"
    cells = {}
    for column in COLUMNS:
        mine = {s: v[column] for s, v in values.items() if column in v}
        cells[column] = cell(mine) if mine else not_run(why)
    return cells


def experiment_of(id: str) -> Experiment:
    """The table of that id."""
    made = incremental_tables.experiment(id, STAGE, partial(entries, id=id), partial(build, id=id))
    return replace(made, module=MODULE, lenders=tuple(other for other in FAMILY if other != id), headline=False)


EXPERIMENTS = {id: experiment_of(id) for id in TABLES}
