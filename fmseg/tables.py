"""Tables: the one format in which results are kept, checked, written and shown.

A table is a dict that is its JSON file: ``id``, ``title``, ``paper``, ``unit``, ``columns``, ``rows`` and, if wanted,
``digits`` (decimals shown, 1 unless said), ``note``, ``provenance``. A row is ``{"label", "cells": {column: cell}}``;
a cell is ``{"values": {seed: x}, "mean", "sd", "n", "paper": {"value", "certainty"} or None, "status"}`` with status
"measured" or "not run: reason". Mean and sd follow from the values, and a file where they do not is refused.
"""

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from fmseg.stats import summary

CERTAINTIES = ("STATED", "SEED", "RECALLED", "INFERRED", "COMPUTED", "MISSING")
DECIMALS = 4  # of every number in a file, so that its bytes are stable
_TABLE_KEYS = {"id", "title", "paper", "unit", "columns", "rows"}
_TABLE_EXTRA = {"digits", "note", "provenance"}
_CELL_KEYS = {"values", "mean", "sd", "n", "paper", "status"}
_ID = re.compile(r"[a-z][a-z0-9-]*")


# -- building --------------------------------------------------------------------------------------------------------


def paper_value(value: float | None, certainty: str, source: str | None = None) -> dict:
    """A paper's number with its certainty.

    Args:
        value: in the table's unit; None only with certainty "MISSING" (the number exists and could not be recovered).
        certainty: one of :data:`CERTAINTIES`.
        source: where it was read, say "FreeMask README".

    Returns:
        {"value", "certainty"} and "source" if given. Raises ValueError or TypeError where these do not fit.
    """
    paper = {"value": value, "certainty": certainty} | ({} if source is None else {"source": source})
    _check_paper(paper, "paper_value")
    return paper


def cell(values: Mapping, paper: dict | None = None, status: str = "measured") -> dict:
    """A cell from its seeds' values; mean, sd and n are computed from the rounded values.

    Args:
        values: {seed: x}, x finite, in the table's unit; rounded to :data:`DECIMALS`. Not empty if measured.
        paper: what :func:`paper_value` returns, or None.
        status: "measured", or "not run: reason" with empty values.

    Raises:
        TypeError, ValueError: a value is not a finite number, a seed occurs twice, status and values disagree.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"`values` must map seeds to values, {{seed: x}}; got {type(values).__name__}.")
    summary(values)  # refuses what is not a finite number
    rounded = {str(seed): _rounded(float(values[seed])) for seed in sorted(values, key=_seed_order)}
    if len(rounded) != len(values):
        raise ValueError(f"`values` must name each seed once; got {list(values)} (3 and '3' are the same seed).")
    made = {"values": rounded, **_rounded_summary(rounded), "paper": paper, "status": status}
    _check_cell(made, "cell")
    return made


def not_run(reason: str, paper: dict | None = None) -> dict:
    """A cell without a measurement: it says why, and keeps the paper's value."""
    return cell({}, paper, f"not run: {reason}")


def row(label: str, cells: Mapping[str, dict]) -> dict:
    """A row of a table: its label and its cells by column (a column may lack a cell)."""
    return {"label": label, "cells": dict(cells)}


def table(
    id: str, title: str, paper: str, unit: str, columns, rows, *, digits=None, note=None, provenance=None
) -> dict:
    """A checked table.

    Args:
        id: lower-case letters, digits and hyphens; the file's name.
        title, paper, unit: text, say "Real images only, ade", "FreeMask, README, ADE20K table", "%".
        columns: names; no name twice; none with ``[ ] , / |`` in it, because formulas and citations use those.
        rows: what :func:`row` returns, in order; labels as columns.
        digits: decimals to show, 0 to 4; 1 if None.
        note: one or more sentences for the reader.
        provenance: {"stage": ..., "code": ..., "seeds": [...]} or the like, JSON only.

    Raises:
        TypeError, ValueError: the table does not follow the format; the message names the place.
    """
    columns = list(columns)
    rows = [row(r["label"], {c: r["cells"][c] for c in columns if c in r["cells"]} | r["cells"]) for r in rows]
    made = {"id": id, "title": title, "paper": paper, "unit": unit, "columns": columns, "rows": rows}
    made |= {k: v for k, v in {"digits": digits, "note": note, "provenance": provenance}.items() if v is not None}
    validate(made)
    return made


