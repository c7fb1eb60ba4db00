"""dvc.yaml, computed: a stage a notebook, with what the notebook rests on and what it leaves, and one for the book.

`python -m fmseg.pipeline` writes the file, and realdata/dvc.yaml with the stages that need photographs, which `make
repro` leaves alone; a test fails where files and this disagree. A stage depends on its notebook, on every package
module that the notebook or a run of its tables reaches by imports, on the shipped zoo where one of these reads it, on
the profile's parameters, and on the tables of other stages that it cites or reads. A notebook that asks for models
with ``zoo.need("clip")`` is a stage once zoo/weights has them; one that performs experiments, once the catalogue has a
table of its own. All outs persist: an interrupted stage leaves what was
there before.
"""

import ast
import json
import re
import sys
from pathlib import Path

import yaml

from fmseg import notebooks, provenance, report
from fmseg.catalogue import EXPERIMENTS
from fmseg.settings import project_root
from fmseg.tables import write_files
from fmseg.zoo import CARD

RUNNER = "fmseg.stage"  # what executes a notebook; part of every stage
BOOK = "book"  # the last stage, and the folder that it leaves
_HEAD = """\
# Written by `python -m fmseg.pipeline`; do not edit. A stage executes a notebook through papermill.
# Tables, figures and run records live in git (cache: false); executed notebooks and pages in DVC's cache, so that a
# fresh clone executes every notebook.
"""
_CITED = re.compile(r"\{\{\s*cite\s+([a-z][a-z0-9-]*)/")
BOOK_TEXTS = ("CHANGELOG.md", "CITATION.cff", "TRIED.md", report.SOURCE)  # pages that no notebook makes
RESULTS = "results/${profile}"
ZOO = "zoo/weights"  # files in git, the outs of no stage: `dvc repro` does not go on to the trainings of zoo/dvc.yaml

_REAL_HEAD = """\
# Written by `python -m fmseg.pipeline`; do not edit. Stages that need photographs (see fmseg/on_disk.py for where they
# are looked for). `make realdata` runs them; `make repro` does not come here, so without the photographs nothing runs
# and nothing is deleted.
"""


def stage_names(root: Path, photos: bool = False) -> list[str]:
    """Notebooks by file name without ending, in their order: those that need photographs, or all others; without those
    that need models which this checkout does not ship, or make tables that are not in the catalogue yet."""
    shipped = {path.parent.name for path in (Path(root) / ZOO).glob(f"*/{CARD}")}
    paths = sorted((Path(root) / "notebooks").glob("[0-9]*.ipynb"))
    ready = [path for path in paths if models_needed(path) <= shipped and not waits_for_tables(path)]
    return [path.stem for path in ready if _needs_photos(path.stem) == photos]


def models_needed(notebook: Path) -> set[str]:
    """Models of the zoo that a notebook asks for with ``zoo.need``."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    return {name for _, given in _calls(cells, ("need",)) for name in given}


def waits_for_tables(notebook: Path) -> bool:
    """Whether a notebook makes tables from runs (calls ``perform``) that the catalogue does not have."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    return bool(_calls(cells, ("perform",))) and not made_by(Path(notebook).stem)


def _needs_photos(name: str) -> bool:
    return any(EXPERIMENTS[id].photos for id in made_by(name))


def stages(root: Path) -> dict[str, dict]:
    """The `stages` mapping of dvc.yaml. Raises ValueError where a notebook cites a table that no stage makes."""
    made = _notebook_stages(Path(root))
    return made | ({BOOK: _book(made, Path(root))} if made else {})


def shown_modules(root: Path) -> list[str]:
    """Files of the package whose source the book shows: what its chapters rest on, those that wait included."""
    return sorted(_shown(_notebook_stages(Path(root)), Path(root)))


def _notebook_stages(root: Path) -> dict[str, dict]:
    return {name: _stage(name, root) for name in stage_names(root)}


def text(root: Path) -> str:
    """The whole file."""
    return _HEAD + yaml.safe_dump({"stages": stages(root)}, sort_keys=False, width=120)


def realdata_text(root: Path) -> str:
    """The whole of realdata/dvc.yaml."""
    made = {}
    for name in stage_names(root, photos=True):
        stage = _stage(name, Path(root))
        made[name] = {"desc": stage.pop("desc"), "wdir": "..", **stage, "cmd": f"sh .dvc/stage {name} train=missing"}
    return _REAL_HEAD + yaml.safe_dump({"vars": ["../params.yaml"], "stages": made}, sort_keys=False, width=120)


def made_by(name: str) -> list[str]:
    """Ids of the tables that a stage makes from runs."""
    return [e.id for e in EXPERIMENTS.values() if e.stage == name]


