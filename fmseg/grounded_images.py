"""Grounded Diffusion's tables over other test pictures: what each picture adds, for the second look at claims.

Protocol I means over pictures within a class, then over classes, within a group of pictures. So a picture adds, in its
group and for each class that it names, an IoU and a one; Protocol II adds pixels, as any segmenter does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray
from torch import Tensor

from fmseg import image_counts
from fmseg.grounded_scores import complete, overlaps
from fmseg.grounded_sets import Triplets
from fmseg.provenance import canonical_hash
from fmseg.second_look import Run, iou, mean_of

MILLION = 1_000_000  # counts are integers; an IoU is kept in millionths


def counted(masks: Tensor, data: Triplets, groups: Sequence[str | None], columns: Sequence[str]) -> dict[str, Any]:
    """What each test picture adds to :func:`fmseg.grounded_scores.scores`, as JSON.

    Args:
        masks, data, groups: as of that function. columns: the groups that count, in the order they are kept.

    Returns:
        {"columns": names, "counts": packed (rows, columns * classes, 3): IoU in millionths, one for each, 0}.
    """
    inside, whole = (x.numpy() for x in overlaps(masks, data.masks))
    classes, there = len(data.classes), complete(data).numpy()
    found = np.zeros((min(len(data), image_counts.BLOCKS), len(columns) * classes, 3), np.int64)
    for row, group in enumerate(groups):
        if group in columns and there[row]:
            for slot in np.flatnonzero(data.named[row].numpy() >= 0):
                union = whole[row, slot]
                right = inside[row, slot] / union if union else 1.0
                place = columns.index(group) * classes + int(data.named[row, slot])
                found[row % image_counts.BLOCKS, place] += (round(MILLION * right), 1, 0)
    return {"columns": list(columns), "counts": image_counts.pack(found)}


def mean_over_classes(columns: Sequence[str], sums: ndarray) -> dict[str, ndarray]:
    """{column: (...) percent} from sums (..., columns * classes, 3); NaN where no picture is of a column.

    The mean over classes of the mean over their pictures.
    """
    made = {}
    for column, part in zip(columns, np.split(sums, len(columns), axis=-2), strict=True):
        total, count = part[..., 0], part[..., 1]
        each = np.divide(total, count, out=np.zeros(total.shape), where=count > 0) / MILLION
        classes = (count > 0).sum(-1)
        made[column] = 100 * np.where(classes > 0, each.sum(-1) / np.maximum(classes, 1), np.nan)
    return made


def tested_on(config: Mapping) -> str:
    """Name of a run's test pictures: equal names mean the same pictures in the same order."""
    return canonical_hash({key: config[key] for key in ("draw", "test", "sampling", "oracle", "zoo")})


def looks(
    label: str, records: Iterable[Mapping], seeds: Sequence[int] | None = None, prefix: str = "", key: str = "images"
) -> list[Run]:  # fmt: skip
    """A row's runs on painted pictures; [] where records hold no counts.

    Args:
        label: of the row. records: of the runs in it.
        seeds: a record that stands for all of them, such as DAAM's, is given to each.
        prefix: of columns. key: of the result.
    """
    found = []
    for record in records:
        kept = record["result"].get(key, {}).get("painted")
        if kept is None:
            continue
        cells = partial(_cells, {"images": kept["columns"]}, prefix)
        sets = {"images": tested_on(record["config"])}
        for seed in [record["config"]["seed"]] if seeds is None else seeds:
            found.append(Run(label, seed, {"images": kept["counts"]}, sets, cells))
    return found


def averages(several: Sequence[Sequence[Run]], label: str) -> list[Run]:
    """Means over splits, seed by seed, of the seeds that all have. ``several``: of each, what :func:`looks` gave."""
    by_seed = [{run.seed: run for run in runs} for runs in several]
    found = []
    for seed in by_seed[0] if by_seed else ():
        if all(seed in runs for runs in by_seed):
            mine = [runs[seed] for runs in by_seed]
            packed = {str(k): run.packed["images"] for k, run in enumerate(mine)}
            sets = {str(k): run.sets["images"] for k, run in enumerate(mine)}
            found.append(Run(label, seed, packed, sets, partial(_averaged, [run.cells for run in mine])))
    return found


def _cells(columns: Mapping[str, Sequence[str]], prefix: str, sums: Mapping[str, ndarray]) -> dict[str, ndarray]:
    found = mean_over_classes(columns["images"], sums["images"])
    return {prefix + column: values for column, values in found.items()}


def _averaged(
    several: Sequence[Callable[[Mapping[str, ndarray]], dict]], sums: Mapping[str, ndarray]
) -> dict[str, ndarray]:
    each = [cells({"images": sums[str(k)]}) for k, cells in enumerate(several)]
    return {column: sum(values[column] for values in each) / len(each) for column in each[0]}


def seen_and_unseen(
    groups: Mapping[str, Sequence[int]], prefix: str, sums: Mapping[str, ndarray]
) -> dict[str, ndarray]:  # fmt: skip
    """{column: (...) percent} of Protocol II: means over seen and unseen classes, and their harmonic mean.

    Args:
        groups: {"seen", "unseen": ids}. prefix: of columns. sums: {"images": (..., C, 3) pixels}.
    """
    found = iou(sums["images"])
    seen, unseen = (mean_of(found, groups[name]) for name in ("seen", "unseen"))
    both = seen + unseen
    harmonic = np.divide(2 * seen * unseen, both, out=np.zeros(both.shape), where=both != 0)
    found = {"seen": seen, "unseen": unseen, "harmonic": np.where(np.isnan(both), both, harmonic)}
    return {prefix + column: values for column, values in found.items()}
