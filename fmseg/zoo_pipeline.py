"""zoo/dvc.yaml, computed: a stage a model, with the code that trains it, its parameters and what it builds on.

`python -m fmseg.zoo_pipeline` writes the file; a test fails where file and code disagree. The pipeline writes below
zoo/build, which git ignores. The root pipeline rests on zoo/weights instead, on copies that `fmseg.zoo_promote` makes:
they are the outs of no stage, so `dvc repro` never comes here. A stage runs again where files of its code were touched;
where their meaning is the same, the training says so and ends (`--renew`, see :mod:`fmseg.zoo_train`).
"""

import sys
from pathlib import Path

import yaml

from fmseg import provenance
from fmseg.settings import project_root
from fmseg.tables import write_files
from fmseg.zoo_train import BUILDS_ON, MODULES, sections

_HEAD = """\
# Written by `python -m fmseg.zoo_pipeline`; do not edit. Trains the zoo into zoo/build, for hours. `make zoo` runs it,
# `make repro` does not come here. Shipped weights are copies, see fmseg/zoo_promote.py.
"""
OUT = "build/full"


def stages(root: Path) -> dict[str, dict]:
    """The `stages` mapping of zoo/dvc.yaml."""
    return {name: _stage(name, Path(root)) for name in MODULES}


def text(root: Path) -> str:
    """The whole file."""
    return _HEAD + yaml.safe_dump({"stages": stages(root)}, sort_keys=False, width=120)


def _stage(name: str, root: Path) -> dict:
    files = provenance.modules(root)
    deps = [f"../{files[module].relative_to(root)}" for module in provenance.closure(MODULES[name], root)]
    deps += [f"{OUT}/{BUILDS_ON[name]}"] if name in BUILDS_ON else []
    return {
        "cmd": f"sh train {name} --renew",
        "deps": deps,
        "params": [f"full.{section}" for section in sections(name)],
        "outs": [{f"{OUT}/{name}": {"persist": True}}],  # what a killed training had finished stays
    }


def main() -> None:
    root = project_root()
    write_files({root / "zoo" / "dvc.yaml": text(root)})
    print(f"zoo/dvc.yaml: {len(MODULES)} stages")


if __name__ == "__main__":
    sys.exit(main())
