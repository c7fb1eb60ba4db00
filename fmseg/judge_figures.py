"""What notebook 99 shows of the judge: shares of its words over the true effect, and where it errs, as a table."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from fmseg import characteristics, plots, rules
from fmseg.claims import testable
from fmseg.estimand import parse

COLOURS = {"supported": plots.OKABE_ITO[2], "contradicted": plots.OKABE_ITO[3], "inconclusive": "0.6"}
STANDS = 2.0  # of an equivalence's margin, in spreads; a claim of a difference has its smallest effect at one spread
Rows = list[dict[str, Any]]


def usual(listed: Iterable[Mapping], test: str) -> Mapping:
    """The rule of that test that most claims have."""
    found = [tuple(c["rule"].items()) for c in testable(listed) if c["rule"]["test"] == test]
    if not found:
        raise ValueError(f"`listed` must hold a claim whose rule has the test {test!r}; it has none")
    return dict(Counter(found).most_common(1)[0][0])


def verdict_shares(listed: Sequence[Mapping], pairs: int, tables: int = 4000) -> tuple[Any, Rows]:
    """Shares of the words over the true effect in units of the spread: a claim alone, the same among as many others as
    the largest table has, and a claim of equality.

    Args:
        listed: claims; their most frequent rules are shown. pairs: seeds. tables: simulated for each point.

    Returns:
        (figure, rows of its csv).
    """
    differs, level = usual(listed, "paired_t"), usual(listed, "equivalence")
    largest = max(len(d.rules) for d in characteristics.designs(listed, pairs))
    panels = {
        "A above B, alone": (differs, 1),
        f"A above B, one of {largest} claims": (differs, largest),
        "A and B level, alone": (level, 1),
    }
    figure, rows = plots.new(10, 3.4)[0], []
    figure.clear()
    for axis, (words, (rule, family)) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        margin = STANDS if rule["test"] == "equivalence" else 1.0
        spread = rules.limit(rule) / margin
        found = characteristics.course(rule, spread * np.linspace(-4, 4, 33), spread, pairs, family, tables=tables)
        rows += [{"panel": words} | {k: round(float(v), 4) for k, v in row.items()} for row in found]
        x = [row["in spreads"] for row in found]
        for word, colour in COLOURS.items():
            axis.plot(x, [row[word] for row in found], "-", color=colour, label=word)
        axis.plot(x, [row["predicted"] for row in found], ":", color="black", label="supported, as predicted")
        axis.axhline(rule["alpha"], color="0.85", lw=0.8, zorder=0)
        for at in {margin, -margin} if rule["test"] == "equivalence" else {0.0, margin}:
            axis.axvline(at, color="0.85", lw=0.8, zorder=0)
        axis.set(xlabel="true effect, in spreads of a pair", title=words)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set(ylabel="share of simulated tables", ylim=(-0.02, 1.02))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure, rows


def errors(listed: Sequence[Mapping], pairs: int, spread: float = 2.0, tables: int = 10_000) -> str:
    """Markdown: for each kind of noise and truth, in how large a share of simulated tables a claim got a false word;
    over all families of claims the mean share and the largest.

    Args:
        listed: claims. pairs: seeds. spread: of the pairs, in points. tables: simulated for each family.
    """
    found: dict[str, dict[str, list[float]]] = {noise: {} for noise in characteristics.NOISES}
    for design in characteristics.designs(listed, pairs):
        for row in characteristics.trial(design, (spread,), characteristics.NOISES, tables):
            found[row["noise"]].setdefault(row["truth"], []).append(row["false"])
    truths = list(found["normal"])
    lines = ["| differences between seeds | " + " | ".join(truths) + " |", "|---" * (len(truths) + 1) + "|"]
    for noise, shares in found.items():
        cells = [f"{np.mean(shares[t]):.3f}, at most {max(shares[t]):.3f}" for t in truths]
        lines.append(f"| {noise} | " + " | ".join(cells) + " |")
    promised = max(c["rule"]["alpha"] for c in testable(listed))
    error = np.sqrt(promised * (1 - promised) / tables)
    lines += ["", f"Promised: at most {promised:g}. A share comes out of {tables} tables, give or take {error:.3f}."]
    return "\n".join(lines)


def skewness(listed: Iterable[Mapping], tables: Mapping[str, dict], pairs: int, drawn: int = 20_000) -> str:
    """In words: how skewed differences of two rows are, in all tables that claims read, beside simulated noises.

    The mean size of the sample skewness, which is not zero for normal differences either; rows and columns share
    runs, so that this is a hint and no test.

    Args:
        listed: claims. tables: {id: table}. pairs: seeds; cells with another number are passed over.
        drawn: simulated samples of each noise.
    """
    read = {table for claim in testable(listed) for table in parse(claim["estimand"]).tables} & set(tables)
    sizes = []
    for table in (tables[id] for id in sorted(read)):
        for column in table["columns"]:
            there = [row["cells"][column]["values"] for row in table["rows"] if column in row["cells"]]
            for one, other in combinations([v for v in there if len(v) == pairs], 2):
                difference = np.array([one[seed] - other[seed] for seed in one if seed in other])
                if len(difference) == pairs and np.ptp(difference) > 0:
                    sizes.append(_skew(difference))
    rng = np.random.default_rng(0)
    noises = {name: _skew(noise(rng, (drawn, pairs))).mean() for name, noise in characteristics.NOISES.items()}
    measured = f"{np.mean(sizes):.2f} over {len(sizes)} pairs of rows" if sizes else "no pairs of rows"
    return f"mean size of the skewness: measured {measured}; simulated " + ", ".join(
        f"{name} {size:.2f}" for name, size in noises.items()
    )


def _skew(x: np.ndarray) -> np.ndarray:
    """(...) size of the skewness of (..., n) values, corrected for n."""
    from scipy.stats import skew

    return np.abs(skew(x, axis=-1, bias=False))


def second_looks(entries: Iterable[Mapping]) -> str:
    """In words: how many measured claims have a second look, and those whose verdict it does not bear out."""
    entries = [e for e in entries if e["mean"] is not None]
    looked = [e for e in entries if e["images_word"]]
    flagged = [e for e in looked if any(flag.startswith("over images") for flag in e["flags"])]
    lines = [f"{len(looked)} of {len(entries)} measured claims have a second look; {len(flagged)} are flagged."]
    lines += [f"{e['id']}: {e['text']}" for e in flagged]
    reasons = Counter(e["images_why"] for e in entries if e["images_why"])
    return "\n".join([*lines, *(f"{count} have none: {why}" for why, count in reasons.items())])
