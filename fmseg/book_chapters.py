"""The book's chapters: which notebooks are executed, which wait and for what, and a chapter as the book shows it.

What a chapter claims and which modules it rests on is read from the notebook's own first and last cells: the lines
that begin with *Claims* and *Code*.
"""

import ast
import base64
import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fmseg import pipeline
from fmseg.book_html import figure, link, words
from fmseg.notebooks import title
from fmseg.prose import source
from fmseg.settings import Settings

PARTS = {  # by the first digit of a notebook's number
    "0": "The world and the zoo", "1": "FMWISS", "2": "FreeMask", "3": "Grounded Diffusion", "9": "Across the papers",
}  # fmt: skip
_CODE_SPAN = re.compile(r"(```.*?```|(?<!`)`[^`\n]+`(?!`))", re.S)
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.M)


@dataclass(frozen=True)
class Chapter:
    """A notebook of the book.

    Attributes:
        name, title: file name without ending, and first heading.
        part: the paper that it belongs to, one of :data:`PARTS`.
        cells: of the executed copy, or of the source where there is none; as nbformat has them.
        waits: what it waits for, in words; "" if it is executed.
        claims: what the ids of the claims that it judges begin with, such as 'freemask.real'.
        code: names of the modules behind it, such as 'noise', in the order of its *Code* line.
        uses: names of the modules that its cells import.
    """

    name: str
    title: str
    part: str
    cells: list[dict] = field(repr=False)
    waits: str = ""
    claims: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        """Where the book has it, from the book's root."""
        return f"waiting.html#{self.name}" if self.waits else f"chapters/{self.name}.html"


@dataclass(frozen=True)
class Targets:
    """What text in the book can link to.

    Attributes:
        pages: {notebook: page}. modules: those whose source is in the book. claims, tables: ids.
        figures: {hash of a PNG's bytes, see :func:`digest`: its path below the book's root}.
        files: {file of the repository, such as 'TRIED.md': page}.
    """

    pages: Mapping[str, str]
    modules: frozenset[str] = frozenset()
    claims: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    figures: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def chapters(settings: Settings) -> list[Chapter]:
    """Every notebook in its order; executed are those that are stages of the root pipeline and ran to their end."""
    root, found = settings.root, []
    stages, photos = pipeline.stage_names(root), pipeline.stage_names(root, photos=True)
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        executed = settings.results / "notebooks" / path.name
        ready = path.stem in stages and executed.is_file()
        own = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found.append(
            Chapter(
                name=path.stem,
                title=title(path),
                part=PARTS.get(path.stem[0], PARTS["9"]),
                cells=json.loads(executed.read_text(encoding="utf-8"))["cells"] if ready else own,
                waits="" if ready else _reason(path, stages, photos),
                claims=tuple(sorted(_claims(own))) if _makes_tables(own) else (),
                code=tuple(dict.fromkeys(re.findall(r"`fmseg/(\w+)\.py`", _line(own, "Code")))),
                uses=tuple(sorted(_imported_by(own))),
            )
        )
    return found


def opening(chapter: Chapter) -> str:
    """A chapter's first cell without its heading: paper, claims, what will be seen."""
    return _HEADING.sub("", source(chapter.cells[0]), count=1).split("\n## ")[0].strip()


def judged_in(claim: str, chapters: Iterable[Chapter]) -> Chapter | None:
    """The chapter that judges a claim (its id), by the *Claims* line of notebooks that make tables; None: none does."""
    return next((c for c in chapters if claim.rsplit(".", 1)[0] in c.claims), None)


def place_of(word: str, chapter: Chapter) -> tuple[str, str] | None:
    """The last cell of an executed chapter whose output names a claim or a table.

    Args:
        word: its id.

    Returns:
        (the cell's anchor, the heading above it), or None where no output names it.
    """
    heading, found = "", None
    for cell in chapter.cells if not chapter.waits else []:
        if cell["cell_type"] == "markdown":
            heading = ([heading] + _HEADING.findall(_CODE_SPAN.sub("", source(cell))))[-1]
        elif any(re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-]|\.\w)", text) for text in _texts(cell)):
            found = (anchor(cell), heading)
    return found


def anchor(cell: Mapping) -> str:
    """What a code cell is called in the page of its chapter."""
    return f"cell-{cell['id']}"


def digest(png: bytes) -> str:
    """What a picture is told by."""
    return hashlib.sha256(png).hexdigest()


