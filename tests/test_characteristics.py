"""The judge on trial: false words and power on simulated tables; and broken judges, which the same trial must find."""

from pathlib import Path

import numpy as np
import pytest
from scipy import special

from fmseg import characteristics, claims, power, rules, ttests
from fmseg.characteristics import NOISES, broken, course, designs, draw, false_word, independent, trial, words

LISTED = claims.load(Path(__file__).parents[1] / "claims.yaml")
DESIGNS = {design.table: design for design in designs(LISTED)}
ABOVE = {"test": "paired_t", "alpha": 0.05, "side": "greater", "minimal_effect": 1.0}
BELOW, EITHER = ABOVE | {"side": "less"}, ABOVE | {"side": "two-sided"}
LEVEL = {"test": "equivalence", "alpha": 0.05, "margin": 2.0}


def off(share, expected, tables=characteristics.TABLES):
    """In standard errors."""
    return abs(share - expected) / np.sqrt(max(expected * (1 - expected), 1 / tables) / tables)


# -- the judge as it is ----------------------------------------------------------------------------------------------


def test_designs_are_the_families_of_claims_yaml():
    assert sum(len(d.ids) for d in DESIGNS.values()) == len(claims.testable(LISTED))
    real = DESIGNS["freemask-real"]
    assert real.ids == ("freemask.real.1", "freemask.real.2", "freemask.real.3") and real.pairs == rules.LEAST_PAIRS
    rows = [cell[1] for cell in real.cells]
    weights = dict(zip(rows, real.mix[2], strict=True))
    assert weights == {"Mask2Former": 0.0, "SegFormer": -1.0, "Segmenter": 1.0}
    pooled = DESIGNS["fmwiss-t3"].mix[0]
    assert sorted(pooled[pooled != 0]) == [-0.2] * 5 + [0.2] * 5


@pytest.mark.parametrize("table", DESIGNS)
def test_every_family_keeps_its_promise(table):
    assert broken(trial(DESIGNS[table], (2.0,))) == []


@pytest.mark.parametrize("spread", [0.3, 8.0])
def test_claims_of_equivalence_keep_it_whatever_the_spread(spread):
    with_margins = [d for d in DESIGNS.values() if any(r["test"] == "equivalence" for r in d.rules)]
    assert [line for design in with_margins for line in broken(trial(design, (spread,)))] == []


def test_more_seeds_keep_it():
    assert broken(trial(designs(LISTED, pairs=10)[0], (2.0,))) == []


def test_unequal_variances_and_heavy_tails_keep_it_and_skewed_differences_do_not():
    largest = max(DESIGNS.values(), key=lambda d: len(d.rules))
    assert broken(trial(largest, (2.0,), ("unequal variances", "heavy tails"))) == []
    one, family = broken(trial(independent([ABOVE]), (8.0,), ("very skewed",))), broken(
        trial(largest, (2.0,), ("skewed", "very skewed"))
    )  # fmt: skip
    assert len(one) == 1 and len(family) == 2, "the notebook says so; no test of five pairs is safe from skewness"


def test_three_pairs_are_not_judged():
    design = designs(LISTED, pairs=3)[0]
    said = words(design, 9.0, draw(design, 1.0, np.random.default_rng(0), 50))
    assert (said == rules.NOT_TESTED).all()


# -- broken judges ---------------------------------------------------------------------------------------------------


def _half(test):
    return lambda x, *more: test(x, *more) / 2


