"""What notebook 90 reads out of the records and tables across the papers, its own and FreeMask's."""

from collections.abc import Mapping

from numpy import ndarray

from fmseg import claims, freemask_tables, incremental_data, ledger
from fmseg.across_configs import SETTING
from fmseg.across_tables import (
    EXPERIMENTS,
    FILTERED,
    OURS,
    PAIRS,
    PAIRS_LAYOUT,
    PARADIGMS,
    RANDOM,
    STEP,
    STEPS,
    entries,
    marks,
)
from fmseg.estimand import parse
from fmseg.experiment import Outcome, behind, judge
from fmseg.freemask_layout import MISSING
from fmseg.grounded_pictures import PART, painted
from fmseg.incremental_data import STEP as SECOND
from fmseg.incremental_tables import by_place
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row, table

BESIDE = {  # row: {column: (table, row, column) of FreeMask}
    "real images as long": {"alone": ("freemask-joint-ade", "SegFormer", "real as long")},
    "FreeMask's as painted": {
        "alone": ("freemask-ablation-transfer", "neither", "ade"),
        "joint": ("freemask-ablation-joint", "neither", "ade"),
    },
    "FreeMask's filtered and re-sampled": {
        "alone": ("freemask-ablation-transfer", "filter and re-sampling", "ade"),
        "joint": ("freemask-joint-ade", "SegFormer", "joint"),
    },
}
HANDED_ON = ("marks", "teacher", "student")  # from whom to whom
BORROWED = tuple(dict.fromkeys(at[0] for cells in BESIDE.values() for at in cells.values()))


def side_by_side(mine: dict, others: Mapping[str, dict]) -> dict:
    """The table of pairs with FreeMask's own runs above it, columns "alone" and "joint".

    Args:
        mine: the table :data:`PAIRS`. others: {id: table} of :data:`BORROWED`; cells of one that is missing are not
            run.
    """
    rows = [row(label, {column: _cell(others, at) for column, at in cells.items()}) for label, cells in BESIDE.items()]
    own = [row(r["label"], {c: r["cells"][c] for c in PARADIGMS if c in r["cells"]}) for r in mine["rows"]]
    rows = own[:1] + rows + own[1:]
    return table(
        "across-pairs-beside", "Pairs beside FreeMask's pictures", OURS, "% mIoU", list(PARADIGMS), rows
    )  # fmt: skip


def _cell(others: Mapping[str, dict], at: tuple[str, str, str]) -> dict:
    id, label, column = at
    found = {r["label"]: r["cells"] for r in others[id]["rows"]} if id in others else {}
    return found.get(label, {}).get(column) or not_run(MISSING)


def judged(settings: Settings, outcomes: Mapping[str, Outcome], others: Mapping[str, dict]) -> list[dict]:
    """Verdicts and second looks of the claims across the papers whose tables are all at hand.

    Args:
        settings: profile and root. outcomes: {id: what was done for one of :data:`EXPERIMENTS`}. others: as of
            :func:`side_by_side`.
    """
    listed = [c for c in claims.testable(claims.load(settings.root / "claims.yaml")) if c["paper"] == ledger.ACROSS]
    found = {id: outcome.table for id, outcome in outcomes.items()} | dict(others)
    listed = [c for c in listed if set(parse(c["estimand"]).tables) <= set(found)]
    experiments = EXPERIMENTS | {id: freemask_tables.EXPERIMENTS[id] for id in others}
    records = {id: [r for r in outcome.records if r] for id, outcome in outcomes.items()}
    records |= {id: behind(experiments[id], settings) for id in others}
    return judge(listed, found, records, experiments, settings)


def pair_records(settings: Settings, outcomes: Mapping[str, Outcome], label: str) -> dict[int, dict]:
    """{seed: record} of the runs on pairs alone in a row of the table :data:`PAIRS`."""
    return PAIRS_LAYOUT.records_of(settings, outcomes[PAIRS].records, label, "alone")


def step_records(settings: Settings, outcomes: Mapping[str, Outcome]) -> dict[str, dict[int, dict]]:
    """{row: {seed: record}} of the table :data:`STEP`, as far as there are records."""
    found = by_place(entries(settings), outcomes[STEP].records)
    return {label: found[label, SETTING] for label in STEPS if (label, SETTING) in found}


def dropped(settings: Settings, outcomes: Mapping[str, Outcome]) -> dict:
    """What the filter and its control drop of the marks, held against the truth, as a table in percent."""
    columns, found, rows = {"was wrong": "wrong", "of the wrong found": "found"}, step_records(settings, outcomes), []
    for label in (FILTERED, RANDOM):
        runs = {seed: record["result"]["filter"] for seed, record in found.get(label, {}).items()}
        cells = {}
        for column, key in columns.items():
            values = {seed: 100 * result[key] for seed, result in runs.items() if result[key] is not None}
            cells[column] = cell(values) if values else not_run(MISSING)
        rows.append(row(label, cells))
    return table("across-dropped", "What is dropped of FMWISS's marks", OURS, "% of the pixels", list(columns), rows)


def handed_on(settings: Settings, outcomes: Mapping[str, Outcome], measure: str = "recall") -> dict:
    """How right the marks of new classes are, the teacher that learned from them, and its student, on the step's own
    pictures, as a table in percent.

    Args:
        measure: "recall" or "precision".
    """
    found, rows = step_records(settings, outcomes), []
    for label in STEPS:
        results = {seed: record["result"] for seed, record in found.get(label, {}).items()}
        by_stage = {"marks": {s: marks(r)[f"marks {measure}"] for s, r in results.items()}}
        for stage in HANDED_ON[1:]:
            by_stage[stage] = {s: 100 * r["masks"][stage][measure] for s, r in results.items()}
        rows.append(row(label, {k: cell(v) if v else not_run(MISSING) for k, v in by_stage.items()}))
    title = f"The {measure} of marks, teacher and student on new classes"
    return table("across-handed-on", title, OURS, "% of the pixels", list(HANDED_ON), rows)


def first_pairs(config: Mapping, count: int) -> ndarray:
    """(count, H, W, 3) uint8: the first pictures of the last kind of pairs of a run, painted where they are not there.

    Args:
        config: of a run on pairs. count: at most one part of pictures.
    """
    wanted, sampling = config["pairs"], config["pairs"]["head"]["sampling"]
    how = {"steps": sampling["steps"], "guidance": sampling["test"], "rich": True}
    return painted(list(wanted["kinds"])[-1], tuple(wanted["classes"]), "zero-shot", PART, **how).images[:count]


def first_images(config: Mapping, count: int) -> tuple[ndarray, ndarray, tuple[str, ...]]:
    """A step's first pictures (N, H, W, 3), where the new classes are in them (N, H, W) uint8, and names by number.

    Args:
        config: of a run of :mod:`fmseg.across_step`. count: N. New classes are numbered from 1, 0 is all else.
    """
    data = incremental_data.load(dict(config))
    first = data.protocol.new(SECOND).start
    truth = data.new_truth()[:count]
    numbers = (truth.astype(int) - first + 1).clip(min=0).astype(truth.dtype)
    return data.step.images[:count], numbers, ("background", *data.new_names())
