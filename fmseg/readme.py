"""README's generated parts: tables, the list of notebooks, measured times. Between ``<!-- fmseg:begin NAME -->`` and
``<!-- fmseg:end NAME -->``; `make readme` fills them from results/mini, `make verify` fails where they are out of date.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

from fmseg import ledger, tables, zoo
from fmseg.cite import duration, index
from fmseg.notebooks import title
from fmseg.settings import Settings, load

PROFILE = "mini"  # the README shows the reader's profile
_BLOCK = re.compile(r"(<!-- fmseg:begin (\S+) -->\n).*?(<!-- fmseg:end \2 -->)", re.DOTALL)


def fill(text: str, settings: Settings) -> str:
    """A text with its generated parts written anew.

    Raises:
        ValueError: a part of a name that nobody writes. FileNotFoundError: a table is missing.
    """
    return _BLOCK.sub(lambda m: f"{m.group(1)}{part(m.group(2), settings)}\n{m.group(3)}", text)


def part(name: str, settings: Settings) -> str:
    """What stands in the part of that name: 'table.<id>', 'scoreboard', 'notebooks', 'times', 'reruns', 'zoo',
    'scale', 'one-picture' or 'benchmarks'."""
    if name.startswith("table."):
        text = tables.markdown(tables.read(settings.results / "tables" / f"{name.removeprefix('table.')}.json"))
        return text.replace("# ", "**", 1).replace("\n", "**\n", 1).strip()
    if name == "scoreboard":
        return _scoreboard(settings)
    if name == "notebooks":
        return _notebooks(settings)
    if name == "times":
        return _times(settings)
    if name == "reruns":
        return _reruns(settings)
    if name == "zoo":
        return _zoo()
    if name == "scale":
        return _scale(settings)
    if name == "one-picture":
        found = tables.read_json(settings.root / "results" / "paper" / "one_picture.json")
        return "\n".join(f"* {line}" for line in found["report"])
    if name == "benchmarks":
        return _benchmarks(settings)
    known = "table.<id>, scoreboard, notebooks, times, reruns, zoo, scale, one-picture, benchmarks"
    raise ValueError(f"README: no generated part is called {name!r}; there are {known}")


def _scoreboard(settings: Settings) -> str:
    """How many claims of each paper have which verdict, and those that are decided, each with the table it is read from
    and the notebook that makes this."""
    claims = ledger.read(settings.results)["claims"]
    count = Counter((claim["paper"], claim["verdict"]) for claim in claims)
    lines = [f"| claims of | {' | '.join(ledger.VERDICTS)} |", "|---|" + "---|" * len(ledger.VERDICTS)]
    for paper in dict.fromkeys(claim["paper"] for claim in claims):
        lines.append(f"| {paper} | " + " | ".join(str(count[paper, verdict]) for verdict in ledger.VERDICTS) + " |")
    lines += ["", "<details><summary>The decided ones, with what was measured</summary>", ""]
    for verdict in ledger.VERDICTS[:2]:
        for claim in claims:
            if claim["verdict"] == verdict:
                table = f"results/{PROFILE}/tables/{claim['table']}"
                stage = tables.read(settings.root / f"{table}.json")["provenance"]["stage"]
                ways = f"[table]({table}.md), [notebook](notebooks/{stage}.ipynb)"
                found = f"**{claim['text']}**, {ledger.effect(claim)}, n = {claim['n']}"
                lines.append(f"* `{claim['id']}`: {claim['says']}. {found}; {ways}")
    return "\n".join([*lines, "", "</details>"])


def _notebooks(settings: Settings) -> str:
    lines, known = ["| notebook | measured |", "|---|---|"], index(settings.root, settings.profile)
    for path in sorted((settings.root / "notebooks").glob("[0-9]*.ipynb")):
        lines.append(f"| [{title(path)}](notebooks/{path.name}) | {known[f'time.{path.stem}']} |")
    return "\n".join(lines)


def _times(settings: Settings) -> str:
    path = settings.results / "times.json"
    times = tables.read_json(path) if path.exists() else {}

    def said(name):
        return duration(times[name]) if name in times else "not yet measured"

    return "\n".join(
        [
            "| command | does | measured on two cores |",
            "|---|---|---|",
            "| `make repro` | executes every notebook but those on photographs, regenerates tables, figures, ledger, "
            f"book | {said('repro')}; "
            f"with nothing to do {said('repro again')} |",
            f"| `make test` | runs the tests | {said('test')} |",
            f"| `make verify` | do the committed results belong to this code? | {said('verify')} |",
            f"| `make smoke` | every stage at smoke size, in a temporary copy | {said('smoke')} |",
            "| `make rerun` | trains the headline tables again with three seeds and compares | see below |",
            "| `make lab` | opens the notebooks | |",
        ]
    )


def _reruns(settings: Settings) -> str:
    """What `make rerun` found, a line a command; tables whose records have changed since are named."""
    path = settings.results / "reruns.json"
    heads = ("command", "tables", "cells inside their intervals", "farthest off", "took", "one core, by the records",
             "GB a process", "on")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for what, found in (tables.read_json(path) if path.exists() else {}).items():
        words = what.split()[1:]
        scope = f" SCOPE={words.pop(0)}" if words[:1] in (["one"], ["all"]) else ""
        command = f"make rerun{scope}" + (f" TABLES={words[0]}" if words else "")
        each = found["tables"].values()
        worst = max((t["farthest"] for t in each), key=lambda c: abs(c["again"] - c["committed"]) / c["tolerance"])
        since = [id for id, t in found["tables"].items() if _records_of(settings, id) != t["records"]]
        memory = f"{found['memory'] / 1e9:.1f}" if "memory" in found else "not noted"
        lines.append(
            f"| `{command}` | {len(each)}{', other records now: ' + ', '.join(since) if since else ''} | "
            f"{sum(t['inside'] for t in each)} of {sum(t['cells'] for t in each)}"
            f"{'' if found['reproduced'] else ', **not reproduced**'} | "
            f"{worst['again']:.1f} for {worst['committed']:.1f} ± {worst['tolerance']:.1f} | "
            f"{duration(found['seconds'])} | {duration(found['recorded'])} | {memory} | "
            f"{found['cpu']}, {found['finished']} |"
        )
    return "\n".join(lines)


def _records_of(settings: Settings, id: str) -> str | None:
    path = settings.results / "tables" / f"{id}.json"
    return tables.read(path)["provenance"]["records"] if path.exists() else None


def _zoo() -> str:
    """What the cards say."""
    lines = ["| model | what it is | trained on | minutes on one core | MB |", "|---|---|---|---|---|"]
    for name in zoo.names():
        card = zoo.card(name)
        minutes, size = round(card["training"]["seconds"] / 60), card["bytes"] / 1e6
        lines.append(f"| `{name}` | {card['what']} | {card['data']} | {minutes} | {size:.1f} |")
    return "\n".join(lines)


def _scale(settings: Settings) -> str:
    """What benchmarks/paper_size.py measured."""
    made = tables.read_json(settings.root / "results" / "paper" / "scale.json")
    lines = [
        "| segmenter | million weights | batch x crop | s a step | images/s | s a picture | GB at the peak | on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in made:
        lines.append(
            f"| {m['model']} | {m['parameters'] / 1e6:.1f} | {m['batch']} x {m['crop']} | {m['step']:.3g} | "
            f"{m['batch'] / m['step']:.3g} | {m['picture']:.3g} | {m['memory'] / 1e9:.1f} | {m['device']} |"
        )
    return "\n".join(lines)


def _benchmarks(settings: Settings) -> str:
    """What benchmarks/*.py --write measured beside its targets."""
    lines = ["| measured side by side in one run | measured | target | script |", "|---|---|---|---|"]
    for script, aims in tables.read_json(settings.root / "results" / "paper" / "benchmarks.json").items():
        for one in aims:
            unit, missed = f" {one['unit']}" if one["unit"] else "", "" if one["met"] else ", **missed**"
            shown = f"{one['measured']:g}{unit} | {one['target']}{unit}{missed}"
            lines.append(f"| {one['what']} | {shown} | [{script}](benchmarks/{script}) |")
    return "\n".join(lines)


def take_times(settings: Settings) -> None:
    """Copy what was measured on this machine, times and what reruns found (build/times, build/reruns), into results."""
    for what in ("times", "reruns"):
        measured = settings.root / "build" / what / f"{settings.profile}.json"
        path = settings.results / f"{what}.json"
        if measured.exists():
            known = (tables.read_json(path) if path.exists() else {}) | tables.read_json(measured)
            tables.write_files({path: tables.json_text(dict(sorted(known.items())))})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fmseg.readme", description="Fill README's generated parts.")
    parser.add_argument("--times", action="store_true", help="first take over the times measured on this machine")
    settings = load(PROFILE)
    if parser.parse_args().times:
        take_times(settings)
    path = Path(settings.root) / "README.md"
    tables.write_files({path: fill(path.read_text(encoding="utf-8"), settings)})
    print("README.md is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
