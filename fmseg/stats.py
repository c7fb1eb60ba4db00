"""Small-sample statistics for paired seeds: mean and sd, t intervals, paired and equivalence tests, Holm, power.

Results keep the unit of the values (tables: points of mIoU). Values are finite floats; a difference that is zero up
to rounding counts as zero, so identical runs give definite p-values and never NaN.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import integrate, optimize
from scipy import special as _special
from scipy import stats as _scipy

from fmseg import ttests

_SIDES = ("two-sided", "greater", "less")


def summary(values) -> dict:
    r"""Mean, standard deviation and number of values, as a table cell wants them.

    .. math:: \bar x = \tfrac1n \sum x_s, \quad s^2 = \tfrac{1}{n-1} \sum (x_s - \bar x)^2

    Args:
        values: {seed: value} or a sequence of values; may be empty.

    Returns:
        {"mean", "sd", "n"}. n = 0: mean and sd are None. n = 1: sd is None, because one run says nothing about
        spread (a 0.0 would read as "no spread").

    Raises:
        TypeError, ValueError: a value is not a finite number.
    """
    x = _check_values("values", values)
    return {
        "mean": float(x.mean()) if len(x) else None,
        "sd": _sd(x, _largest(x)) if len(x) > 1 else None,
        "n": len(x),
    }


def confidence_interval(values, confidence: float = 0.95) -> tuple[float, float]:
    r"""Student's t interval of the mean.

    .. math:: \bar x \pm t_{(1+\gamma)/2,\,n-1} \, s / \sqrt n

    Args:
        values: {seed: value} or a sequence; at least two.
        confidence: gamma, in (0, 1).

    Returns:
        (low, high); both equal the mean if all values are equal. Raises TypeError or ValueError for fewer than two
        values, a value that is not finite, confidence outside (0, 1).
    """
    x = _check_values("values", values, least=2)
    return _interval(float(x.mean()), _sd(x, _largest(x)), len(x), confidence)


@dataclass(frozen=True)
class Paired:
    """What :func:`paired_difference` and :func:`contrast` found. ``dataclasses.asdict`` makes it JSON.

    mean, sd: of the differences (sd with n - 1); n: their number; df: n - 1; low, high: t interval of the mean at
    ``confidence``; null: the value tested against; p: two-sided; p_greater, p_less: one-sided, for "mean > null" and
    "mean < null"; seeds: the keys used; left_out: keys that only one side had.
    """

    mean: float
    sd: float
    n: int
    df: int
    low: float
    high: float
    confidence: float
    null: float
    p: float
    p_greater: float
    p_less: float
    seeds: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def p_value(self, side: str) -> float:
        """The p-value of ``side``: "two-sided", "greater" or "less" (ValueError otherwise)."""
        _check_side(side)
        return {"two-sided": self.p, "greater": self.p_greater, "less": self.p_less}[side]


def paired_difference(
    a: Mapping, b: Mapping, confidence: float = 0.95, null: float = 0.0, name: str = "difference"
) -> Paired:
    r"""Paired t test of a - b over the seeds that both have.

    .. math:: t = (\bar d - \mu_0) \sqrt n / s_d, \quad d_s = a_s - b_s, \quad \text{df} = n - 1

    Where all differences are equal (s_d = 0), p is 0 if the mean lies off ``null`` in the tested direction, else 1.

    Args:
        a, b: {seed: value}. A seed is known by its text, so 3 and "3" (JSON) are the same one. Keys may also name
            setting and seed ("10-10/3") to pool settings: each then counts as an independent pair, which it is only
            if the settings share neither data nor base models; else average over settings within a seed first.
        confidence: of the interval, in (0, 1).
        null: mu_0, say the smallest effect of interest.
        name: what is compared, for error messages.

    Returns:
        :class:`Paired`.

    Raises:
        TypeError: a or b is not a mapping, or holds something else than numbers.
        ValueError: fewer than two common seeds, a value that is not finite, confidence outside (0, 1).
    """
    difference, left_out, scale = _differences(a, b, name)
    return _test(difference, confidence, null, scale, left_out)


def contrast(values: Mapping, confidence: float = 0.95, null: float = 0.0) -> Paired:
    """The test of :func:`paired_difference` for differences (or differences of differences) already taken per seed.

    ``values`` is {seed: difference}, at least two; the rest, and what is raised, as there.
    """
    values = _check_seeds("values", values)
    x = _check_values("values", values, least=2)
    return _test(values, confidence, null, _largest(x), ())


@dataclass(frozen=True)
class Equivalence:
    """What :func:`equivalence` found. ``dataclasses.asdict`` makes it JSON.

    mean, sd, n, df, seeds, left_out: as in :class:`Paired`; low, high: t interval of the mean at 1 - 2 alpha;
    p_lower: for "mean > -margin"; p_upper: for "mean < margin"; p: the larger; equivalent: p < alpha, which is the
    same as -margin < low and high < margin.
    """

    mean: float
    sd: float
    n: int
    df: int
    low: float
    high: float
    margin: float
    alpha: float
    p_lower: float
    p_upper: float
    p: float
    equivalent: bool
    seeds: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def equivalence(a: Mapping, b: Mapping, margin: float, alpha: float = 0.05, name: str = "difference") -> Equivalence:
    r"""Two one-sided paired t tests: are a and b closer than ``margin``?

    .. math:: H_0: |\mu_d| \ge \Delta, \quad p = \max(p_{\mu_d > -\Delta}, p_{\mu_d < \Delta})

    (Schuirmann 1987.) That a difference is not significant is no evidence of equivalence; this test is.

    Args:
        a, b: {seed: value}, as for :func:`paired_difference`.
        margin: Delta > 0, in the unit of the values, fixed before the run.
        alpha: level, in (0, 0.5).
        name: what is compared, for error messages.

    Returns:
        :class:`Equivalence`.

    Raises:
        TypeError, ValueError: as :func:`paired_difference`; margin <= 0; alpha outside (0, 0.5).
    """
    margin = _check_number("margin", margin)
    if margin <= 0:
        raise ValueError(f"`margin` must be > 0, got {margin}: it is the largest difference that does not matter.")
    alpha = _check_share("alpha", alpha, 0.5)
    difference, left_out, scale = _differences(a, b, name)
    lower = _test(difference, 1 - 2 * alpha, -margin, scale, left_out)
    upper = _test(difference, 1 - 2 * alpha, margin, scale, left_out)
    p = max(lower.p_greater, upper.p_less)
    return Equivalence(
        mean=lower.mean, sd=lower.sd, n=lower.n, df=lower.df, low=lower.low, high=lower.high, margin=margin,
        alpha=alpha, p_lower=lower.p_greater, p_upper=upper.p_less, p=p, equivalent=p < alpha, seeds=lower.seeds,
        left_out=left_out,
    )  # fmt: skip


def holm(p_values):
    r"""Holm's step-down adjustment: compare the result with alpha to keep the family-wise error at alpha.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1)\, p_{(j)})

    (Holm 1979.) Valid under any dependence. The family is what is passed: leave out claims that are not judged.

    Args:
        p_values: {id: p} or a sequence of p, each in [0, 1]; may be empty.

    Returns:
        Adjusted p-values: a dict with the same keys in the same order, or a list in the same order.

    Raises:
        TypeError, ValueError: a p-value is no number in [0, 1].
    """
    p = _check_values("p_values", p_values)
    outside = p[(p < 0) | (p > 1)]
    if len(outside):
        raise ValueError(f"`p_values` must lie in [0, 1]; found {outside[0]}.")
    adjusted = ttests.holm(p).tolist()
    return dict(zip(p_values, adjusted, strict=True)) if isinstance(p_values, Mapping) else adjusted


def paired_power(effect: float, sd: float, n: int, alpha: float = 0.05, side: str = "two-sided") -> float:
    r"""Probability that a paired t test finds a true mean difference.

    .. math:: P(T' > t_{1-\alpha,\,n-1}), \quad T' \sim t_{n-1}(\delta), \; \delta = \text{effect} \sqrt n / \text{sd}

    Args:
        effect: true mean of the differences.
        sd: standard deviation of the *differences* (not of the runs), >= 0.
        n: pairs, >= 2.
        alpha: level of the test, in (0, 1).
        side: "two-sided" (alpha / 2 at each end), "greater" or "less".

    Returns:
        Power in [0, 1]; alpha where effect is 0 and sd is not. Raises TypeError or ValueError for bad arguments.
    """
    effect, sd, n, alpha = _check_design(effect, sd, n, alpha, side)
    if side == "less":
        effect, side = -effect, "greater"
    if side == "two-sided":
        effect, alpha = abs(effect), alpha / 2
    if sd == 0:  # the test rejects exactly where the difference has the tested sign
        return float(effect > 0)
    shift, critical = effect * math.sqrt(n) / sd, _scipy.t.isf(alpha, n - 1)
    power = _upper_tail(critical, n - 1, shift)
    if side == "two-sided":
        power += _upper_tail(critical, n - 1, -shift)
    return float(min(1.0, max(0.0, power)))


def detectable_effect(sd: float, n: int, alpha: float = 0.05, power: float = 0.8, side: str = "two-sided") -> float:
    r"""Smallest true mean difference that a paired t test finds with the given power.

    Solves :func:`paired_power` (effect) = power for effect > 0, numerically, on the noncentral t distribution.

    Args:
        sd: standard deviation of the differences, >= 0.
        n: pairs, >= 2.
        alpha: level of the test, in (0, 1).
        power: wanted probability of finding it, in (alpha, 1).
        side: "two-sided", "greater" or "less".

    Returns:
        The size of the effect, >= 0, in the unit of ``sd`` ("less" finds its negative); 0.0 if sd is 0.

    Raises:
        TypeError, ValueError: an argument is out of its range; power <= alpha (any effect would do).
    """
    _, sd, n, alpha = _check_design(0.0, sd, n, alpha, side)
    power = _check_share("power", power)
    if power <= alpha:
        raise ValueError(f"`power` must be above `alpha` = {alpha}, got {power}: the level alone reaches that.")
    if sd == 0:
        return 0.0
    side = "greater" if side == "less" else side
    high = 1.0
    while paired_power(high, 1.0, n, alpha, side) < power:
        high *= 2
    return sd * optimize.brentq(lambda effect: paired_power(effect, 1.0, n, alpha, side) - power, 0.0, high, xtol=1e-10)


# -- arithmetic ------------------------------------------------------------------------------------------------------


def _largest(x):
    return float(np.abs(x).max(initial=0.0))


def _sd(x, scale):
    return float(ttests.moments(x, scale)[1])


def _interval(mean, sd, n, confidence):
    confidence = _check_share("confidence", confidence)
    half = float(_scipy.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return mean - half, mean + half


def _differences(a, b, name):
    """({seed: a - b} over common seeds in the order of a, keys of one side only, largest magnitude that entered)."""
    a, b = _check_seeds("a", a), _check_seeds("b", b)
    values_a, values_b = _check_values("a", a), _check_values("b", b)
    common = [seed for seed in a if seed in b]
    if len(common) < 2:
        raise ValueError(
            f"`a` and `b` must share at least 2 seeds to be paired ({name}); they share {common or 'none'}: "
            f"`a` has {list(a) or 'none'}, `b` has {list(b) or 'none'}. Run the missing seeds."
        )
    left_out = tuple(seed for seed in [*a, *b] if (seed in a) != (seed in b))
    scale = max(_largest(values_a), _largest(values_b))
    return {seed: float(a[seed]) - float(b[seed]) for seed in common}, left_out, scale


def _test(difference, confidence, null, scale, left_out):
    x = np.array([float(v) for v in difference.values()])
    null = _check_number("null", null)
    n, mean, sd = len(x), float(x.mean()), _sd(x, scale)
    low, high = _interval(mean, sd, n, confidence)
    both, greater, less = (float(p(x, null, scale)) for p in (ttests.two_sided, ttests.greater, ttests.less))
    return Paired(
        mean=mean, sd=sd, n=n, df=n - 1, low=low, high=high, confidence=float(confidence), null=null, p=both,
        p_greater=greater, p_less=less, seeds=tuple(difference), left_out=left_out,
    )  # fmt: skip


def _upper_tail(critical, df, shift):
    """P(T > critical) for T = (Z + shift) / sqrt(X / df), Z normal, X chi-squared: the noncentral t distribution.

    Integrated over Z. scipy's own ``nct`` gives NaN or does not converge in places, as of version 1.17.
    """
    if critical < 0:
        return 1 - _upper_tail(-critical, df, -shift)
    if critical == 0:
        return float(_special.ndtr(shift))

    def density(z):  # of Z, times P(X / df < ((z + shift) / critical) ** 2)
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi) * _special.chdtr(df, df * ((z + shift) / critical) ** 2)

    start, turn, end = max(-shift, -10.0), critical - shift, 10.0  # at `turn` the second factor goes from 0 to 1
    cuts = sorted({start, *(z for z in (turn - 0.5, turn, turn + 0.5, 0.0) if start < z < end), end})
    return sum(integrate.quad(density, a, b, limit=200)[0] for a, b in itertools.pairwise(cuts)) if start < end else 0.0


# -- validation ------------------------------------------------------------------------------------------------------


def _check_number(name, value):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"`{name}` must be a number, got {value!r} ({type(value).__name__}).")
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}; leave out what was not measured.")
    return float(value)


def _check_values(name, values, least=0):
    if isinstance(values, Mapping):
        x = np.array([_check_number(f"{name}[{key!r}]", v) for key, v in values.items()])
    elif isinstance(values, (Sequence, np.ndarray)) and not isinstance(values, (str, bytes)):
        x = np.array([_check_number(f"{name}[{i}]", v) for i, v in enumerate(values)])
    else:
        raise TypeError(f"`{name}` must be a dict or a sequence of numbers, got {type(values).__name__}.")
    if len(x) < least:
        raise ValueError(f"`{name}` must hold at least {least} values, got {len(x)}: run more seeds.")
    return x.astype(np.float64)


def _check_seeds(name, values):
    if not isinstance(values, Mapping):
        raise TypeError(f"`{name}` must map seeds to values, {{seed: value}}; got {type(values).__name__}.")
    texts = {str(seed): v for seed, v in values.items()}
    if len(texts) != len(values):
        raise ValueError(f"`{name}` must name each seed once; got {list(values)} (3 and '3' are the same seed).")
    return texts


def _check_share(name, value, end=1.0):
    if not 0 < _check_number(name, value) < end:
        raise ValueError(f"`{name}` must lie in (0, {end:g}), got {value}; 95 percent is 0.95.")
    return float(value)


def _check_side(side):
    if side not in _SIDES:
        raise ValueError(f"`side` must be one of {', '.join(_SIDES)}; got {side!r}.")


def _check_design(effect, sd, n, alpha, side):
    effect, sd = _check_number("effect", effect), _check_number("sd", sd)
    if sd < 0:
        raise ValueError(f"`sd` must be >= 0, got {sd}.")
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 2:
        raise ValueError(f"`n` must be a whole number of pairs, at least 2; got {n!r}.")
    _check_side(side)
    return effect, sd, int(n), _check_share("alpha", alpha)
