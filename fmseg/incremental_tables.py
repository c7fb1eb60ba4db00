"""Tables of class-incremental runs: which runs a row needs, and how its cells follow from their records."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy import ndarray

from fmseg import ceilings
from fmseg.experiment import Experiment, on_real_data
from fmseg.incremental_configs import SETTINGS, protocol_of
from fmseg.incremental_data import BASE, STEP, draws_of
from fmseg.protocols import get
from fmseg.records import run_key
from fmseg.second_look import Run, iou, mean_of
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, row

MODULE, REAL = "fmseg.incremental_runs", "fmseg.real_incremental"
MISSING = "no record of its runs"
FAMILY = (
    "fmwiss-t1", "fmwiss-t2", "fmwiss-t3", "fmwiss-ab-seeds", "fmwiss-ab-models", "fmwiss-ab-teacher",
    "fmwiss-ab-memory", "fmwiss-ab-data", "fmwiss-ab-weights", "fmwiss-pseudo",
)  # fmt: skip
GROUPS = ("old", "new", "all", "forgetting")  # what is measured in every setting


@dataclass(frozen=True)
class Entry:
    """One run's place in a table: ``label`` of its row, ``setting`` of its columns, and its configuration."""

    label: str
    setting: str
    config: dict[str, Any]


def experiment(
    id: str, stage: str, entries: Callable[[Settings], list[Entry]], build: Callable[[Settings, list], dict],
    *, columns: Mapping[str, Mapping[str, str]] | None = None, headline: Sequence[str] = (), real: bool = False,
) -> Experiment:  # fmt: skip
    """A table of the family, which lends runs to the others and borrows theirs.

    ``columns``: {setting: {group: column}} of cells that follow from counts of images, for the second look at claims.
    ``headline``: the methods whose runs `make rerun` trains again. ``real``: whether it has runs on real data.
    """

    def configs(settings: Settings) -> list[dict[str, Any]]:
        if on_real_data(settings) and not real:
            return []
        return list({run_key(e.config): e.config for e in entries(settings)}.values())

    def again(settings: Settings) -> list[dict[str, Any]]:
        return [config for config in configs(settings) if config["method"] in headline]

    def by_image(settings: Settings, records: list[dict]) -> list[Run]:
        return runs_by_image(entries(settings), records, columns) if records else []

    return Experiment(
        id, stage, MODULE, configs, build, cell_of, headline=again if headline else False,
        lenders=tuple(other for other in FAMILY if other != id), real=REAL, by_image=by_image if columns else None,
    )  # fmt: skip


def cell_of(config: dict) -> str:
    """Runs of the same cell differ by their seed alone."""
    plain = {k: v for k, v in config.items() if k != "seed"}
    words = f"{config['method']} on {config['protocol']}"
    return f"{words}, {config['train']['steps']} steps, {run_key(plain)[:6]}"


def by_place(entries: Iterable[Entry], records: Iterable[dict | None]) -> dict[tuple[str, str], dict[int, dict]]:
    """{(row label, setting): {seed: record}} of the records that are there."""
    there, found = {r["key"]: r for r in records if r}, {}
    for entry in entries:
        record = there.get(run_key(entry.config))
        if record:
            found.setdefault((entry.label, entry.setting), {})[record["config"]["seed"]] = record
    return found


def measured(record: dict, setting: str) -> dict[str, float]:
    """What a run says in a setting, in percent: mIoU of old, new and all classes, and points forgotten.

    Forgetting is the mean over old classes of the base model's IoU less the final one's; joint training has none. For
    COCO-to-VOC also "other": new classes on the step's own validation set.
    """
    real = not record["config"]["protocol"].startswith("mini/")
    groups, result = get(protocol_of(setting, real)).groups(), record["result"]
    found = {name: mean(result["iou"], ids) for name, ids in groups.items()}
    if "base_iou" in result:
        found["forgetting"] = mean(forgotten(record), groups["old"])
    if "other_iou" in result:
        found["other"] = mean(result["other_iou"], groups["new"])
    return found