# -- files -----------------------------------------------------------------------------------------------------------


def write(table: dict, folder) -> Path:
    """Write ``<folder>/<id>.json`` and ``<id>.md``, each under a temporary name first; returns the JSON's path.

    Raises:
        TypeError, ValueError: the table is not valid; nothing is written.
        OSError: a file could not be written (disk full, read-only folder). It names the file; old files are intact.
    """
    validate(table)
    path = Path(folder) / f"{table['id']}.json"
    write_files({path.with_suffix(".md"): markdown(table), path: json_text(table)})
    return path


def read(path) -> dict:
    """Read and check a table file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut short, is no table, or breaks the format; the message names file and place.
    """
    path = Path(path)
    found = read_json(path)
    try:
        validate(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a valid table: {error} Build it again; tables are not edited.") from error
    if found["id"] != path.stem:
        raise ValueError(f"{path} holds the table {found['id']!r}; expected {path.stem!r}. Was the file renamed?")
    return found


def read_table(id: str, settings) -> dict:
    """A table of the settings' profile, by its id; a notebook that calls this waits for the stage that makes it."""
    return read(settings.results / "tables" / f"{id}.json")


def read_all(folder) -> dict[str, dict]:
    """Every table of a folder, {id: table}; JSON files of another kind (no "columns", no "rows") are passed over."""
    found = {}
    for path in sorted(Path(folder).glob("*.json")):
        data = read_json(path)
        if isinstance(data, dict) and ("columns" in data or "rows" in data):
            found[path.stem] = read(path)
    return found


def read_json(path):
    """A JSON file's content. FileNotFoundError or ValueError name the file; NaN and Infinity are refused."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}. Has the stage that makes it run?") from None
    except ValueError as error:  # also what is not UTF-8
        raise ValueError(f"{path} is not readable JSON ({error}). It may be cut short: build it again.") from error


def json_text(data) -> str:
    """JSON as the project keeps it in git: one space of indent, UTF-8, a newline at the end, no NaN."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_files(contents: Mapping[Path, str]) -> None:
    """Write text files so that each is there in full or as it was.

    All are written under temporary names beside their places first (this is where a full disk shows), then renamed in
    order. Folders are made. A rename that fails leaves the files after it as they were.

    Raises:
        OSError: with the cause's errno; names the file. Temporary files are removed.
    """
    temporary = {}
    path = None
    try:
        for path, text in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with open(temporary[path], "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno, f"Could not write {path}: {reason}. What stood there is intact; mend the cause and run again."
        ) from error
    finally:
        for left in temporary.values():
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)


# -- showing ---------------------------------------------------------------------------------------------------------


def mean_sd(cell: dict, digits: int = 1) -> str:
    """A cell in a few words: "61.2 ± 0.6", "61.2" for one value, or the status of a cell that was not run."""
    if not cell["n"]:
        return cell["status"]
    spread = "" if cell["sd"] is None else f" ± {cell['sd']:.{digits}f}"
    return f"{round(cell['mean'], digits) + 0.0:.{digits}f}{spread}"  # no minus before a zero


def paper_text(paper: dict) -> str:
    """A paper's number as its source has it, with its certainty: "45.6 (STATED, FreeMask README)"."""
    return f"({_tag(paper)})" if paper["value"] is None else f"{paper['value']} ({_tag(paper)})"


def _tag(paper: dict) -> str:
    return ", ".join([paper["certainty"], *([paper["source"]] if "source" in paper else [])])


