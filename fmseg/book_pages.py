"""The book's other pages: the first one, chapters that wait, all figures, the source."""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fmseg.book_chapters import PARTS, Chapter, Targets, imported, linked, opening
from fmseg.book_html import figure, link, raw, words
from fmseg.book_ledger import HOW_TO_READ, WORDS, scoreboard
from fmseg.cite import fill
from fmseg.settings import Settings

_FIRST = """\
# fmseg

A runnable companion to three papers that build segmentation models out of foundation models: FMWISS (CVPR 2023),
FreeMask (NeurIPS 2023) and Open-vocabulary Object Segmentation with Diffusion Models ("Grounded Diffusion", ICCV 2023).
This book holds its notebooks as they were executed, with its tables, its figures and the ledger of claims. It is a
folder of files: no server, no network.

**Where a result comes from**: a number below leads to the claims behind it in [the ledger](ledger.md); each claim leads
to the cells of its [table](tables/index.md), to the cell of the chapter that shows its verdict, and to the
[source](source/index.md).

"""
_BEGIN = """\
## Begin here

* *A quarter of an hour*: notebook 00 has the three ideas in pictures and ends in a first experiment of your own.
* *Ninety minutes, in company*: a chapter of each paper opens with a plan for a reading group, notebook 10 for FMWISS,
  notebook 21 for FreeMask, notebook 30 for Grounded Diffusion.
* *To look something up*: [the claims](ledger.md), [the tables](tables/index.md), and the search.
* *To cite*: the paper whose method you used, and this companion for its miniature, measurements or code; `CITATION.cff`
  has all of them.
* *The source*: every module behind a result [is in this book](source/index.md), as it was when the book was built. The
  notebooks, the tests and what runs them are in the repository that the book is built in.

"""
_VERDICTS = f"""\
<details><summary>What these words mean</summary>

{WORDS}

Verdicts in miniature speak of mechanism and direction. WILSON, a row of its own, is FMWISS's predecessor, and is run
here for FMWISS to be compared with. More: <a href="ledger.html#{HOW_TO_READ}">how to read the ledger</a>.

</details>

"""
_REPORT = "\n\nPaper by paper, what held and why the rest did not: [the report](report.md)."
_NOT_HERE = "Nothing is executed yet that judges a claim; `make repro` does it."


def first(
    chapters: Sequence[Chapter],
    claims: Iterable[Mapping],
    targets: Targets,
    picture: str | None = None,
    logs: Sequence[str] = (),
) -> str:
    """The book's first page, and with it the order of all others: verdicts, then chapters by paper.

    Args:
        chapters: all, those that wait included.
        claims: of the ledger.
        targets: what text can link to.
        picture: HTML to show on top, see :func:`fmseg.book_html.figure`.
        logs: pages of what was tried and what changed, in order.
    """
    claims = list(claims)
    board = raw(f'<div class="fmseg-scroll">{scoreboard(claims)}</div>') + _REPORT if claims else _NOT_HERE
    begin = linked(_BEGIN, targets, "")
    lines = [_FIRST, raw(f'<div class="fmseg-first">{picture}</div>') if picture else "", begin, "## Verdicts", ""]
    lines += [board, "", _VERDICTS if claims else ""]
    for part in PARTS.values():
        own = [chapter for chapter in chapters if chapter.part == part]
        ready = [chapter for chapter in own if not chapter.waits]
        if own:
            lines += [f"## {part}", "", *map(_line, own), "", *_toctree(part, [f"chapters/{c.name}" for c in ready])]
    evidence = ["ledger", *(["report"] if claims else []), "tables/index", "figures", "waiting", *logs, "source/index"]
    return "\n".join([*lines, *_toctree("Evidence", evidence)])


