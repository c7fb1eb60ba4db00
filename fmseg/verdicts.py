"""Verdicts: claims judged on tables, in four words: supported, contradicted, inconclusive, not tested (why)."""

from collections.abc import Iterable, Mapping

from fmseg import estimand as _estimand
from fmseg import power, rules
from fmseg.claims import rule_hash, validate
from fmseg.rules import LEAST_PAIRS
from fmseg.stats import contrast, holm

POWER = 0.8  # of the detectable effect that is shown


def judge(
    claims: Iterable[Mapping], tables: Mapping[str, dict], hashes: Mapping[str, set] | None = None, scale: str = "mini"
) -> list[dict]:
    r"""A verdict for every claim.

    A claim asks one question of its estimand's values, the one to which their mean leans, and has one p-value:

    * paired_t, side greater or less: is the mean off zero? (two-sided paired t test)
      supported: p < alpha, the mean on the claimed side and at least ``minimal_effect`` from zero;
      contradicted: p < alpha and the mean on the other side.
    * paired_t, side two-sided: supported: p < alpha there, and the mean at least ``minimal_effect`` from zero. A
      smaller mean is asked whether the difference lies within +-minimal_effect (two one-sided tests);
      contradicted: p < alpha in that.
    * equivalence: a mean inside the margin: do two one-sided tests place it there? supported: p < alpha, that is, the
      1 - 2 alpha interval is wholly inside. A mean outside: is it beyond the margin, on either side? contradicted:
      p < alpha, that is, the 1 - alpha interval is wholly outside.

    p is Holm-adjusted over the judged claims of one table (that of the estimand's first cell). Everything else is
    inconclusive. For directional claims alpha thus bounds the chance of *either* decisive word where there is no
    effect: it is spent on both directions, and side "greater" at 0.05 needs a one-sided p below 0.025. The rules
    themselves are in :mod:`fmseg.rules`; :mod:`fmseg.characteristics` measures how often they err.

    Args:
        claims: as :func:`fmseg.claims.load` returns.
        tables: {id: table}, as :func:`fmseg.tables.read_all` returns.
        hashes: {claim id: rule hashes that the records stored when they were trained}, see
            :func:`fmseg.claims.stored_hashes`. Where the present hash is not among them the entry is flagged "rule set
            after the run"; where others are too, "rule set after some of the runs".
        scale: of the tables: "smoke" (nothing is judged), "mini" or "paper".

    Returns:
        One dict a claim: id, paper, where, says, paper_values, estimand, rule, scale, note; table; verdict, why, text
        (the verdict in words); mean, sd, low, high (t interval at ``confidence``: 1 - alpha, for equivalence
        1 - 2 alpha; not Holm-adjusted), n, df, seeds, left_out (seeds that not all cells have); question, p, p_holm,
        family (claims adjusted together); detectable (:func:`fmseg.power.detectable`: the true effect, or for
        equivalence the margin, with which n pairs of this sd earn the word "supported" with power 0.8 at the strictest
        level of the adjustment, alpha / family); rule_hash, flags; images_low, images_high, images_word, images_why
        (for :mod:`fmseg.second_look` to fill). What was not computed is None. Tables that are missing and cells that
        were not run make a claim "not tested"; so does an entry's own ``not_tested``, which has neither estimand nor
        rule.

    Raises:
        TypeError, ValueError: a claim names a row or column that its table lacks, or breaks the schema.
    """
    claims = list(claims)
    validate(claims)
    entries = [_measured(claim, tables, scale) for claim in claims]
    families = {}
    for entry in entries:
        if entry["p"] is not None:
            families.setdefault(entry["table"], {})[entry["id"]] = entry["p"]
    adjusted = {id: p for family in families.values() for id, p in holm(family).items()}
    for entry in entries:
        if entry["p"] is not None:
            entry["p_holm"], entry["family"] = adjusted[entry["id"]], len(families[entry["table"]])
            entry["verdict"], entry["why"] = _decide(entry["rule"], entry["mean"], entry["p_holm"])
            entry["detectable"] = _detectable(entry)
        if entry["n"]:
            entry["flags"] = _flags((hashes or {}).get(entry["id"], set()), entry["rule_hash"])
        entry["text"] = in_words(entry)
    return entries


