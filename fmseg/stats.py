"""Small-sample statistics of paired seeds by name: mean and sd, t intervals, paired tests, Holm.

Tests on whole arrays, equivalence among them, are in :mod:`fmseg.ttests`; power is in :mod:`fmseg.power`.

Results keep the unit of the values (tables: points of mIoU). Values are finite floats; a difference that is zero up
to rounding counts as zero, so identical runs give definite p-values and never NaN.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
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
