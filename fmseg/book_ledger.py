"""The book's ledger: every claim with its verdict and the way to what is behind it, filtered in the page itself.

A claim links to the table cells of its formula, to the cell of the chapter whose output shows its verdict, and to the
source of the modules behind that chapter. Filtering is a few lines of script that ship with the book; without script
every claim is shown.
"""

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fmseg import estimand, ledger
from fmseg.book_chapters import Chapter, Targets, judged_in, linked, place_of
from fmseg.book_html import link, raw
from fmseg.book_tables import CERTAINTY, cell_page

WORDS = """\
* *supported*: the effect is off zero, on the side that the paper says, and at least as large as the rule asks. A claim
  that two things are alike: their difference lies within the rule's margin.
* *contradicted*: the effect is off zero on the other side; for a claim that two things differ either way, within the
  smallest effect that counts; for a claim that two things are alike, beyond the margin.
* *inconclusive*: these seeds decide neither. It does not say that there is no effect.
* *not tested*: the claim has no rule or no measurement here, and its entry says why."""
HOW_TO_READ = "how-to-read"  # the anchor of what follows
_READ = f"""\
**The verdicts**

{WORDS}

**How they come about**

* An *estimand* is the quantity that a claim is about: a formula over cells of tables, computed for each seed, so that
  what is compared shares its seed. It stands below "rule and notes".
* *Units*: effects are in points of the unit of the table that they are read from.
* *Intervals* are t intervals over seed pairs, of one claim alone: 95 % for claims of a difference, 90 % for claims that
  two things are alike.
* *p after Holm*: who tests many claims meets chance findings. Holm's correction raises the p-values of the claims of
  one table, the smallest by most, so that the chance of *any* false word among them stays at the level. Verdicts are by
  the corrected p: where it and the interval seem to disagree, it decides.
* *How often the judge errs*: where differences between seeds are skewed, false words stand in more tables than the 5 %
  that the level promises; notebook 99 counts them on made-up data.
* *Over other images* is a second look: the interval of the same effect where the runs stay and the validation images
  are drawn again, and the word that this interval alone would earn. A verdict that it does not bear out is flagged.
* *Detectable* is the true effect at which so many pairs earn the word supported with power 0.8.

**The drawing** has the interval as a thick line with the mean as a dot. The plain upright line is zero; a dashed one is
the smallest effect that counts, or the margin. Each drawing has its own scale: lengths do not compare between claims.

**How certain the paper's numbers are**

{CERTAINTY}
"""
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
    papers = list(dict.fromkeys(claim["paper"] for claim in ledger_["claims"]))
    claims = sorted(ledger_["claims"], key=lambda claim: papers.index(claim["paper"]))  # as in the report
    entries = "\n".join(entry(claim, chapters, tables, modules) for claim in claims)
    notice = ledger.NOTICE[ledger_["profile"]]
    said = f"{notice} A rule is fixed before its runs, or the claim says so."
    read = linked(_READ, Targets(pages={chapter.name: chapter.page for chapter in chapters}), "")
    before = raw(
        '<details class="fmseg-read"><summary>How to read this</summary>'
        f'<div id="{HOW_TO_READ}">'  # inside, so that a link to it opens what is folded
    )
    return "\n\n".join(
        ["# The ledger", said, before, read, raw("</div></details>"), raw(_controls(claims) + entries)]
    )


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
        lines += [_row("over other images", html.escape(seen))] if (seen := _second_look(claim)) else []
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


def _second_look(claim):
    """What other validation images would say; "" where the ledger is from before there was such a look."""
    if claim.get("images_low") is None:
        why = claim.get("images_why") or ""
        return f"its {why}" if why.startswith("records") else why
    return f"{ledger.over_images(claim)}, {claim['images_word']}"


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
