"""Citations: every number in prose comes from a file or bears its certainty; the rest is found."""

import json
from pathlib import Path

import pytest
import yaml

from fmseg import claims, ledger, tables, verdicts
from fmseg.cite import cite, duration, fill, fill_notebook, index
from fmseg.prose import check_all, check_notebook, check_prose, parameters

CLAIMS = Path(__file__).parents[1] / "claims.yaml"
PARAMS = {
    "profile": "mini",
    "noise": {"alpha": 1.25, "strict": True},
    "profiles": {
        "mini": {"images": 400, "seeds": [0, 1, 2], "lr": 0.0005, "profile": "shadowed"},
        "smoke": {"images": 8},
    },
}


@pytest.fixture
def root(tmp_path):
    base = dict(enumerate([41.0, 42.5, 40.2, 43.1, 41.7]))
    better = {seed: x + 3 + 0.1 * seed for seed, x in base.items()}
    paper = tables.paper_value(45.6, "STATED", "FreeMask README")
    rows = [
        tables.row("SegFormer", {"mIoU": tables.cell(base, paper), "things": tables.cell({0: 40.0})}),
        tables.row("Mask2Former", {"mIoU": tables.cell(better), "things": tables.not_run("no time")}),
    ]
    table = tables.table("freemask-real", "Real only", "FreeMask", "%", ["mIoU", "things"], rows)
    folder = tmp_path / "results" / "mini"
    tables.write(table, folder / "tables")
    listed = claims.load(CLAIMS)[:1]
    found = verdicts.judge(listed, {"freemask-real": table}, {listed[0]["id"]: {claims.rule_hash(listed[0])}})
    ledger.write(found, folder, "mini")
    (folder / "times.json").write_text(json.dumps({"20-freemask-real": 130.2, "10-world": 34}))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_new.ipynb").write_text('{"cells": []}')
    return tmp_path


@pytest.mark.parametrize(
    ("id", "text"),
    [
        ("freemask-real/SegFormer/mIoU", "41.7 ± 1.2"),
        ("freemask-real/SegFormer/mIoU.mean", "41.7"),
        ("freemask-real/SegFormer/mIoU.sd", "1.2"),
        ("freemask-real/SegFormer/mIoU.n", "5"),
        ("freemask-real/SegFormer/mIoU.paper", "45.6 (STATED, FreeMask README)"),
        ("freemask-real/SegFormer/things", "40.0"),
        ("freemask-real/SegFormer/things.sd", "no sd (n = 1)"),
        ("freemask-real/Mask2Former/things", "not run: no time"),
        ("freemask-real/Mask2Former/things.mean", "not run: no time"),
        ("claim.freemask.real.1", "supported in miniature"),
        ("claim.freemask.real.1.effect", "+3.2 [3.0, 3.4]"),
        ("claim.freemask.real.1.n", "5"),
        ("time.20", "2 min 10 s"),
        ("time.20-freemask-real", "2 min 10 s"),
        ("time.10", "34 s"),
        ("time.01", "not yet measured"),
        ("time.01_new", "not yet measured"),
        ("param.noise.alpha", "1.25"),
        ("param.noise.strict", "true"),
        ("param.images", "400"),
        ("param.seeds", "0, 1, 2"),
        ("param.profiles.smoke.images", "8"),
        ("param.profile", "mini"),
    ],
)
def test_ids_and_what_they_stand_for(root, id, text):
    assert cite(id, root) == text


def test_the_profile_chooses_the_results(root):
    assert cite("param.images", root, "smoke") == "8"
    assert cite("param.lr", root, "smoke") == "0.0005", "a profile that lacks it shows the mini world"
    assert cite("freemask-real/SegFormer/mIoU", root, "smoke") == "not in profile smoke"
    assert cite("claim.freemask.real.1.effect", root, "smoke") == "not in profile smoke"
    with pytest.raises(ValueError, match="in this profile"):
        cite("freemask-real/SegFormer/things and more", root, "smoke")
    with pytest.raises(ValueError, match="nearest"):
        cite("param.no such", root, "smoke")