def runs_by_image(
    entries: Iterable[Entry], records: Iterable[dict | None], columns: Mapping[str, Mapping[str, str]]
) -> list[Run]:
    """The runs whose records hold counts of images, each with the cells that follow from them.

    What was forgotten does not: of the base model records keep the IoUs alone.

    Args:
        columns: {setting: {group: column}}; groups other than old, new, all and other are passed over.
    """
    found = []
    for (label, setting), runs in by_place(entries, records).items():
        for seed, record in runs.items():
            name, result = record["config"]["protocol"], record["result"]
            protocol, groups = get(name), get(protocol_of(setting, not name.startswith("mini/"))).groups()
            there = {"images": protocol.datasets[BASE], "other_images": protocol.datasets[STEP]}
            sets = {name: data for name, data in there.items() if name in result}
            if "images" in sets:
                packed = {name: result[name] for name in sets}
                found.append(Run(label, seed, packed, sets, partial(counted, groups, columns[setting])))
    return found


def counted(
    groups: Mapping[str, Sequence[int]], columns: Mapping[str, str], sums: Mapping[str, ndarray]
) -> dict[str, ndarray]:
    """{column: (...) percent}: :func:`measured` from counts in place of a record.

    Args:
        groups: {group: logits}. columns: {group: column}. sums: {"images", "other_images": (..., C, 3)}.
    """
    found = {columns[g]: mean_of(iou(sums["images"]), ids) for g, ids in groups.items() if g in columns}
    if "other_images" in sums and "other" in columns:
        found[columns["other"]] = mean_of(iou(sums["other_images"]), groups["new"])
    return found


def forgotten(record: dict) -> list[float | None]:
    """By old class, background first: the base model's IoU less the final one's, as fractions; None where undefined."""
    pairs = zip(record["result"]["base_iou"], record["result"]["iou"], strict=False)
    return [None if before is None or after is None else before - after for before, after in pairs]


def cells_of(
    runs: Mapping[int, dict], setting: str, columns: Mapping[str, str], papers: Sequence[dict | None] = ()
) -> dict[str, dict]:
    """A row's cells in one setting.

    Args:
        runs: {seed: record}. setting: a key of SETTINGS. columns: {group: column}, in the order of ``papers``.
        papers: what the paper prints, for the first columns.
    """
    values = {seed: measured(record, setting) for seed, record in runs.items()}
    cells = {}
    for place, (group, column) in enumerate(columns.items()):
        paper = papers[place] if place < len(papers) else None
        mine = {seed: v[group] for seed, v in values.items() if group in v}
        why = "joint training has no step before" if values and group == "forgetting" else MISSING
        cells[column] = cell(mine, paper) if mine else not_run(why, paper)
    return cells


def ceiling_rows(settings: Settings, columns: Mapping[str, Mapping[str, str]]) -> list[dict]:
    """Rows of what the truth keeps after a coarse grid.

    Args:
        columns: {setting: {group: column}}; forgetting has no ceiling.
    """
    size, validation, rows = settings.get("world.size"), settings.get("world.val"), []
    for side in ceilings.grids(size):
        cells = {}
        for setting, names in columns.items():
            protocol = get(SETTINGS[setting])
            groups = protocol.groups()
            wanted = {names[g]: groups[g] for g in ("old", "new", "all") if g in names}
            cells |= ceilings.ceiling_cells(draws_of(protocol)[0], validation, size, side, wanted)
            if "other" in names:  # ids of the step's own draw: background, then the new classes
                own = {names["other"]: list(range(1, 1 + len(groups["new"])))}
                cells |= ceilings.ceiling_cells(draws_of(protocol)[1], validation, size, side, own)
        rows.append(row(f"ceiling of a {side}x{side} grid", cells))
    return rows


def mean(values: Sequence[float | None], ids: Sequence[int]) -> float:
    """Mean in percent of the fractions at some places, None left out; NaN where nothing is left."""
    there = [values[k] for k in ids if values[k] is not None]
    return 100 * math.fsum(there) / len(there) if there else math.nan
