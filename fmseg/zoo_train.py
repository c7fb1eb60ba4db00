"""Trains models of the zoo: `python -m fmseg.zoo_train vae`, in an ignored folder; shipped weights are not touched.

Killed runs go on where they were. `--scale smoke` shows in minutes that all of it runs. `--renew`, which the zoo's
pipeline gives, trains anew what rests on other code, another recipe or other models than those that are here.
"""

import argparse
import importlib
import json
import shutil
import sys
from pathlib import Path

from fmseg import zoo
from fmseg.provenance import canonical_hash
from fmseg.records import LockedError, lock
from fmseg.tables import write_files
from fmseg.zoo_run import Run

MODULES = {  # what trains a model; those that others build on come first
    "clip": "fmseg.zoo_clip",
    "vae": "fmseg.zoo_vae",
    "diffusion": "fmseg.zoo_diffusion",
    **{f"backbone-{name}": "fmseg.zoo_backbones" for name in ("segformer", "segmenter", "mask2former", "deeplabv3")},
    **{name: "fmseg.zoo_vits" for name in ("dino", "mim")},
    **{name: "fmseg.zoo_oracles" for name in ("oracle", "judge")},
    **{f"{kind}-{draw}": "fmseg.zoo_layouts" for kind in ("layout", "weak") for draw in ("ade", "stuff")},
}
BUILDS_ON = {"vae": "clip", "diffusion": "vae", "oracle": "backbone-segformer", "judge": "backbone-segformer"}
BUILDS_ON |= {name: "clip" for name in MODULES if name.startswith("backbone-")}
BUILDS_ON |= {name: "diffusion" for name in MODULES if name.startswith(("layout-", "weak-"))}


def sections(name: str) -> tuple[str, ...]:
    """The sections of zoo/params.yaml that a training reads, below its scale."""
    icons = name in ("clip", "vae", "diffusion") or name.startswith("backbone-")
    first = {
        "clip": ("clip-names", "clip-pairs"),
        "vae": ("vae-scenes", "vae-colours"),
        "diffusion": ("diffusion-sight", "diffusion-words", "diffusion-looks", "diffusion-outlines", "duo"),
    }.get(name, ())
    return (name, *first, "web", *(("icon",) if icons else ()))


def stamp(run: Run) -> dict:
    """What the outcome of a training hangs on: code by meaning, parameters, and the weights it builds on."""
    made = {"code": run.code, "params": {key: run.params[key] for key in sections(run.name)}}
    if run.name in BUILDS_ON:
        folder = run.folder(BUILDS_ON[run.name])
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "facts.json"]
        weights = {p.relative_to(folder).as_posix(): zoo.sha256(p) for p in files if "latents" not in p.parts}
        made["on"] = canonical_hash(weights)
    return made


def _stamped(run: Run) -> Path:
    return run.build / "state" / f"{run.name}.json"


def _left(run: Run) -> list[Path]:
    """Checkpoints and logs of this model."""
    return sorted((run.build / "state").glob(f"{run.name}-*"))


def belongs(run: Run) -> bool:
    """Whether what is here of a training, finished or not, is of the present code, parameters and models.

    Trainings without a stamp are asked for the code in their facts; where there are none, the checkpoint speaks.
    """
    if _stamped(run).exists():
        return json.loads(_stamped(run).read_text()) == stamp(run)
    facts = run.folder() / "facts.json"
    return not facts.exists() or json.loads(facts.read_text())["code"] == run.code


def train(run: Run, renew: bool = False) -> bool:
    """Train one model, or go on with it; False if that was done before.

    Args:
        run: which.
        renew: delete first what does not belong to the present code, parameters and models, see :func:`belongs`.

    Raises:
        ValueError: a model that this one builds on is not there. LockedError: another process trains it.
    """
    below = BUILDS_ON.get(run.name)
    if below and not (run.folder(below) / "facts.json").exists():
        raise ValueError(f"{run.name} builds on {below}, which is not trained; train it first")
    with lock(run.build / "state" / f"{run.name}.lock", f"{run.name} ({run.scale})"):
        if renew and not belongs(run):
            shutil.rmtree(run.folder(), ignore_errors=True)
            for path in [*_left(run), _stamped(run)]:
                path.unlink(missing_ok=True)
        if (run.folder() / "facts.json").exists():
            return False
        if not _left(run):
            write_files({_stamped(run): json.dumps(stamp(run), indent=1) + "\n"})
        importlib.import_module(run.module).train(run)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Train the models named, in the order given; those whose facts are there are done."""
    parser = argparse.ArgumentParser(prog="python -m fmseg.zoo_train", description=__doc__)
    parser.add_argument("models", nargs="+", choices=MODULES, metavar="MODEL", help=", ".join(MODULES))
    parser.add_argument("--scale", default="full", choices=("full", "smoke"))
    parser.add_argument("--renew", action="store_true", help="train anew what belongs to other code or parameters")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    given = parser.parse_args(arguments)
    if given.renew:
        from fmseg.stage import end_with_dvc

        end_with_dvc()
    root = Path.cwd()
    for name in given.models:
        run = Run.start(name, given.scale, root, MODULES[name], not given.quiet)
        try:
            new = train(run, given.renew)
        except (ValueError, LockedError) as error:
            print(f"fmseg: {error}", file=sys.stderr)
            return 1
        done = "" if new else "done before, see "
        print(f"{name}: {done}{run.folder().relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
