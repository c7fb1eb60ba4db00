"""What none of the papers did, as two tables: `across-pairs` and `across-step` (notebook 90)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fmseg import across_configs as configs
from fmseg import fmwiss_tables as fmwiss
from fmseg import incremental_tables
from fmseg.across_configs import MINI_ALONE, SETTING
from fmseg.across_experts import LEARNS
from fmseg.across_filter import HOW
from fmseg.datasets import get_draw
from fmseg.experiment import Experiment, provenance
from fmseg.freemask_layout import MISSING, Entry, Layout
from fmseg.incremental_tables import by_place, cells_of
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row, table
from fmseg.words import STUFF, THINGS

STAGE, OURS = "90_across_the_papers", "No counterpart in the papers"
PAIRS, STEP = "across-pairs", "across-step"
REAL, LABELLED, CLEAN = "real images", "pairs as labelled", "pairs filtered"
PARADIGMS = {"alone": "synthetic", "joint": "joint"}
GROUPS = {"things": THINGS, "grounds": STUFF}
COLUMNS = {"old": "old", "new": "new", "all": "all", "forgetting": "forgetting"}
MARKS = ("marks precision", "marks recall", "marks IoU")  # columns: of the marks that the teacher learns from
COSEG, FILTERED, RANDOM = "co-segmentation", "filtered co-segmentation", "as many dropped at random"
HEAD, HEAD_OF_BASE = "grounding head", "grounding head of base pictures"
Make = Callable[[Settings, int], dict[str, Any]]
STEPS: dict[str, Make] = {  # the run that leaves the judge first
    COSEG: configs.marked,
    FILTERED: configs.filtered,
    RANDOM: lambda settings, seed: configs.filtered(settings, seed, HOW[1]),
    HEAD: configs.headed,
    HEAD_OF_BASE: lambda settings, seed: configs.headed(settings, seed, LEARNS[1]),
}


# -- pairs as synthetic images ---------------------------------------------------------------------------------------


def _group(names: tuple[str, ...]) -> Callable[[dict], float]:
    drawn = get_draw(configs.DRAW).classes
    ids = [drawn.index(name) for name in names]
    return lambda result: incremental_tables.mean(result["iou"], ids)


def _pairs(settings: Settings) -> dict[str, dict[str, Entry | str]]:
    real = Entry(lambda settings, seed: configs.real(settings, seed), mini=MINI_ALONE)
    rows: dict[str, dict[str, Entry | str]] = {REAL: {"alone": real}}
    for group, names in GROUPS.items():
        rows[REAL][f"alone {group}"] = replace(real, value=_group(names))
    for label in (LABELLED, CLEAN):
        cells = {}
        for column, paradigm in PARADIGMS.items():

            def make(settings, seed, label=label, paradigm=paradigm):
                alpha = settings.get("freemask.alpha") if label == CLEAN else None
                return configs.pairs(settings, paradigm, seed, alpha)

            cells[column] = Entry(make, True)
            cells |= {f"{column} {group}": Entry(make, True, value=_group(names)) for group, names in GROUPS.items()}
        alone = cells["alone"].make
        cells["pixels kept"] = Entry(alone, True, value=lambda result: 100 * result["synthetic"]["kept"])
        cells["oracle's mIoU"] = Entry(alone, True, value=lambda result: result["synthetic"]["oracle"])
        rows[label] = {column: replace(entry, mini=MINI_ALONE) for column, entry in cells.items()}
    return rows


_OF_PAIRS = (*(f"{p}{g}" for p in PARADIGMS for g in ("", *(f" {name}" for name in GROUPS))), "pixels kept",
             "oracle's mIoU")  # fmt: skip
PAIRS_LAYOUT = Layout(
    PAIRS, "Grounded Diffusion's pairs as FreeMask's synthetic images", OURS, "", _OF_PAIRS, _pairs,
    "SegFormer on `ade`, trained as FreeMask's runs are; columns name what it learned from: one kind of image alone, "
    "or pairs beside as many real images. Pairs are pictures of the text-to-image model; things are labelled by a "
    "grounding head that has seen masks of 32 of the 40, the rest of a picture gets the ground that its prompt names. "
    "One head and one filter model serve all seeds. Real images alone are seen half as often. The last column: the "
    "oracle against the labels that are left, on some pictures.",
    STAGE, module="fmseg.across_pairs", lacking=configs.lacking,
)  # fmt: skip


def cell_of(config: dict) -> str:
    """Runs on pairs that differ by their seed alone."""
    if config["paradigm"] == "real":
        return REAL
    alpha = config["pairs"]["alpha"]
    return f"pairs, {config['paradigm']}, " + ("as labelled" if alpha is None else f"filtered at {alpha:g}")


PAIRS_TABLE = replace(PAIRS_LAYOUT.experiment(), cell=cell_of)


# -- who marks the new classes ---------------------------------------------------------------------------------------


def entries(settings: Settings) -> list[incremental_tables.Entry]:
    """Every run of the table with its place; none in a profile or with a zoo that has none."""
    if configs.lacking(settings):
        return []
    seeds = settings.get("seeds")
    return [incremental_tables.Entry(label, SETTING, make(settings, s)) for label, make in STEPS.items() for s in seeds]


def marks(result: Mapping[str, Any]) -> dict[str, float]:
    """{column: percent}: how right the marks are that a run's teacher learned from, on the step's pictures."""
    found = result["filter"]["masks"]["after"] if "filter" in result else result["masks"]["union"]
    return {column: 100 * found[column.split()[1].lower()] for column in MARKS}


def build(settings: Settings, records: list[dict | None]) -> dict:
    """The table from its records; pure."""
    why, found, rows = configs.lacking(settings), by_place(entries(settings), records), []
    for label in STEPS:
        runs = found.get((label, SETTING), {})
        if why:
            rows.append(row(label, {column: not_run(why) for column in (*COLUMNS.values(), *MARKS)}))
            continue
        values = {seed: marks(record["result"]) for seed, record in runs.items()}
        cells = {c: cell({s: v[c] for s, v in values.items()}) if values else not_run(MISSING) for c in MARKS}
        rows.append(row(label, cells_of(runs, SETTING, COLUMNS) | cells))
    rows += [] if why else incremental_tables.ceiling_rows(settings, {SETTING: COLUMNS})
    return table(
        STEP, f"Who marks the new classes (VOC {SETTING})", OURS, "% mIoU; marks: %", [*COLUMNS.values(), *MARKS], rows,
        note=(
            "FMWISS's step, in which the marks of new classes are made by somebody else or filtered; `co-segmentation` "
            f"is FMWISS as in `{next(iter(fmwiss.COLUMNS))}`. Filtered: the judge is FMWISS after a first run of the "
            "step, class means are those of its own pseudo-labels, the margin is FreeMask's. Grounding head: split 1 "
            "of Grounded Diffusion, whose seen and unseen classes are the old and the new ones here; real pictures are "
            "read by inversion, asked for the classes of their image labels. Marks: what the teacher learns from, "
            "against the truth of the step's pictures."
        ),
        provenance=provenance(STEP_TABLE, settings, records),
    )  # fmt: skip


def cell_of_step(config: dict) -> str:
    """Runs of a step that differ by their seed alone; a head has the run's seed, too."""
    wanted = config["masks"]
    return ", ".join([wanted["by"], *(str(wanted[key]) for key in ("drop", "learns") if key in wanted)])


STEP_TABLE: Experiment = replace(
    incremental_tables.experiment(STEP, STAGE, entries, build, columns={SETTING: COLUMNS}),
    module="fmseg.across_step", cell=cell_of_step, lenders=(), headline=False,
)  # fmt: skip
EXPERIMENTS = {PAIRS: PAIRS_TABLE, STEP: STEP_TABLE}
