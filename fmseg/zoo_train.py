"""Trains models of the zoo: `python -m fmseg.zoo_train vae`, in an ignored folder; shipped weights are not touched.

Killed runs go on where they were. `--scale smoke` shows in minutes that all of it runs.
"""

import argparse
import importlib
from pathlib import Path

from fmseg.zoo_run import Run

MODULES = {
    "clip": "fmseg.zoo_clip",
    "vae": "fmseg.zoo_vae",
    "diffusion": "fmseg.zoo_diffusion",
    **{f"backbone-{name}": "fmseg.zoo_backbones" for name in ("segformer", "segmenter", "mask2former", "deeplabv3")},
}


def main(arguments: list[str] | None = None) -> None:
    """Train the models named, in the order given; those whose facts are there are done."""
    parser = argparse.ArgumentParser(prog="python -m fmseg.zoo_train", description=__doc__)
    parser.add_argument("models", nargs="+", choices=MODULES, metavar="MODEL", help=", ".join(MODULES))
    parser.add_argument("--scale", default="full", choices=("full", "smoke"))
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    given = parser.parse_args(arguments)
    root = Path.cwd()
    for name in given.models:
        run = Run.start(name, given.scale, root, MODULES[name], not given.quiet)
        if (run.folder() / "facts.json").exists():
            print(f"{name}: done before, see {run.folder().relative_to(root)}")
            continue
        importlib.import_module(run.module).train(run)
        print(f"{name}: {run.folder().relative_to(root)}")


if __name__ == "__main__":
    main()
