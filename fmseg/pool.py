"""Many runs on few cores: take what records hold, train the rest in single-thread processes, resume what was killed.

Workers end when their parent is gone. A run keeps a checkpoint while it is under way, so a killed one goes on where it
was; a record appears when it is done. Two who want the same run do not train it twice: the second waits and reads.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from fmseg.provenance import closure
from fmseg.records import find_record, lock, new_record, path_of, reasons_stale, record_at_hand, run_key, write_record

ALLOCATOR = {  # glibc keeps large blocks instead of faulting them in again at every step
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


@dataclass
class Report:
    """What happened: keys of runs taken from records (``borrowed``: from those of other tables), of runs trained now,
    and why stale records were not taken."""

    from_records: list[str] = field(default_factory=list)
    borrowed: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    stale: dict[str, list[str]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)


@contextmanager
def _environment(values: dict[str, str]):
    """Environment of the processes started inside: read by libc and OpenMP when a process starts, not later."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update({key: os.environ.get(key, value) for key, value in values.items()})
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)


def _start_worker(parent: int) -> None:
    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def train_one(module: str, config: dict, folder: str, scratch: str, root: str, claims: dict[str, str]) -> dict:
    """Train one run under its lock and leave its record; if another process has just made it, take that.

    Args:
        module: module with ``run(config, checkpoint=..., checkpoint_every=...)`` such as 'fmseg.supervised'.
        config: the run's configuration.
        folder: where records lie. scratch: where locks and checkpoints lie. root: the project.
        claims: rule hashes to put into the record.

    Returns:
        The record.
    """
    code, key = closure(module, Path(root)), run_key(config)
    checkpoint = Path(scratch) / f"{key}.pt"
    with lock(Path(scratch) / f"{key}.lock", f"run {key}", wait=24 * 3600):
        record = find_record(Path(folder), config)
        if record is not None and not reasons_stale(record, code):
            return record
        from fmseg.provenance import canonical_hash

        checkpoint = checkpoint.with_name(f"{key}-{canonical_hash(code)}.pt")  # never go on with other code's weights
        every = max(1, config["train"]["steps"] // 8)
        done = import_module(module).run(config, checkpoint=checkpoint, checkpoint_every=every)
        record = new_record(
            config, code, done["result"], curve=done["curve"], seconds=done["seconds"], claims=claims
        )  # fmt: skip
        write_record(record, Path(folder))
        checkpoint.unlink(missing_ok=True)
        return record


def obtain(
    configs: list[dict[str, Any]],
    *,
    module: str,
    folder: Path,
    scratch: Path,
    root: Path,
    claims: dict[str, str] | None = None,
    lenders: Sequence[Path] = (),
    workers: int | None = None,
    ignore_records: bool = False,
    progress: bool = True,
) -> Report:
    """Records of all configurations: from the folder where they belong to this code, else trained now.

    Args:
        configs: runs, each with ``method``, ``seed`` and ``train.steps``.
        module: see :func:`train_one`.
        folder: the run store, results/<profile>/runs/<experiment>.
        scratch: build/runs; locks and checkpoints.
        root: the project's folder.
        claims: {claim id: rule hash} as they stand now.
        lenders: run stores of other tables, where a run is looked for that the folder does not have.
        workers: processes; default as many as cores.
        ignore_records: train all of them again (`make rerun`) but those that a lender has: these are its to train.
        progress: show a bar over runs.

    Raises:
        RuntimeError: workers were killed twice for the same work (out of memory?). What was done is kept.
    """
    from tqdm import tqdm

    code, report, missing = closure(module, root), Report(), []
    for config in configs:
        key, own = run_key(config), path_of(folder, config)
        folders = [*lenders] if ignore_records else [folder, *lenders]
        record = record_at_hand(folders, config, code)
        reasons = reasons_stale(record, code) if record else ["there is no record"]
        if ignore_records and own.exists() and reasons:
            report.stale[key] = reasons_stale(find_record(folder, config), code)
            own.unlink()
        if not reasons:
            report.from_records.append(key)
            report.borrowed += [] if own.exists() and not ignore_records else [key]
            report.records[key] = record
            continue
        missing.append(config)
        if record:
            report.stale[key] = reasons
    for attempt in (1, 2):
        if not missing:
            break
        with _environment({**ALLOCATOR, **ONE_THREAD, "PYTHONPATH": str(root)}):
            executor = ProcessPoolExecutor(
                min(workers or os.cpu_count() or 1, len(missing)), multiprocessing.get_context("spawn"),
                initializer=_start_worker, initargs=(os.getpid(),),
            )  # fmt: skip
            with executor, tqdm(total=len(missing), unit="run", disable=not progress) as bar:
                paths = (str(folder), str(scratch), str(root), claims or {})
                futures = {executor.submit(train_one, module, config, *paths): config for config in missing}
                try:
                    for future in as_completed(futures):
                        record = future.result()
                        missing.remove(futures[future])
                        report.trained.append(record["key"])
                        report.records[record["key"]] = record
                        bar.set_postfix_str(f"{record['config']['method']} s{record['config']['seed']}")
                        bar.update()
                except BrokenProcessPool as error:
                    if attempt == 2:
                        message = "worker processes were killed twice (out of memory?)"
                        raise RuntimeError(f"{message}; finished runs are kept, start again to go on") from error
                except BaseException:
                    executor.shutdown(wait=False, cancel_futures=True)
                    raise
    return report
