"""How often does the judge err? Its own functions, tried on simulated tables whose truth is known.

A simulated table has the claims of a real one: their formulas over cells, rules and number of seeds. Claims that share
a row share its noise. What is asked of the judge: a false decisive word somewhere in at most alpha of the tables, and
the power that :mod:`fmseg.power` predicts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from fmseg import estimand, power, rules
from fmseg.claims import testable

TABLES = 20_000  # simulated
SIGMAS = 4.0  # a share that lies this many standard errors off what was promised is no accident
_ALIKE = 0.5  # correlation of the cells of one row: columns of one run
Judge = Callable[[Sequence[Mapping], Sequence[ndarray]], ndarray]


@dataclass(frozen=True)
class Design:
    """A table's claims as the judge meets them.

    Attributes:
        table: its id. ids: of the claims. rules: theirs, as long.
        pairs: seeds of every claim.
        cells: (table, row, column) of all formulas, each once.
        mix: (claims, cells) float: how the formulas weigh the cells.
    """

    table: str
    ids: tuple[str, ...]
    rules: tuple[Mapping, ...]
    pairs: int
    cells: tuple[tuple[str, str, str], ...]
    mix: ndarray


def designs(listed: Iterable[Mapping], pairs: int = rules.LEAST_PAIRS) -> list[Design]:
    """The families of claims that are judged together, by table.

    Args:
        listed: claims as :func:`fmseg.claims.load` returns.
        pairs: seeds.

    Raises:
        ValueError: an estimand that is no sum of weighted cells; this simulation does not know what its noise is.
    """
    families: dict[str, list[tuple[Mapping, estimand.Estimand]]] = {}
    for claim in testable(listed):
        formula = estimand.parse(claim["estimand"])
        families.setdefault(formula.tables[0], []).append((claim, formula))
    made = []
    for table, family in families.items():
        cells = tuple(dict.fromkeys(cell for _, formula in family for cell in formula.cells))
        mix = np.stack([_weights(formula, cells) for _, formula in family])
        found = [claim for claim, _ in family]
        made.append(Design(table, tuple(c["id"] for c in found), tuple(c["rule"] for c in found), pairs, cells, mix))
    return made


def independent(rules_: Sequence[Mapping], pairs: int = rules.LEAST_PAIRS) -> Design:
    """Claims that share no row: a design of given rules."""
    cells = tuple(("t", f"{side}{k}", "x") for k in range(len(rules_)) for side in "ab")
    mix = np.kron(np.eye(len(rules_)), [1.0, -1.0])
    return Design("t", tuple(f"t.{k}" for k in range(len(rules_))), tuple(rules_), pairs, cells, mix)


# -- noise -----------------------------------------------------------------------------------------------------------


def _normal(rng, shape):
    return rng.standard_normal(shape)


def _heavy(rng, shape):
    return rng.standard_t(3, shape) / np.sqrt(3.0)


def _skewed(rng, shape):
    return (rng.standard_gamma(4.0, shape) - 4.0) / 2.0  # skewness 1


def _very_skewed(rng, shape):
    return rng.standard_exponential(shape) - 1.0  # skewness 2


def _unequal(rng, shape):
    spread = np.linspace(0.25, 1.75, shape[-1])  # seed by seed
    return rng.standard_normal(shape) * spread / np.sqrt(np.mean(spread**2))


NOISES = {"normal": _normal, "unequal variances": _unequal, "heavy tails": _heavy, "skewed": _skewed,
          "very skewed": _very_skewed}  # fmt: skip


def draw(design: Design, spread: float, rng: np.random.Generator, tables: int = TABLES, noise: str = "normal"):
    """Differences without any effect.

    Args:
        spread: standard deviation of a claim's value from seed to seed, in points.
        noise: a key of :data:`NOISES`. Normal noise is that of the cells, so that claims with a common row move
            together; the others are the differences' own ("heavy tails": Student's t with 3 degrees of freedom,
            "skewed": gamma with skewness 1, "very skewed": exponential, with skewness 2, "unequal variances": the last
            seed's spread is seven times the first's), because a difference of two alike skewed cells is symmetric.

    Returns:
        (claims, tables, pairs) float64.

    Raises:
        ValueError: no such noise, or a spread that is not > 0.
    """
    if noise not in NOISES:
        raise ValueError(f"`noise` must be one of {', '.join(NOISES)}; got {noise!r}")
    if not spread > 0:
        raise ValueError(f"`spread` must be > 0 points, got {spread}")
    shape = (tables, design.pairs)
    if noise != "normal":
        return spread * NOISES[noise](rng, (len(design.rules), *shape))
    rows = {row: k for k, row in enumerate(dict.fromkeys(cell[:2] for cell in design.cells))}
    common, own = rng.standard_normal((len(rows), *shape)), rng.standard_normal((len(design.cells), *shape))
    own *= np.sqrt(1 - _ALIKE)
    own += np.sqrt(_ALIKE) * common[[rows[cell[:2]] for cell in design.cells]]
    values = np.tensordot(design.mix, own, 1)
    return values * (spread / values.std(axis=(1, 2), keepdims=True))


# -- what the judge says ---------------------------------------------------------------------------------------------


def false_word(rule: Mapping, effect: float) -> set[int]:
    """The decisive words that a true effect makes false: codes of :mod:`fmseg.rules`.

    Where there is no difference at all, both words about its direction are false. "Level" means less than the margin;
    so at the margin "supported" is the false word.
    """
    size = rules.limit(rule)
    if rule["test"] == "equivalence":
        return {rules.SUPPORTED} if abs(effect) >= size else {rules.CONTRADICTED}
    if rule["side"] == "two-sided":
        wrong = {rules.SUPPORTED} if effect == 0 else set()
        return wrong | ({rules.CONTRADICTED} if abs(effect) >= size else set())
    towards = -effect if rule["side"] == "less" else effect
    return {rules.SUPPORTED, rules.CONTRADICTED} if towards == 0 else (
        {rules.CONTRADICTED} if towards > 0 else {rules.SUPPORTED}
    )  # fmt: skip


def words(design: Design, effects, differences: ndarray, judge: Judge = rules.judge_table) -> ndarray:
    """(tables, claims) int: what the judge says of each simulated claim.

    Args:
        effects: (claims,) true effects in points. differences: of :func:`draw`.
        judge: the judge on trial.
    """
    effects = np.broadcast_to(np.asarray(effects, dtype=np.float64), len(design.rules))
    return judge(design.rules, list(differences + effects[:, None, None]))


def false_tables(design: Design, effects, said: ndarray) -> float:
    """Share of tables in which some claim got a false word.

    Args:
        effects: as in :func:`words`, which gave ``said``.
    """
    effects = np.broadcast_to(np.asarray(effects, dtype=np.float64), len(design.rules))
    wrong = np.zeros(said.shape[:-1], dtype=bool)
    for k, (rule, effect) in enumerate(zip(design.rules, effects, strict=True)):
        wrong |= np.isin(said[..., k], list(false_word(rule, float(effect))))
    return float(wrong.mean())


def margins(design: Design, outside: bool) -> ndarray:
    """(claims,) the hardest truths for claims of equivalence, hardly outside or inside the margin; 0 for the others."""
    step = 1e-9 if outside else -1e-9
    return np.array([rules.limit(r) * (1 + step) if r["test"] == "equivalence" else 0.0 for r in design.rules])


def truths(design: Design) -> dict[str, ndarray]:
    """{words: (claims,) effects} that leave few words true: no effect at all, and equivalences at their margins."""
    found = {"no effect": np.zeros(len(design.rules))}
    if any(rule["test"] == "equivalence" for rule in design.rules):
        found |= {"at the margin": margins(design, True), "just inside the margin": margins(design, False)}
    return found


def trial(
    design: Design, spreads: Sequence[float], noises: Iterable[str] = ("normal",), tables: int = TABLES, seed: int = 0,
    judge: Judge = rules.judge_table,
) -> list[dict]:  # fmt: skip
    """False words, for every truth of :func:`truths`, spread and noise.

    Returns:
        Rows: {"table", "claims", "pairs", "noise", "spread", "truth", "false" (share of tables), "alpha", "tables"}.
    """
    rows, level = [], max(rule["alpha"] for rule in design.rules)
    head = {"table": design.table, "claims": len(design.rules), "pairs": design.pairs}
    for noise in noises:
        rng = np.random.default_rng([seed, *noise.encode()])
        unit = draw(design, 1.0, rng, tables, noise)
        for spread in spreads:
            for truth, effects in truths(design).items():
                said = words(design, effects, spread * unit, judge)
                row = {"noise": noise, "spread": spread, "truth": truth, "false": false_tables(design, effects, said)}
                rows.append(head | row | {"alpha": level, "tables": tables})
    return rows


def broken(rows: Iterable[Mapping]) -> list[str]:
    """In words, the rows of :func:`trial` whose share is above the level by more than chance explains."""
    return [
        f"{row['table']}, {row['claims']} claims, {row['pairs']} pairs, {row['noise']} noise of {row['spread']:g} "
        f"points, {row['truth']}: a false word in {row['false']:.4f} of the tables, promised {row['alpha']:g}"
        for row in rows
        if row["false"] > row["alpha"] + SIGMAS * np.sqrt(row["alpha"] * (1 - row["alpha"]) / row["tables"])
    ]


def course(
    rule: Mapping, effects: Sequence[float], spread: float, pairs: int = rules.LEAST_PAIRS, family: int = 1,
    noise: str = "normal", tables: int = TABLES, seed: int = 0, judge: Judge = rules.judge_table,
) -> list[dict]:  # fmt: skip
    """Shares of the words of a claim over its true effect; the other claims of its family are the same, without effect.

    Args:
        effects: in points. spread: of the pairs, in points. family: claims judged together.

    Returns:
        A row an effect: {"effect", "in spreads", "supported", "contradicted", "inconclusive", "predicted" (of
        "supported", at the level of a single claim in this family's first step)}.
    """
    design = independent([rule] * family, pairs)
    unit = draw(design, spread, np.random.default_rng(seed), tables, noise)
    rows = []
    for effect in effects:
        said = words(design, [effect, *[0.0] * (family - 1)], unit, judge)[..., 0]
        shares = {rules.WORDS[code]: float((said == code).mean()) for code in (1, 2, 0)}
        predicted = power.supported(rule, effect, spread, pairs, rule["alpha"] / family)
        rows.append({"effect": effect, "in spreads": effect / spread, **shares, "predicted": predicted})
    return rows


def _weights(formula: estimand.Estimand, cells: Sequence[tuple[str, str, str]]) -> ndarray:
    """(cells,) the formula's derivative; ValueError where it is not the same everywhere."""
    own = np.eye(len(formula.cells) + 1)[:, : len(formula.cells)]  # unit vectors, then zero
    probe = np.concatenate([own, np.random.default_rng(0).standard_normal((1, len(formula.cells)))])
    found = estimand.evaluate_arrays(formula, dict(zip(formula.cells, probe.T, strict=True)))
    weights = found[:-2] - found[-2]
    if not np.isfinite(found).all() or abs(probe[-1] @ weights + found[-2] - found[-1]) > 1e-9:
        raise ValueError(f"estimand {formula.formula!r} is no weighted sum of cells: its noise is not known here")
    return np.array([weights[formula.cells.index(cell)] if cell in formula.cells else 0.0 for cell in cells])
