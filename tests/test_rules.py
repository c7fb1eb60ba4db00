"""The judge of one table and that of thousands are one; array tests against scipy, by hand and at the edges."""

import numpy as np
import pytest
from scipy import special, stats
from test_claims import EQUAL, PAIRED, make, table

from fmseg import power, rules, ttests, verdicts

RULES = [PAIRED, PAIRED | {"side": "less"}, PAIRED | {"side": "two-sided"}, EQUAL, PAIRED | {"minimal_effect": 0.0}]


def test_a_table_is_judged_as_a_simulated_one():
    rng, seen = np.random.default_rng(3), set()
    for _ in range(60):
        base = rng.normal(45, 2, 7).round(3)
        shifts, n = rng.choice([-4.0, 0.0, 1.2, 4.0], len(RULES)), rng.integers(4, 8, len(RULES))
        rows = {f"A{k}": base[: n[k]] + (s + rng.normal(0, 0.7, n[k])).round(3) for k, s in enumerate(shifts)}
        listed = [make(f"bf.{k}", f"t[A{k}, x] - t[B, x]", rule) for k, rule in enumerate(RULES)]
        entries = verdicts.judge(listed, table(B=base, **rows))
        differences = [np.round(rows[f"A{k}"] - base[: n[k]], 9) for k in range(len(RULES))]
        said = rules.judge_table(RULES, differences)
        assert [rules.WORDS[code] for code in said] == [e["verdict"] for e in entries]
        seen |= set(said.tolist())
    assert seen == set(range(4))


@pytest.mark.parametrize("null", [0.0, 1.0])
def test_array_tests_equal_scipys(null):
    x = np.random.default_rng(0).normal(0.5, 1, (4, 3, 6))
    for side, test in (("two-sided", ttests.two_sided), ("greater", ttests.greater), ("less", ttests.less)):
        wanted = stats.ttest_1samp(x, null, axis=-1, alternative=side).pvalue
        np.testing.assert_allclose(test(x, null), wanted, rtol=1e-9)
    low = stats.ttest_1samp(x, -2, axis=-1, alternative="greater").pvalue
    high = stats.ttest_1samp(x, 2, axis=-1, alternative="less").pvalue
    np.testing.assert_allclose(ttests.within(x, 2.0), np.maximum(low, high), rtol=1e-9)


def test_a_difference_that_is_not_found_is_not_equivalence():
    noisy, near = np.array([-1.0, 6.0, -6.0]), np.array([0.1, 0.12, 0.09])
    assert ttests.two_sided(noisy) > 0.5 and ttests.within(noisy, 1.0) > 0.05
    assert ttests.two_sided(near) < 0.05 and ttests.within(near, 1.0) < 0.05


def test_beyond_a_margin_of_nothing_is_the_two_sided_test():
    x = np.random.default_rng(0).normal(0.5, 1, (50, 5))
    np.testing.assert_allclose(ttests.beyond(x, 0.0), ttests.two_sided(x), rtol=1e-12)


def test_equal_differences_give_definite_p_values_in_arrays():
    x = np.array([[0.0] * 5, [2.0] * 5, [-2.0] * 5, [0.1 + 0.2 - 0.3] * 5])
    scale = np.array([0.3, 2.0, 2.0, 0.3])
    assert ttests.two_sided(x, scale=scale).tolist() == [1, 0, 0, 1]
    assert ttests.greater(x, scale=scale).tolist() == [1, 0, 1, 1]
    assert ttests.less(x, scale=scale).tolist() == [1, 1, 0, 1]
    assert ttests.within(x, 2.0).tolist() == [0, 1, 1, 0] and ttests.beyond(x, 1.0).tolist() == [1, 0, 0, 1]
    symmetric = np.array([-1.0, 1.0, -2.0, 2.0])
    assert ttests.two_sided(symmetric) == 1.0 and ttests.greater(symmetric) == ttests.less(symmetric) == 0.5


def test_holm_adjusts_each_row_by_itself():
    p = np.array([[0.01, 0.04, 0.03], [0.5, 0.6, 0.9]])
    np.testing.assert_allclose(ttests.holm(p), [[0.03, 0.06, 0.06], [1.0, 1.0, 1.0]])
    assert ttests.holm(np.zeros((3, 0))).shape == (3, 0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(..., n\) with n >= 2 pairs, got \(3, 1\): run more seeds"):
        ttests.two_sided(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="an array a rule; got 1 for 2 rules"):
        rules.judge_table([PAIRED, EQUAL], [np.zeros(5)])


# -- power -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 20])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 15])
def test_without_a_smallest_effect_power_is_the_noncentral_t(n, alpha):
    rule = PAIRED | {"minimal_effect": 0.0}
    for effect in (-1.0, 0.0, 0.7, 3.0):
        wanted = stats.nct.sf(special.stdtrit(n - 1, 1 - alpha / 2), n - 1, effect * n**0.5 / 2)
        assert power.supported(rule, effect, 2.0, n, alpha) == pytest.approx(wanted, abs=1e-7)
    assert power.supported(rule, 0.0, 2.0, n, alpha) == pytest.approx(alpha / 2)


def test_power_has_the_unit_of_the_spread():
    for rule, key in ((PAIRED, "minimal_effect"), (EQUAL, "margin")):
        tenfold = rule | {key: 10 * rule[key]}
        assert power.supported(tenfold, 15, 20, 5) == pytest.approx(power.supported(rule, 1.5, 2, 5))
        assert power.detectable(tenfold, 20, 5) == pytest.approx(10 * power.detectable(rule, 2, 5))


@pytest.mark.parametrize("rule", [PAIRED, PAIRED | {"side": "less"}, PAIRED | {"side": "two-sided"}, EQUAL])
def test_what_is_detectable_is_found_with_that_power_and_falls_with_more_pairs(rule):
    size = power.detectable(rule, 1.5, 5, power=0.7)
    at = (rule | {"margin": size}, 0.0) if rule is EQUAL else (rule, -size if rule["side"] == "less" else size)
    assert power.supported(*at, 1.5, 5) == pytest.approx(0.7, abs=1e-6)
    assert power.detectable(rule, 1.5, 6, power=0.7) < size < power.detectable(rule, 1.5, 5, 0.01, 0.7)


def test_a_small_spread_does_not_detect_less_than_what_matters():
    assert power.detectable(PAIRED, 0.01, 5) == pytest.approx(1.0, abs=0.01) and power.detectable(PAIRED, 0.0, 5) == 1.0
    assert power.detectable(EQUAL, 0.0, 5) == 0.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: power.supported(PAIRED, 1.0, 0.0, 5), "`sd` must be a number > 0, got 0"),
        (lambda: power.supported(PAIRED, 1.0, 1.0, 1), "`n` must be a whole number of pairs, at least 2; got 1"),
        (lambda: power.supported(PAIRED, 1.0, 1.0, 5, 0.6), r"`alpha` must lie in \(0, 0.5\], got 0.6"),
        (lambda: power.detectable(PAIRED, 1, 5, power=0.01), "`power` must lie between `alpha` = 0.05 and 1, got 0.01"),
    ],
)
def test_bad_designs_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
