"""A table and the runs behind it: runs from records or trained now, one trained live and compared, the table written.

An experiment says which runs it needs (``configs``, a function of the settings) and how its table follows from their
records (``table``, a pure function). Everything else is the same for all of them and stands here.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fmseg import claims, second_look, tables, verdicts
from fmseg.estimand import parse
from fmseg.pool import obtain
from fmseg.provenance import canonical_hash, closure
from fmseg.records import read_record, reasons_stale, record_at_hand, run_key
from fmseg.settings import Settings, load

TRAIN = ("one", "none", "all", "missing")
CONFIDENCE = 0.99  # of the interval in which a run that is trained again must lie
LEAST_TOLERANCE = 1.0  # points of mIoU: another processor rounds otherwise, and training magnifies it
LARGEST_TOLERANCE = 5.0  # points, however little a few seeds say about the spread


REAL_MODULE = "fmseg.real_supervised"


def on_real_data(settings: Settings) -> bool:
    """Whether a profile trains on real data sets, not on the mini world."""
    return "data" in settings.values


def in_miniature(settings: Settings) -> Settings:
    """For a notebook that shows the mini world in any profile: where a profile trains on real data, `mini`'s
    parameters; figures still go to the profile's results. Not for :func:`perform`."""
    return replace(settings, values=load("mini", settings.root).values) if on_real_data(settings) else settings


@dataclass(frozen=True)
class Experiment:
    """A table of trained runs.

    Attributes:
        id: of the table, and name of its folder of run records.
        stage: the notebook that makes it, by file name without ending.
        module: has ``run(config, ...)``, such as 'fmseg.supervised'; its imports are what a record calls its code.
        configs: settings -> the runs' configurations.
        table: (settings, records in the order of the configurations) -> table; pure. A run without a record is None.
        cell: config -> label of the runs that differ from it by their seed alone.
        headline: whether `make rerun` trains it again without being asked for everything; or settings -> those of its
            configurations that it trains.
        photos: the data set on disk that its runs need, whatever the profile; None: the profile's.
        by_image: (settings, records) -> its runs whose cells follow from counts of validation images
            (:class:`fmseg.second_look.Run`); None: its records hold no images.
        real: module that trains its runs in a profile on real data.
        lenders: ids of tables of its family, which train runs by the same module: a run that one of them has is not
            trained again. Lending goes both ways, so each names all the others.
    """

    id: str
    stage: str
    module: str
    configs: Callable[[Settings], list[dict[str, Any]]]
    table: Callable[[Settings, list[dict | None]], dict]
    cell: Callable[[dict], str]
    headline: bool | Callable[[Settings], list[dict[str, Any]]] = True
    photos: str | None = None
    lenders: tuple[str, ...] = ()
    real: str = REAL_MODULE
    by_image: Callable[[Settings, list[dict]], list[Any]] | None = None

    def can_train(self) -> bool:
        """Whether what its runs need is on this machine."""
        if self.photos is None:
            return True
        from fmseg.on_disk import root_of

        try:
            return root_of(self.photos).is_dir()
        except FileNotFoundError:
            return False

    def trained_by(self, settings: Settings) -> str:
        """Module that trains its runs in a profile: ``module``, or its counterpart for real data."""
        return self.real if on_real_data(settings) else self.module

    def folder(self, settings: Settings) -> Path:
        """Where its run records lie: results/<profile>/runs/<id>."""
        return settings.results / "runs" / self.id

    def lent_from(self, settings: Settings) -> list[Path]:
        """The folders of the tables that lend it runs."""
        return [settings.results / "runs" / id for id in self.lenders]

    def record(self, settings: Settings, config: dict[str, Any], code: dict[str, str] | None = None) -> dict | None:
        """The record of one of its runs: its own, or a lender's; of several one that belongs to ``code``."""
        return record_at_hand([self.folder(settings), *self.lent_from(settings)], config, code)


@dataclass
class Outcome:
    """What :func:`perform` did. ``records`` in the order of the configurations, None where there is none.

    Attributes:
        table: the table, written unless records are missing.
        from_records, trained: numbers of runs.
        compared: one entry a run that was trained live beside its record, see :func:`compare`.
        stale: {run: why its record was not taken}.
    """

    table: dict
    records: list[dict | None]
    from_records: int = 0
    trained: int = 0
    compared: list[dict] = field(default_factory=list)
    stale: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self):
        words = [f"{self.from_records} runs from records, {self.trained} trained now"]
        for c in self.compared:
            how = "the same weights to the bit" if c["identical"] else f"mIoU off by {c['difference']:+.2f}"
            words.append(f"1 trained live and compared ({c['run']}): {how}, tolerance {c['tolerance']:.1f}")
        return "; ".join(words)


