import json
import re
import socket

import pytest
from made_book import LONG, Page, broken, made_tables, project
from toys import ROOT

from fmseg import book, book_ledger, book_sphinx, book_tables, claims, ledger, tables, verdicts
from fmseg.book_chapters import Targets, chapters, judged_in, linked, opening, place_of
from fmseg.notebooks import _FORMULA
from fmseg.prose import source
from fmseg.settings import load

TARGETS = Targets(
    pages={"11_coseg": "chapters/11_coseg.html", "15_t1": "waiting.html#15_t1"}, modules=frozenset({"coseg"}),
    claims=frozenset({"a.b.1"}), tables=frozenset({"a-b"}), files={"TRIED.md": "tried.html"},
)  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    return project(tmp_path)


# -- chapters ----------------------------------------------------------------------------------------------------------


def test_a_chapter_is_executed_or_says_what_it_waits_for(settings):
    found = {c.name: c for c in chapters(settings)}
    assert [c.waits for c in found.values()] == ["", "", "the runs of its tables"]
    assert found["22_noise_filter"].part == "FreeMask" and found["22_noise_filter"].title == "22 The noise filter"
    assert found["29_made_up"].page == "waiting.html#29_made_up"
    assert opening(found["22_noise_filter"]) == "* *Claims*: none."
    (settings.results / "notebooks/22_noise_filter.ipynb").unlink()
    assert chapters(settings)[1].waits == "its execution: `make repro`"


def test_without_an_executed_notebook_there_is_no_book(settings):
    for path in (settings.results / "notebooks").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no notebook is executed in .*`make repro` executes them all"):
        book.build(settings)
    assert not book.folder(settings).exists()


def test_a_claim_leads_to_the_chapter_that_judges_it_and_to_the_cell_that_shows_it(settings):
    found = chapters(settings)
    first = judged_in("freemask.real.1", found)
    assert first.name == "20_freemask_real" and first.code == ("freemask_real", "nowhere")
    assert place_of("freemask.real.1", first) == ("cell-20-18", "Verdicts")
    assert place_of("freemask-real", first)[0] == "cell-20-10" and place_of("freemask.real", first) is None
    assert judged_in("freemask.joint_ade.4", found).waits and judged_in("freemask.hours", found) is None


def test_every_claim_that_is_tested_has_a_chapter():
    found = chapters(load("mini", ROOT))
    lost = [c["id"] for c in claims.testable(claims.load(ROOT / "claims.yaml")) if not judged_in(c["id"], found)]
    assert not lost


KERNELS = {
    "FreeMask": {"noise", "resample", "paradigms", "rectify", "segmenters", "metrics"},
    "FMWISS": {"coseg", "contrast", "memory", "incremental"},
    "Grounded Diffusion": {"taps", "grounding", "grounding_targets", "daam"},
}


def test_from_a_claim_it_is_two_steps_to_a_kernel():
    found, kernels = chapters(load("mini", ROOT)), KERNELS | {ledger.ACROSS: set().union(*KERNELS.values())}
    for claim in claims.testable(claims.load(ROOT / "claims.yaml")):
        chapter = judged_in(claim["id"], found)
        first = chapter.code[0] if chapter.code else "none"
        assert first in kernels[claim["paper"]], f"{chapter.name}: its Code line begins with {first}, no kernel"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("see notebook 11.", 'see <a href="../chapters/11_coseg.html">notebook 11</a>.'),
        ("[table 1](15_t1.ipynb)", '<a href="../waiting.html#15_t1">table 1</a>'),
        ("`fmseg/coseg.py`", '<a href="../source/coseg.html"><code>fmseg/coseg.py</code></a>'),
        ("`a.b.1` of `a-b`", '<a href="../ledger.html#a.b.1"><code>a.b.1</code></a> of '
                             '<a href="../tables/a-b.html"><code>a-b</code></a>'),
        ("`TRIED.md`", '<a href="../tried.html"><code>TRIED.md</code></a>'),
        ("[`words`](TRIED.md), [x](no.md)", '<a href="../tried.html">`words`</a>, [x](no.md)'),
        ("`fmseg/none.py`, notebook 77, `x`", "`fmseg/none.py`, notebook 77, `x`"),
        ("```\nnotebook 11\n```", "```\nnotebook 11\n```"),
    ],
)  # fmt: skip
def test_text_links_to_what_the_book_has(text, wanted):
    assert linked(text, TARGETS, "../") == wanted


