"""A second look at claims: would other validation images have said the same? A paired bootstrap over images.

The judge's interval is over seeds, on one validation set. Here seeds stay and the images are drawn again, with
replacement, the same ones for every run on that set, so that differences of methods stay paired (Efron 1979; percentile
interval, Efron and Tibshirani 1993, chapter 13). A run's record must hold what each image adds
(:mod:`fmseg.image_counts`); how cells follow from such counts, each table says.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from fmseg import estimand, image_counts, rules, verdicts

RESAMPLES = 1000
NO_IMAGES = "records hold no images"
_TOLERANCE = 1e-3  # points between a table's value and that of all images once; records keep rounded IoUs
_LEAST = 0.5  # share of the resamples in which the estimand must be defined
Cell = tuple[str, str, str]


@dataclass(frozen=True)
class Run:
    """A run's place in a table, and how its cells follow from counts of images.

    Attributes:
        row: label. seed: of the run.
        packed: {name: counts by image, as :func:`fmseg.image_counts.pack` made them}.
        sets: {name: the validation images that were counted}; equal names mean the same images in the same order.
        cells: {name: (..., C, 3) counts summed over images} -> {column: (...) values in the unit of the table}.
    """

    row: str
    seed: int
    packed: Mapping[str, Mapping]
    sets: Mapping[str, str]
    cells: Callable[[dict[str, ndarray]], dict[str, ndarray]]


def iou(sums: ndarray) -> ndarray:
    """IoU of each class.

    Args:
        sums: (..., C, 3) pixels summed over images: right, in the truth, in the prediction.

    Returns:
        (..., C) float64 in [0, 1]; NaN for a class without truth, as :func:`fmseg.image_counts.iou`.
    """
    right, truth, guess = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    found = np.full(right.shape, np.nan)
    np.divide(right, truth + guess - right, out=found, where=truth > 0)
    return found


def mean_of(iou_: ndarray, ids: Sequence[int]) -> ndarray:
    """(...) mean in percent of the IoUs (..., C) of some classes, those without truth left out; NaN if none is left."""
    own = iou_[..., list(ids)]
    there = np.isfinite(own)
    count = there.sum(-1)
    return 100 * np.where(count > 0, np.where(there, own, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def multiplicities(name: str, images: int, resamples: int = RESAMPLES, seed: int = 0) -> ndarray:
    """How often each image is drawn: (1 + resamples, images) float64, all ones first; rows sum to ``images``.

    The draw depends on the set's name, its size and ``seed`` alone, so every run on these images gets the same one.
    """
    if images < 1 or resamples < 1:
        raise ValueError(f"`images` and `resamples` must be at least 1, got {images} and {resamples}")
    rng = np.random.default_rng([seed, images, *name.encode()])
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    return np.concatenate([np.ones((1, images)), drawn])


def cells_of(runs: Iterable[Run], resamples: int = RESAMPLES, seed: int = 0) -> dict[tuple[str, str], dict]:
    """{(row, column): {seed: (1 + resamples,) values}} of a table's runs, in the table's unit; all images once first.

    Raises:
        ValueError: counts that cannot be read; or a place that two runs claim.
    """
    found: dict[tuple[str, str], dict] = {}
    drawn: dict[tuple[str, int], ndarray] = {}
    for run in runs:
        sums = {}
        for name, packed in run.packed.items():
            counts = image_counts.unpack(packed)
            key = (run.sets[name], len(counts))
            if key not in drawn:
                drawn[key] = multiplicities(*key, resamples, seed)
            flat = drawn[key] @ counts.reshape(len(counts), -1)
            sums[name] = flat.reshape(len(flat), *counts.shape[1:])
        for column, values in run.cells(sums).items():
            place = found.setdefault((run.row, column), {})
            if str(run.seed) in place:
                raise ValueError(
                    f"`runs` must hold one for row {run.row!r}, column {column!r} and seed {run.seed}; got two"
                )
            place[str(run.seed)] = values
    return found


def add(
    entries: list[dict], tables: Mapping[str, dict], runs: Mapping[str, Iterable[Run]], resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict]:  # fmt: skip
    """Verdicts with a second look, in place.

    An entry with a measured effect gets ``images_low``, ``images_high`` (percentile interval at the entry's
    ``confidence``), ``images_word`` (what this interval alone says) or ``images_why`` (there is none); and a flag where
    a decisive verdict is not what the images say.

    Args:
        entries: of :func:`fmseg.verdicts.judge` on ``tables``.
        runs: {table id: its runs}; tables whose records hold no images are missing.

    Raises:
        ValueError: counts of all images do not make a table's value: table and records do not belong together.
    """
    wanted = {e["id"]: estimand.parse(e["estimand"]) for e in entries if e["mean"] is not None}
    asked = {cell[:2] for formula in wanted.values() for cell in formula.cells}
    found: dict[Cell, dict] = {}
    for table, own in runs.items():
        cells = cells_of((run for run in own if (table, run.row) in asked), resamples, seed)
        found |= {(table, *place): values for place, values in cells.items()}
    for entry in entries:
        if entry["id"] in wanted:
            entry |= look(entry, wanted[entry["id"]], tables, found)
            if disagrees(entry):
                entry["flags"] = [*entry["flags"], f"over images {entry['images_word']}"]
                entry["text"] = verdicts.in_words(entry)
    return entries


def look(entry: Mapping, formula: estimand.Estimand, tables: Mapping[str, dict], cells: Mapping[Cell, dict]) -> dict:
    """The second look at one verdict: {"images_low", "images_high", "images_word", "images_why"}.

    Args:
        entry: the verdict. formula: its estimand.
        tables: those that were judged. cells: {cell: {seed: (1 + resamples,) values}}.
    """
    none = dict.fromkeys(("images_low", "images_high", "images_word"))
    for cell, given in zip(formula.cells, estimand.find_cells(formula, tables), strict=True):
        own = cells.get(cell, {})
        if any(seed not in own for seed in entry["seeds"]):
            counted = any(other[:2] == cell[:2] and set(entry["seeds"]) <= set(v) for other, v in cells.items())
            return none | {"images_why": f"{' / '.join(cell)} is not counted by image" if counted else NO_IMAGES}
        for seed in entry["seeds"]:
            if not abs(own[seed][0] - given["values"][seed]) <= _TOLERANCE:
                raise ValueError(
                    f"the counts of {' / '.join(cell)}, seed {seed}, make {own[seed][0]:.4f}, the table says "
                    f"{given['values'][seed]:.4f}; make the table anew from its records"
                )
    drawn = [estimand.evaluate_arrays(formula, {c: cells[c][seed] for c in formula.cells}) for seed in entry["seeds"]]
    effect = np.mean(drawn, axis=0)[1:]
    effect = effect[np.isfinite(effect)]
    if len(effect) < _LEAST * (len(drawn[0]) - 1):
        return none | {"images_why": "too few images: most resamples leave the estimand undefined"}
    low, high = interval(effect, entry["confidence"])
    word = says(entry["rule"], entry["mean"], effect)
    return {"images_low": low, "images_high": high, "images_word": word, "images_why": None}


def interval(values: ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval of (n,) resampled values."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def says(rule: Mapping, mean: float, effect: ndarray) -> str:
    """The word that a rule would find if images were all that varies.

    As in :func:`fmseg.verdicts.judge`, with intervals of the (n,) resampled effects in place of p-values and without
    Holm: level inside the margin at 1 - 2 alpha, beyond it or off zero at 1 - alpha.
    """
    size, alpha = rules.limit(rule), rule["alpha"]
    wide, narrow = interval(effect, 1 - alpha), interval(effect, 1 - 2 * alpha)
    inside = -size < narrow[0] and narrow[1] < size
    equal = rule["test"] == "equivalence"
    if equal or (rule["side"] == "two-sided" and abs(mean) < size):
        settled = inside if abs(mean) < size else wide[0] > size or wide[1] < -size
    else:
        settled = wide[0] > 0 or wide[1] < 0
    return rules.WORDS[int(rules.decide(rule, mean, 0.0 if settled else 1.0))]


def disagrees(entry: Mapping) -> bool:
    """Whether a decisive verdict is not what the images say. That images are surer than seeds is no disagreement."""
    return entry["verdict"] in ("supported", "contradicted") and entry["images_word"] not in (None, entry["verdict"])