def test_unknown_ids_are_named_with_the_nearest(root):
    nearest = "cited as 'freemask-real/Segformer/mIoU'.*nearest are freemask-real/SegFormer/mIoU"
    with pytest.raises(ValueError, match=nearest):
        cite("freemask-real/Segformer/mIoU", root)
    with pytest.raises(ValueError, match="nearest are claim.freemask.real.1"):
        cite("claim.freemask.real.2", root)
    with pytest.raises(ValueError, match="There are 0 ids"):
        cite("x", root / "nothing here")


def test_fill_replaces_placeholders_and_nothing_else(root):
    text = "Ours: {{ cite freemask-real/SegFormer/mIoU }} in {{cite time.20}}; a `{{ cite id }}`, $\\frac{{a}}{b}$.\n"
    assert fill(text, root) == "Ours: 41.7 ± 1.2 in 2 min 10 s; a `{{ cite id }}`, $\\frac{{a}}{b}$.\n"
    fence = "```\n{{ cite nonsense }}\n```\n"
    assert fill(fence, root) == fence


MISSPELT = ["{{ cit time.20 }}", "{{ cite: time.20 }}", "{ cite time.20 }", "{{ cite time.20 }", "{{ Cite x }}"]


@pytest.mark.parametrize("text", MISSPELT)
def test_a_misspelt_placeholder_is_refused(root, text):
    with pytest.raises(ValueError, match="is no placeholder"):
        fill(f"It took {text}.", root)


def test_a_notebook_is_filled_in_place_and_counted(root):
    cells = [
        {"cell_type": "markdown", "source": ["# 20\n", "It took {{ cite time.20 }},\n", "not {{ cite time.10 }}."]},
        {"cell_type": "code", "source": "x = '{{ cite time.20 }}'"},
        {"cell_type": "markdown", "source": "{{ cite param.images }} images"},
        {"cell_type": "markdown", "source": "nothing"},
    ]
    notebook = {"cells": cells}
    assert fill_notebook(notebook, root) == 3
    assert cells[0]["source"] == ["# 20\n", "It took 2 min 10 s,\n", "not 34 s."]
    assert [c["source"] for c in cells[1:]] == ["x = '{{ cite time.20 }}'", "400 images", "nothing"]
    with pytest.raises(ValueError, match="cell 0: Nothing can be cited as 'x'"):
        fill_notebook({"cells": [{"cell_type": "markdown", "source": "{{ cite x }}"}]}, root)


def test_damaged_results_are_named(root):
    (root / "results/mini/times.json").write_text('{"20": "long"}')
    with pytest.raises(ValueError, match="times.json must map stages to seconds"):
        index(root)
    (root / "params.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="params.yaml is not readable"):
        index(root)


def test_times_in_words():
    seconds = [0.2, 1, 59.4, 59.6, 120, 130.2, 3599.7, 3900, 7200]
    words = ["under 1 s", "1 s", "59 s", "1 min", "2 min", "2 min 10 s", "1 h", "1 h 5 min", "2 h"]
    assert [duration(s) for s in seconds] == words


# -- typed numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("We reach 41.3 mIoU.", ["41.3"]),
        ("Half, 50 %, of 12% and 3 percent", ["50 %", "12%", "3 percent"]),
        ("61.2±0.6 and -3.1, 8.3x faster, .5", ["61.2", "0.6", "3.1", "8.3", ".5"]),
        ("improves by 3.5; Grounded Diffusion 62.3", ["3.5", "62.3"]),
        ("| ours | 41.3 |\n| paper | 48.7 (STATED) |", ["41.3"]),
        ("The paper has 48.7 (STATED, FreeMask README). We have 41.3.", ["41.3"]),
        ("We have 41.3. The paper has 48.7 (STATED, FreeMask README).", ["41.3"]),
        ("- ours 41.3\n- paper's 48.7 (STATED)", ["41.3"]),
        ("(STATED, FreeMask README) is 48.7", ["48.7"]),
        ("48.7 (stated in the README), 3.1 (UNSTATED)", ["48.7", "3.1"]),
        ("[41.3 here](https://a.b/1.5)", ["41.3"]),
        ("It costs $5.2 and $3.1 more", ["5.2", "3.1"]),
        ("Table 5 % of", ["5 %"]),
        ("a ` stray\n\ntick 41.3 and `another", ["41.3"]),
        ("## We gain 3.1", ["3.1"]),
        ("<!-- open 41.3", ["41.3"]),
    ],
)
def test_typed_numbers_are_found(text, numbers):
    assert [f.number for f in check_prose(text)] == numbers


