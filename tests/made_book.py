"""A small book of made-up executed notebooks, for tests; and what a page of a site refers to."""

import base64
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat.v4 as v4
from toys import ROOT

from fmseg import book, pipeline, tables
from fmseg.settings import load

FIGURES = ROOT / "results/mini/figures/20_freemask_real"
SHOWN = ["fmseg/noise.py", "fmseg/metrics.py", "fmseg/freemask_real.py"]
TABLE = """# Real images only

| | mIoU |
|---|---|
| SegFormer | a number |

Table `freemask-real`; stage 20_freemask_real."""
VERDICTS = "| claim | verdict |\n|---|---|\n| `freemask.real.1` | contradicted |\n| `freemask.real.2` | open |"
LONG = "it asks for something that can only be said in many more words than fit beside a number " * 4 + "here"
FILTER = r"""## The equations
The loss $\ell_p$ of a pixel, and what is dropped:

$$ \ell_p = -\log \frac{\exp z_{m_p,p}}{\sum_c \exp z_{c,p}} \quad (1) \qquad
\tilde m_p = \begin{cases} \mathrm{ignore} & \ell_p > \alpha\,\bar\ell_{m_p} \\ m_p & \mathrm{otherwise} \end{cases} $$

| symbol | in code | shape | meaning |
|---|---|---|---|
| $z$ | `logits` | (B, C, h, w) | a very long explanation that would not fit a phone beside the three other columns |

It is the filter of `fmseg/noise.py`; notebook 20 has the runs, [the next](29_made_up.ipynb) what they are worth, and
`TRIED.md` what failed. `loss_map(logits,labels,ignore_index=255,class_means_of_real_images=means,margin=1.25)`
is code that has no blank to break at.
"""


def code(source, *outputs, id, tags=()):
    return v4.new_code_cell(source, outputs=list(outputs), id=id, metadata={"tags": list(tags)})


def output(kind, data):
    return v4.new_output("execute_result", {kind: data, "text/plain": "..."}, execution_count=1)


def notebooks():
    """{name: cells}; the last one has not been executed."""
    png = base64.b64encode((FIGURES / "predictions.png").read_bytes()).decode()
    other = base64.b64encode((FIGURES / "backbones.png").read_bytes()).decode()
    line = 'print("a line that is far too long for a phone", ' + ", ".join(map(str, range(60))) + ")"
    text = v4.new_output("stream", name="stdout", text=line + "\n")
    return {
        "20_freemask_real": [
            v4.new_markdown_cell(
                "# 20 FreeMask: real images only\n\n* *Claims*: `freemask.real.1` to `.3`.", id="20-00"
            ),
            code("outcome = experiment.perform(freemask_real.EXPERIMENT)", output("text/markdown", TABLE), id="20-10"),
            code("show", output("image/png", png), id="20-16"),
            v4.new_markdown_cell("## Verdicts", id="20-17"),
            code("judge", output("text/markdown", VERDICTS), id="20-18"),
            v4.new_markdown_cell("*Code*: `fmseg/freemask_real.py` (the table), `fmseg/nowhere.py`.", id="20-19"),
        ],
        "22_noise_filter": [
            v4.new_markdown_cell("# 22 The noise filter\n\n* *Claims*: none.", id="22-00"),
            code('profile = "mini"', id="22-01", tags=["parameters"]),
            code('profile = "mini"', id="injected-parameters", tags=["injected-parameters"]),
            v4.new_markdown_cell(FILTER, id="22-03"),
            code("from fmseg.noise import loss_map\n" + line, text, id="22-04"),
            code("solution = 1", id="22-05", tags=["solution"]),
            code("show", output("image/png", other), id="22-06"),
        ],
        "29_made_up": [
            v4.new_markdown_cell(
                "# 29 Made up\n\n* *Claims*: `freemask.joint_ade.1`.\n* *Measured*: {{ cite time.29 }}.",
                id="29-00",
            ),
            code("experiment.perform(EXPERIMENTS['made-up'])", id="29-01"),
        ],
    }


def made_tables():
    """What a chapter that waits made elsewhere, with cells that were not run for a long reason."""
    read = tables.paper_value(45.6, "STATED", "a README")
    row = tables.row("a row", {"run": tables.cell({0: 1.0, 1: 2.0}, read), "not run": tables.not_run(LONG, read)})
    other = tables.row("another <row>", {"not run": tables.not_run(LONG)})
    made = {"stage": "29_made_up"}
    columns = ["run", "not run"]
    return [tables.table("made-up", "Made up", "None", "%", columns, [row, other], provenance=made)]


def project(folder):
    """A project of these notebooks with this checkout's table and ledger; returns its settings."""
    (folder / "fmseg").symlink_to(ROOT / "fmseg")
    for name in ("params.yaml", "claims.yaml", "TRIED.md", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "book", folder / "book")
    results = folder / "results/mini"
    (results / "notebooks").mkdir(parents=True)
    (results / "tables").mkdir()
    shutil.copy(ROOT / "results/mini/tables/freemask-real.json", results / "tables")
    shutil.copy(ROOT / "results/mini/ledger.json", results)
    shutil.copytree(FIGURES, results / "figures/20_freemask_real")
    (results / "figures/20_freemask_real/backbones.png").unlink()  # so that one output is no figure
    for table in made_tables():
        tables.write(table, results / "tables")
    (results / "figures/29_made_up").mkdir()
    other = ROOT / "results/mini/figures/22_noise_filter/kept-by-class"  # in no other chapter here
    for ending in (".png", ".csv"):
        shutil.copy(other.with_suffix(ending), results / f"figures/29_made_up/made-up{ending}")
    (folder / "notebooks").mkdir()
    for name, cells in notebooks().items():
        text = json.dumps(v4.new_notebook(cells=cells))
        (folder / "notebooks" / f"{name}.ipynb").write_text(text)
        if name != "29_made_up":
            (results / "notebooks" / f"{name}.ipynb").write_text(text)
    return load("mini", folder)


def built(folder, monkeypatch):
    """The made-up book and the warnings of its builder."""
    monkeypatch.setattr(pipeline, "shown_modules", lambda root: SHOWN)
    settings = project(folder)
    warnings = book.build(settings)
    return book.folder(settings), warnings


class Page(HTMLParser):
    """What a page refers to (``links``: tag and address), and the ids that it has."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.path = [], set(), Path(path)
        self.text = self.path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.links.append((tag, value))
            elif key in ("id", "name") and value:
                self.ids.add(value)


def broken(site):
    """What does not resolve in a site: (page, address). Addresses outside of it count as broken but in <a>."""
    pages = {path: Page(path) for path in sorted(Path(site).rglob("*.html")) if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        for tag, address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                found += [(path.name, address)] if tag != "a" and parts.scheme != "data" else []
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            state = to.name == "ledger.html" and "=" in fragment
            lost = fragment and not state and to in pages and fragment not in pages[to].ids
            found += [(path.name, address)] if not to.is_file() or lost else []
    return found
