import json
import re
import shutil

import pytest
from toys import REAL, ROOT, invented

from fmseg import readme, tables
from fmseg.settings import load


@pytest.fixture
def project(settings):
    (settings.root / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks/20_freemask_real.ipynb", settings.root / "notebooks")
    tables.write(REAL.table(settings, invented(settings, REAL, code={})), settings.results / "tables")
    return settings


def block(name, inside=""):
    return f"before\n<!-- fmseg:begin {name} -->\n{inside}<!-- fmseg:end {name} -->\nafter\n"


def test_a_part_is_written_anew_and_the_rest_is_left(project):
    text = readme.fill(block("table.freemask-real", "stale\n"), project)
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    assert "**Real images only**" in text and "| SegFormer |" in text.replace("  ", " ")
    assert readme.fill(text, project) == text


def test_times_are_those_that_were_measured(project):
    assert readme.fill(block("times"), project).count("not yet measured") == 5
    measured = project.root / "build/times/mini.json"
    measured.parent.mkdir(parents=True)
    measured.write_text(json.dumps({"verify": 12.4}))
    readme.take_times(project)
    measured.write_text(json.dumps({"20_freemask_real": 80}))
    readme.take_times(project)  # what was measured before is kept
    assert "| 12 s |" in readme.fill(block("times"), project)
    assert "80 s" in readme.fill(block("notebooks"), project) or "1 min" in readme.fill(block("notebooks"), project)


def test_the_scoreboard_counts_verdicts_and_leads_to_what_decided_them(project):
    def claim(id, paper, verdict):
        found = {"mean": 2.0, "low": 1.0, "high": 3.0, "n": 5} if verdict != "not tested" else {"mean": None, "n": 0}
        words = {"text": f"{verdict} in miniature", "says": f"what {id} says", "table": "freemask-real"}
        return {"id": id, "paper": paper, "verdict": verdict} | words | found

    claims = [claim("a", "One", "supported"), claim("b", "One", "not tested"), claim("c", "Two", "contradicted")]
    (project.results / "ledger.json").write_text(json.dumps({"profile": "mini", "claims": claims}))
    text = readme.fill(block("scoreboard"), project)
    assert "| One | 1 | 0 | 0 | 1 |" in text and "| Two | 0 | 1 | 0 | 0 |" in text
    line = next(x for x in text.splitlines() if x.startswith("* `a`"))
    assert "what a says. **supported in miniature**, +2.0 [1.0, 3.0], n = 5" in line
    assert "[table](results/mini/tables/freemask-real.md), [notebook](notebooks/20_freemask_real.ipynb)" in line
    assert text.index("* `a`") < text.index("* `c`") and "* `b`" not in text


def test_the_scale_table_shows_what_was_measured(project):
    made = {"model": "segformer b2", "parameters": 24_800_000, "crop": 512, "batch": 2, "step": 0.25, "picture": 0.1,
            "memory": 4 * 10**9, "device": "GPU"}  # fmt: skip
    path = project.root / "results/paper/scale.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([made]))
    assert "| segformer b2 | 24.8 | 2 x 512 | 0.25 | 8 | 0.1 | 4.0 | GPU |" in readme.fill(block("scale"), project)


def test_an_unknown_part_is_refused(project):
    with pytest.raises(ValueError, match="no generated part is called .tabel.x.; there are table.<id>, scoreboard, "):
        readme.fill(block("tabel.x"), project)
    with pytest.raises(FileNotFoundError):
        readme.fill(block("table.none"), project)


def test_the_readme_is_filled():
    text = (ROOT / "README.md").read_text()
    assert readme.fill(text, load("mini", ROOT)) == text, "run `make readme`"
    for command in ("make repro", "make test", "make lab", "pip install torch=="):
        assert command in text


def test_the_reading_order_names_every_module_and_nothing_else():
    text = (ROOT / "README.md").read_text()
    listed = text[text.index("## The package, in reading order") :]
    rows = [line.split("|")[1] for line in listed.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    there = {path.stem for path in (ROOT / "fmseg").glob("*.py") if not path.stem.startswith("_")}
    assert sorted(named) == sorted(there)
