"""Stages of the pipeline side by side, each after those that it rests on: DVC itself runs one after another.

`dvc repro --single-item` may run several times at once in a checkout (DVC's documentation of `repro`, "parallel stage
execution"): DVC holds its lock while it looks and writes, not while a stage works.
"""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import yaml

from fmseg.cite import duration

WORKERS = 2  # as many as the reader has cores; a notebook works on one
TAIL = 30  # lines of a failed stage's log that are shown


def rests_on(stages: Mapping[str, Mapping]) -> dict[str, set[str]]:
    """Which stages make what a stage depends on.

    Args:
        stages: the mapping of a dvc.yaml: ``deps`` (paths) and ``outs`` (paths, or {path: options}) of every stage.

    Returns:
        {stage: names of stages}. A dependency inside an out, or round one, counts.
    """
    outs = {name: [_path(out) for out in stage.get("outs", [])] for name, stage in stages.items()}

    def meet(dependency: str, out: str) -> bool:
        return f"{dependency}/".startswith(f"{out}/") or f"{out}/".startswith(f"{dependency}/")

    return {
        name: {
            other for other, made in outs.items()
            if other != name and any(meet(_path(d), out) for d in stage.get("deps", []) for out in made)
        }
        for name, stage in stages.items()
    }  # fmt: skip


def _path(entry: str | Mapping) -> str:
    return entry if isinstance(entry, str) else next(iter(entry))


def with_followers(changed: Iterable[str], on: Mapping[str, set[str]]) -> set[str]:
    """Stages that changed and all that rest on one of these, directly or not."""
    found = set(changed)
    while more := {name for name, needed in on.items() if needed & found} - found:
        found |= more
    return found


def run_all(
    names: Iterable[str], on: Mapping[str, set[str]], start: Callable[[str], int], workers: int = WORKERS
) -> int:  # fmt: skip
    """Start every stage once, as soon as those of ``names`` that it rests on are done.

    Args:
        names: stages. on: {stage: what it rests on}; stages that are not in ``names`` are taken for done.
        start: runs a stage and gives its exit status. workers: stages at a time, >= 1.

    Returns:
        0, or the first status that was not; then no further stage is started.

    Raises:
        ValueError: stages wait for each other in a ring. What ``start`` raises.
    """
    waiting, done, failed = sorted(names), set(), []
    known, running, turn = set(waiting), {}, threading.Condition()

    def work(name: str) -> None:
        try:
            status = start(name)
        except BaseException as error:
            status = error
        with turn:
            del running[name]
            done.add(name)
            if status:
                failed.append(status)
            turn.notify()

    with turn:
        while (waiting and not failed) or running:
            free = [name for name in waiting if not (on.get(name, set()) & known) - done]
            if free and len(running) < workers and not failed:
                waiting.remove(free[0])
                running[free[0]] = threading.Thread(target=work, args=(free[0],), daemon=True)
                running[free[0]].start()
            elif running:
                turn.wait()
            else:
                raise ValueError(f"the stages {', '.join(waiting)} wait for each other")
    if failed and isinstance(failed[0], BaseException):
        raise failed[0]
    return failed[0] if failed else 0


def repro(root: Path, dvc: Callable[..., subprocess.Popen], words: Iterable[str] = (), workers: int = WORKERS) -> int:
    """Execute what is out of date in dvc.yaml, `workers` stages at a time; a line says when each begins and ends.

    Args:
        root: of the checkout. dvc: starts DVC there with some words and further arguments of ``subprocess.Popen``.
        words: options of `dvc repro`. workers: stages at a time.

    Returns:
        0, or the status of a stage that failed; the end of its log is printed. Logs lie in build/logs.
    """
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    looked = dvc("status", "--json", *stages, stdout=subprocess.PIPE, text=True)
    found, _ = looked.communicate()
    if looked.returncode:
        return looked.returncode
    on = rests_on(stages)
    names = with_followers(set(json.loads(found or "{}")) & set(stages), on)
    logs, ended = root / "build" / "logs", []
    logs.mkdir(parents=True, exist_ok=True)

    def start(name: str) -> int:
        print(f"fmseg: {name} ...", flush=True)
        began, log = time.time(), logs / f"{name}.log"
        with log.open("w") as file:
            process = dvc("--wait-for-lock", "repro", "--single-item", *words, name, stdout=file, stderr=file)
            status = process.wait()
        ended.append(name)
        how = f"FAILED, see {log.relative_to(root)}" if status else duration(time.time() - began)
        print(f"fmseg: {name}: {how} ({len(ended)} of {len(names)})", flush=True)
        if status:
            print("\n".join(log.read_text(errors="replace").splitlines()[-TAIL:]), flush=True)
        return status

    return run_all(names, on, start, workers)
