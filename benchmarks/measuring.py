"""What several benchmarks share: times of jobs in turns, the peak memory of one call in a process of its own, and what
was aimed at, which `--write` keeps for the README."""

import json
import operator
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def in_turns(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each job in each of ``rounds``, one after the other; a first round that warms up does not
    count. Time in which other processes had the core is left out, so that a busy machine is no slower one."""
    times = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            times[name] += [time.process_time() - start] if turn else []
    return times


def added_peak(call: Callable[[], object]) -> float:
    """MB that this process needs at its peak during a call, beyond what it holds before; Linux."""

    def highest() -> int:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = highest()
    call()
    return (highest() - before) / 1024


def peak_in_own_process(*words: str) -> float:
    """What this script prints when it is called again with ``--peak`` and these words: MB."""
    line = [sys.executable, sys.argv[0], "--peak", *words]
    return float(subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout)


KEPT = Path(__file__).parents[1] / "results" / "paper" / "benchmarks.json"
_MEETS = {">=": operator.ge, "<=": operator.le}


def rounds() -> list[int]:
    """The numbers on the command line."""
    return [int(word) for word in sys.argv[1:] if word.isdigit()]


def aim(what: str, measured: float, sign: str, target: float, unit: str) -> dict:
    """One target: ``sign`` is ">=" or "<=", ``unit`` "x", "%" or "MB"."""
    words = {"what": what, "measured": float(f"{measured:.3g}"), "target": f"{sign} {target:.3g}", "unit": unit}
    return words | {"met": bool(_MEETS[sign](measured, target))}


def settle(aims: list[dict]) -> None:
    """Print targets beside what was measured; with `--write` on the command line also keep them."""
    benchmark = Path(sys.argv[0]).name
    for one in aims:
        words = f"{one['measured']:g} {one['unit']}, target {one['target']}: {'met' if one['met'] else 'MISSED'}"
        print(f"{one['what']}: {words}")
    if "--write" in sys.argv:
        known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        KEPT.write_text(json.dumps(dict(sorted((known | {benchmark: aims}).items())), indent=1) + "\n")
