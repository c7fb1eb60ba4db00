"""The book's ledger: every claim with its verdict and the way to what is behind it, filtered in the page itself.

A claim links to the table cells of its formula, to the cell of the chapter whose output shows its verdict, and to the
source of the modules behind that chapter. Filtering is a few lines of script that ship with the book; without script
every claim is shown.
"""

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fmseg import estimand, ledger
from fmseg.book_chapters import Chapter, judged_in, place_of
from fmseg.book_html import link, raw
from fmseg.book_tables import cell_page

_WIDTH, _HEIGHT = 260, 34  # of an interval's drawing


def markdown(ledger_: Mapping, chapters: Sequence[Chapter], tables: Mapping[str, dict], modules: frozenset) -> str:
    """The ledger's page.

    Args:
        ledger_: what :func:`fmseg.ledger.read` returns.
        chapters: all, those that wait included.
        tables: {id: table} of those that have a page.
        modules: names of those whose source has a page.

    Returns:
        Markdown with the claims as raw HTML.
    """
    claims = ledger_["claims"]
    entries = "\n".join(entry(claim, chapters, tables, modules) for claim in claims)
    notice = ledger.NOTICE[ledger_["profile"]]
    return f"# The ledger\n\n{notice} A rule is fixed before its runs.\n\n{raw(_controls(claims) + entries)}"


def scoreboard(claims: Iterable[Mapping]) -> str:
    """HTML table of how many claims of each paper have which verdict; each number leads to the ledger, filtered."""
    count = Counter((claim["paper"], claim["verdict"]) for claim in claims)
    lines = ["<table class='fmseg-scoreboard'><thead><tr><th>claims of</th>"]
    lines += [f"<th>{verdict}</th>" for verdict in ledger.VERDICTS] + ["</tr></thead><tbody>"]
    for paper in dict.fromkeys(paper for paper, _ in count):
        lines.append(f"<tr><th scope='row'>{html.escape(paper)}</th>")
        for verdict in ledger.VERDICTS:
            where = f"ledger.html#paper={paper}&verdict={verdict}".replace(" ", "%20")
            number = count[paper, verdict]
            lines.append(f"<td><a href='{html.escape(where)}'>{number}</a></td>" if number else "<td>0</td>")
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table>"])


def entry(claim: Mapping, chapters: Sequence[Chapter], tables: Mapping[str, dict], modules: frozenset) -> str:
    """HTML of one claim: what the paper says, what was measured, the verdict, and where all this is from."""
    verdict = claim["verdict"]
    lines = [
        f'<article class="fmseg-claim" id="{claim["id"]}" data-paper="{html.escape(claim["paper"], quote=True)}" '
        f'data-verdict="{verdict}">',
        f'<header><a class="fmseg-id" href="#{claim["id"]}"><code>{claim["id"]}</code></a> '
        f'<span class="fmseg-verdict fmseg-{verdict.replace(" ", "-")}">{verdict}</span></header>',
        f"<p class='fmseg-says'>{html.escape(claim['paper'])}, {html.escape(claim['where'])}: "
        f"{html.escape(claim['says'])}.</p>",
        "<dl>",
        _row("the paper's numbers", html.escape(ledger.paper_values(claim["paper_values"]))),
    ]
    if claim["mean"] is not None:
        p = "" if claim["p_holm"] is None else f"; p {claim['p_holm']:.2g} after Holm"
        found = f"{ledger.effect(claim)} over n = {claim['n']} pairs{p}"
        lines.append(_row("measured", interval(claim) + f"<span>{html.escape(found)}</span>"))
    if verdict != claim["text"]:
        lines.append(_row("verdict", html.escape(claim["text"])))
    if claim["why"] and claim["why"] not in claim["text"]:
        lines.append(_row("why", html.escape(claim["why"])))
    lines += [_row(name, "; ".join(links)) for name, links in _ways(claim, chapters, tables, modules) if links]
    lines += ["</dl>", _details(claim), "</article>"]
    return "".join(line for line in lines if line)


