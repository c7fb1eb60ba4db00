import csv
import json
import sys
from types import SimpleNamespace

import pytest
from toys import ROOT

from fmseg import ledger, report
from fmseg.settings import load

CLAIM = {
    "paper": "P", "where": "Table 1", "says": "A above B",
    "paper_values": {"A": 64.0, "certainty": "STATED", "source": "p"},
    "estimand": "t[A, x] - t[B, x]", "rule": {"test": "paired_t", "alpha": 0.05}, "rule_hash": "sha256:0123456789abc",
    "note": "", "table": "t", "why": None,
    "mean": 3.0, "low": 2.5, "high": 3.5, "n": 5, "p_holm": 0.01, "detectable": 1.0,
    "left_out": [], "flags": [], "images_low": 2.0, "images_high": 4.0, "images_word": "supported", "images_why": None,
}  # fmt: skip


def claim(id, verdict, **other):
    return CLAIM | {"id": id, "verdict": verdict, "text": f"{verdict} in miniature"} | other


CLAIMS = [
    claim("p.t.1", "supported"),
    claim("p.t.2", "contradicted", says="B | C above D"),
    claim("p.t.3", "inconclusive", why="too few", left_out=["4"]),
    claim("p.u.1", "not tested", rule=None, estimand=None, why="no table yet: u.", text="not tested"),
    claim("q.u.1", "not tested", rule=None, estimand=None, why="no table yet: u.", text="not tested", paper="Q"),
]
LEDGER = {"profile": "mini", "claims": CLAIMS}
TEXT = "# P\n## Scope\nAll of it.\n\n## What did not hold, and why\nBecause of `p.t.2`.\n\n```\n# no heading\n```\n"


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "report.md"
    path.write_text(TEXT)
    return report.load(path)


