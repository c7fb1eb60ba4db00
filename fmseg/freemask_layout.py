"""A table of FreeMask as data: for every cell the run behind it; from that the runs, the rows and the claims' labels.

A cell is the mean over seeds of one number of one kind of run. Tables share runs: the same configuration in two tables
is trained once, and lent (``lenders`` of :class:`fmseg.experiment.Experiment`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy import ndarray

from fmseg import freemask_configs, tables
from fmseg.experiment import Experiment, on_real_data, provenance
from fmseg.records import run_key
from fmseg.second_look import Run, iou, mean_of
from fmseg.settings import Settings
from fmseg.tables import cell, not_run, paper_value, row

MISSING = "no record of its runs"
UNIT = "% mIoU"


def miou(result: dict[str, Any]) -> float:
    """What most cells show: mIoU in percent on the validation set."""
    return result["miou"]


@dataclass(frozen=True)
class Entry:
    """A cell.

    Attributes:
        make: (settings, seed) -> configuration of the run.
        judged: whether a claim is judged on it, so that it has all seeds; else ``freemask.other_seeds``.
        paper: (value, certainty) of the paper, value None where it could not be recovered; or None.
        value: record's result -> the number, or None where this run has none.
        headline: whether `make rerun` trains it without being asked for everything.
        mini: why it has no run on the papers' data sets; "" where it has.
    """

    make: Callable[[Settings, int], dict[str, Any]]
    judged: bool = False
    paper: tuple[float | None, str] | None = None
    value: Callable[[dict[str, Any]], float | None] = miou
    headline: bool = False
    mini: str = ""

    def seeds(self, settings: Settings) -> list[int]:
        """Seeds of its runs."""
        return settings.get("seeds") if self.judged else freemask_configs.other_seeds(settings)


@dataclass(frozen=True)
class Layout:
    """A table: ``rows`` is {label: {column: Entry, or text: why it is not run}}; the rest as :func:`fmseg.tables.table`
    has it, ``source`` being where the paper's numbers were read; ``family`` are the tables that share runs; ``module``
    and ``photos`` as of an :class:`~fmseg.experiment.Experiment`; ``lacking`` says why a profile has no runs."""

    id: str
    title: str
    paper: str
    source: str
    columns: tuple[str, ...]
    rows: Callable[[Settings], dict[str, dict[str, Entry | str]]]
    note: str
    stage: str
    unit: str = UNIT
    family: tuple[str, ...] = ()
    module: str = "fmseg.freemask_runs"
    photos: str | None = None
    lacking: Callable[[Settings], str | None] = freemask_configs.lacking

    def entries(self, settings: Settings) -> list[Entry]:
        """All cells that have runs in this profile."""
        return [e for line in self.rows(settings).values() for e in line.values() if _has_runs(e, settings)]

    def runs(self, settings: Settings, headline: bool = False) -> list[dict[str, Any]]:
        """Configurations of its runs, each once; [] in a profile or with a zoo that has none."""
        if self.lacking(settings):
            return []
        wanted = [e for e in self.entries(settings) if e.headline or not headline]
        made = [e.make(settings, seed) for e in wanted for seed in e.seeds(settings)]
        return list({run_key(config): config for config in made}.values())

    def build(self, settings: Settings, records: list[dict | None]) -> dict:
        """The table from its records; pure."""
        found = {r["key"]: r["result"] for r in records if r}
        why = self.lacking(settings)
        lines = []
        for label, cells in self.rows(settings).items():
            lines.append(
                row(label, {c: self._cell(settings, cells[c], found, why) for c in self.columns if c in cells})
            )
        return tables.table(
            self.id, self.title, self.paper, self.unit, list(self.columns), lines, note=self.note,
            provenance=provenance(self.experiment(), settings, records),
        )  # fmt: skip

    def _cell(self, settings, entry, found, why):
        if isinstance(entry, str):
            return not_run(entry)
        paper = paper_value(*entry.paper, self.source) if entry.paper else None
        why = why or (entry.mini if on_real_data(settings) else "")
        if why:
            return not_run(why, paper)
        keys = {seed: run_key(entry.make(settings, seed)) for seed in entry.seeds(settings)}
        values = {seed: entry.value(found[key]) for seed, key in keys.items() if key in found}
        values = {seed: value for seed, value in values.items() if value is not None}
        return cell(values, paper) if values else not_run(MISSING, paper)

    def records_of(self, settings: Settings, records: list[dict | None], label: str, column: str) -> dict[int, dict]:
        """{seed: record} of the runs behind a cell, as far as they are among ``records``; {} of a cell without runs."""
        entry = self.rows(settings)[label].get(column)
        if self.lacking(settings) or not _has_runs(entry, settings):
            return {}
        found = {record["key"]: record for record in records if record}
        keys = {seed: run_key(entry.make(settings, seed)) for seed in entry.seeds(settings)}
        return {seed: found[key] for seed, key in keys.items() if key in found}

    def by_image(self, settings: Settings, records: list[dict | None]) -> list[Run]:
        """The runs behind cells of mIoU whose records hold counts of images, for the second look at claims."""
        found = []
        for label, cells in self.rows(settings).items():
            for column, entry in cells.items():
                if isinstance(entry, Entry) and entry.value is miou:
                    mine = self.records_of(settings, records, label, column)
                    found += [run_by_image(label, r, partial(_mean_of_all, column)) for r in mine.values()]
        return [run for run in found if run.packed]

    def experiment(self) -> Experiment:
        """The table as :mod:`fmseg.experiment` performs it."""
        lenders = tuple(id for id in self.family if id != self.id)
        return Experiment(
            self.id, self.stage, self.module, self.runs, self.build, describe, self.headline, self.photos, lenders,
            "fmseg.real_freemask", self.by_image,
        )  # fmt: skip

    def headline(self, settings: Settings) -> list[dict[str, Any]]:
        """Configurations of the runs that `make rerun` trains without being asked for everything."""
        return self.runs(settings, headline=True)


def run_by_image(label: str, record: dict, cells: Callable[[dict[str, ndarray]], dict[str, ndarray]]) -> Run:
    """A run in a row; without counts where its record has none (:attr:`fmseg.second_look.Run.packed` is empty).

    Args:
        label: of the row. record: of a run in the mini world or on real data. cells: as of the :class:`Run`.
    """
    config, images = record["config"], record["result"].get("images")
    if images is None:
        return Run(label, config["seed"], {}, {}, cells)
    tested = f"{config['draw']}, {config['validation']} images of {config['size']} pixels"
    return Run(label, config["seed"], {"images": images}, {"images": tested}, cells)


def _mean_of_all(column: str, sums: dict[str, ndarray]) -> dict[str, ndarray]:
    found = iou(sums["images"])
    return {column: mean_of(found, range(found.shape[-1]))}


def _has_runs(entry: Entry | str | None, settings: Settings) -> bool:
    return isinstance(entry, Entry) and not (entry.mini and on_real_data(settings))


def describe(config: dict[str, Any]) -> str:
    """What a run is, in words; runs of one description differ by their seed alone."""
    pictures = f"on {config.get('images') or 'all'} images of {config.get('draw') or config['data']}"
    train, words = config["train"], [config["method"], pictures]
    if "pipeline" in config:  # at the paper's size
        words[0] += f" {config['size']}"
    if config.get("backbone") == "scratch":
        words.append("from scratch")
    words.append(f"{config['paradigm']}, {train['steps']} steps, augment {'+'.join(train.get('augment', []))}")
    if "ready" in config.get("synthetic", ()):
        words.append(f"pictures of {config['synthetic']['ready']}")
    elif "synthetic" in config:
        wanted, paints = config["synthetic"], config["generator"]
        own = paints.get("own")
        words.append(f"own generator from {own['start']}" if own else paints.get("model") or str(paints["weights"]))
        words.append(f"most {wanted['most']}" + (", re-sampled" if wanted["resample"] else ""))
        if wanted["alpha"] is not None:
            words.append(f"filtered at {wanted['alpha']:g}, {wanted.get('means', 'training')} means")
    if config.get("exclude_ignored"):
        words.append("ignored pixels excluded")
    return ", ".join(words)
