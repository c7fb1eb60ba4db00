"""How right are FMWISS's pseudo-labels after each stage, and what does the student make of them? Only truth can tell.

Masks are judged on the step's training pictures, at every pixel. The last column is the new classes' mIoU on the
validation set of a student that learned from masks of that stage: without a teacher for the first three, with FMWISS's
for the fourth; so its steps say how much of the gain each stage explains.
"""

from typing import Any

from fmseg import incremental_tables
from fmseg.experiment import on_real_data, provenance
from fmseg.fmwiss_ablations import JUDGED, STAGE, STANDARD, Variant, config_of
from fmseg.incremental_configs import ABLATED, ablation_seeds, run_config, seeds
from fmseg.incremental_tables import MISSING, Entry, by_place, measured
from fmseg.mask_quality import MEASURES
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row, table

ID = "fmwiss-pseudo"
STAGES = {  # row -> stage of the standard run's masks, and the variant whose student learned from such
    "CLIP alone": ("clip", Variant("clip", {"use": "clip", "teacher": False})),
    "seeds alone": ("seeds", Variant("seeds", {"use": "seeds", "teacher": False})),
    "union": ("union", Variant("union", {"teacher": False})),
    "teacher": ("teacher", Variant(STANDARD)),
    "student": ("student", None),
    "truth on the grid": ("grid", None),
}
OTHERS = {"CAM": "cam", "SS": "ss", "WILSON": "wilson"}  # their masks, and their students
COLUMNS = ("precision", "recall", "IoU", "student on new classes")


def entries(settings: Settings) -> list[Entry]:
    """Every run of the table with its place."""
    made = [
        Entry(label, ABLATED, config_of(settings, variant, seed))
        for label, (_, variant) in STAGES.items()
        if variant
        for seed in ablation_seeds(settings, variant.label in JUDGED)
    ]
    return made + [
        Entry(label, ABLATED, run_config(settings, method, seed, ABLATED))
        for label, method in OTHERS.items()
        for seed in seeds(settings, method)
    ]


def build(settings: Settings, records: list[dict | None]) -> dict:
    """The table from its records; pure."""
    found = {} if on_real_data(settings) else by_place(entries(settings), records)
    standard = found.get(("teacher", ABLATED), {})
    rows = []
    for label, (stage, variant) in STAGES.items():
        runs = found.get((label, ABLATED), {}) if variant else {}
        rows.append(row(label, _cells({s: r["result"]["masks"][stage] for s, r in standard.items()}, runs)))
    for label, method in OTHERS.items():
        runs = found.get((label, ABLATED), {})
        rows.append(row(label, _cells({s: r["result"]["masks"][method] for s, r in runs.items()}, runs)))
    return table(
        ID, f"Pseudo-labels after each stage (VOC {ABLATED})", "No counterpart in the paper: only truth can tell",
        "%", list(COLUMNS), rows,
        note=(
            "Precision, recall and IoU: means over the new classes, of masks on the step's training pictures against "
            "every pixel's truth; masks on the grid cover whole cells. Teacher and student: best channel, classes that "
            "the image label lacks left out. Last column: validation mIoU of new classes of a student that learned "
            "from the masks of the row directly, or from FMWISS's teacher. CAM and SS make their masks offline; "
            "WILSON's are its localizer's at the end."
        ),
        provenance=provenance(EXPERIMENT, settings, records),
    )  # fmt: skip


def _cells(masks: dict[int, dict[str, Any]], runs: dict[int, dict]) -> dict[str, dict]:
    cells = {}
    for measure, column in zip(MEASURES, COLUMNS, strict=False):
        values = {seed: 100 * quality[measure] for seed, quality in masks.items() if quality[measure] is not None}
        cells[column] = cell(values) if values else not_run(MISSING)
    students = {seed: measured(record, ABLATED)["new"] for seed, record in runs.items()}
    if students:
        cells[COLUMNS[-1]] = cell(students)
    return cells


EXPERIMENT = incremental_tables.experiment(ID, STAGE, entries, build)
