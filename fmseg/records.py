"""Run records: what a finished training run leaves behind in git, so that nothing is trained twice.

A record is a small JSON file: configuration, the hash of every module it rests on, the world's pinned hash, hashes of
the claims' rules at that time, result, curve, seconds, machine. It is written under a temporary name and renamed when
the run is done, so a record that can be seen is complete. Whether it still belongs to the code at hand is a question
(:func:`reasons_stale`), not a state.
"""

import fcntl
import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmseg.provenance import canonical_hash, differences

KEYS = ("key", "config", "code", "claims", "result", "curve", "seconds", "machine", "versions", "finished")


class RecordError(ValueError):
    """A file in the run store is not a run record: truncated, foreign or edited by hand."""


class LockedError(RuntimeError):
    """Another living process works on the same run."""


def run_key(config: dict[str, Any]) -> str:
    """The name of a run: a hash of its configuration alone (the code's hashes stand inside the record)."""
    return canonical_hash(config)


def new_record(
    config: dict[str, Any],
    code: dict[str, str],
    result: dict[str, Any],
    *,
    curve: list[list[float]],
    seconds: float,
    claims: dict[str, str] | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Put a record together.

    Args:
        config: everything the run is a function of; JSON values.
        code: {module: hash}, from :func:`fmseg.provenance.closure` of the module that trains.
        result: per-class IoU, mIoU and what else was measured; NaN is not allowed, use None.
        curve: [[step, value], ...].
        seconds: wall time of the run.
        claims: {claim id: rule hash} of the claims this run will be evidence for, as they stand now.
        threads: threads the run used.
    """
    return {
        "key": run_key(config),
        "config": config,
        "code": code,
        "claims": claims or {},
        "result": result,
        "curve": curve,
        "seconds": round(seconds, 1),
        "machine": machine(threads),
        "versions": versions(),
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def machine(threads: int = 1) -> dict[str, Any]:
    """What a run ran on: processor, system, threads."""
    return {"cpu": _processor(), "system": platform.system(), "threads": threads}


def versions() -> dict[str, str]:
    """The versions that numbers depend on most."""
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def path_of(folder: Path, config: dict[str, Any]) -> Path:
    """Where the record of a configuration lies: <folder>/<method>-s<seed>-<key>.json, readable in a listing."""
    return Path(folder) / f"{config.get('method', 'run')}-s{config.get('seed', 0)}-{run_key(config)}.json"


def write_record(record: dict[str, Any], folder: Path) -> Path:
    """Write a record; it appears under its name only when it is complete.

    Raises:
        OSError: the disk is full or read-only; names the file. What was there stays as it was.
        ValueError: the record holds NaN or infinity.
    """
    path = path_of(folder, record["config"])
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        message = f"cannot write the run record {path}: {error.strerror}; free some space or get the rights"
        raise OSError(error.errno, message) from None
    return path


def read_record(path: Path) -> dict[str, Any]:
    """Read and check a record.

    Raises:
        RecordError: truncated, foreign, or its key does not belong to its configuration; names file and what to do.
        FileNotFoundError: there is none.
    """
    path = Path(path)
    advice = "delete it (the run is then trained again) or restore it with git"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{path} is not a complete run record ({error}); {advice}") from None
    missing = [key for key in KEYS if not isinstance(record, dict) or key not in record]
    if missing:
        raise RecordError(f"{path} is not a run record: it lacks {', '.join(missing)}; {advice}")
    if record["key"] != run_key(record["config"]):
        raise RecordError(f"{path}: its key {record['key']} does not belong to its configuration; {advice}")
    return record


def find_record(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a configuration, or None. Raises as :func:`read_record`, also for a file under a wrong name."""
    path = path_of(folder, config)
    if not path.exists():
        return None
    record = read_record(path)
    if record["key"] != run_key(config):
        raise RecordError(f"{path} holds another configuration's record; restore it with git or delete it")
    return record


def record_at_hand(
    folders: Sequence[Path], config: dict[str, Any], code: dict[str, str] | None = None
) -> dict[str, Any] | None:  # fmt: skip
    """The first record of a configuration in several folders; one that belongs to ``code`` before one that does not.

    Raises as :func:`read_record`.
    """
    found = [r for r in (find_record(folder, config) for folder in folders) if r]
    fresh = [r for r in found if code is not None and not reasons_stale(r, code)]
    return (fresh or found or [None])[0]


def reasons_stale(record: dict[str, Any], code: dict[str, str]) -> list[str]:
    """Why a record does not belong to the code at hand, in words, by module; empty where it does."""
    return differences(record["code"], code)


def holder(path: Path) -> int | None:
    """Process id that holds a lock file now, or None. A file whose holder was killed counts as free."""
    try:
        with open(path, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        text = Path(path).read_text(encoding="utf-8").split()
        return int(text[0]) if text else 0


@contextmanager
def lock(path: Path, what: str, wait: float = 0.0):
    """Hold a lock file. It carries this process's id and the time, for people to read.

    The kernel's own lock decides, not the text: it goes with the process however that ends, so there are no stale
    locks to clear, no process ids that were used again, and no race between two who clear the same one.

    Args:
        path: the lock file; its folder is made. It stays behind, empty.
        what: what is locked, for the error.
        wait: seconds to wait for a living holder.

    Raises:
        LockedError: a living process holds it; names its id and since when.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    with open(path, "a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    pid, _, since = file.read().partition(" ")
                    message = f"{what} is being worked on by process {pid or '?'} since {since.strip() or '?'}"
                    raise LockedError(f"{message}; wait for it, or stop it and try again") from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"{os.getpid()} {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
