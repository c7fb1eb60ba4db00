"""The book's tables: a page each, in which every cell can be linked to and shows the seeds behind it."""

import html
from collections.abc import Mapping, Sequence

from fmseg import estimand, tables
from fmseg.book_chapters import Chapter, place_of
from fmseg.book_html import link, raw

CERTAINTY = """\
* *STATED*: read at the place named beside it (the paper, its abstract, its code, a log, a README).
* *SEED*: read in a Chinese post on the paper; FreeMask's is by its authors.
* *RECALLED*: remembered and read nowhere here, so unverified.
* *INFERRED*: deduced from what was read; the paper does not print it.
* *COMPUTED*: arithmetic on the paper's numbers, such as a difference of two of them.
* *MISSING*: the paper has a number that could not be recovered; none is made up."""
_READING = f"""\
## How to read a table

* *61.2 ± 0.6* is the mean over seeds and the standard deviation between seeds (with n - 1), in the table's unit. It is
  no interval of the mean; intervals stand in the [ledger](../ledger.md), beside the claims.
* *n* is the number of seeds behind a cell. A value without ± was measured once.
* *[a]*, a letter, leads to a line below the table: why a cell was not run, or where the paper's number was read.
* *paper* is the paper's own number, at its own size and on its own data: beside ours, not to be reached by ours.
* A link to a cell, such as the ledger's, names the row and the column in the cell that it leads to.

The first word of where a paper's number was read says how certain it is:

{CERTAINTY}
"""


def cell_anchor(table: Mapping, row: str, column: str) -> str:
    """What a cell is called in its table's page; by place, because labels may hold anything.

    Raises:
        ValueError: the table has no such row or column; the message lists what it has.
    """
    labels = [r["label"] for r in table["rows"]]
    for kind, name, known in (("row", row, labels), ("column", column, table["columns"])):
        if name not in known:
            raise ValueError(f"table {table['id']} has no {kind} {name!r}; it has {', '.join(known)}")
    return f"r{labels.index(row) + 1}c{list(table['columns']).index(column) + 1}"


def cell_page(table: Mapping, row: str, column: str) -> str:
    """Where the book has a cell, from its root: 'tables/freemask-real.html#r1c1'."""
    return f"tables/{table['id']}.html#{cell_anchor(table, row, column)}"


def markdown(table: Mapping, chapters: Sequence[Chapter], claims: Sequence[Mapping]) -> str:
    """A table's page: its cells, the values of each seed, the claims that read it, the chapter that makes it."""
    lines = [f"# {table['title']}", "", f"{table['paper']}. Unit: {table['unit']}. Mean ± sd over n seeds.", ""]
    # The letters of the table's .md, so that both name the same thing
    notes = tables._letters([cell for row in table["rows"] for cell in row["cells"].values()])
    lines += [_scrolling(_cells(table, notes)), *([_notes(notes)] if notes else [])]
    lines += [table.get("note", ""), "", _made(table, chapters), ""]
    reading = [c for c in claims if c["estimand"] and table["id"] in estimand.parse(c["estimand"]).tables]
    if reading:
        lines += ["## Claims that read it", ""]
        lines += [
            f"* {link('../ledger.html#' + c['id'], c['id'], code=True)} {c['says']}: {c['text']}" for c in reading
        ]
        lines.append("")
    return "\n".join([*lines, "## Seed by seed", "", _scrolling(_seeds(table))])


def index(found: Mapping[str, dict]) -> str:
    """The page that lists the tables."""
    lines = ["# Tables", "", "Every cell can be linked to, and shows the seeds behind it.", ""]
    lines += [f"* [{table['title']}]({id}.md) (`{id}`): {table['paper']}" for id, table in found.items()]
    return "\n".join([*lines, "", _READING, "```{toctree}", ":hidden:", "", *found, "```", ""])


def _cells(table, notes):
    digits = table.get("digits", 1)
    lines = ["<table><thead><tr><th></th>", *(f"<th>{html.escape(c)}</th>" for c in table["columns"]), "</tr></thead>"]
    lines.append("<tbody>")
    for row in table["rows"]:
        lines.append(f"<tr><th scope='row'>{html.escape(row['label'])}</th>")
        for column in table["columns"]:
            cell, where = row["cells"].get(column), cell_anchor(table, row["label"], column)
            title = html.escape(f"{row['label']} / {column}", quote=True)  # shown in the cell that a link leads to
            shown = "" if cell is None else _cell(cell, digits, notes)
            lines.append(f'<td id="{where}" title="{title}">{shown}</td>')
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table>"])


def _cell(cell, digits, notes):
    if cell["n"]:
        shown = f"{tables.mean_sd(cell, digits)} <small>(n = {cell['n']})</small>"
    else:
        shown = f"not run {_to_note(notes[tables._reason(cell)])}"
    if cell["paper"]:
        value = "unknown" if cell["paper"]["value"] is None else cell["paper"]["value"]
        shown += f"<br><small>paper: {value} {_to_note(notes[tables._source(cell)])}</small>"
    return shown


def _to_note(letter):
    return link(f"#note-{letter}", f"[{letter}]")


def _notes(notes):
    """What the letters in a table mean, {text: letter}."""
    lines = (f'<li id="note-{letter}">[{letter}] {html.escape(text)}</li>' for text, letter in notes.items())
    return raw(f'<ul class="fmseg-notes">{"".join(lines)}</ul>')


def _seeds(table):
    """Rows and columns as (row, column, values of the seeds); cells without a value are left out."""
    seeds = sorted({s for r in table["rows"] for c in r["cells"].values() for s in c["values"]}, key=_order)
    lines = ["<table><thead><tr><th>row</th><th>column</th>", *(f"<th>seed {html.escape(s)}</th>" for s in seeds)]
    lines.append("</tr></thead><tbody>")
    digits = table.get("digits", 1) + 1
    for row in table["rows"]:
        for column in table["columns"]:
            values = row["cells"].get(column, {"values": {}})["values"]
            if values:
                shown = "".join(f"<td>{values[s]:.{digits}f}</td>" if s in values else "<td></td>" for s in seeds)
                lines.append(f"<tr><td>{html.escape(row['label'])}</td><td>{html.escape(column)}</td>{shown}</tr>")
    return "".join([*lines, "</tbody></table>"])


def _made(table, chapters):
    facts = [f"{k} {', '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in _provenance(table).items()]
    stage = _provenance(table).get("stage")
    chapter = next((c for c in chapters if c.name == stage), None)
    text = f"Table `{table['id']}`" + (f"; {'; '.join(facts)}" if facts else "") + "."
    if chapter is None:
        return text
    place = place_of(table["id"], chapter)
    page = f"../{chapter.page}" + (f"#{place[0]}" if place else "")
    verb = "made in" if place or not chapter.waits else f"made in a chapter that waits for {chapter.waits}:"
    return f"{text} It is {verb} {link(page, chapter.title)}."


def _provenance(table):
    return table.get("provenance", {})


def _order(seed):
    return (0, int(seed), seed) if seed.lstrip("-").isdigit() else (1, 0, seed)


def _scrolling(table):
    return raw(f'<div class="fmseg-scroll">{table}</div>')
