"""The ledger for people: a reproducibility report, paper by paper, of what ``report.md`` says and what was judged.

``report.md`` holds, under a heading for each paper, what only a person can write: scope, what was easy and hard, why
claims failed. Its numbers are placeholders (:mod:`fmseg.cite`); this module puts the verdicts between.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fmseg import ledger
from fmseg.cite import fill
from fmseg.prose import blank_code
from fmseg.settings import Settings
from fmseg.tables import write_files

SOURCE = "report.md"
ALL = "all"
WRITTEN_FOR = "mini"  # what is written speaks of this profile's results
PARTS = {  # heading: the verdict whose claims stand below it
    "Scope": None,
    "What was easy": None,
    "What was hard": None,
    "What held": "supported",
    "What did not hold, and why": "contradicted",
    "What these seeds leave open": "inconclusive",
    "What the miniature cannot say": None,
}
WHY = "What did not hold, and why"
RULES = "Every claim and its rule"  # the last chapter, for looking things up
_WHERE = f"The papers' own numbers and each claim's rule stand in the last chapter, *{RULES}*."
Written = dict[str, dict[str, str]]


def load(path) -> Written:
    """What is written: {paper: {heading: Markdown}}; empty where there is no such file.

    Raises:
        ValueError: text before the first paper, a paper or heading twice, a heading that is not one of :data:`PARTS`;
            the message names the file and the heading.
    """
    path = Path(path)
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    hidden = blank_code(text)  # a hash in code is no heading
    marks = [*re.finditer(r"(?m)^(#{1,2}) +(.+?) *$", hidden)]
    if (before := text[: marks[0].start()] if marks else text).strip():
        raise ValueError(f"{path}: text must stand below `# paper` and `## heading`; got {before.strip()[:60]!r}")
    written: Written = {}
    for mark, end in zip(marks, [*(m.start() for m in marks[1:]), len(text)], strict=True):
        level, name, body = len(mark[1]), mark[2], text[mark.end() : end].strip()
        if level == 1:
            if name in written or body:
                raise ValueError(f"{path}: `# {name}` must stand once, with `##` headings alone below it")
            own = written[name] = {}
        elif name not in PARTS or name in own:
            raise ValueError(f"{path}: `## {name}` must stand once and be one of {', '.join(PARTS)}")
        else:
            own[name] = body
    return written


def figures_cited(root) -> list[str]:
    """Names of the notebooks whose figures' numbers ``report.md`` cites."""
    text = (Path(root) / SOURCE).read_text(encoding="utf-8")
    return sorted(set(re.findall(r"\{\{\s*cite figure\.([^/{}]+)/", text)))


def unexplained(claims: Iterable[Mapping], written: Written) -> list[str]:
    """Ids of contradicted claims that their paper's part "What did not hold, and why" does not name.

    A claim is named by its id in a code span; a pattern would let one pass of which nothing is said.
    """
    missing = []
    for claim in claims:
        spans = re.findall(r"`([^`\n]+)`", written.get(claim["paper"], {}).get(WHY, ""))
        if claim["verdict"] == "contradicted" and claim["id"] not in spans:
            missing.append(claim["id"])
    return missing


def markdown(found: Mapping, written: Written) -> str:
    """The report, with placeholders where it was written with placeholders.

    Args:
        found: what :func:`fmseg.ledger.read` returns. written: what :func:`load` returns.

    Raises:
        ValueError: something is written about a paper of which there is no claim.
    """
    claims = found["claims"]
    papers = list(dict.fromkeys(claim["paper"] for claim in claims))
    if strange := [paper for paper in written if paper not in papers]:
        raise ValueError(f"`written` must be about papers with claims, {', '.join(papers)}; got {', '.join(strange)}")
    lines = [f"# The claims of three papers, judged ({found['profile']})", "", ledger.NOTICE[found["profile"]], ""]
    lines += [_counted(claims, papers), "", f"{ledger.LEGEND} {_WHERE}", "", *_found(claims)]
    for paper in papers:
        own = [claim for claim in claims if claim["paper"] == paper]
        lines += [f"## {paper}", "", *_paper(own, written.get(paper, {}))]
    lines += [f"## {RULES}", ""]
    for claim in sorted(claims, key=lambda claim: papers.index(claim["paper"])):
        lines += [ledger.details(claim), ""]
    return "\n".join(lines)


def filled(settings: Settings) -> str:
    """The report of a profile, from its ledger and ``report.md``, its placeholders filled."""
    written = load(settings.root / SOURCE) if settings.profile == WRITTEN_FOR else {}
    return fill(markdown(ledger.read(settings.results), written), settings.root, settings.profile)


def chapters(settings: Settings) -> str:
    """The papers' chapters of :func:`filled`, without its head and the rules at its end."""
    text = filled(settings)
    return text[text.index("\n## ") : text.index(f"\n## {RULES}\n")].strip() + "\n"


def text(settings: Settings) -> str:
    """:func:`filled` with links to notebooks and tables, as seen from the results' folder."""
    return _linked(filled(settings), settings)