def interval(claim: Mapping) -> str:
    """SVG of a measured effect: its interval, its mean, zero, and the smallest effect (or margin) that counts."""
    rule, low, high = claim["rule"], claim["low"], claim["high"]
    counts = rule.get("margin", rule.get("minimal_effect", 0))
    marks = {"greater": [counts], "less": [-counts]}.get(rule.get("side"), [-counts, counts])
    left, right = min(low, 0, *marks), max(high, 0, *marks)
    span = (right - left) or 1

    def x(value):
        return round(10 + (_WIDTH - 20) * (value - left) / span, 1)

    middle, bottom = _HEIGHT / 2, _HEIGHT - 2
    dashes = "".join(f'<line x1="{x(m)}" x2="{x(m)}" y1="6" y2="{bottom}" class="counts"/>' for m in marks if m)
    label = f"interval {ledger.effect(claim)}; a dashed line marks the smallest effect that counts, a plain one zero"
    return (
        f'<svg class="fmseg-interval" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">'
        f'<line x1="{x(0)}" x2="{x(0)}" y1="2" y2="{bottom}" class="zero"/>{dashes}'
        f'<line x1="{x(low)}" x2="{x(high)}" y1="{middle}" y2="{middle}" class="range"/>'
        f'<circle cx="{x(claim["mean"])}" cy="{middle}" r="5"/></svg>'
    )


def _ways(claim, chapters, tables, modules):
    """(what, its links as HTML) of everything that a claim leads to."""
    cells = estimand.parse(claim["estimand"]).cells if claim["estimand"] else ()
    to_cells = []
    for id, row, column in cells:
        name = f"{id} [{row}, {column}]"
        to_cells.append(link(cell_page(tables[id], row, column), name) if id in tables else html.escape(name))
    chapter = judged_in(claim["id"], chapters)
    if chapter is None:
        return [("table cells", to_cells)]
    place = place_of(claim["id"], chapter)
    where, section = (f"#{place[0]}", f" › {place[1]}") if place else ("", "")
    waits = f" (waits for {chapter.waits})" if chapter.waits else ""
    to_chapter = link(chapter.page + where, chapter.title + section) + html.escape(waits)
    code = [link(f"source/{name}.html", f"fmseg/{name}.py", code=True) for name in chapter.code if name in modules]
    return [("table cells", to_cells), ("chapter", [to_chapter]), ("source", code)]


def _row(name, content):
    return f"<div><dt>{name}</dt><dd>{content}</dd></div>"


def _details(claim):
    """What is folded away: formula, rule, its hash, seeds left out, the note."""
    lines = []
    if claim["rule"]:
        rule = ", ".join(f"{key} {value}" for key, value in claim["rule"].items())
        lines.append(f"Estimand <code>{html.escape(' '.join(claim['estimand'].split()))}</code>.")
        lines.append(f"Rule: {html.escape(rule)} (<code>{claim['rule_hash'][:14]}</code>).")
    if claim["detectable"] is not None:
        lines.append(f"Detectable with these pairs: {claim['detectable']:.1f}.")
    if claim["left_out"]:
        lines.append(f"Seeds that not all cells have: {', '.join(claim['left_out'])}.")
    lines += [html.escape(claim["note"].strip())] if claim["note"] else []
    return f"<details><summary>rule and notes</summary><p>{' '.join(lines)}</p></details>" if lines else ""


def _controls(claims):
    def select(name, values):
        options = "".join(f'<option value="{v}">{v}</option>' for v in (html.escape(v, quote=True) for v in values))
        return f'<label>{name} <select id="fmseg-{name}"><option value="">all</option>{options}</select></label>'

    papers = list(dict.fromkeys(claim["paper"] for claim in claims))
    return (
        '<form class="fmseg-filter" onsubmit="return false">'
        + select("paper", papers)
        + select("verdict", ledger.VERDICTS)
        + '<label>words <input id="fmseg-words" type="search" autocomplete="off"></label>'
        + f'<output id="fmseg-count" aria-live="polite">{len(claims)} claims</output></form>\n'
    )