def markdown(table: dict) -> str:
    """The table for people: mean ± sd, n where it is not the usual one, the paper's value beside it, why a cell was not
    run; what many cells share (sources, reasons) stands once, below, under a letter."""
    digits, cells = table.get("digits", 1), [c for r in table["rows"] for c in r["cells"].values()]
    counts = Counter(c["n"] for c in cells if c["n"] > 1)
    usual = max(counts, key=lambda n: (counts[n], n)) if counts else 0
    said = f"Mean ± sd over {usual} seeds" + (" where no n is given" if len({c["n"] for c in cells} - {0}) > 1 else "")
    notes = _letters(cells)
    said = said if usual else "Nothing is measured more than once"
    lines = [f"# {table['title']}", "", f"{table['paper']}. Unit: {table['unit']}. {said}.", ""]
    lines += ["| | " + " | ".join(table["columns"]) + " |", "|---" * (len(table["columns"]) + 1) + "|"]
    for r in table["rows"]:
        shown = [_cell_text(r["cells"].get(c), digits, usual, notes) for c in table["columns"]]
        lines.append(f"| {r['label']} | " + " | ".join(shown) + " |")
    if notes:
        lines += ["", *(f"* [{letter}] {text}" for text, letter in notes.items())]
    few = sorted({c["n"] for c in cells if 1 < c["n"] < 5})
    if few:
        lines += ["", f"Not judged: cells with n = {', '.join(map(str, few))}; claims need at least 5 seed pairs."]
    if "note" in table:
        lines += ["", table["note"]]
    if "provenance" in table:
        facts = [f"{k} {', '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in table["provenance"].items()]
        lines += ["", f"Table `{table['id']}`; " + "; ".join(facts) + "."]
    return "\n".join(lines) + "\n"


def _letters(cells) -> dict[str, str]:
    """{what stands below a table: its letter}: sources of the paper's values, reasons why cells were not run."""
    found = dict.fromkeys(text for c in cells for text in (_reason(c), _source(c)) if text)
    return {text: _letter(number) for number, text in enumerate(found)}


def _letter(number: int) -> str:
    return (chr(ord("a") + number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def _source(cell) -> str:
    return _tag(cell["paper"]) if cell["paper"] else ""


def _reason(cell) -> str:
    return "" if cell["n"] else cell["status"].removeprefix("not run: ")


def _cell_text(cell, digits, usual, notes):
    if cell is None:
        return ""
    if cell["n"]:
        text = mean_sd(cell, digits) + ("" if cell["n"] == usual else f" (n = {cell['n']})")
    else:
        text = f"not run [{notes[_reason(cell)]}]"
    if cell["paper"]:
        value = cell["paper"]["value"]
        text += f"; paper {'unknown' if value is None else value} [{notes[_source(cell)]}]"
    return text.replace("|", "\\|").replace("\n", " ")


# -- validation ------------------------------------------------------------------------------------------------------


def validate(table: dict) -> None:
    """Check a table against the format; mean, sd and n are computed anew and compared.

    Raises:
        TypeError, ValueError: names the row and column, what was expected and what came.
    """
    if not isinstance(table, dict):
        raise TypeError(f"a table must be a dict, got {type(table).__name__}.")
    _check_keys(table, _TABLE_KEYS, "table", _TABLE_EXTRA)
    for key in ("id", "title", "paper", "unit", *({"note"} & set(table))):
        if not isinstance(table[key], str) or not table[key].strip():
            raise ValueError(f"table: `{key}` must be a text that is not empty, got {table[key]!r}.")
    if not _ID.fullmatch(table["id"]):
        raise ValueError(f"table: `id` must be lower-case letters, digits and hyphens, got {table['id']!r}.")
    where = f"table {table['id']}"
    digits = table.get("digits", 1)
    if isinstance(digits, bool) or not isinstance(digits, int) or not 0 <= digits <= DECIMALS:
        raise ValueError(f"{where}: `digits` must be a whole number from 0 to {DECIMALS}, got {digits!r}.")
    if not isinstance(table.get("provenance", {}), dict):
        raise TypeError(f"{where}: `provenance` must be a dict, got {type(table['provenance']).__name__}.")
    for key in ("columns", "rows"):
        if not isinstance(table[key], list) or not table[key]:
            raise ValueError(f"{where}: `{key}` must be a list that is not empty, got {table[key]!r}.")
    _check_names(table["columns"], f"{where}, columns")
    for r in table["rows"]:
        if not isinstance(r, dict):
            raise TypeError(f"{where}: a row must be a dict, got {r!r}.")
        _check_keys(r, {"label", "cells"}, f"{where}, row {r.get('label')!r}")
        if not isinstance(r["cells"], dict):
            raise TypeError(f"{where}, row {r['label']}: `cells` must be a dict, got {type(r['cells']).__name__}.")
    _check_names([r["label"] for r in table["rows"]], f"{where}, row labels")
    for r in table["rows"]:
        foreign = [c for c in r["cells"] if c not in table["columns"]]
        if foreign:
            raise ValueError(f"{where}, row {r['label']}: no such column: {foreign}; there are {table['columns']}.")
        for column, c in r["cells"].items():
            _check_cell(c, f"{where}, row {r['label']}, column {column}")


def _check_cell(cell, where):
    if not isinstance(cell, dict):
        raise TypeError(f"{where}: a cell must be a dict, got {cell!r}.")
    _check_keys(cell, _CELL_KEYS, where)
    if not isinstance(cell["values"], dict):
        raise TypeError(f"{where}: `values` must be a dict {{seed: x}}, got {cell['values']!r}.")
    if cell["paper"] is not None:
        _check_paper(cell["paper"], where)
    status = cell["status"]
    if status != "measured" and not (isinstance(status, str) and re.fullmatch(r"not run: \S.*", status)):
        raise ValueError(f"{where}: `status` must be 'measured' or 'not run: reason', got {status!r}.")
    if (status == "measured") != bool(cell["values"]):
        raise ValueError(f"{where}: status {status!r} does not fit {len(cell['values'])} values.")
    try:
        expected = _rounded_summary(cell["values"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    for key, value in expected.items():
        if not _close(cell[key], value):
            raise ValueError(
                f"{where}: `{key}` is {cell[key]!r}, but the values give {value!r}. It is computed, never typed: "
                "build the cell with fmseg.tables.cell."
            )


def _check_paper(paper, where):
    if not isinstance(paper, dict):
        raise TypeError(f"{where}: `paper` must be {{'value', 'certainty'}} or null, got {paper!r}.")
    _check_keys(paper, {"value", "certainty"}, f"{where}, paper", {"source"})
    if paper["certainty"] not in CERTAINTIES:
        raise ValueError(f"{where}: `certainty` must be one of {', '.join(CERTAINTIES)}; got {paper['certainty']!r}.")
    if (paper["value"] is None) != (paper["certainty"] == "MISSING"):
        raise ValueError(f"{where}: a paper's value is null exactly where its certainty is MISSING; got {paper!r}.")
    if paper["value"] is not None:
        try:
            summary([paper["value"]])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: the paper's value must be a finite number: {error}") from error


def _check_keys(found, needed, where, extra=frozenset()):
    missing, unknown = sorted(needed - set(found)), sorted(map(str, set(found) - needed - set(extra)))
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}; there are {sorted(map(str, found))}.")
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; expected {sorted(needed | set(extra))}.")


def _check_names(names, where):
    for name in names:
        if not isinstance(name, str) or name != name.strip() or not name or re.search(r"[\[\],/|\n]", name):
            raise ValueError(f"{where}: a name must be a text without `[ ] , / |` or outer blanks, got {name!r}.")
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"{where}: {twice} occur more than once.")


def _rounded_summary(values):
    return {k: v if v is None or k == "n" else _rounded(v) for k, v in summary(values).items()}


def _rounded(x):
    return round(x, DECIMALS) + 0.0  # no -0.0


def _close(a, b):
    if a is None or b is None or isinstance(a, (bool, str)) or not isinstance(a, (int, float)):
        return a is b
    return a == b if isinstance(b, int) else abs(a - b) < 1.5 * 10**-DECIMALS


def _seed_order(seed):
    text = str(seed)
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def _no_constant(name):
    raise ValueError(f"{name} is no number")
