"""Executing a notebook: parameters checked, papermill run, numbers filled in, HTML written.

The source in notebooks/ is never touched. Executed copies go to results/<profile>/notebooks/, outside git, and appear
under their names only when the notebook has run to its end; a failed one is left beside them as <name>.failed.ipynb.
They carry no times and no progress bars, so that the same results give the same bytes and dvc.lock stays as it is.
"""

import ast
import json
import os
import re
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fmseg._shims import without
from fmseg.records import lock
from fmseg.settings import Settings, check_names

PARAMETERS = "parameters"  # papermill's tag
PATIENCE = 600  # seconds that a kernel may take to start, on a machine that has other work to do
_SOLUTION = re.compile(
    r'(<div class="cell [^"]*\bcelltag_solution\b.*?)(?=<div class="cell |</div>\s*</div>\s*</main>)', re.S
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\\w$])\$([^$\n]+?)\$(?![\w$])", re.S)


class NotebookError(RuntimeError):
    """A cell raised; the message names notebook, cell and error."""


def source_path(name: str, root: Path) -> Path:
    """The notebook of a stage, by its file name without ending.

    Raises:
        FileNotFoundError: there is none; lists those that exist.
    """
    path = Path(root) / "notebooks" / f"{name}.ipynb"
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in path.parent.glob("[0-9]*.ipynb"))) or "none"
        raise FileNotFoundError(f"no notebook {name!r} in {path.parent}; there are: {have}")
    return path


def title(path: Path) -> str:
    """A notebook's first heading."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    return "".join(cells[0]["source"]).strip().splitlines()[0].lstrip("# ").strip()


def parameters(path: Path) -> dict[str, Any]:
    """Names and defaults in the cell tagged `parameters`. Empty if there is no such cell.

    Raises:
        ValueError: the cell holds anything but assignments of plain values to names.
    """
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if PARAMETERS in c.get("metadata", {}).get("tags", [])]
    found: dict[str, Any] = {}
    for cell in tagged:
        for node in ast.parse("".join(cell["source"])).body:
            try:
                (target,) = node.targets
                found[target.id] = ast.literal_eval(node.value)
            except (AttributeError, ValueError, TypeError):
                rule = "the parameters cell must hold `name = plain value` lines"
                raise ValueError(f"{path}: {rule}; got {ast.unparse(node)!r}") from None
    return found


def execute(name: str, settings: Settings, given: dict[str, Any] | None = None, progress: bool = True) -> Path:
    """Run a notebook through papermill.

    Args:
        name: file name without ending, such as '01_mini_world'.
        settings: profile and root.
        given: parameters to inject besides ``profile``; a name that the notebook does not declare is an error
            (papermill itself would only warn).
        progress: show papermill's bar and the notebook's own.

    Returns:
        The executed notebook, results/<profile>/notebooks/<name>.ipynb; the HTML lies beside it.

    Raises:
        FileNotFoundError, ValueError: unknown notebook, undeclared parameter. NotebookError: a cell raised.
        LockedError: the same notebook is being executed already.
    """
    with without("rfc3987_syntax"):  # jsonschema's check of addresses, which no notebook needs: more than a second
        import nbformat
        import papermill
        from papermill.exceptions import PapermillExecutionError

    from fmseg.cite import fill_notebook

    root = settings.root
    source = source_path(name, root)
    declared = parameters(source)
    values = dict(given or {})
    check_names(values, tuple(declared), f"parameter of {source.name}:")
    if "profile" in declared:
        values["profile"] = settings.profile
    folder = settings.results / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    part, failed = folder / f".{name}.part.ipynb", folder / f"{name}.failed.ipynb"
    started = time.perf_counter()
    with lock(folder / f".{name}.lock", f"notebook {name}"):
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # the kernel imports the fmseg beside its notebook
        try:
            papermill.execute_notebook(
                str(source), str(part), values, cwd=str(root), kernel_name="python3", progress_bar=progress,
                stderr_file=sys.stderr if progress else None, autosave_cell_every=5, config=_by_file_socket(),
                start_timeout=PATIENCE,
            )  # fmt: skip
        except PapermillExecutionError as error:
            part.replace(failed)
            text = f"{source.name}, cell {error.cell_index}: {error.ename}: {error.evalue}"
            raise NotebookError(f"{text}\nThe notebook up to there: {failed}") from None
        finally:
            os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)
        failed.unlink(missing_ok=True)
        notebook = nbformat.read(part, as_version=4)
        _settle(notebook)
        fill_notebook(notebook, root, settings.profile)
        _write(folder / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
        _write(folder / f"{name}.html", html(notebook))
        part.unlink()
    note_time(name, time.perf_counter() - started, settings)
    return folder / f"{name}.ipynb"


def _by_file_socket():
    """Kernel and papermill talk through sockets in the file system: no open ports, and no warning about them."""
    from traitlets.config import Config

    if not hasattr(socket, "AF_UNIX"):
        return Config()
    # jupyter_client's own name for the sockets is the same in every process: two stages at a time would share them
    name = os.path.join(tempfile.gettempdir(), f"fmseg-kernel-{os.getpid()}")
    return Config({"KernelManager": {"transport": "ipc", "ip": name}})


def _settle(notebook) -> None:
    """Take out what differs from one execution to the next: times, and what went to stderr (progress bars)."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"  # papermill draws it at random


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def html(notebook) -> str:
    """One self-contained page: pictures inside, formulas as MathML, solutions folded, no script from the network."""
    import nbformat
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter

    formulas: list[str] = []

    def set_aside(match):  # the exporter takes MathML apart, so it travels as a word and is put back at the end
        block = match.group(1) is not None
        formulas.append(convert(match.group(1) or match.group(2), display="block" if block else "inline"))
        return f"fmsegformula{len(formulas) - 1}x"

    copy = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in copy["cells"]:
        if cell["cell_type"] == "markdown":
            parts = re.split(r"(```.*?```|`[^`\n]*`)", cell["source"], flags=re.S)
            cell["source"] = "".join(p if p.startswith("`") else _FORMULA.sub(set_aside, p) for p in parts)
    exporter = HTMLExporter(template_name="classic", mathjax_url="", require_js_url="", embed_images=True)
    page, _ = exporter.from_notebook_node(copy)
    page = re.sub(r'<script[^>]*\bsrc="[^"]*"[^>]*>\s*</script>', "", page)
    page = re.sub(r'\b(id|href)="[^"]*"', lambda m: re.sub(r"fmsegformula\d+x", "", m.group()), page)
    page = _SOLUTION.sub(r"<details><summary>Solution</summary>\n\1</details>\n", page)
    return re.sub(r"fmsegformula(\d+)x", lambda m: formulas[int(m.group(1))], page)


def note_time(name: str, seconds: float, settings: Settings) -> None:
    """Leave the seconds of a stage or command in build/times/<profile>.json; `make times` takes them into results."""
    path = settings.root / "build" / "times" / f"{settings.profile}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_suffix(".lock"), "the table of times", wait=30):
        times = json.loads(path.read_text()) if path.exists() else {}
        times[name] = round(seconds, 1)
        _write(path, json.dumps(times, indent=1, sort_keys=True) + "\n")