def test_what_is_written_is_read_by_paper_and_heading(written, tmp_path):
    why = "Because of `p.t.2`.\n\n```\n# no heading\n```"
    assert written == {"P": {"Scope": "All of it.", report.WHY: why}}
    assert report.load(tmp_path / "none.md") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hm\n# P\n", "must stand below `# paper`.*got 'hm'"),
        ("hm", "must stand below `# paper`"),
        ("# P\nhm\n", "`# P` must stand once, with `##` headings alone"),
        ("# P\n# P\n", "`# P` must stand once"),
        ("# P\n## Scope\na\n## Scope\nb\n", "`## Scope` must stand once and be one of Scope, What was easy"),
        ("# P\n## Future work\n", "`## Future work` must stand once and be one of"),
    ],
)
def test_other_headings_are_refused(tmp_path, text, message):
    (tmp_path / "report.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        report.load(tmp_path / "report.md")


def test_claims_stand_where_their_verdict_belongs(written):
    text = report.markdown(LEDGER, written)
    order = [
        "| 5 claims | supported |", "| P | 1 | 1 | 1 | 1 |", "| Q | 0 | 0 | 0 | 1 |", "## P", "### Scope", "All of it.",
        "### What held",
        "| A above B<br>`p.t.1` | +3.0 [2.5, 3.5] | 5 | 0.01 | 1.0 | [2.0, 4.0] |\n",
        "### What did not hold, and why", "| B \\| C above D<br>`p.t.2` |", "Because of `p.t.2`",
        "### What these seeds leave open", "<br>`p.t.3` |", "### What is not tested", "* no table yet: u: `p.u.1`\n",
        "## Q",
        "### What is not tested", "* no table yet: u: `q.u.1`\n",
        f"## {report.RULES}", "**`p.t.1`** P, Table 1: A above B.",
    ]  # fmt: skip
    places, at = [], 0
    for part in order:
        assert part in text[at:], part
        at += text[at:].index(part)
        places.append(at)
    rules = text[at:]
    assert "The paper's numbers: A: 64.0 (STATED, p)." in rules and "rule: test paired_t, alpha 0.05" in rules
    assert "Inconclusive: too few. Seeds that not all cells have: 4." in rules
    assert "Not tested: no table yet: u." in rules and ".." not in rules
    flagged = [claim("p.t.1", "supported", flags=["rule set after the run"]), *CLAIMS[1:]]
    shown = report.markdown({**LEDGER, "claims": flagged}, written)
    assert "| A above B (*rule set after the run*)<br>`p.t.1` |" in shown
    assert "## What held" not in report.markdown({**LEDGER, "claims": CLAIMS[3:]}, {}), "no empty heading"
    with pytest.raises(ValueError, match="papers with claims, P, Q; got R"):
        report.markdown(LEDGER, {"R": {}})


def test_what_so_many_seeds_cannot_find_is_counted(written):
    text = report.markdown(LEDGER, written)
    assert "Each judged claim rests on 5 seed pairs" in text and "Of the 0 inconclusive claims" in text
    known = {"certainty": "STATED", "source": "p"}
    differs = {"detectable": 3.0, "paper_values": known | {"difference": {"value": -2.0, "certainty": "COMPUTED"}}}
    larger, unknown = {"paper_values": known | {"difference": 4}}, {"paper_values": known}
    kinds = ({}, {"detectable": 1.5}, larger, unknown, {"detectable": None}, {"n": 7})
    more = [claim(f"p.t.{k}", "inconclusive", **(differs | own)) for k, own in enumerate(kinds, 4)]
    text = report.markdown({**LEDGER, "claims": [*CLAIMS, *more]}, written)
    assert "rests on 5 to 7 seed pairs" in text and "Of the 4 inconclusive claims" in text and "2 could not" in text
    unjudged = [c | {"n": None} for c in CLAIMS[3:]]
    assert "Each judged claim" not in report.markdown({**LEDGER, "claims": unjudged}, {})


def test_some_claims_alone():
    text = ledger.markdown(CLAIMS[:2])
    assert text.startswith("| claim | measured |") and text.count("<br>`p.t.") == 2
    assert ledger.LEGEND in text and text.endswith("Over images alone: supported.\n\n</details>\n")
    assert text.index("<details>") > text.index(ledger.LEGEND), "rules are folded away"


def test_what_is_contradicted_and_not_explained_is_found(written):
    assert report.unexplained(CLAIMS, written) == []
    assert report.unexplained(CLAIMS, {}) == ["p.t.2"]
    assert report.unexplained(CLAIMS, {"P": {report.WHY: "as `p.t.*` and p.t.2 say"}}) == ["p.t.2"]
    assert report.unexplained(CLAIMS, {"Q": {report.WHY: "`p.t.2`"}}) == ["p.t.2"], "another paper's chapter"


def test_every_contradicted_claim_of_this_project_is_explained():
    listed = ledger.read(ROOT / "results/mini")["claims"]
    assert any(c["verdict"] == "contradicted" for c in listed)
    assert report.unexplained(listed, report.load(ROOT / "report.md")) == []


def test_the_committed_report_follows_from_ledger_and_text():
    settings = load("mini", ROOT)
    assert (settings.results / "ledger.md").read_text() == report.text(settings)


def test_claims_are_chosen_by_paper_verdict_and_words():
    def ids(*args, **kwargs):
        return [line.split("`")[1] for line in report.chosen(CLAIMS, *args, **kwargs).splitlines() if "`" in line]

    assert ids() == [c["id"] for c in CLAIMS]
    assert ids("Q") == ["q.u.1"] and ids(verdict="contradicted") == ["p.t.2"]
    assert ids(words="Above d") == ["p.t.2"] and ids("P", "not tested", "p.u") == ["p.u.1"]
    assert report.chosen(CLAIMS, "Q", "supported") == "No claim is like that."


def test_without_widgets_the_judged_ones_are_shown_and_with_them_the_chosen(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda thing: shown.append(thing.data))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # as if it were not installed
    assert report.browse(CLAIMS, live=True) is None
    assert [text.split("\n")[0] for text in shown] == ["**Supported**", "**Contradicted**", "**Inconclusive**"]
    made = SimpleNamespace(
        interactive=lambda show, **fields: (show, fields), Dropdown=SimpleNamespace, Text=SimpleNamespace
    )
    monkeypatch.setitem(sys.modules, "ipywidgets", made)
    show, fields = report.browse(CLAIMS, live=True)
    assert fields["paper"].options == ["all", "P", "Q"] and fields["verdict"].options == ["all", *ledger.VERDICTS]
    show(paper="all", verdict="not tested", words="q.")
    assert shown[-1] == report.chosen(CLAIMS[4:])
    assert report.browse(CLAIMS, live=False) is None and len(shown) == 7


def test_numbers_and_links_are_filled(settings):
    """In a project of its own: a figure's number, seeds averaged, links as seen from the ledger."""
    ledger_file = settings.results / "ledger.json"
    ledger_file.parent.mkdir(parents=True, exist_ok=True)
    ledger_file.write_text(json.dumps(LEDGER))
    figures = settings.results / "figures/16_x"
    figures.mkdir(parents=True)
    with (figures / "f.csv").open("w", newline="") as file:
        rows = [["row", "set", "seed", "v (%)", "n"], ["A", "one", 0, 1.0, 2], ["A", "one", 1, 2.5, 2]]
        csv.writer(file).writerows(rows)
    with (figures / "g.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["row", "v"], ["A", 1.0], ["A", 2.0], ["B", 3.25]])
    with (figures / "h.csv").open("w", newline="") as file:  # two steps a seed, which no word tells apart
        steps = [["A", seed, step, seed + step] for seed in (0, 1) for step in (1, 2)]
        csv.writer(file).writerows([["row", "seed", "step", "v"], *steps])
    (settings.root / "notebooks").mkdir(exist_ok=True)
    (settings.root / "notebooks/16_x.ipynb").write_text("{}")
    (settings.results / "tables").mkdir(exist_ok=True)
    (settings.results / "tables/a-table.md").write_text("")
    source = settings.root / "report.md"
    source.write_text(
        "# P\n## Scope\nNotebook 16, notebook 17: {{ cite figure.16_x/f/A, one/v (%) }} %, `a-table`, "
        "{{ cite figure.16_x/g/B/v }}.\n"
    )
    text = report.write(settings).read_text()
    assert "[Notebook 16](../../notebooks/16_x.ipynb), notebook 17: 1.8 %, [`a-table`](tables/a-table.md), 3.2." in text
    assert report.chapters(settings).startswith("## P\n\n### Scope") and report.RULES not in report.chapters(settings)
    assert report.figures_cited(settings.root) == ["16_x"]
    source.write_text("# P\n## Scope\n{{ cite figure.16_x/g/A/v }}\n")
    with pytest.raises(ValueError, match="Nothing can be cited as 'figure.16_x/g/A/v'"):
        report.text(settings)
    source.write_text("# P\n## Scope\n{{ cite figure.16_x/h/A/v }}\n")
    with pytest.raises(ValueError, match="Nothing can be cited as 'figure.16_x/h/A/v'"):
        report.text(settings)