def perform(
    experiment: Experiment, settings: Settings, train: str = "one", progress: bool = True,
    again: dict[str, Any] | None = None,
) -> Outcome:  # fmt: skip
    """Do what a table needs and write it.

    Args:
        experiment, settings: what, and in which profile.
        train: "one": missing runs are trained, and the cheapest recorded one is trained live and compared with its
            record; "none": records only, and the table is not written if any is missing; "missing": missing runs are
            trained, none live; "all": every run is trained again and its record replaced. In a profile on real data
            runs are not trained from a notebook (`python -m fmseg train` does that), so "one" and "missing" are "none".
        progress: show a bar over runs.
        again: configuration of the run to train live; None: the cheapest. For a notebook that paints or trains for its
            figures anyway what this run needs, or whose cheapest run says little about its table.

    Raises:
        ValueError: ``train`` is none of the four, or ``again`` none of the runs. RuntimeError: the live run misses its
            record by more than the tolerance, so the records do not hold on this machine.
    """
    if train not in TRAIN:
        raise ValueError(f"`train` must be one of {', '.join(TRAIN)}; got {train!r}")
    configs, folder = experiment.configs(settings), experiment.folder(settings)
    if again is not None and configs and again not in configs:  # a profile may have none
        named = f"{again.get('method')!r} of seed {again.get('seed')}, which is none of the {len(configs)}"
        raise ValueError(f"`again` must be the configuration of a run of {experiment.id}; got {named}")
    outcome, module = Outcome({}, []), experiment.trained_by(settings)
    if train == "none" or (train != "all" and on_real_data(settings)):
        code = closure(module, settings.root)
        found = [experiment.record(settings, config, code) for config in configs]
        outcome.stale = {r["key"]: reasons_stale(r, code) for r in found if r and reasons_stale(r, code)}
        outcome.records = [None if r is None or r["key"] in outcome.stale else r for r in found]
        outcome.from_records = sum(r is not None for r in outcome.records)
    else:
        report = obtain(
            configs, module=module, folder=folder, scratch=settings.root / "build" / "runs",
            root=settings.root, claims=rules(experiment, settings), lenders=experiment.lent_from(settings),
            ignore_records=train == "all", progress=progress,
        )  # fmt: skip
        outcome.records = [report.records[run_key(config)] for config in configs]
        outcome.from_records, outcome.trained, outcome.stale = (
            len(report.from_records), len(report.trained), report.stale,
        )  # fmt: skip
        recorded = [r for r in outcome.records if r["key"] in set(report.from_records)]
        if again is None:
            own = [r for r in recorded if r["key"] not in set(report.borrowed)]
            recorded = own or recorded  # a lender compares its own
        else:
            recorded = [r for r in recorded if r["key"] == run_key(again)]
        if train == "one" and recorded:
            outcome.compared = [live(experiment, settings, outcome.records, recorded, progress)]
    outcome.table = experiment.table(settings, outcome.records)
    if None not in outcome.records:
        tables.write(outcome.table, settings.results / "tables")
    _report(experiment, settings, outcome)
    wrong = [c for c in outcome.compared if abs(c["difference"]) > c["tolerance"]]
    if wrong:
        raise RuntimeError(
            f"{experiment.id}, {wrong[0]['run']}: trained live, mIoU differs from its record by "
            f"{wrong[0]['difference']:+.2f}, more than {wrong[0]['tolerance']:.2f}. The records do not hold here: "
            "`make verify` says whether the code is theirs; else compare the versions in the record with yours"
        )
    return outcome


def rules(experiment: Experiment, settings: Settings) -> dict[str, str]:
    """{claim id: rule hash} of the claims that read this experiment's table or one of its family, as they stand now."""
    listed, hashes = claims.load(settings.root / "claims.yaml"), {}
    for id in (experiment.id, *experiment.lenders):
        hashes |= claims.rule_hashes(listed, id)
    return hashes


def live(experiment: Experiment, settings: Settings, records: list[dict], among: list[dict], progress: bool) -> dict:
    """Train the cheapest of ``among`` anew, beside the run store, and compare it with its record."""
    cheapest = min(among, key=lambda r: (_exposures(r["config"]), r["seconds"]))
    build = settings.root / "build"
    folder = build / "live" / settings.profile / experiment.id
    shutil.rmtree(folder, ignore_errors=True)
    again = obtain(
        [cheapest["config"]], module=experiment.trained_by(settings), folder=folder, scratch=build / "runs" / "live",
        root=settings.root, progress=progress,
    ).records[cheapest["key"]]  # fmt: skip
    return compare(experiment, again, cheapest, records)


def _exposures(config: dict) -> int:
    return config["train"]["steps"] * config["train"].get("batch_size", 1)


def compare(experiment: Experiment, again: dict, record: dict, records: Iterable[dict | None]) -> dict:
    """A run that was trained again, beside its record.

    The tolerance is the half-width of a prediction interval for one more run of the same cell, from the spread of the
    recorded seeds; at least :data:`LEAST_TOLERANCE`, at most :data:`LARGEST_TOLERANCE`.

    Returns:
        {"run", "identical" (same weights), "difference" (mIoU in points), "tolerance"}.
    """
    cell = experiment.cell(record["config"])
    values = [r["result"]["miou"] for r in records if r and experiment.cell(r["config"]) == cell]
    return {
        "run": f"{cell}, seed {record['config']['seed']}",
        "identical": again["result"]["weights"] == record["result"]["weights"],
        "difference": round(again["result"]["miou"] - record["result"]["miou"], 4),
        "tolerance": round(tolerance(values), 4),
    }


