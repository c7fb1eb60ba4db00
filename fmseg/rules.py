"""The decision rules of claims: which question a rule asks of the pairs, its p-value, and the word that it earns.

All of it works on whole arrays, so that :mod:`fmseg.verdicts` judges one table by the very functions that
:mod:`fmseg.characteristics` tries on thousands of simulated ones.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy import ndarray

from fmseg import ttests

LEAST_PAIRS = 5  # a claim on fewer seed pairs is not judged
OFF_ZERO, WITHIN, BEYOND = range(3)  # the questions
WORDS = ("inconclusive", "supported", "contradicted", "not tested")
INCONCLUSIVE, SUPPORTED, CONTRADICTED, NOT_TESTED = range(len(WORDS))


def limit(rule: Mapping) -> float:
    """What matters: the margin of an equivalence rule, the smallest effect of interest of any other."""
    return float(rule["margin"] if rule["test"] == "equivalence" else rule["minimal_effect"])


def ask(rule: Mapping, differences: ndarray) -> tuple[ndarray, ndarray]:
    """The question to which each mean leans, and its p-value; see :func:`fmseg.verdicts.judge`.

    Args:
        rule: of a claim, as :func:`fmseg.claims.load` returns it.
        differences: (..., n) the estimand's value for each seed, n >= 2.

    Returns:
        (...) int: OFF_ZERO, WITHIN or BEYOND; (...) float: p, not adjusted.
    """
    x, margin = np.asarray(differences, dtype=np.float64), limit(rule)
    inside = np.abs(x.mean(-1)) < margin
    if rule["test"] == "equivalence":
        p = np.where(inside, ttests.within(x, margin), ttests.beyond(x, margin))
        return np.where(inside, WITHIN, BEYOND), p
    off = ttests.two_sided(x)
    if rule["side"] == "two-sided" and margin > 0:
        return np.where(inside, WITHIN, OFF_ZERO), np.where(inside, ttests.within(x, margin), off)
    return np.full(off.shape, OFF_ZERO), off


def decide(rule: Mapping, mean: ndarray, p: ndarray) -> ndarray:
    """The word that a mean and its adjusted p-value earn.

    Args:
        mean: (...) of the differences. p: (...) of the question that :func:`ask` chose, adjusted.

    Returns:
        (...) int: INCONCLUSIVE, SUPPORTED or CONTRADICTED.
    """
    mean, margin = np.asarray(mean, dtype=np.float64), limit(rule)
    inside = np.abs(mean) < margin
    if rule["test"] == "equivalence":
        word = np.where(inside, SUPPORTED, CONTRADICTED)
    elif rule["side"] == "two-sided":
        word = np.where(inside, CONTRADICTED, SUPPORTED)
    else:
        towards = mean if rule["side"] == "greater" else -mean
        word = np.where(towards < 0, CONTRADICTED, np.where(towards < margin, INCONCLUSIVE, SUPPORTED))
    return np.where(np.asarray(p) < rule["alpha"], word, INCONCLUSIVE)


def judge_table(rules: Sequence[Mapping], differences: Sequence[ndarray]) -> ndarray:
    """The words of one table's claims, judged together.

    Args:
        rules: of the m claims.
        differences: m arrays (..., n), of n pairs each; n may differ from claim to claim.

    Returns:
        (..., m) int; NOT_TESTED where n < LEAST_PAIRS, and such claims do not count among those adjusted together.

    Raises:
        ValueError: not as many rules as arrays.
    """
    if len(rules) != len(differences) or not rules:
        raise ValueError(f"`differences` must hold an array a rule; got {len(differences)} for {len(rules)} rules")
    xs = [np.asarray(x, dtype=np.float64) for x in differences]
    words = np.full((*xs[0].shape[:-1], len(rules)), NOT_TESTED)
    judged = [k for k, x in enumerate(xs) if x.shape[-1] >= LEAST_PAIRS]
    if judged:
        adjusted = ttests.holm(np.stack([ask(rules[k], xs[k])[1] for k in judged], -1))
        for place, k in enumerate(judged):
            words[..., k] = decide(rules[k], xs[k].mean(-1), adjusted[..., place])
    return words
