"""Costly arrays made once and shared: sets in numbered parts that appear whole, whoever makes them and however often
that is interrupted.

A set is a folder named after what its parts are a function of; a part is an npz file. A process that needs parts takes
those that are there, makes missing ones that nobody else is making, and waits for the rest. So several workers that
want the same set share the work, and one that was killed leaves nothing half.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy import ndarray

from fmseg.provenance import canonical_hash, closure
from fmseg.records import LockedError, lock

Arrays = dict[str, ndarray]
_WAIT = 0.2  # seconds between looks at parts that others make


def home() -> Path:
    """build/parts of this checkout, or the folder that FMSEG_PARTS names. What lies there can be made again."""
    given = os.environ.get("FMSEG_PARTS")
    return Path(given) if given else Path(__file__).resolve().parent.parent / "build" / "parts"


def folder(kind: str, key: Mapping, module: str) -> Path:
    """The folder of a set: one for everything that its arrays are a function of.

    Args:
        kind: what the set is, for people: 'pictures', 'features', ...
        key: JSON values: options, hashes of weights, content.
        module: the fmseg module that makes the parts; its code, and all it imports, is part of the key.

    Returns:
        The folder, made, with ``about.json`` that says what it holds.

    This module imports little on purpose: what it imports is part of every key.
    """
    code = canonical_hash(closure(module, Path(__file__).resolve().parent.parent))
    path = home() / kind / canonical_hash({"key": key, "code": code})
    about = path / "about.json"
    if not about.exists():
        path.mkdir(parents=True, exist_ok=True)
        temporary = about.with_name(f".{about.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"kind": kind, "module": module, "code": code, "key": key}, indent=1) + "\n")
        os.replace(temporary, about)
    return path


def obtain(path: Path, numbers: Iterable[int], make: Callable[[int], Arrays]) -> list[Arrays]:
    """Parts of a set, in the order of ``numbers``; missing ones are made.

    Args:
        path: the set's folder, from :func:`folder`.
        numbers: which parts, each once.
        make: number -> arrays; a function of the folder's key and the number alone.

    Raises:
        OSError: the disk is full or read-only; names the file, and leaves nothing half.
        ValueError: a part is damaged; says what to do. What ``make`` raises goes through.
    """
    numbers = list(numbers)
    missing = [k for k in numbers if not file_of(path, k).exists()]
    while missing:
        before = len(missing)
        for number in list(missing):
            if file_of(path, number).exists():
                missing.remove(number)
                continue
            try:
                with lock(path / f"{number:05d}.lock", f"part {number} of {path.name}"):
                    if not file_of(path, number).exists():
                        _write(file_of(path, number), make(number))
            except LockedError:
                continue
            missing.remove(number)
        if len(missing) == before:  # all of them are being made by others, who may still be killed
            time.sleep(_WAIT)
    return [_read(file_of(path, k)) for k in numbers]


def file_of(path: Path, number: int) -> Path:
    """Where a part lies."""
    return Path(path) / f"{number:05d}.npz"


def joined(parts: list[Arrays], count: int | None = None) -> Arrays:
    """Parts one after the other, cut to the first ``count`` rows; every array of a part has the same rows."""
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def _write(path: Path, arrays: Arrays) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot write {path}: {reason}; free some space or get the rights") from None
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (BadZipFile, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, it is then made again") from None
