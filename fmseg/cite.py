"""Citations: ids in Markdown, ``{{ cite freemask-real/SegFormer/mIoU }}``, filled from the committed results.

What can be cited, from ``results/<profile>/`` and ``params.yaml``:

* ``table-id/row/column``: "41.3 ± 0.6"; with ``.mean``, ``.sd``, ``.n`` or ``.paper`` appended: that part alone;
* ``claim.<id>``: the verdict; with ``.effect``: "+3.1 [2.0, 4.2]"; with ``.p`` (Holm-adjusted), ``.n``, ``.paper``,
  ``.images`` (the interval of the second look, over validation images);
* ``figure.<notebook>/<name>/<row>/<column>``: a number of the csv that a figure is drawn from, one decimal; the row is
  named by its words, joined by ", "; over several seeds it is their mean;
* ``time.<stage>``: "2 min 10 s", from ``times.json`` ({stage: seconds}); a stage named "20_real" also as ``time.20``. A
  notebook without a time in this profile is "not yet measured";
* ``param.<dotted path>``: a value of ``params.yaml``; a path of ``profiles.<profile>`` needs no prefix.
"""

import csv
import difflib
import math
import re
import statistics
from pathlib import Path

import yaml

from fmseg import ledger, tables
from fmseg.prose import blank_code, source

MAIN = "mini"  # the profile whose results are committed
_PLACEHOLDER = re.compile(r"\{\{\s*cite\s+([^{}]*?)\s*\}\}")
_MEANT = re.compile(r"\{\{\s*cit[^{}]*\}\}?|\{\s*cite\s[^{}]*\}\}?", re.IGNORECASE)


def cite(id: str, root=".", profile: str | None = None) -> str:
    """What an id stands for.

    Args:
        id: see the module's text.
        root: the checkout.
        profile: whose results; that of ``params.yaml`` if None ("mini" without one).

    Raises:
        ValueError: there is no such id; the message names it and the nearest ones.
    """
    return _look_up(id, index(root, profile))


def fill(text: str, root=".", profile: str | None = None) -> str:
    """Markdown with every ``{{ cite id }}`` replaced; code, fenced or inline, is left as it is.

    Raises:
        ValueError: an id is unknown, or a placeholder is misspelt.
    """
    return _fill(text, index(root, profile))[0]


def fill_notebook(notebook, root=".", profile: str | None = None) -> int:
    """Fill the Markdown cells of a notebook (a dict as nbformat has it), in place.

    Returns:
        The number of placeholders filled.

    Raises:
        ValueError: as :func:`fill`, naming the cell.
    """
    known, count = index(root, profile), 0
    for i, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            try:
                text, filled = _fill(source(cell), known)
            except ValueError as error:
                raise ValueError(f"cell {i}: {error}") from error
            if filled:
                cell["source"] = text if isinstance(cell["source"], str) else text.splitlines(keepends=True)
                count += filled
    return count


def index(root=".", profile: str | None = None) -> dict[str, str]:
    """Everything that can be cited: {id: what it stands for}. Raises ValueError where a results file is damaged.

    What the profile `mini` has and another has not, such as verdicts before any ledger, is there "not in profile ...":
    a text is written for the committed results, and must not stop a run at smoke size. A parameter that a profile lacks
    is `mini`'s: what needs it shows the mini world (:func:`fmseg.experiment.in_miniature`).
    """
    root = Path(root)
    params = _read_params(root / "params.yaml")
    profile = profile or params.get("profile", MAIN)
    known = _of_profile(root, profile, params)
    if profile != MAIN:
        absent, usual = f"not in profile {profile}", _of_profile(root, MAIN, params)
        known = {id: text if id.startswith("param.") else absent for id, text in usual.items()} | known
    return known


def _of_profile(root, profile, params):
    folder = root / "results" / profile
    known = {}
    for table in tables.read_all(folder / "tables").values():
        known |= _of_table(table)
    if (folder / "ledger.json").exists():
        for entry in ledger.read(folder)["claims"]:
            known |= _of_claim(entry)
    for path in sorted((folder / "figures").glob("*/*.csv")):
        known |= _of_figure(path)
    for notebook in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        known |= dict.fromkeys((f"time.{notebook.stem}", f"time.{notebook.stem.split('_')[0]}"), "not yet measured")
    if (folder / "times.json").exists():
        known |= _of_times(tables.read_json(folder / "times.json"), folder / "times.json")
    section = (params.get("profiles") or {}).get(profile) or {}
    for name, value in (_flat(section) | _flat(params)).items():
        known[f"param.{name}"] = _param_text(value)
    return known


