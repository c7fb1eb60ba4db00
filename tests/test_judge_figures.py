"""What notebook 90 shows of the judge."""

from pathlib import Path

import numpy as np
import pytest

from fmseg import claims, judge_figures, tables

LISTED = claims.load(Path(__file__).parents[1] / "claims.yaml")


def test_shares_make_one_and_meet_the_prediction():
    figure, rows = judge_figures.verdict_shares(LISTED, 5, tables=2000)
    assert len(figure.axes) == 3 and len(rows) == 3 * 33
    for row in rows:
        assert row["supported"] + row["contradicted"] + row["inconclusive"] == pytest.approx(1, abs=3e-4)
        if "one of" in row["panel"]:  # the strictest level of the family; later steps are milder
            assert row["supported"] > row["predicted"] - 0.05
        else:
            assert row["supported"] == pytest.approx(row["predicted"], abs=0.05)
    at_zero = [r for r in rows if r["effect"] == 0 and r["panel"].startswith("A above")]
    assert all(r["supported"] + r["contradicted"] < 0.08 for r in at_zero)


def test_errors_by_noise_and_truth():
    text = judge_figures.errors(LISTED[:3], 5, tables=500)
    assert text.splitlines()[0] == "| differences between seeds | no effect | at the margin | just inside the margin |"
    assert "| very skewed | " in text and text.splitlines()[-1].startswith("Promised: at most 0.05.")


def test_the_usual_rule_is_the_most_frequent():
    assert judge_figures.usual(LISTED, "paired_t") == {
        "test": "paired_t", "alpha": 0.05, "side": "greater", "minimal_effect": 1.0
    }  # fmt: skip
    with pytest.raises(ValueError, match="the test 'equivalence'; it has none"):
        judge_figures.usual(LISTED[:2], "equivalence")


def test_skewness_is_that_of_pairs_of_rows_in_tables_that_claims_read():
    rng = np.random.default_rng(0)
    made = {k: tables.table(k, "T", "P", "%", ["x"], [
        tables.row(f"A{i}", {"x": tables.cell(dict(enumerate(row)))}) for i, row in enumerate(rng.normal(0, 1, (9, 5)))
    ]) for k in ("freemask-real", "zoo")}  # fmt: skip
    text = judge_figures.skewness(LISTED, made, 5, drawn=2000)
    assert "over 36 pairs of rows; simulated normal 0.7" in text, "the zoo's rows are in no claim"
    assert "measured no pairs of rows" in judge_figures.skewness(LISTED, made, 6, drawn=100)


def test_second_looks_in_words():
    one = {"id": "a.1", "mean": 1.0, "images_word": "inconclusive", "images_why": None,
           "flags": ["over images inconclusive"], "text": "supported (over images inconclusive)"}  # fmt: skip
    two = one | {"id": "a.2", "images_word": None, "images_why": "records hold no images", "flags": []}
    assert judge_figures.second_looks([one, two, two | {"mean": None}]).splitlines() == [
        "1 of 2 measured claims have a second look; 1 are flagged.",
        "a.1: supported (over images inconclusive)",
        "1 have none: records hold no images",
    ]