def tolerance(values: list[float], new: int = 1) -> float:
    r"""Half-width of the interval for the mean of ``new`` further runs: :math:`t_{n-1} s \sqrt{1/n + 1/m}`, m = new.

    Kept between :data:`LEAST_TOLERANCE` and :data:`LARGEST_TOLERANCE`; the latter also where there is one seed.
    """
    n = len(values)
    if n < 2:
        return LARGEST_TOLERANCE
    from scipy.stats import t

    mean = math.fsum(values) / n
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd * math.sqrt(1 / n + 1 / new)
    return min(max(LEAST_TOLERANCE, half), LARGEST_TOLERANCE)


def provenance(experiment: Experiment, settings: Settings, records: list[dict | None]) -> dict:
    """What a table says about where it comes from: stage, seeds, and one hash over its records' keys and code."""
    there = [r for r in records if r]
    seeds = sorted({r["config"]["seed"] for r in there})
    code = canonical_hash([[r["key"], r["code"]] for r in there])
    return {"stage": experiment.stage, "seeds": seeds, "runs": len(there), "records": code}


def judge(
    listed: list[dict], found: Mapping[str, dict], records: Mapping[str, list[dict]],
    experiments: Mapping[str, Experiment], settings: Settings,
) -> list[dict]:  # fmt: skip
    """Verdicts (:func:`fmseg.verdicts.judge`) and second looks (:func:`fmseg.second_look.add`) of claims.

    Args:
        listed: the claims. found: {id: table} that are at hand. records: {id: records behind it}; they hold the rules'
            hashes and what each validation image adds. experiments: {id: experiment}, of every table of ``records``.
        settings: the profile.
    """
    hashes, scale = claims.stored_hashes(listed, records), settings.profile
    there = [c for c in listed if "not_tested" in c or c["scale"] == scale or _named(c, found)]
    entries = verdicts.judge(there, found, hashes, scale)
    if len(there) < len(listed):  # nothing is judged at another scale, whose tables may have other rows
        others = verdicts.judge([c for c in listed if c not in there], {}, hashes, scale)
        for entry in others:
            entry["why"] = f"judged at scale {entry['scale']}; a table of profile {scale} has other rows"
            entry["text"] = verdicts.in_words(entry)
        place = {c["id"]: number for number, c in enumerate(listed)}
        entries = sorted(entries + others, key=lambda entry: place[entry["id"]])
    runs = {id: experiments[id].by_image(settings, there) for id, there in records.items() if experiments[id].by_image}
    return second_look.add(entries, found, runs)


def _named(claim: Mapping, found: Mapping[str, dict]) -> bool:
    """Whether the tables at hand have every cell that a claim names; tables that are not there are no matter."""
    formula = parse(claim["estimand"])
    return not set(formula.tables) <= set(found) or all(
        any(row["label"] == label and column in row["cells"] for row in found[table]["rows"])
        for table, label, column in formula.cells
    )


def judged(experiment: Experiment, settings: Settings, outcome: Outcome) -> list[dict]:
    """:func:`judge` on the claims that this table alone decides; the ledger has them all."""
    listed = claims.testable(claims.load(settings.root / "claims.yaml"))
    listed = [c for c in listed if parse(c["estimand"]).tables == (experiment.id,)]
    id, there = experiment.id, [r for r in outcome.records if r]
    return judge(listed, {id: outcome.table}, {id: there}, {id: experiment}, settings)


def _report(experiment: Experiment, settings: Settings, outcome: Outcome) -> None:
    """Leave what happened for the summary at the end of `make repro`."""
    path = settings.root / "build" / "reports" / settings.profile / f"{experiment.id}.json"
    keys = ("from_records", "trained", "compared", "stale")
    text = json.dumps({key: getattr(outcome, key) for key in keys}, indent=1) + "\n"
    tables.write_files({path: text})


def stored(experiment: Experiment, settings: Settings) -> list[dict]:
    """All records in the experiment's folder, whatever their configuration; [] if there is no folder."""
    return [read_record(path) for path in sorted(experiment.folder(settings).glob("*.json"))]


def behind(experiment: Experiment, settings: Settings) -> list[dict]:
    """The records that its table rests on or could: all in its folder, and what lenders have of its runs."""
    own = stored(experiment, settings)
    if not any(folder.is_dir() for folder in experiment.lent_from(settings)):
        return own
    keys = {record["key"] for record in own}
    lent = [experiment.record(settings, c) for c in experiment.configs(settings) if run_key(c) not in keys]
    return own + [record for record in lent if record]
