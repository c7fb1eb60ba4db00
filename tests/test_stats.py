"""Paired tests by hand, against scipy, by closed testing, and by simulation; and what happens at the edges."""

import dataclasses
import itertools
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from fmseg.stats import (
    confidence_interval,
    contrast,
    holm,
    paired_difference,
    summary,
)

few = settings(max_examples=30, deadline=None)


def seeds(values):
    return dict(enumerate(values))


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@st.composite
def pairs(draw, least=2, most=8):
    n = draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    base = rng.normal(60, 5, n)
    return seeds(base + rng.normal(draw(st.floats(-3, 3)), draw(st.sampled_from([0.1, 1.0, 5.0])), n)), seeds(base)


# -- summary and interval -------------------------------------------------------------------------------------------


def test_summary_of_the_style_guides_cell():
    found = summary({"0": 61.2, "1": 60.4, "2": 61.9, "3": 60.8, "4": 61.5})
    assert (round(found["mean"], 2), round(found["sd"], 2), found["n"]) == (61.16, 0.59, 5)
    assert json.loads(json.dumps(found)) == found


def test_summary_of_few_values():
    assert summary({}) == {"mean": None, "sd": None, "n": 0}
    assert summary({"0": 61.2}) == {"mean": 61.2, "sd": None, "n": 1}
    assert summary([1.0, 3.0]) == {"mean": 2.0, "sd": math.sqrt(2), "n": 2}
    assert summary([0.1 + 0.2, 0.3])["sd"] == 0.0  # equal up to rounding


def test_interval_by_hand():
    low, high = confidence_interval([1.0, 2.0, 3.0])  # t = 4.302653 at 2 degrees of freedom, s = 1
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)
    assert confidence_interval({"0": 5.0, "1": 5.0}) == (5.0, 5.0)


def test_interval_covers_as_often_as_it_says():
    x = np.random.default_rng(0).normal(3, 2, (1000, 4))
    inside = [low < 3 < high for low, high in (confidence_interval(row, 0.8) for row in x)]
    assert abs(np.mean(inside) - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 1000)


# -- the paired test ------------------------------------------------------------------------------------------------


@few
@given(pairs(), st.sampled_from([0.5, 0.9, 0.95]), st.sampled_from([0.0, 1.0]))
def test_equals_scipy(ab, confidence, null):
    a, b = ab
    found = paired_difference(a, b, confidence, null)
    x, y = np.array(list(a.values())) - null, np.array(list(b.values()))
    for side in ("two-sided", "greater", "less"):
        assert found.p_value(side) == pytest.approx(scipy_stats.ttest_rel(x, y, alternative=side).pvalue, rel=1e-6)
    interval = scipy_stats.ttest_rel(x, y).confidence_interval(confidence)
    assert (found.low - null, found.high - null) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert found.sd == pytest.approx(np.std(x - y, ddof=1)) and found.df == found.n - 1 == len(x) - 1
    assert contrast({s: a[s] - b[s] for s in a}, confidence, null).p == pytest.approx(found.p, rel=1e-6)


@few
@given(pairs())
def test_exchanging_the_two_exchanges_the_sides(ab):
    there, back = paired_difference(*ab), paired_difference(*reversed(ab))
    assert (there.p, there.p_greater, there.mean) == pytest.approx((back.p, back.p_less, -back.mean))
    assert there.p_greater + there.p_less == pytest.approx(1)
    assert there.p == pytest.approx(2 * min(there.p_greater, there.p_less))
    assert (there.low > 0 or there.high < 0) == (there.p < 0.05)


def test_only_common_seeds_are_paired():
    a = {0: 61.0, 1: 63.0, 2: 62.0, 7: 99.0}
    b = {"2": 60.0, "1": 62.0, "0": 60.0, "5": 0.0}  # as JSON gives them, in another order
    found = paired_difference(a, b)
    assert found.seeds == ("0", "1", "2") and found.left_out == ("7", "5") and found.n == 3
    assert found.mean == pytest.approx(4 / 3)
    alone = paired_difference({s: a[s] for s in (0, 1, 2)}, dict(list(b.items())[:3]))
    assert alone == dataclasses.replace(found, left_out=())
    assert json.loads(json.dumps(dataclasses.asdict(found)))["p"] == found.p