def write(settings: Settings) -> Path:
    """Write ``ledger.md`` beside the ledger; returns its path.

    Raises:
        ValueError, FileNotFoundError: of the ledger, ``report.md`` or what it cites.
    """
    path = settings.results / "ledger.md"
    write_files({path: text(settings)})
    return path


def chosen(claims: Iterable[Mapping], paper: str = ALL, verdict: str = ALL, words: str = "") -> str:
    """A table of the claims of a paper with a verdict that hold all these words in id or text, as Markdown."""
    rows = []
    for claim in claims:
        said = f"{claim['id']} {claim['says']}".lower()
        if paper in (ALL, claim["paper"]) and verdict in (ALL, claim["verdict"]):
            rows += [claim] if all(word in said for word in words.lower().split()) else []
    return ledger.table(rows) if rows else "No claim is like that."


def browse(claims: Sequence[Mapping], live: bool) -> Any:
    """A form that shows :func:`chosen` claims; without widgets, or in an executed copy, the judged ones by verdict.

    Args:
        claims: of the ledger. live: whether somebody is there to choose.

    Returns:
        The form, or None after displaying the tables.
    """
    from IPython.display import Markdown, display

    try:
        import ipywidgets
    except ImportError:
        live = False
    if not live:
        for verdict in ledger.VERDICTS[:3]:
            display(Markdown(f"**{verdict.capitalize()}**\n\n{chosen(claims, verdict=verdict)}"))
        return None
    papers = [ALL, *dict.fromkeys(claim["paper"] for claim in claims)]
    return ipywidgets.interactive(
        lambda paper, verdict, words: display(Markdown(chosen(claims, paper, verdict, words))),
        paper=ipywidgets.Dropdown(options=papers, description="paper"),
        verdict=ipywidgets.Dropdown(options=[ALL, *ledger.VERDICTS], description="verdict"),
        words=ipywidgets.Text(description="words", continuous_update=False),
    )


def _found(claims):
    """Lines on what so many seeds can find, and what the judge gets wrong; none where nothing was judged."""
    counts = sorted({claim["n"] for claim in claims if claim["n"]})
    if not counts:
        return []
    said = [c for c in claims if c["verdict"] == "inconclusive" and c["detectable"] is not None and _printed(c)]
    blind = [c for c in said if c["detectable"] > abs(_printed(c))]
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return [
        f"Each judged claim rests on {each} seed pairs; their number was not raised where the spread turned out large. "
        f"Of the {len(said)} inconclusive claims whose difference the paper prints, {len(blind)} could not have found "
        "one as large as the paper's with power 0.8: inconclusive then says nothing about the paper. The judge itself "
        "was tried on made-up data: where differences are skewed, false words stand in more tables than the level "
        "says (notebook 99).", "",
    ]  # fmt: skip


def _printed(claim):
    """The difference that the paper prints, or None; 0 is as good as none, for no test finds it."""
    value = claim.get("paper_values", {}).get("difference")
    return (value.get("value") if isinstance(value, Mapping) else value) or None


def _counted(claims, papers):
    count = Counter((claim["paper"], claim["verdict"]) for claim in claims)
    lines = [f"| {len(claims)} claims | {' | '.join(ledger.VERDICTS)} |", "|---" * (1 + len(ledger.VERDICTS)) + "|"]
    lines += [f"| {paper} | " + " | ".join(str(count[paper, v]) for v in ledger.VERDICTS) + " |" for paper in papers]
    return "\n".join(lines)


def _paper(claims, written):
    """Lines of one paper: what is written, with the claims of each verdict where they belong."""
    lines = []
    for heading, verdict in PARTS.items():
        own = [claim for claim in claims if verdict and claim["verdict"] == verdict]
        if own or written.get(heading):
            lines += [f"### {heading}", ""]
            lines += [ledger.table(own, verdict=False), ""] if own else []
            lines += [written[heading], ""] if written.get(heading) else []
    reasons: dict[str, list[str]] = {}
    for claim in claims:
        if claim["verdict"] == "not tested":
            reasons.setdefault(claim["why"], []).append(claim["id"])
    if reasons:
        lines += ["### What is not tested", ""]
        lines += [f"* {why.rstrip('.')}: {', '.join(f'`{id}`' for id in ids)}" for why, ids in reasons.items()] + [""]
    return lines


def _linked(text, settings):
    """Text in which "notebook 16" and `fmwiss-t2` lead to their files, as seen from the ledger's folder."""
    up = "../" * len(settings.results.relative_to(settings.root).parts)
    notebooks = {path.name[:2]: path.name for path in (settings.root / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    tables = {path.stem for path in (settings.results / "tables").glob("*.md")}

    def to_notebook(match):
        return f"[{match[0]}]({up}notebooks/{notebooks[match[1]]})" if match[1] in notebooks else match[0]

    def to_table(match):
        return f"[{match[0]}](tables/{match[1]}.md)" if match[1] in tables else match[0]

    return re.sub(r"`([\w-]+)`", to_table, re.sub(r"\b[Nn]otebook (\d\d)\b", to_notebook, text))
