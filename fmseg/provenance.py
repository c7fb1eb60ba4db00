"""Does a result belong to this code? Modules hashed by meaning, and the import graph that says which ones matter.

A module's hash is over its syntax tree without comments, docstrings and formatting: a changed constant changes it, a
reworded comment does not. What a run rests on is every fmseg module that can be reached by imports from the module
that trains it, imports inside functions included. The same graph gives a notebook's dependencies for dvc.yaml.
"""

import ast
import hashlib
import json
from functools import lru_cache
from pathlib import Path

PACKAGE = "fmseg"


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def code_hash(source: str, name: str = "<source>") -> str:
    """First 16 hex digits of the SHA-256 of a module's syntax tree without comments, docstrings and formatting.

    Args:
        source: Python source text.
        name: what to call it in an error.

    Raises:
        SyntaxError: the source cannot be parsed; names the file.
    """
    tree = _without_docstrings(ast.parse(source, filename=name))
    return hashlib.sha256(ast.dump(tree, annotate_fields=False).encode()).hexdigest()[:16]


def _imported(source: str, name: str, known: frozenset[str]) -> set[str]:
    """Modules of the package that a source names in import statements, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(source, filename=name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & known


def modules(root: Path) -> dict[str, Path]:
    """Module name -> file, for every module of the package below ``root``. The package is flat."""
    folder = Path(root) / PACKAGE
    names = {path: f"{PACKAGE}.{path.stem}" for path in sorted(folder.glob("*.py"))}
    return {PACKAGE if path.stem == "__init__" else name: path for path, name in names.items()}


@lru_cache(maxsize=512)
def _parsed(text: str, name: str, known: frozenset[str]) -> tuple[str, frozenset[str]]:
    return code_hash(text, name), frozenset(_imported(text, name, known))


def closure(start: set[str] | str, root: Path) -> dict[str, str]:
    """Every package module reachable from ``start`` by imports, with its code hash.

    Args:
        start: a module name, or several, such as 'fmseg.training'.
        root: the project's folder.

    Returns:
        {module name: code hash}, sorted by name; the package's own ``__init__`` (the import shims) is always in it.

    Raises:
        ValueError: a start module does not exist.
    """
    files = modules(root)
    known = frozenset(files)
    waiting = {start} if isinstance(start, str) else set(start)
    if waiting - known:
        raise ValueError(f"`start` must name modules of {PACKAGE}; got {sorted(waiting - known)}, have {sorted(known)}")
    waiting.add(PACKAGE)
    hashes: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        hashes[name], imports = _parsed(files[name].read_text(encoding="utf-8"), str(files[name]), known)
        waiting |= imports - set(hashes)
    return dict(sorted(hashes.items()))


def notebook_modules(path: Path, root: Path) -> dict[str, str]:
    """The :func:`closure` of what a notebook's code cells import. Lines of magic (% or !) are passed over.

    Raises:
        ValueError: the file is not a notebook.
    """
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`path` must be a notebook (JSON with `cells`); {path} is not: {error}") from None
    known, found = frozenset(modules(root)), set()
    for cell in cells:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            source = "\n".join("pass" if line.lstrip()[:1] in ("%", "!") else line for line in lines)
            found |= _imported(source, str(path), known)
    return closure(found or {PACKAGE}, root)


def differences(recorded: dict[str, str], present: dict[str, str]) -> list[str]:
    """In words, module by module, where two closures differ; empty where they agree."""
    words = [f"{name} was changed" for name in recorded if name in present and recorded[name] != present[name]]
    words += [f"{name} is no longer part of it" for name in recorded if name not in present]
    return words + [f"{name} is new in it" for name in present if name not in recorded]


def canonical_hash(value: object) -> str:
    """First 16 hex digits of the SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
