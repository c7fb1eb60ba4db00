"""`make zoo`: trains the zoo again, for hours, in zoo/build. `make zoo-smoke`: in minutes, in a temporary copy.

Neither touches the shipped weights in zoo/weights.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import yaml

from fmseg.cite import duration
from fmseg.records import LockedError, lock
from fmseg.repro import copy_checkout, run_dvc
from fmseg.settings import project_root
from fmseg.tables import write_files

PIPELINE = "zoo/dvc.yaml"


def repro(root: Path, words: tuple[str, ...] = ()) -> int:
    """Train what is out of date, one model after another. Returns DVC's exit status.

    Raises:
        LockedError: a pipeline works in this checkout.
    """
    with lock(root / "build" / "repro.lock", "the pipeline of this checkout"):
        started = time.time()
        status = run_dvc(root, "repro", *words, PIPELINE)
    if status:
        print("\nfmseg: a training ended early, see above. Start again to go on where it was.", file=sys.stderr)
    else:
        print(f"\nfmseg: every model of the zoo is trained ({duration(time.time() - started)}). Nothing was shipped.")
    return status


def smoke(root: Path, copy: Path) -> int:
    """Train every model for a few steps in a copy of the checkout at ``copy``, uncommitted changes included."""
    copy_checkout(root, copy)
    params = copy / "zoo" / "params.yaml"
    small = yaml.safe_load(params.read_text())["smoke"]
    write_files({params: yaml.safe_dump({"full": small, "smoke": small})})
    return repro(copy, ("--no-commit",))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fmseg.zoo_repro", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few steps of each model, in a temporary copy")
    given, root = parser.parse_args(), project_root()
    try:
        if given.smoke:
            with tempfile.TemporaryDirectory(prefix="fmseg-zoo-") as folder:
                return smoke(root, Path(folder) / "checkout")
        print("fmseg: training the zoo takes hours. Stop it at any time; `make zoo` goes on where it was.")
        return repro(root)
    except LockedError as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