def _stage(name: str, root: Path) -> dict:
    notebook = root / "notebooks" / f"{name}.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    start = set(provenance.notebook_modules(notebook, root)) | {RUNNER}
    start |= {EXPERIMENTS[id].module for id in made_by(name)}
    files = provenance.modules(root)
    modules = provenance.closure(start, root)
    deps = [".dvc/stage", f"notebooks/{name}.ipynb"]
    deps += [str(files[module].relative_to(root)) for module in modules]
    if "fmseg.zoo" in modules and (root / ZOO).is_dir():
        deps.append(ZOO)
    if "fmseg.claims" in provenance.notebook_modules(notebook, root):
        deps.append("claims.yaml")
    deps += [f"{RESULTS}/tables/{id}.json" for id in _tables_read(cells, name)]
    deps += [f"{RESULTS}/runs/{id}" for id in _lenders(name)]
    outs = [{f"{RESULTS}/tables/{id}.{ending}": _kept()} for id in made_by(name) for ending in ("json", "md")]
    outs += [{f"{RESULTS}/runs/{id}": _kept()} for id in made_by(name)]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    if "plots.save(" in code:
        outs.append({f"{RESULTS}/figures/{name}": _kept()})
    if "report.write(" in code and (root / report.SOURCE).is_file():
        deps += [report.SOURCE, *(f"{RESULTS}/figures/{figures}" for figures in report.figures_cited(root))]
    if "ledger.write(" in code:
        outs += [{f"{RESULTS}/ledger.{ending}": _kept()} for ending in ("json", "md")]
    outs += [{f"results/${{profile}}/notebooks/{name}.{ending}": {"persist": True}} for ending in ("ipynb", "html")]
    return {
        "desc": notebooks.title(notebook),
        "cmd": f"sh .dvc/stage {name}",
        "deps": deps,
        "params": ["profile", "profiles.${profile}"],
        "outs": outs,
    }


def _book(made: dict[str, dict], root: Path) -> dict:
    """The stage of the book, which rests on what the others leave. What needs photographs is not waited for."""
    files = provenance.modules(root)
    own = {str(files[module].relative_to(root)) for module in provenance.closure("fmseg.book", root)}
    waiting = [path.name for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")) if path.stem not in made]
    left = [path for stage in made.values() for out in stage["outs"] for path in out]
    read = ("tables/[^/]+[.]json", "figures/.+", "ledger[.]json", "notebooks/.+[.]ipynb")
    return {
        "desc": "The book: executed notebooks, tables, figures and the ledger as a site",
        "cmd": "sh .dvc/book",
        "deps": [".dvc/book", "book", *sorted(own | _shown(made, root))]
        + ([ZOO] if (root / ZOO).is_dir() else [])  # which models are shipped says which notebooks wait
        + [f"notebooks/{name}" for name in waiting]
        + [name for name in BOOK_TEXTS if (root / name).is_file()]
        + sorted(path for path in left if re.fullmatch(rf"{re.escape(RESULTS)}/({'|'.join(read)})", path)),
        "params": ["profile", "profiles.${profile}"],
        "outs": [{f"{RESULTS}/{BOOK}": _kept()}],
    }


def _shown(made: dict[str, dict], root: Path) -> set[str]:
    shown = {dep for stage in made.values() for dep in stage["deps"] if dep.startswith("fmseg/")}
    files = provenance.modules(root)
    for path in (root / "notebooks").glob("[0-9]*.ipynb"):
        if path.stem not in made:
            shown |= {str(files[module].relative_to(root)) for module in provenance.notebook_modules(path, root)}
    return shown


def _lenders(name: str) -> list[str]:
    """Tables of earlier stages that lend runs to this one's; later ones are not waited for."""
    lent = {id for own in made_by(name) for id in EXPERIMENTS[own].lenders}
    return sorted(id for id in lent if id in EXPERIMENTS and EXPERIMENTS[id].stage < name)


def _kept() -> dict:
    return {"cache": False, "persist": True}


def _calls(cells, names: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """(function, the arguments that are texts) of calls in code cells, for functions of those names."""
    found = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines()
        tree = ast.parse("\n".join("pass" if line.lstrip()[:1] in ("%", "!") else line for line in lines))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if called in names:
                    values = [a.value for a in node.args if isinstance(a, ast.Constant)]
                    found.append((called, [value for value in values if isinstance(value, str)]))
    return found


def _tables_read(cells, name: str) -> list[str]:
    """Tables of other stages: cited in text, read with ``read_table("id")``, or all of them with ``read_all``."""
    cited = {id for c in cells if c["cell_type"] == "markdown" for id in _CITED.findall("".join(c["source"]))}
    for called, given in _calls(cells, ("read_table", "read_all")):
        every = {id for id, e in EXPERIMENTS.items() if not e.photos}  # a pipeline does not wait for photographs
        cited |= every if called == "read_all" else set(given[:1])
    unknown = sorted(cited - set(EXPERIMENTS))
    if unknown:
        raise ValueError(f"notebook {name} cites {', '.join(unknown)}, which no stage makes; have {list(EXPERIMENTS)}")
    return sorted(cited - set(made_by(name)))


def main() -> None:
    root = project_root()
    write_files({root / "dvc.yaml": text(root), root / "realdata" / "dvc.yaml": realdata_text(root)})
    counts = len(stage_names(root)), len(stage_names(root, photos=True))
    print(f"dvc.yaml: {counts[0]} notebooks and the book; realdata/dvc.yaml: {counts[1]}")


if __name__ == "__main__":
    sys.exit(main())