_two_sided, _beyond = ttests.two_sided, ttests.beyond
MUTANTS = {
    "no Holm": ("holm", lambda p: p, DESIGNS["fmwiss-t1"], 2.0),
    "one-sided, on the side that the data choose": ("two_sided", _half(_two_sided), independent([ABOVE]), 8.0),
    "not significant is level": (
        "within", lambda x, *_: np.where(_two_sided(x) >= 0.05, 0.0, 1.0), independent([LEVEL]), 2.0
    ),
    "beyond the margin, on the side that the data choose": ("beyond", _half(_beyond), independent([LEVEL]), 16.0),
    "normal quantiles in place of Student's": (
        "two_sided",
        lambda x, *_: 2 * special.ndtr(-np.abs(np.mean(x, -1) / np.std(x, -1, ddof=1)) * 5**0.5),
        independent([ABOVE]), 8.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_judge_is_found(name, monkeypatch):
    target, mutant, design, spread = MUTANTS[name]
    assert broken(trial(design, (spread,))) == [], "the judge as it is passes this very trial"
    monkeypatch.setattr(ttests, target, mutant)
    assert broken(trial(design, (spread,))) != []


def test_a_judge_of_ones_own_can_be_tried():
    always = trial(independent([ABOVE]), (1.0,), tables=100, judge=lambda rules_, xs: np.ones((100, 1), int))
    assert [row["false"] for row in always] == [1.0]
    assert "a false word in 1.0000 of the tables, promised 0.05" in broken(always)[0]


# -- power -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [ABOVE, BELOW, EITHER, LEVEL], ids=["greater", "less", "two-sided", "level"])
@pytest.mark.parametrize("spread", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("pairs", [5, 12])
def test_power_is_as_predicted(rule, spread, pairs):
    for row in course(rule, [-2.5, -1.0, 0.0, 0.7, 1.3, 2.5], spread, pairs):
        assert off(row["supported"], row["predicted"]) < 4.5, row


@pytest.mark.parametrize("rule", [ABOVE, BELOW])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_the_detectable_effect_is_supported_with_its_power(rule, spread):
    size = power.detectable(rule, spread, 5)
    row = course(rule, [size if rule is ABOVE else -size], spread)[0]
    assert off(row["supported"], 0.8) < 4


def test_the_detectable_margin_is_found_with_its_power():
    size = power.detectable(LEVEL, 1.5, 5)
    assert off(course(LEVEL | {"margin": size}, [0.0], 1.5)[0]["supported"], 0.8) < 4


def test_power_of_the_t_test_alone_would_be_found_wrong():
    """What the ledger showed before: it passes over the smallest effect of interest."""
    size = power.detectable(ABOVE | {"minimal_effect": 0.0}, 0.3, 5)
    assert off(course(ABOVE, [size], 0.3)[0]["supported"], 0.8) > 100


def test_in_a_family_power_is_at_least_what_the_strictest_level_predicts():
    row = course(ABOVE, [3.0], 1.0, family=8)[0]
    assert row["predicted"] - 0.01 < row["supported"] < row["predicted"] + 0.03
    assert row["predicted"] < course(ABOVE, [3.0], 1.0)[0]["predicted"]


# -- the simulation itself -------------------------------------------------------------------------------------------


def test_claims_with_a_common_row_move_together_and_have_the_spread_asked_for():
    rng = np.random.default_rng(0)
    x = draw(DESIGNS["freemask-real"], 3.0, rng)
    assert x.shape == (3, characteristics.TABLES, 5)
    np.testing.assert_allclose(x.std((1, 2)), 3.0)
    assert np.corrcoef(x[0].ravel(), x[1].ravel())[0, 1] == pytest.approx(0.5, abs=0.02)  # Mask2Former is in both
    apart = draw(independent([ABOVE, ABOVE]), 3.0, rng)
    assert np.corrcoef(apart[0].ravel(), apart[1].ravel())[0, 1] == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("noise", NOISES)
def test_noises_have_no_mean_and_the_spread_asked_for(noise):
    x = draw(independent([ABOVE]), 2.0, np.random.default_rng(1), 200_000, noise)
    assert abs(x.mean()) < 0.02 and x.std() == pytest.approx(2.0, rel=0.05)


def test_which_words_are_false():
    yes, no = rules.SUPPORTED, rules.CONTRADICTED
    found = {(r["test"], r.get("side"), e): false_word(r, e) for r in (ABOVE, BELOW, EITHER, LEVEL) for e in (-3, 0, 3)}
    assert found == {
        ("paired_t", "greater", -3): {yes}, ("paired_t", "greater", 0): {yes, no}, ("paired_t", "greater", 3): {no},
        ("paired_t", "less", -3): {no}, ("paired_t", "less", 0): {yes, no}, ("paired_t", "less", 3): {yes},
        ("paired_t", "two-sided", -3): {no}, ("paired_t", "two-sided", 0): {yes}, ("paired_t", "two-sided", 3): {no},
        ("equivalence", None, -3): {yes}, ("equivalence", None, 0): {no}, ("equivalence", None, 3): {yes},
    }  # fmt: skip
    assert false_word(LEVEL, 2.0) == {yes} and false_word(LEVEL, 1.99) == {no}


def test_bad_input_is_named():
    design = independent([ABOVE])
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="`noise` must be one of normal, .*; got 'loud'"):
        draw(design, 1.0, rng, noise="loud")
    with pytest.raises(ValueError, match="`spread` must be > 0 points, got 0"):
        draw(design, 0, rng)
    ratio = LISTED[0] | {"estimand": "t[A, x] / t[B, x]"}
    with pytest.raises(ValueError, match="is no weighted sum of cells"):
        designs([ratio])
