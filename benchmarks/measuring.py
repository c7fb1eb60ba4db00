"""What several benchmarks share: times of jobs in turns, and the peak memory of one call in a process of its own."""

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
