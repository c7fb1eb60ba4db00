"""`make book`: the executed notebooks, tables, figures and the ledger as a site of plain files, to read without a
network. `python -m fmseg.book` builds it, with `--serve` it shows the one that is there on localhost.

The root pipeline's last stage builds it into results/<profile>/book, outside git, from what the other stages left. The
new book takes the old one's place when it is whole.
"""

import argparse
import functools
import http.server
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from fmseg import book_chapters, book_ledger, book_pages, book_sphinx, book_tables, ledger, pipeline, report, tables
from fmseg.book_chapters import Targets, digest, linked
from fmseg.book_html import figure
from fmseg.notebooks import note_time
from fmseg.records import LockedError, lock
from fmseg.settings import Settings, load
from fmseg.stage import end_with_dvc

PICTURE = "20_freemask_real/predictions.png"  # on the first page, as in README
LOGS = {"TRIED.md": "tried", "CHANGELOG.md": "changelog"}  # {file: page}
CITATION = "CITATION.cff"
PORT = 8000


def folder(settings: Settings) -> Path:
    """Where the book of a profile lies."""
    return settings.results / pipeline.BOOK


def build(settings: Settings) -> list[str]:
    """Build the book of a profile.

    Returns:
        Warnings, one a line; empty where all is well.

    Raises:
        FileNotFoundError: no notebook is executed. ValueError: a table, the ledger or a formula is damaged.
        RuntimeError: Sphinx gave up. LockedError: somebody else builds it. The book that was there stays in all cases.
    """
    to = folder(settings)
    part, old = to.with_name(".book.part"), to.with_name(".book.old.part")
    site = part / "site"  # Sphinx leaves a folder beside it, too
    with lock(settings.root / "build" / f"book-{settings.profile}.lock", "the book"):
        with tempfile.TemporaryDirectory(prefix="fmseg-book-") as name:
            work = Path(name)
            write_sources(settings, work / "source", work / "extra")
            for left in (part, old):
                shutil.rmtree(left, ignore_errors=True)
            static = settings.root / "book"
            warnings = book_sphinx.build(work / "source", site, work / "work", static, work / "extra")
        for name in (".buildinfo", "objects.inv", "_sources"):  # for other tools, not for readers
            path = site / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if to.exists():
            to.rename(old)
        site.rename(to)
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
    return warnings


def write_sources(settings: Settings, source: Path, extra: Path) -> None:
    """Write what Sphinx reads into ``source``, and figures with their data into ``extra``.

    Raises:
        FileNotFoundError, ValueError: see :func:`build`.
    """
    found = book_chapters.chapters(settings)
    if all(chapter.waits for chapter in found):
        raise FileNotFoundError(
            f"no notebook is executed in {settings.results / 'notebooks'}, and the book holds what is executed; "
            "`make repro` executes them all"
        )
    made = tables.read_all(settings.results / "tables")
    claims = ledger.read(settings.results) if (settings.results / "ledger.json").exists() else None
    listed = claims["claims"] if claims else []
    files = {Path(name).stem: settings.root / name for name in pipeline.shown_modules(settings.root)}
    files.pop("__init__", None)
    drawn = _copy_figures(settings, extra)
    logs = {file: page for file, page in LOGS.items() if (settings.root / file).is_file()}
    to_files = {file: f"{page}.html" for file, page in logs.items()}
    if (settings.root / CITATION).is_file():
        extra.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(settings.root / CITATION, extra / CITATION)
        to_files[CITATION] = CITATION
    if claims:
        to_files["results/mini/ledger.md"] = "report.html"
    targets = Targets(
        pages={chapter.name: chapter.page for chapter in found},
        modules=frozenset(files),
        claims=frozenset(claim["id"] for claim in listed),
        tables=frozenset(made),
        figures={digest((extra / path).read_bytes()): path for paths in drawn.values() for path in paths},
        files=to_files,
    )
    picture = f"figures/{PICTURE}"
    shown = figure(picture, "Images, truth and predictions of segmenters on the mini world", "")
    pages = {
        "index.md": book_pages.first(
            found, listed, targets, shown if (extra / picture).exists() else None, list(logs.values())
        ),
        "waiting.md": book_pages.waiting(found, settings, targets, made, drawn),
        "figures.md": book_pages.figures(drawn, found),
        "tables/index.md": book_tables.index(made),
        "source/index.md": book_pages.modules(files),
        "ledger.md": book_ledger.markdown(claims, found, made, targets.modules)
        if claims
        else "# The ledger\n\nNone.\n",
    }
    if claims:
        pages["report.md"] = linked(report.filled(settings), targets, "")
    pages |= {f"{p}.md": linked((settings.root / f).read_text(encoding="utf-8"), targets, "") for f, p in logs.items()}
    pages |= {f"tables/{id}.md": book_tables.markdown(table, found, listed) for id, table in made.items()}
    pages |= {f"source/{m}.md": book_pages.module(m, path, found, targets.modules) for m, path in files.items()}
    for chapter in found:
        if not chapter.waits:
            pages[f"chapters/{chapter.name}.ipynb"] = json.dumps(book_chapters.notebook(chapter, targets))
    tables.write_files({source / name: text for name, text in pages.items()})


def _copy_figures(settings, extra):
    """{notebook: paths of its figures below ``extra``}, copied there with their data."""
    drawn = {}
    for path in sorted((settings.results / "figures").glob("*/*.png")):
        to = extra / "figures" / path.parent.name
        to.mkdir(parents=True, exist_ok=True)
        for file in (path, path.with_suffix(".csv")):
            shutil.copyfile(file, to / file.name)
        drawn.setdefault(path.parent.name, []).append(f"figures/{path.parent.name}/{path.name}")
    return drawn


def serve(where: Path, port: int = PORT) -> None:
    """Show a book on localhost until interrupted.

    Raises:
        FileNotFoundError: there is none. OSError: the port cannot be had; says how to take another.
    """
    if not (where / "index.html").is_file():
        raise FileNotFoundError(f"no book in {where}; `make book` builds it")
    handler = functools.partial(_Quiet, directory=str(where))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        words = (
            f"port {port} of localhost cannot be had: {error.strerror}; `python -m fmseg.book --serve --port N` takes N"
        )
        raise OSError(error.errno, words) from None
    with server:
        print(f"The book: http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fmseg.book", description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="show the book that is there on localhost")
    parser.add_argument("--port", type=int, default=PORT, help="of localhost (default: %(default)s)")
    given = parser.parse_args()
    end_with_dvc()
    try:
        settings = load()
        if given.serve:
            serve(folder(settings), given.port)
            return 0
        started = time.perf_counter()
        for warning in build(settings):
            print(f"warning: {warning}", file=sys.stderr)
        note_time("book", time.perf_counter() - started, settings)
    except (ValueError, OSError, RuntimeError, LockedError) as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1
    print(f"The book: {folder(settings) / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