def duration(seconds: float) -> str:
    """A time in words: "under 1 s", "34 s", "2 min 10 s", "1 h 5 min"."""
    whole = round(seconds)
    if whole < 1:
        return "under 1 s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def _fill(text, known):
    """(text, number of placeholders)"""
    prose = blank_code(text)
    wrong = [m for m in _MEANT.finditer(prose) if not _PLACEHOLDER.fullmatch(m.group())]
    if wrong:
        raise ValueError(f"`{wrong[0].group()}` is no placeholder; it must read {{{{ cite id }}}}.")
    parts, last, count = [], 0, 0
    for match in _PLACEHOLDER.finditer(prose):
        parts += [text[last : match.start()], _look_up(match.group(1), known)]
        last, count = match.end(), count + 1
    return "".join([*parts, text[last:]]), count


def _look_up(id, known):
    if id in known:
        return known[id]
    near = difflib.get_close_matches(id, known, n=3, cutoff=0.4)
    hint = f"The nearest are {', '.join(near)}." if near else f"There are {len(known)} ids, none of them near."
    raise ValueError(f"Nothing can be cited as {id!r}. {hint} Has the stage that makes it run in this profile?")


def _of_table(table):
    digits = table.get("digits", 1)
    known = {}
    for row in table["rows"]:
        for column, cell in row["cells"].items():
            id = f"{table['id']}/{row['label']}/{column}"
            known[id] = tables.mean_sd(cell, digits)
            known[f"{id}.n"] = str(cell["n"])
            for part in ("mean", "sd"):  # a single value has no spread
                missing = "no sd (n = 1)" if cell["n"] else cell["status"]
                known[f"{id}.{part}"] = missing if cell[part] is None else f"{cell[part]:.{digits}f}"
            if cell["paper"]:
                known[f"{id}.paper"] = tables.paper_text(cell["paper"])
    return known


def _of_figure(path):
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    values: dict[str, list[tuple[str, float]]] = {}
    for line in lines:
        words = ", ".join(v for k, v in line.items() if k != "seed" and v and not _is_number(v))
        for column, value in line.items():
            if column != "seed" and _is_number(value):
                id = f"figure.{path.parent.name}/{path.stem}/{words}/{column}"
                values.setdefault(id, []).append((line.get("seed", ""), float(value)))
    # rows that numbers alone tell apart have no name, so they cannot be cited
    named = {id: found for id, found in values.items() if len({seed for seed, _ in found}) == len(found)}
    return {id: f"{statistics.fmean(value for _, value in found):.1f}" for id, found in named.items()}


def _is_number(value):
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _of_claim(entry):
    id = f"claim.{entry['id']}"
    p = entry["text"] if entry["p_holm"] is None else f"{entry['p_holm']:.2g}"
    return {
        id: entry["text"],
        f"{id}.effect": ledger.effect(entry),
        f"{id}.p": p,
        f"{id}.n": str(entry["n"]),
        f"{id}.paper": ledger.paper_values(entry["paper_values"]),
        f"{id}.images": ledger.over_images(entry) or entry["text"],
    }


def _of_times(times, path):
    if not isinstance(times, dict) or not all(
        isinstance(t, (int, float)) and not isinstance(t, bool) and t >= 0 for t in times.values()
    ):
        raise ValueError(f"{path} must map stages to seconds, {{stage: seconds}}.")
    known = {}
    for stage, seconds in times.items():
        if number := re.match(r"\d+(?=\D)", stage):
            known[f"time.{number.group()}"] = duration(seconds)
    return known | {f"time.{stage}": duration(seconds) for stage, seconds in times.items()}


def _read_params(path):
    if not path.is_file():
        return {}
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(params, dict):
        raise ValueError(f"{path} must be a mapping, got {type(params).__name__}.")
    return params


def _flat(data, prefix=""):
    """{dotted path: leaf}; a list is a leaf."""
    flat = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _param_text(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(_param_text, value)) if isinstance(value, list) else str(value)
