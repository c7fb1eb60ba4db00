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
from functools import lru_cache, partial
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
    path = home() / kind / canonical_hash({"key": key, "code": code(module)})
    about = path / "about.json"
    if not about.exists():
        path.mkdir(parents=True, exist_ok=True)
        temporary = about.with_name(f".{about.name}.{os.getpid()}")
        what = {"kind": kind, "module": module, "code": code(module), "key": key}
        temporary.write_text(json.dumps(what, indent=1) + "\n")
        os.replace(temporary, about)
    return path


@lru_cache(maxsize=32)
def code(module: str) -> str:
    """Hash of a module of fmseg and of all that it imports, see :func:`fmseg.provenance.closure`."""
    return canonical_hash(closure(module, Path(__file__).resolve().parent.parent))


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
    fill({file_of(path, k): partial(make, k) for k in numbers})
    return [read(file_of(path, k)) for k in numbers]


def fill(wanted: Mapping[Path, Callable[[], Arrays]]) -> int:
    """Make the parts that are missing, beside others who do the same; returns when all are there.

    Args:
        wanted: file (:func:`file_of`) -> what makes its arrays, in the order in which to make them.

    Returns:
        Parts that this process made.

    Raises:
        OSError: as :func:`obtain`. What a maker raises goes through; parts that are there stay.
    """
    made, missing = 0, [file for file in wanted if not file.exists()]
    while missing:
        before = len(missing)
        for file in list(missing):
            try:
                with lock(file.with_suffix(".lock"), f"part {file.name} of {file.parent.name}"):
                    if not file.exists():
                        _write(file, wanted[file]())
                        made += 1
            except LockedError:
                continue
            missing.remove(file)
        if len(missing) == before:  # all of them are being made by others, who may still be killed
            time.sleep(_WAIT)
    return made


def file_of(path: Path, number: int) -> Path:
    """Where a part of a set lies."""
    return Path(path) / f"{number:05d}.npz"


def joined(parts: list[Arrays], count: int | None = None) -> Arrays:
    """Parts one after the other, cut to the first ``count`` rows; every array of a part has the same rows."""
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def read(file: Path) -> Arrays:
    """A part that is there.

    Raises:
        FileNotFoundError: it was not made yet. ValueError: it is damaged; says what to do.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} was not made yet") from None
    except (BadZipFile, ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it, it is then made again") from None


def _write(file: Path, arrays: Arrays) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as opened:
            np.savez(opened, **arrays)
            opened.flush()
            os.fsync(opened.fileno())  # a full disk shows here at the latest
        os.replace(temporary, file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot write {file}: {reason}; free some space or get the rights") from None
    finally:
        temporary.unlink(missing_ok=True)
