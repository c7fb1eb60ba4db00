"""Paired t tests and Holm's adjustment on whole arrays: of one table, or of thousands of simulated ones.

:mod:`fmseg.stats` says the same of one set of named seeds, with checks; both count what is zero up to rounding as zero.
"""

import math

import numpy as np
from numpy import ndarray
from scipy import special

ROUNDING = 16 * np.finfo(np.float64).eps  # relative to the largest value that entered a difference


def moments(differences: ndarray, scale=None) -> tuple[ndarray, ndarray]:
    """Mean and standard deviation (n - 1) over the last axis; a spread that is rounding alone is 0.

    Args:
        differences: (..., n) float, n >= 2.
        scale: the largest magnitude that entered a difference, (...) or a number; of the differences if None.

    Returns:
        Two arrays (...).
    """
    x = _checked(differences)
    sd = x.std(-1, ddof=1)
    return x.mean(-1), np.where(sd > ROUNDING * _scale(x, scale), sd, 0.0)


def two_sided(differences: ndarray, null: float = 0.0, scale=None) -> ndarray:
    r"""p-values (...) of the paired t test of "the mean is not ``null``", :math:`t = (\bar d - \mu_0) \sqrt n / s`.

    Where all differences are equal, p is 0 if they lie off ``null`` in the tested direction, else 1.
    ``differences`` and ``scale`` as in :func:`moments`; so for all tests below.
    """
    t = _statistic(differences, null, scale)
    return np.where(t == 0, 1.0, 2 * special.stdtr(np.shape(differences)[-1] - 1, -np.abs(t)))


def greater(differences: ndarray, null: float = 0.0, scale=None) -> ndarray:
    """p-values (...) of "the mean lies above ``null``"."""
    t, n = _statistic(differences, null, scale), np.shape(differences)[-1]
    return np.where(_at(differences, t, scale), 1.0, special.stdtr(n - 1, -t))


def less(differences: ndarray, null: float = 0.0, scale=None) -> ndarray:
    """p-values (...) of "the mean lies below ``null``"."""
    t, n = _statistic(differences, null, scale), np.shape(differences)[-1]
    return np.where(_at(differences, t, scale), 1.0, special.stdtr(n - 1, t))


def within(differences: ndarray, margin: float, scale=None) -> ndarray:
    """p-values (...) of "the mean lies within +-margin": two one-sided tests, the larger one (Schuirmann 1987)."""
    return np.maximum(greater(differences, -margin, scale), less(differences, margin, scale))


def beyond(differences: ndarray, margin: float, scale=None) -> ndarray:
    """p-values (...) of "the mean lies beyond +-margin", on either side: twice the smaller one-sided one.

    Twice, because the data choose the side: with a margin that is small beside the spread, the smaller of the two alone
    would call a difference of zero "beyond" up to twice as often as its level says.
    """
    above, below = greater(differences, margin, scale), less(differences, -margin, scale)
    return np.minimum(1.0, 2 * np.minimum(above, below))


def holm(p: ndarray) -> ndarray:
    r"""Holm's step-down adjustment over the last axis (Holm 1979).

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min(1, (m - j + 1)\, p_{(j)})

    Args:
        p: (..., m) in [0, 1]; m may be 0.

    Returns:
        (..., m) adjusted p-values in the order of ``p``.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=-1, kind="stable")
    factors = np.arange(p.shape[-1], 0, -1)
    stepped = np.maximum.accumulate(np.minimum(1.0, factors * np.take_along_axis(p, order, -1)), axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, stepped, -1)
    return adjusted


def _statistic(differences, null, scale):
    """(...) t; 0 where the mean is at ``null`` up to rounding; else infinite where all differences are equal."""
    x = _checked(differences)
    mean, sd = moments(x, scale)
    shift = mean - null
    shift = np.where(np.abs(shift) <= ROUNDING * np.maximum(_scale(x, scale), abs(null)), 0.0, shift)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(shift == 0, 0.0, shift * math.sqrt(x.shape[-1]) / sd)


def _at(differences, t, scale):
    """(...) bool: all differences are equal, and to the null."""
    return (t == 0) & (moments(differences, scale)[1] == 0)


def _scale(x, scale):
    return np.abs(x).max(-1) if scale is None else np.asarray(scale, dtype=np.float64)


def _checked(differences):
    x = np.asarray(differences, dtype=np.float64)
    if x.ndim < 1 or x.shape[-1] < 2:
        raise ValueError(f"`differences` must be (..., n) with n >= 2 pairs, got {x.shape}: run more seeds")
    return x
