"""The made-up book in headless Chromium, opened as files: what a reader's browser makes of it."""

import os

import pytest
from chromium import Browser, executable
from made_book import broken
from toys import ROOT

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="needs Chromium (Debian: apt-get install chromium)"),
]
PAGES = ("index.html", "ledger.html", "report.html", "waiting.html", "figures.html", "search.html", "tried.html",
         "changelog.html", "tables/index.html", "tables/freemask-real.html", "tables/made-up.html", "source/noise.html",
         "chapters/20_freemask_real.html", "chapters/22_noise_filter.html")  # fmt: skip
REAL = ROOT / os.environ.get("FMSEG_BOOK", "results/mini/book")


@pytest.fixture(scope="module")
def site(made_site):
    return made_site[0].as_uri()


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def look(browser, address, scheme):
    """Open a page as a reader would who opens everything in it; fails where it is wider than a phone or not whole."""
    browser.requests.clear()
    browser.errors.clear()
    browser.goto(address)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    browser.evaluate("Promise.all([...document.images].map(i => i.decode()))")  # fails for a picture that is not there
    width = browser.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
    assert width <= 390, address
    assert not [r for r in browser.requests if not r.startswith(("file:", "data:", "about:"))], address
    assert browser.errors == [], address
    colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, colour[4:-1].split(","))) < 200) == (scheme == "dark"), address


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_load_nothing_from_elsewhere_and_make_no_error(site, browser, scheme):
    browser.size(390, 844, phone=True)
    browser.scheme(scheme)
    for page in PAGES:
        look(browser, f"{site}/{page}", scheme)


def test_a_real_book_too(browser):
    """Where `make book` has run; the pages of modules, more than half of all and alike, only where the book is named:
    FMSEG_BOOK=results/mini/book pytest tests/test_book_browser.py"""
    named = "FMSEG_BOOK" in os.environ
    if not named and not (REAL / "index.html").exists():
        pytest.skip(f"no book in {REAL}; `make book` builds it")
    folder = REAL.resolve()
    assert broken(folder) == []
    browser.size(390, 844, phone=True)
    browser.scheme("light")
    for path in sorted(folder.rglob("*.html")):
        if "_static" not in path.parts and (named or path.parent.name != "source"):
            look(browser, path.as_uri(), "light")


def test_a_cell_that_a_link_leads_to_says_its_row_and_column(site, browser):
    browser.size(390, 844, phone=True)
    browser.goto(f"{site}/tables/made-up.html#r2c2")
    said = "getComputedStyle(document.querySelector('td:target'), '::before').content"
    assert browser.evaluate(said) == '"another <row> / not run"'
    assert browser.evaluate("document.querySelector('.fmseg-scroll table').offsetWidth") < 700


def test_the_scoreboard_fits_a_phone(site, browser):
    browser.size(390, 844, phone=True)
    browser.goto(f"{site}/index.html")
    board = "document.querySelector('.fmseg-scoreboard')"
    assert browser.evaluate(f"{board}.offsetWidth <= {board}.parentElement.clientWidth")


def test_a_link_to_how_to_read_the_ledger_opens_it(site, browser):
    browser.goto(f"{site}/ledger.html")
    assert not browser.evaluate("document.querySelector('.fmseg-read').open")
    browser.goto(f"{site}/index.html")
    browser.goto(f"{site}/ledger.html#how-to-read")
    assert browser.evaluate("document.querySelector('.fmseg-read').open")
    assert len(browser.evaluate(SHOWN)) > 100


def test_formulas_are_set(site, browser):
    browser.goto(f"{site}/chapters/22_noise_filter.html")
    sizes = browser.evaluate("[...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().height)")
    assert len(sizes) == 3 and all(size > 5 for size in sizes)
    fraction = "document.querySelector('mfrac').firstElementChild.getBoundingClientRect().bottom"
    assert browser.evaluate(
        f"{fraction} <= document.querySelector('mfrac').lastElementChild.getBoundingClientRect().top + 3"
    )


SHOWN = "[...document.querySelectorAll('.fmseg-claim')].filter(c => c.offsetHeight).map(c => c.id)"


def choose(browser, name, value):
    browser.evaluate(
        f"f = document.getElementById('fmseg-{name}'); f.value = {value!r}; f.dispatchEvent(new Event('input'))"
    )


def test_the_ledger_filters_by_paper_verdict_and_words(site, browser):
    browser.goto(f"{site}/ledger.html")
    everything = browser.evaluate(SHOWN)
    assert len(everything) > 100
    choose(browser, "paper", "FreeMask")
    ours = browser.evaluate(SHOWN)
    assert 0 < len(ours) < len(everything) and all(id.startswith("freemask.") for id in ours)
    choose(browser, "verdict", "not tested")
    untested = browser.evaluate(SHOWN)
    assert 0 < len(untested) < len(ours) or len(untested) == len(ours)
    choose(browser, "words", "mask2former")
    found = browser.evaluate(SHOWN)
    assert 0 < len(found) < len(untested)
    assert browser.evaluate("document.getElementById('fmseg-count').textContent").startswith(f"{len(found)} of ")
    there = browser.evaluate("location.href")
    browser.goto(there)  # a view can be kept
    assert browser.evaluate(SHOWN) == found
    browser.goto(f"{site}/ledger.html#freemask.real.1")
    assert browser.evaluate(SHOWN) == everything
    assert browser.evaluate("scrollY") > 0


def test_a_verdict_is_two_clicks_from_the_cell_that_produced_it(site, browser):
    browser.goto(f"{site}/index.html")
    browser.goto(browser.evaluate("document.querySelector('.fmseg-scoreboard a[href*=contradicted]').href"))
    (id, *others) = browser.evaluate(SHOWN)
    assert id == "freemask.real.1" and all(other.startswith("freemask.") for other in others)
    browser.goto(browser.evaluate(f"document.getElementById('{id}').querySelector('a[href*=\"#cell-\"]').href"))
    assert id in browser.evaluate("document.querySelector(':target').textContent")


def test_the_search_finds_a_chapter(site, browser):
    browser.goto(f"{site}/search.html?q=filter")
    hits = "[...document.querySelectorAll('#search-results a')].map(a => a.textContent)"
    for _ in range(200):
        if any("22 The noise filter" in hit for hit in browser.evaluate(hits)):
            return
        browser.evaluate("new Promise(done => setTimeout(done, 50))")
    raise AssertionError(browser.evaluate(hits))