def _measured(claim, tables, scale):
    """The claim's entry with everything but what depends on the other claims."""
    entry = {key: claim.get(key) for key in ("id", "paper", "where", "says", "paper_values", "estimand", "rule")}
    entry |= {"scale": claim.get("scale"), "note": claim.get("note"), "table": None, "verdict": "not tested"}
    entry |= dict.fromkeys(("why", "text", "mean", "sd", "low", "high", "confidence"))
    entry |= {"n": 0, "df": None, "seeds": [], "left_out": [], "question": None, "p": None, "p_holm": None}
    entry |= {"family": None, "detectable": None, "rule_hash": None, "flags": []}
    entry |= dict.fromkeys(("images_low", "images_high", "images_word", "images_why"))
    if "not_tested" in claim:
        return entry | {"why": claim["not_tested"].strip()}
    formula = _estimand.parse(claim["estimand"])
    entry |= {"table": formula.tables[0], "rule_hash": rule_hash(claim)}
    missing = [table for table in formula.tables if table not in tables]
    if missing:
        return entry | {"why": f"no table yet: {', '.join(missing)}"}
    try:
        cells = _estimand.find_cells(formula, tables)
        values = _estimand.evaluate(formula, tables)
    except ValueError as error:
        raise ValueError(f"claim {claim['id']}: {error}") from error
    entry |= {"n": len(values), "seeds": list(values)}
    entry["left_out"] = list(dict.fromkeys(seed for c in cells for seed in c["values"] if seed not in values))
    if len(values) > 1:
        entry |= _describe(claim["rule"], values)
    idle = [f"{' / '.join(at)} {c['status']}" for at, c in zip(formula.cells, cells, strict=True) if not c["n"]]
    if scale != claim["scale"]:
        return entry | {"why": f"judged at scale {claim['scale']}; these are {scale} results"}
    if idle:
        return entry | {"why": "; ".join(idle)}
    if len(values) < LEAST_PAIRS:
        return entry | {"why": f"not judged (n = {len(values)})"}
    return entry | _test(claim["rule"], values)


def _describe(rule, values):
    confidence = 1 - (2 if rule["test"] == "equivalence" else 1) * rule["alpha"]
    found = contrast(values, confidence)
    return {key: getattr(found, key) for key in ("mean", "sd", "low", "high", "confidence", "df")}


def _test(rule, values):
    """{"question", "p"} of the question to which the mean leans; see :func:`judge`."""
    question, p = rules.ask(rule, list(values.values()))
    asked = {rules.OFF_ZERO: "off zero", rules.WITHIN: "within ±{:g}", rules.BEYOND: "beyond ±{:g}"}
    return {"question": asked[int(question)].format(rules.limit(rule)), "p": float(p)}


def _decide(rule, mean, p):
    """(verdict, why) of a claim that was tested."""
    word = rules.WORDS[int(rules.decide(rule, mean, p))]
    if word != "inconclusive":
        return word, None
    if p >= rule["alpha"]:
        return word, "these pairs do not settle the question"
    return word, f"in the claimed direction, but smaller than {rules.limit(rule):g}"


def _detectable(entry):
    return power.detectable(entry["rule"], entry["sd"], entry["n"], entry["rule"]["alpha"] / entry["family"], POWER)


def _flags(stored, present):
    if present not in stored:
        return ["rule set after the run"]
    return ["rule set after some of the runs"] if set(stored) != {present} else []


def in_words(entry: Mapping) -> str:
    """An entry's verdict in words, with its flags; the scale where it is miniature, the reason where there is none."""
    if entry["verdict"] == "not tested":
        return entry["why"] if entry["why"].startswith("not judged") else f"not tested ({entry['why']})"
    scale = " in miniature" if entry["scale"] == "mini" else ""
    return f"{entry['verdict']}{scale}" + "".join(f" ({flag})" for flag in entry["flags"])
