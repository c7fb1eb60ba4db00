"""`make rerun`: train again without looking at the records, and see whether the results fall where they are committed.

The headline tables with three seeds, with SCOPE=one a run of every table, with SCOPE=all every run; with
TABLES=freemask only tables whose names begin so. Works in build/rerun, so the committed records stay as they are; a
rerun that was stopped goes on where it was. A cell holds if the mean of its new runs lies in the prediction interval
that the committed seeds give for it (99 %, at least one point of mIoU). Where a processor rounds otherwise, one cell in
a hundred lies outside by chance; a rerun fails if more do than chance explains, or if one lies twice as far off as its
interval reaches.
"""

import argparse
import json
import resource
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmseg import tables
from fmseg.catalogue import EXPERIMENTS
from fmseg.experiment import CONFIDENCE, Experiment, stored, tolerance
from fmseg.notebooks import note_time
from fmseg.pool import obtain
from fmseg.records import LockedError, lock, machine, run_key
from fmseg.settings import Settings, load

SCOPES = ("headline", "one", "all")
SEEDS = 3  # of headline tables
SPENT = "seconds.json"  # in the folder of a rerun that is under way


def configs_of(experiment: Experiment, settings: Settings, scope: str) -> list[dict]:
    """The runs that a rerun trains: all; the quickest that has a record of its own, none of a lender's; or those of the
    first three seeds of a headline table, or of its part that belongs to the headline."""
    configs = experiment.configs(settings)
    if scope == "all":
        return configs
    if scope == "one":
        keys = {run_key(config) for config in configs}
        own = [record for record in stored(experiment, settings) if record["key"] in keys]
        return [min(own, key=lambda record: record["seconds"])["config"]] if own else []
    seeds = sorted({c["seed"] for c in configs})[:SEEDS]
    if callable(experiment.headline):
        configs = experiment.headline(settings)
    return [c for c in configs if c["seed"] in seeds] if experiment.headline else []


def chosen(start: str = "") -> list[Experiment]:
    """The tables whose names begin with ``start``.

    Raises:
        ValueError: none does.
    """
    found = [experiment for id, experiment in EXPERIMENTS.items() if id.startswith(start)]
    if not found:
        names = ", ".join(EXPERIMENTS)
        raise ValueError(f"`tables` must be the start of a table's name; got {start!r}; there are {names}")
    return found


def rerun(settings: Settings, scope: str = "headline", progress: bool = True, start: str = "") -> list[dict]:
    """Train again and compare.

    Args:
        settings: profile. scope: "headline", "one" or "all". progress: show a bar.
        start: only tables whose names begin so.

    Returns:
        One dict a cell: table, row, column, committed and again (means), n, tolerance, ok.

    Raises:
        ValueError: unknown scope, or no table begins so. FileNotFoundError: a committed table is missing. LockedError:
            another rerun works.
    """
    if scope not in SCOPES:
        raise ValueError(f"`scope` must be one of {', '.join(SCOPES)}; got {scope!r}")
    wanted_tables = chosen(start)
    folder, started = folder_of(settings, scope), time.perf_counter()
    compared = []
    with lock(folder.parent / f"{scope}.lock", f"make rerun, scope {scope},"):
        already = seconds_before(settings, scope)
        for experiment in wanted_tables:
            wanted = configs_of(experiment, settings, scope)
            if not wanted:
                continue
            if not experiment.can_train():
                print(f"{experiment.id}: left out, its photographs ({experiment.photos}) are not here", file=sys.stderr)
                continue
            print(f"{experiment.id}: {len(wanted)} runs", file=sys.stderr)
            try:
                report = obtain(
                    wanted, module=experiment.trained_by(settings), folder=folder / experiment.id,
                    scratch=folder / "scratch", root=settings.root, progress=progress,
                    lenders=[folder / id for id in experiment.lenders],
                )  # fmt: skip
            finally:  # stopped or not: the next one goes on counting from here
                spent = already + time.perf_counter() - started
                tables.write_files({folder / SPENT: tables.json_text(spent)})
            records = [report.records.get(run_key(c)) for c in experiment.configs(settings)]
            committed = tables.read(settings.results / "tables" / f"{experiment.id}.json")
            compared += compare_tables(committed, experiment.table(settings, records))
        shutil.rmtree(folder)  # only a stopped rerun leaves something to go on with
    return compared


def folder_of(settings: Settings, scope: str) -> Path:
    """Where a rerun works; what a stopped one left there is gone on with."""
    return settings.root / "build" / "rerun" / settings.profile / scope


def seconds_before(settings: Settings, scope: str) -> float:
    """What a rerun that was stopped had taken until then; 0 if none was."""
    path = folder_of(settings, scope) / SPENT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0.0