@pytest.mark.parametrize("b", [{}, {0: 1.0}, {5: 1.0, 6: 2.0}])
def test_fewer_than_two_common_seeds_are_refused(b):
    with pytest.raises(ValueError, match=r"at least 2 seeds.*\(ours minus theirs\).*Run the missing seeds"):
        paired_difference({0: 1.0, 1: 2.0}, b, name="ours minus theirs")


def test_equal_differences_give_definite_p_values():
    base = {0: 60.4, 1: 59.7, 2: 61.3}
    up = paired_difference({s: v + 1.1 for s, v in base.items()}, base)  # equal up to rounding only
    assert (up.sd, up.p, up.p_greater, up.p_less) == (0.0, 0.0, 0.0, 1.0) and up.low == up.high == up.mean
    down = contrast({0: -2.0, 1: -2.0})
    assert (down.p, down.p_greater, down.p_less) == (0.0, 1.0, 0.0)
    same = paired_difference(base, base)
    assert (same.mean, same.sd, same.p, same.p_greater, same.p_less) == (0.0, 0.0, 1.0, 1.0, 1.0)
    jitter = paired_difference({0: 0.1 + 0.2, 1: 0.7 + 0.1 + 0.3}, {0: 0.3, 1: 1.1})
    assert jitter.p == jitter.p_greater == jitter.p_less == 1.0
    assert contrast({0: 2.0, 1: 2.0}, null=2.0).p_greater == 1.0 and contrast({0: 2.0, 1: 2.0}, null=1.0).p_greater == 0


# -- several tests --------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 * 0.01; 2 * 0.03; max(1 * 0.04, 0.06)
    assert holm({"b": 0.5, "a": 0.6}) == {"b": 1.0, "a": 1.0}
    assert list(holm({"b": 0.9, "a": 0.001})) == ["b", "a"]
    assert holm([]) == [] and holm({}) == {} and holm([0.2]) == [0.2]


@few
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(p):
    """Outside witness: hypothesis i is rejected if Bonferroni rejects every set of hypotheses that contains i."""
    sets = [s for r in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), r)]
    closed = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(len(p))]
    assert holm(p) == pytest.approx(closed)
    assert all(q >= x for q, x in zip(holm(p), p, strict=True))


# -- bad input ------------------------------------------------------------------------------------------------------

A, B = {0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5}


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: summary({"3": math.nan}), ValueError, r"`values\['3'\]` must be finite"),
        (lambda: summary([1.0, None]), TypeError, r"`values\[1\]` must be a number, got None"),
        (lambda: summary("61.2"), TypeError, "`values` must be a dict or a sequence"),
        (lambda: summary([True]), TypeError, "must be a number"),
        (lambda: confidence_interval([1.0]), ValueError, "at least 2 values, got 1"),
        (lambda: confidence_interval([1.0, 2.0], 95), ValueError, r"`confidence` must lie in \(0, 1\), got 95"),
        (lambda: paired_difference([1.0, 2.0], B), TypeError, r"`a` must map seeds to values.*got list"),
        (lambda: paired_difference(A, {0: 1.0, "0": 2.0}), ValueError, "`b` must name each seed once"),
        (lambda: paired_difference(A, {0: 1.0, 1: math.inf}), ValueError, r"`b\['1'\]` must be finite"),
        (lambda: paired_difference(A, B, null=math.nan), ValueError, "`null` must be finite"),
        (lambda: paired_difference(A, B).p_value("bigger"), ValueError, "`side` must be one of two-sided"),
        (lambda: contrast({0: 1.0}), ValueError, "at least 2 values"),
        (lambda: holm([0.1, 1.2]), ValueError, r"`p_values` must lie in \[0, 1\]; found 1.2"),
        (lambda: holm([0.1, math.nan]), ValueError, "must be finite"),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()
