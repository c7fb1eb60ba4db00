"""The state of a training run in a file: written whole or not at all, read back to the same bits, refused if foreign.

Files hold state dicts and plain values only, so ``torch.load(..., weights_only=True)`` reads them.
"""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

_REMEDY = "delete it to start anew, or pass another `checkpoint` path"


def save(path: str | os.PathLike, run_key: dict, result: dict, **parts: Any) -> None:
    """Write to a temporary name in the same folder, then rename: a reader never meets half a file.

    Args:
        path: the checkpoint.
        run_key: {"config", "data"}: what the run is; compared by :func:`load`.
        result: plain values.
        parts: whatever has a ``state_dict``, by name: model, optimizer.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save(states | {"run": run_key, "result": result}, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | os.PathLike, run_key: dict, **parts: Any) -> dict | None:
    """Fill ``parts`` from a checkpoint.

    Returns:
        Its ``result``; None if there is no such file.

    Raises:
        ValueError: the file is damaged, or belongs to another run or model; says which and what to do.
    """
    path = Path(path)
    if not path.exists():
        return None
    content = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
        run, result = state["run"], state["result"]
        there = {name: state[name] for name in parts}
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {path} is truncated or no checkpoint of this loop ({what}); {_REMEDY}") from error
    if run != run_key:
        raise ValueError(f"checkpoint {path} belongs to another run: {_difference(run, run_key)} differ; {_REMEDY}")
    try:
        for name, part in parts.items():
            part.load_state_dict(there[name])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} is of another model ({str(error).splitlines()[0]}); {_REMEDY}") from error
    return result


def _difference(then: dict, now: dict) -> str:
    if then["data"] != now["data"]:
        return "the training images"
    then, now = then["config"], now["config"]
    keys = [k for k in {**then, **now} if then.get(k) != now.get(k)]
    return ", ".join(f"{k} ({then.get(k)!r} there, {now.get(k)!r} here)" for k in keys)