@pytest.mark.parametrize(
    "text",
    [
        "Three models, 400 images, 21 classes, seeds 0 to 4, 2026-11-20, 14:03, 20,210 masks.",
        "{{ cite freemask-real/alpha 1.25/mIoU }} and {{ cite time.20 }}",
        "Mask2Former has 48.7 and SegFormer 45.6 (STATED, FreeMask README), so\n3.1 more (COMPUTED).",
        "The paper (eq. 3, margin 1.25) keeps 90 % (RECALLED).",
        "about 30 mIoU, 43.3 unfiltered (SEED); 48.3 (ADE20K; SEED)",
        "| Mask2Former | 48.7 | 52.0 | (STATED, README) |",
        "`alpha=1.25`, ``x ` 1.5``, $\\alpha = 1.25$, $$x = 0.5$$, \\(1.5\\), \\begin{align}1.5\\end{align}",
        "```python\nx = 0.5\n```\n~~~\n12 %\n~~~",
        "<!-- 41.3 -->[paper](https://arxiv.org/abs/2310.15160 'v 1.5') https://a.b/1.5 <img width='50%' src='x'/>",
        "[1]: https://a.b/2310.15160\n\narXiv 2310.15160, arXiv:2310.15160",
        "Python 3.11, Python >= 3.11, Python >=3.11,<3.12, CUDA 12.4, torch 2.13, version 0.1, v1.2, mmseg 1.2.2",
        "Eq. 2.1, eqs. 2.1 and 2.2, Table 3.2, (Section 4.1), Sections 4.1 to 4.3, Fig. 1.2, § 3.1",
        "release 1.2.3, Stable Diffusion 1.4, CC BY 4.0, CC BY-SA 4.0",
        "# 2.1 The filter\n\n### 2.3.\n\ntext",
        "MiT-B2.1 and ViT-B/16",
    ],
)
def test_what_is_vouched_for_passes(text):
    assert check_prose(text) == []


def test_findings_say_where():
    (found,) = check_prose("# Results\n\n```\n1.5\n```\nWe reach\n41.3 mIoU.", where="README.md")
    assert (found.where, found.line, found.number) == ("README.md", 7, "41.3")
    assert str(found).startswith("README.md, line 7: '41.3' is typed in `We reach 41.3 mIoU.`. Cite")


def test_parameters_are_allowed(root):
    allowed = parameters(root / "params.yaml")
    assert check_prose("alpha is 1.25, lr 0.0005 or 0.05 %", allowed) == []
    assert [f.number for f in check_prose("alpha is 1.5, 8 %", allowed)] == ["1.5", "8 %"]
    assert parameters(root / "none.yaml") == []


def test_notebooks_and_the_readme_are_checked(root):
    (root / "notebooks").mkdir(exist_ok=True)
    cells = [
        {"cell_type": "markdown", "source": ["# 20 Real images\n", "alpha 1.25; {{ cite time.20 }}"]},
        {"cell_type": "code", "source": ["x = 41.3"]},
        {"cell_type": "markdown", "source": "We reach 41.3."},
    ]
    (root / "notebooks/20_real.ipynb").write_text(json.dumps({"cells": cells}))
    (root / "README.md").write_text(
        "Fast: 2.5x.\n<!-- fmseg:begin ledger -->\n| +3.1 | 12 % |\n<!-- fmseg:end ledger -->\nAnd 9.9.\n"
        "<!-- fmseg:begin a -->\n7.7\n<!-- fmseg:end b -->\n"
    )
    found = [(f.where, f.line, f.number) for f in check_all(root)]
    assert found == [
        ("README.md", 1, "2.5"), ("README.md", 5, "9.9"), ("README.md", 7, "7.7"), ("20_real.ipynb, cell 2", 1, "41.3"),
    ]  # fmt: skip
    (root / "notebooks/30.ipynb").write_text("{}")
    with pytest.raises(ValueError, match="30.ipynb is no notebook"):
        check_notebook(root / "notebooks/30.ipynb")
    with pytest.raises(TypeError, match="`text` must be Markdown"):
        check_prose(None)