def compare_tables(committed: dict, again: dict) -> list[dict]:
    """Cell by cell, where the new table has a value; see :func:`rerun`."""
    found = []
    for old, new in zip(committed["rows"], again["rows"], strict=True):
        for column, cell in new["cells"].items():
            before = old["cells"][column]
            if not cell["n"] or not before["n"]:
                continue
            limit = tolerance(list(before["values"].values()), cell["n"])
            off = cell["mean"] - before["mean"]
            found.append(
                {"table": committed["id"], "row": old["label"], "column": column, "committed": before["mean"],
                 "again": cell["mean"], "n": cell["n"], "tolerance": limit, "ok": abs(off) <= limit}
            )  # fmt: skip
    return found


def by_chance(cells: int) -> int:
    """How many of so many cells may lie outside their intervals before chance is no explanation: the 99 % quantile of
    the binomial distribution, as if cells were independent."""
    from scipy.stats import binom

    return int(binom.ppf(CONFIDENCE, cells, 1 - CONFIDENCE)) if cells else 0


def failed(found: list[dict]) -> bool:
    """Whether the cells of :func:`rerun` are other results than the committed ones, and not other rounding."""
    far = any(abs(c["again"] - c["committed"]) > 2 * c["tolerance"] for c in found)
    return far or sum(not c["ok"] for c in found) > by_chance(len(found))


def recorded_seconds(settings: Settings, scope: str, start: str = "") -> float:
    """What the runs of a rerun took when their records were made, on one core of that machine; without what runs share
    and what is made before them."""
    total = 0.0
    for experiment in chosen(start):
        wanted = configs_of(experiment, settings, scope) if experiment.can_train() else []
        total += sum(r["seconds"] for r in (experiment.record(settings, config) for config in wanted) if r)
    return total


def summary(found: list[dict], seconds: float, settings: Settings, recorded: float = 0.0) -> dict[str, Any]:
    """What :func:`rerun` found, small enough to be kept: of each table how many cells were trained again and how many
    lie inside their intervals, the one that lies farthest off, and the records that it was compared with; then seconds,
    processor and the peak memory of the largest process, which are this process's and its workers', and
    ``recorded``, what :func:`recorded_seconds` says."""
    made = {}
    for id in dict.fromkeys(c["table"] for c in found):
        cells = [c for c in found if c["table"] == id]
        worst = max(cells, key=lambda c: abs(c["again"] - c["committed"]) / c["tolerance"])
        kept = {key: worst[key] for key in ("row", "column", "n")}
        kept |= {key: round(worst[key], 4) for key in ("again", "committed", "tolerance")}
        records = tables.read(settings.results / "tables" / f"{id}.json")["provenance"]["records"]
        inside = sum(c["ok"] for c in cells)
        made[id] = {"cells": len(cells), "inside": inside, "farthest": kept, "records": records}
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "tables": made, "reproduced": not failed(found), "seconds": round(seconds, 1), "cpu": machine()["cpu"],
        "memory": 1024 * peak,  # bytes; of the largest process
        "recorded": round(recorded, 1),
        "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
    }  # fmt: skip


def note(what: str, found: dict[str, Any], settings: Settings) -> Path:
    """Keep a :func:`summary` in build/reruns/<profile>.json, from where `make times` takes it into the results."""
    path = settings.root / "build" / "reruns" / f"{settings.profile}.json"
    with lock(path.with_suffix(".lock"), "what reruns found", wait=30):
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        tables.write_files({path: tables.json_text(known | {what: found})})
    return path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fmseg.rerun", description=__doc__.splitlines()[0])
    parser.add_argument("--scope", default="headline", help=f"one of {', '.join(SCOPES)}")
    parser.add_argument("--tables", default="", help="only tables whose names begin so, such as freemask")
    asked = parser.parse_args()
    started, settings, scope = time.perf_counter(), load(), asked.scope
    already = seconds_before(settings, scope)
    try:
        found = rerun(settings, scope, start=asked.tables)
    except (ValueError, OSError, LockedError, RuntimeError) as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfmseg: stopped; `make rerun` goes on from here", file=sys.stderr)
        return 130
    seconds = already + time.perf_counter() - started
    what = " ".join(["rerun", *([scope] if scope != "headline" else []), *([asked.tables] if asked.tables else [])])
    note_time(what, seconds, settings)
    note(what, summary(found, seconds, settings, recorded_seconds(settings, scope, asked.tables)), settings)
    for c in found:
        word = "ok" if c["ok"] else "OUTSIDE"
        print(
            f"{word:8}{c['table']} / {c['row']} / {c['column']}: {c['again']:.2f} (n = {c['n']}), "
            f"committed {c['committed']:.2f} ± {c['tolerance']:.2f}"
        )
    outside, bad = sum(not c["ok"] for c in found), failed(found)
    print(
        f"make rerun: {len(found)} cells, {outside} outside the committed intervals, where chance puts up to "
        f"{by_chance(len(found))}: {'NOT ' if bad else ''}reproduced"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