def waiting(
    chapters: Iterable[Chapter],
    settings: Settings,
    targets: Targets,
    tables: Mapping[str, Mapping],
    figures: Mapping[str, Sequence[str]],
) -> str:
    """The page of what is not in the book yet: each chapter's opening, what it waits for, its committed tables and
    figures.

    Args:
        chapters: all. targets: what text can link to. tables: {id: table}. figures: as for :func:`figures`.
    """
    lines = ["# Chapters that wait", "", "The book holds what is executed. These chapters are written and wait:", ""]
    for chapter in chapters:
        if chapter.waits:
            text = linked(fill(opening(chapter), settings.root, settings.profile), targets, "")
            lines += [raw(f'<span id="{chapter.name}"></span>'), f"## {chapter.title}", ""]
            lines += [f"It waits for {chapter.waits}.", "", text, ""]
            made = [t for t in tables.values() if t.get("provenance", {}).get("stage") == chapter.name]
            if made:
                links = (link(f"tables/{table['id']}.html", table["title"]) for table in made)
                lines += [f"Its tables, made where it ran: {'; '.join(links)}.", ""]
            if paths := figures.get(chapter.name):
                lines += ["Its figures:", "", _gallery(chapter, paths), ""]
    if len(lines) == 4:
        lines[2] = "No chapter waits."
    return "\n".join(lines)


def figures(found: Mapping[str, Sequence[str]], chapters: Iterable[Chapter]) -> str:
    """The page of all figures.

    Args:
        found: {notebook: paths of its figures below the book's root}.
        chapters: all.
    """
    lines = ["# Figures", "", "Every figure beside the numbers that it is drawn from.", ""]
    for chapter in chapters:
        if paths := found.get(chapter.name):
            lines += [f"## {chapter.title}", "", f"In {link(chapter.page, chapter.title)}.", ""]
            lines += [_gallery(chapter, paths), ""]
    return "\n".join(lines)


def _gallery(chapter, paths):
    shown = "".join(figure(path, f"{chapter.title}: {words(path)}", "") for path in paths)
    return raw(f'<div class="fmseg-gallery">{shown}</div>')


def module(name: str, path: Path, chapters: Iterable[Chapter], modules: frozenset[str]) -> str:
    """The page of a module: its functions and classes, the chapters that use it, its source, highlighted.

    Args:
        name: such as 'noise'. path: its file. chapters: all. modules: those that have a page.

    Raises:
        SyntaxError: the file is not Python.
    """
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=str(path))
    code = highlight(text, PythonLexer(), HtmlFormatter(linenos="inline", lineanchors="L", cssclass="highlight"))
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_"]
    lists = {
        "Holds": [link(f"#L-{node.lineno}", node.name, code=True) for node in public],
        "Used in": [link(f"../{c.page}", c.title) for c in chapters if name in c.code + c.uses],
        "Rests on": [link(f"{m}.html", m, code=True) for m in sorted(imported(tree) & modules - {name})],
    }
    # Without search: a module says a word more often than the chapter that explains it
    lines = ["---", "orphan: true", "nosearch: true", "---", ""]
    lines += [f"# fmseg/{name}.py", "", "[All modules](index.md)", ""]
    lines += [f"* *{kind}*: {', '.join(links)}" for kind, links in lists.items() if links]
    return "\n".join([*lines, "", raw(f'<div class="fmseg-source">{code}</div>')])


def modules(paths: Mapping[str, Path]) -> str:
    """The page that lists modules, {name: file}, each with the first sentence of its docstring."""
    lines = ["# Source", "", "The modules that the results rest on, as they were when this book was built.", ""]
    for name, path in paths.items():
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        sentence = re.split(r"(?<=[.])\s", said.replace("\n", " "), maxsplit=1)[0]
        lines.append(f"* [`{name}`]({name}.md): {sentence.replace('{', chr(92) + '{')}")
    return "\n".join([*lines, ""])


def _line(chapter):
    waits = f" <span class='fmseg-waits'>waits for {chapter.waits.split(':')[0].split(',')[0]}</span>"
    return f"* {link(chapter.page, chapter.title)}{waits if chapter.waits else ''}"


def _toctree(caption, pages):
    return ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""] if pages else []