def test_every_formula_of_the_notebooks_becomes_mathml():
    count = 0
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            text = re.sub(r"```.*?```|`[^`\n]*`", "", source(cell), flags=re.S)
            for match in _FORMULA.finditer(text) if cell["cell_type"] == "markdown" else ():
                assert book_sphinx.mathml(match[1] or match[2], "inline").startswith("<math")
                count += 1
    assert count > 50
    with pytest.raises(ValueError, match=r"cannot be made MathML .*: \\frac"):
        book_sphinx.mathml(r"\frac{", "inline")


def test_what_cannot_be_shown_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="no book in .*; `make book` builds it"):
        book.serve(tmp_path)
    (tmp_path / "index.html").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="--serve --port N` takes N"):
        book.serve(tmp_path, taken.getsockname()[1])


# -- tables and ledger -------------------------------------------------------------------------------------------------


def test_a_cell_has_an_address_and_an_unknown_one_is_refused():
    table = tables.read(ROOT / "results/mini/tables/freemask-real.json")
    assert book_tables.cell_page(table, "Mask2Former", "mIoU") == "tables/freemask-real.html#r3c1"
    with pytest.raises(ValueError, match="table freemask-real has no column 'miou'; it has mIoU, things, stuff"):
        book_tables.cell_page(table, "Mask2Former", "miou")


def test_what_cells_share_stands_once_below_the_table_and_a_cell_knows_its_row_and_column():
    (table,) = made_tables()
    shown = book_tables.markdown(table, [], [])
    for part in ('<td id="r1c1" title="a row / run">1.5 ± 0.7 <small>(n = 2)</small>', 'id="r2c2"',
                 'title="another &lt;row&gt; / not run">not run <a href="#note-b">[b]</a></td>',
                 '<small>paper: 45.6 <a href="#note-a">[a]</a>', '<li id="note-a">[a] STATED, a README</li>',
                 f'<li id="note-b">[b] {LONG}</li>'):  # fmt: skip
        assert part in shown, part
    assert shown.count(LONG) == 1
    for line in ("* [a] STATED, a README", f"* [b] {LONG}"):
        assert line in tables.markdown(table), "the same letters as in the file"


def test_every_certainty_and_every_verdict_is_explained():
    for word in tables.CERTAINTIES:
        assert f"*{word}*:" in book_tables.index({}) and f"*{word}*:" in book_ledger.CERTAINTY, word
    assert all(f"*{verdict}*:" in book_ledger.WORDS for verdict in ledger.VERDICTS)


def test_the_ledger_goes_paper_by_paper_and_says_how_to_read_it(settings):
    found = ledger.read(settings.results)
    last = [claim for claim in found["claims"] if claim["paper"] == "FreeMask"][-1]
    mixed = found | {"claims": [*found["claims"], last | {"id": "freemask.last.1"}]}
    shown = book_ledger.markdown(mixed, chapters(settings), {}, frozenset())
    papers = re.findall(r'<article [^>]*data-paper="([^"]*)"', shown)
    assert len(papers) == len(mixed["claims"])
    assert [p for p, before in zip(papers, ["", *papers], strict=False) if p != before] == list(dict.fromkeys(papers))
    assert "or the claim says so" in shown and 'id="how-to-read"' in shown


def test_an_entry_shows_the_second_look_or_why_there_is_none():
    listed = {c["id"]: c for c in ledger.read(ROOT / "results/mini")["claims"]}
    claim = listed["freemask.real.1"] | {"images_low": -1.25, "images_high": 2.0, "images_word": "inconclusive"}
    row = "<dt>over other images</dt><dd>"
    assert f"{row}[-1.2, 2.0], inconclusive</dd>" in book_ledger.entry(claim, [], {}, frozenset())
    none = claim | {"images_low": None, "images_high": None, "images_word": None}
    without = none | {"images_why": "records hold no images"}
    assert f"{row}its records hold no images</dd>" in book_ledger.entry(without, [], {}, frozenset())
    assert row not in book_ledger.entry(none | {"images_why": None}, [], {}, frozenset())


