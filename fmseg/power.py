"""Power of the verdicts: how often a claim of a given true effect is supported, and the smallest that n pairs find.

Differences are taken as normal. Given the spread s that is seen, the mean is normal and independent of it, so each
probability is one integral over the chi distribution of s.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import optimize, special

from fmseg.rules import limit

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(120)  # each piece of the integrals is smooth: far beyond need


def supported(rule: Mapping, effect: float, sd: float, n: int, alpha: float | None = None) -> float:
    r"""Probability that a claim is supported.

    .. math:: P(\bar d \ge \delta, \; \bar d > t_{1-\alpha/2} s / \sqrt n) \quad\text{or}\quad
        P(|\bar d| < \Delta - t_{1-\alpha} s / \sqrt n)

    for a claim of a difference with smallest effect of interest delta, and one of equivalence with margin Delta.

    Args:
        rule: of the claim.
        effect: the true mean difference. sd: the true standard deviation of a pair's difference, > 0.
        n: pairs, >= 2.
        alpha: level of the test; the rule's if None. In a family of m claims the strictest level is alpha / m.

    Raises:
        ValueError: sd <= 0, n < 2, or alpha outside (0, 0.5].
    """
    alpha = _checked(sd, n, rule["alpha"] if alpha is None else alpha)
    effect, edge, root = effect / sd, limit(rule) / sd, math.sqrt(n)
    if rule["test"] == "equivalence":
        t = special.stdtrit(n - 1, 1 - alpha)
        return _over_spreads(lambda r: _between(edge - t * r / root, effect, root), n, edge, t, effect)
    t = special.stdtrit(n - 1, 1 - alpha / 2)

    def above(r, at):
        return special.ndtr((at - np.maximum(edge, t * r / root)) * root)

    towards = -effect if rule["side"] == "less" else effect
    found = _over_spreads(lambda r: above(r, towards), n, edge, t, effect)
    if rule["side"] == "two-sided":
        found += _over_spreads(lambda r: above(r, -towards), n, edge, t, effect)
    return found


def detectable(rule: Mapping, sd: float, n: int, alpha: float | None = None, power: float = 0.8) -> float:
    """What n pairs of this spread find with the given power: the smallest true effect at which a claim of a difference
    is supported; for equivalence the smallest margin within which a true effect of zero is placed.

    Args:
        rule, sd, n, alpha: as in :func:`supported`. sd may be 0: then the smallest effect of interest, or margin 0.
        power: in (alpha, 1).

    Returns:
        >= 0, in the unit of ``sd``; a claim of "less" finds its negative.

    Raises:
        ValueError: as :func:`supported`, or power out of its range.
    """
    level = rule["alpha"] if alpha is None else alpha
    if sd == 0:
        return 0.0 if rule["test"] == "equivalence" else limit(rule)
    _checked(sd, n, level)
    if not level < power < 1:
        raise ValueError(f"`power` must lie between `alpha` = {level} and 1, got {power}")

    def short(size: float) -> float:
        if rule["test"] == "equivalence":
            return supported({**rule, "margin": size}, 0.0, sd, n, level) - power
        return supported(rule, -size if rule["side"] == "less" else size, sd, n, level) - power

    low, high = 0.0, sd
    while short(high) < 0:
        low, high = high, 2 * high
    return float(optimize.brentq(short, low, high, xtol=1e-10 * sd))


def _between(room, effect, root):
    """P(|mean| < room), 0 where there is none."""
    return np.where(room > 0, special.ndtr((room - effect) * root) - special.ndtr((-room - effect) * root), 0.0)


def _over_spreads(chance, n: int, edge: float, t: float, effect: float) -> float:
    """Mean of ``chance(s / sd)`` over the spreads that n pairs show.

    It has a kink where t s / sqrt n = edge, and with few pairs nothing is left of it long before the spreads end.
    """
    df, total = n - 1, 0.0
    end = math.sqrt(special.chdtri(df, 1e-14) / df)
    kink = min(max(edge * math.sqrt(n) / t, 0.0), end)
    last = min(max((abs(effect) * math.sqrt(n) + 10) / t, kink), end)
    for low, high in ((0.0, kink), (kink, last), (last, end)):
        r = low + (high - low) * (_NODES + 1) / 2
        r = np.maximum(r, 1e-300)
        log = math.log(2) + df / 2 * math.log(df / 2) - special.gammaln(df / 2) + (df - 1) * np.log(r) - df * r * r / 2
        total += (high - low) / 2 * float(np.sum(_WEIGHTS * np.exp(log) * chance(r)))
    return min(1.0, max(0.0, total))


def _checked(sd, n, alpha):
    if not sd > 0 or not math.isfinite(sd):
        raise ValueError(f"`sd` must be a number > 0, got {sd}")
    if isinstance(n, bool) or int(n) != n or n < 2:
        raise ValueError(f"`n` must be a whole number of pairs, at least 2; got {n!r}")
    if not 0 < alpha <= 0.5:
        raise ValueError(f"`alpha` must lie in (0, 0.5], got {alpha}")
    return float(alpha)
