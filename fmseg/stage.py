"""What a DVC stage runs: ``python -m fmseg.stage 20_freemask_real [name=value ...]``."""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

import psutil
import yaml

from fmseg import notebooks
from fmseg.records import LockedError
from fmseg.settings import load


def parse(words: list[str]) -> tuple[str, dict]:
    """(notebook, parameters) of a command line. Values are read as YAML: ``train=none seed=3``.

    Raises:
        ValueError: no notebook, or a word without '='.
    """
    if not words:
        raise ValueError("usage: python -m fmseg.stage NOTEBOOK [parameter=value ...]")
    name, *rest = words
    given = {}
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"parameters are given as name=value; got {word!r}")
        given[key] = yaml.safe_load(value)
    return name, given


def end_with_dvc() -> None:
    """End this process when the DVC that started it is gone, however that ended: no stage works on unseen.

    Started by hand, there is no DVC above it and nothing happens.
    """
    above = []
    for process in psutil.Process().parents():
        above.append(process)
        with contextlib.suppress(psutil.Error):
            if any(Path(word).name == "dvc" for word in process.cmdline()[:4]):
                break
    else:
        return

    def watch():
        while all(process.is_running() for process in above):
            time.sleep(0.5)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(words: list[str]) -> int:
    """Execute a notebook in the profile that params.yaml sets; 0 if it ran to its end."""
    end_with_dvc()
    try:
        name, given = parse(words)
        path = notebooks.execute(name, load(), given)
    except (ValueError, OSError, LockedError, notebooks.NotebookError) as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1
    print(f"{path.name}: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