def notebook(chapter: Chapter, targets: Targets) -> dict:
    """An executed chapter as the book's builder takes it, a notebook as a dict; the chapter is left as it is.

    Links lead to the book's pages; code cells carry their anchor; solutions fold; headings in outputs are bold lines,
    because an output is no section; pictures that are figures in results/ become links to those, with their data.
    """
    cells = copy.deepcopy(chapter.cells)
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = linked(source(cell), targets, "../")
            continue
        tags = cell["metadata"].setdefault("tags", [])
        cell["metadata"]["anchor"] = anchor(cell)
        for tag, prompt in (("solution", "Solution"), ("injected-parameters", "Parameters of this execution")):
            if tag in tags:
                cell["metadata"]["tags"] = [*tags, "hide-cell"]
                cell["metadata"]["mystnb"] = {"code_prompt_show": prompt, "code_prompt_hide": prompt}
        cell["outputs"] = [_shown(output, targets, chapter) for output in cell["outputs"]]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def linked(text: str, targets: Targets, up: str) -> str:
    """Markdown in which notebooks, modules, claims, tables and files with a page are links; code is left as it is.

    Args:
        text: links to notebooks as `[words](22_noise_filter.ipynb)` or "notebook 22", to files as `[words](TRIED.md)`
            or code spans; the others as code spans.
        up: from the page to the book's root, "" or "../".
    """
    by_number = {name[:2]: page for name, page in targets.pages.items()}

    def to_notebook(match):
        return f"]({up}{targets.pages[match[1]]})" if match[1] in targets.pages else match[0]

    def to_file(match):
        return f"]({up}{targets.files[match[1]]})" if match[1] in targets.files else match[0]

    def to_number(match):
        return f"[{match[0]}]({up}{by_number[match[1]]})" if match[1] in by_number else match[0]

    parts = _CODE_SPAN.split(text)
    for i, part in enumerate(parts):
        if part.startswith("`"):
            linkable = not part.startswith("```") and not (i and parts[i - 1].endswith("["))
            page = _page_of(part[1:-1], targets) if linkable else None
            parts[i] = link(up + page, part[1:-1], code=True) if page else part
        else:
            part = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", to_notebook, part)
            part = re.sub(r"\]\(([\w./]+)\)", to_file, part)
            parts[i] = re.sub(r"(?<!\[)\b[Nn]otebook (\d\d)\b(?![^\[\]]*\])", to_number, part)
    pages = "|".join(["chapters/", "waiting", *map(re.escape, targets.files.values())])
    return re.sub(
        rf"(?<!!)\[([^\[\]]+)\]\(((?:\.\./)?(?:{pages})[^()]*)\)", r'<a href="\2">\1</a>', "".join(parts)
    )


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package, such as 'noise', that a syntax tree imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fmseg.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "fmseg":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fmseg."):
            found.add(node.module.split(".")[1])
    return found


def _imported_by(cells):
    found = set()
    for cell in cells:
        if cell["cell_type"] == "code":
            lines = source(cell).splitlines()
            plain = "\n".join("pass" if line.lstrip()[:1] in ("%", "!") else line for line in lines)
            found |= imported(ast.parse(plain))
    return found


def _page_of(word, targets):
    if (module := re.fullmatch(r"fmseg/(\w+)\.py", word)) and module[1] in targets.modules:
        return f"source/{module[1]}.html"
    if word in targets.claims:
        return f"ledger.html#{word}"
    return f"tables/{word}.html" if word in targets.tables else targets.files.get(word)


def _shown(output, targets, chapter):
    data = output.get("data", {})
    if "text/markdown" in data:
        text = _HEADING.sub(r"**\1**", "".join(data["text/markdown"]))
        return output | {"data": {"text/markdown": linked(text, targets, "../")}}
    if "image/png" in data:
        path = targets.figures.get(digest(base64.b64decode("".join(data["image/png"]))))
        if path:
            return output | {"data": {"text/html": figure(path, f"{chapter.title}: {words(path)}", "../")}}
    return output


def _texts(cell):
    for output in cell.get("outputs", []):
        yield "".join(output.get("text", ""))
        yield from ("".join(text) for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


def _line(cells, word):
    """The line of a notebook's Markdown that begins with *word*, plural or not; "" if there is none."""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            if found := re.search(rf"^(?:\* )?\*{word}\*:(.*)$", source(cell), re.M):
                return found[1]
    return ""


def _claims(cells):
    ids = re.findall(r"`([a-z][a-z0-9_.]*)\.(?:\*|[a-z0-9_]+)`", _line(cells, "Claims"))
    return {id for id in ids if id}


def _makes_tables(cells):
    return any("perform(" in source(cell) for cell in cells if cell["cell_type"] == "code")


def _reason(path, stages, photos):
    if path.stem in photos:
        return "photographs, which are not shipped: `make realdata` executes it where they lie"
    if path.stem in stages:
        return "its execution: `make repro`"
    return "the runs of its tables" if pipeline.waits_for_tables(path) else "models of the zoo that are not shipped yet"