def test_an_entry_shows_the_verdict_and_every_way_behind_it(settings):
    table = {"freemask-real": tables.read(settings.results / "tables/freemask-real.json")}
    listed = {c["id"]: c for c in ledger.read(settings.results)["claims"]}
    found, modules = chapters(settings), frozenset({"freemask_real"})
    shown = book_ledger.entry(listed["freemask.real.1"], found, table, modules)
    for part in ('id="freemask.real.1"', 'data-paper="FreeMask"', 'href="tables/freemask-real.html#r3c1"', "<svg",
                 'href="chapters/20_freemask_real.html#cell-20-18"', "› Verdicts",
                 'href="source/freemask_real.html"'):  # fmt: skip
        assert part in shown, part
    assert "nowhere" not in shown, "a module without a page is no link"
    (claim,) = [c for c in claims.load(settings.root / "claims.yaml") if c["id"] == "freemask.joint_ade.1"]
    (unmeasured,) = verdicts.judge([claim], {})
    waits = book_ledger.entry(listed["freemask.joint_ade.1"] | unmeasured, found, table, modules)
    assert "waiting.html#29_made_up" in waits and "tables/" not in waits and "<svg" not in waits


def test_the_scoreboard_counts_every_claim_and_leads_to_it():
    listed = ledger.read(ROOT / "results/mini")["claims"]
    shown = book_ledger.scoreboard(listed)
    assert sum(map(int, re.findall(r"<td>(?:<a [^>]*>)?(\d+)", shown))) == len(listed)
    assert "ledger.html#paper=FreeMask&amp;verdict=contradicted" in shown


# -- the site ----------------------------------------------------------------------------------------------------------


def test_the_site_is_whole(made_site):
    folder, warnings = made_site
    assert warnings == []
    assert broken(folder) == []
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.html")}
    assert {"index.html", "ledger.html", "search.html", "chapters/22_noise_filter.html", "source/noise.html"} <= names
    assert "chapters/29_made_up.html" not in names
    assert not [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_a_chapter_in_the_site(made_site):
    page = Page(made_site[0] / "chapters/22_noise_filter.html").text
    assert page.count("<math") == 3
    assert "$$" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert page.count("<details") >= 2 and "Solution" in page
    assert 'href="../source/noise.html"' in page and 'href="../waiting.html#29_made_up"' in page
    page = Page(made_site[0] / "chapters/20_freemask_real.html")
    assert {"cell-20-10", "cell-20-18", "verdicts"} <= page.ids
    assert 'href="../tried.html"' in Page(made_site[0] / "chapters/22_noise_filter.html").text
    assert 'src="../figures/20_freemask_real/predictions.png"' in page.text and "predictions.csv" in page.text
    assert 'href="../ledger.html#freemask.real.1"' in page.text


def test_what_waits_and_what_is_shown_of_the_source(made_site):
    text = Page(made_site[0] / "waiting.html").text
    assert "It waits for the runs of its tables" in text and "not yet measured" in text and "{{" not in text
    assert 'href="tables/made-up.html"' in text and 'src="figures/29_made_up/made-up.png"' in text
    page = Page(made_site[0] / "source/noise.html")
    assert "L-1" in page.ids and "22 The noise filter" in page.text and "ClassLoss" in page.text
    index = json.loads((made_site[0] / "searchindex.js").read_text()[len("Search.setIndex(") : -1])
    names, words = index["docnames"], index["terms"]
    assert "chapters/22_noise_filter" in names and "waiting" in names
    source = {i for i, name in enumerate(names) if name == "source/noise"}
    assert not [w for w, at in words.items() if source & set(at if isinstance(at, list) else [at])]


def test_what_was_tried_and_what_changed_are_in_the_site(made_site):
    page = Page(made_site[0] / "index.html")
    addresses = [address for _, address in page.links]
    assert {"tried.html", "changelog.html", "CITATION.cff", "ledger.html#how-to-read"} <= set(addresses)
    assert "What was tried, and what failed" in Page(made_site[0] / "tried.html").text
    assert ("a", "report.html") in Page(made_site[0] / "tried.html").links
