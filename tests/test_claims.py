"""Claims: only whole ones are loaded, formulas run nothing, the hash sees the rule alone, verdicts follow the data."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from fmseg import claims, estimand, ledger, power, tables, verdicts

CLAIMS = Path(__file__).parents[1] / "claims.yaml"
PAIRED = {"test": "paired_t", "alpha": 0.05, "side": "greater", "minimal_effect": 1.0}
EQUAL = {"test": "equivalence", "alpha": 0.05, "margin": 2.0}
BASE = [41.0, 42.5, 40.2, 43.1, 41.7, 42.0, 40.9, 41.4]


def make(id="bf.1", formula="t[A, x] - t[B, x]", rule=PAIRED, **other):
    values = {"A": 64.0, "B": 61.0, "certainty": "STATED", "source": "paper"}
    claim = {"id": id, "paper": "P", "where": "Table 1", "says": "A above B", "paper_values": values}
    return claim | {"estimand": formula, "pairs": "seed", "rule": dict(rule), "scale": "mini"} | other


def table(id="t", **rows):
    cells = {label: {"x": v if isinstance(v, dict) else tables.cell(dict(enumerate(v)))} for label, v in rows.items()}
    return {id: tables.table(id, "T", "P", "%", ["x"], [tables.row(label, c) for label, c in cells.items()])}


def above(*differences):
    """A table whose row A lies the differences above row B."""
    return table(A=[b + d for b, d in zip(BASE, differences, strict=False)], B=BASE[: len(differences)])


def verdict(rule, data, **other):
    claim = make(rule=rule)
    return verdicts.judge([claim], data, {"bf.1": {claims.rule_hash(claim)}}, **other)[0]


# -- loading ---------------------------------------------------------------------------------------------------------


def test_the_claims_of_the_repository_load():
    found = claims.load(CLAIMS)
    assert [c["id"] for c in found[:3]] == ["freemask.real.1", "freemask.real.2", "freemask.real.3"]


def test_load_gives_back_what_the_file_says(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump([make(), make("bf.2", rule=EQUAL, note="hm")]))
    assert claims.load(tmp_path / "c.yaml") == [make(), make("bf.2", rule=EQUAL, note="hm")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("where"), "claim bf.1: missing key where"),
        (lambda c: c.update(verdict="supported"), "claim bf.1: unknown key verdict"),
        (lambda c: c.update(id="First claim"), "claim First claim: `id` must look like"),
        (lambda c: c.update(says=""), "claim bf.1: `says` must be a text"),
        (lambda c: c.update(pairs="image"), "claim bf.1: `pairs` must be 'seed'"),
        (lambda c: c.update(scale="smoke"), "claim bf.1: `scale` must be one of mini, paper"),
        (lambda c: c["paper_values"].pop("certainty"), "claim bf.1: `paper_values` lacks `certainty`"),
        (lambda c: c["paper_values"].update(certainty="sure"), "claim bf.1: .*`certainty` must be one of STATED"),
        (lambda c: c["paper_values"].update(A="64"), "claim bf.1: `paper_values`: `A` must be a number"),
        (lambda c: c["paper_values"].update(C={"value": 1}), "claim bf.1: `paper_values`, C: missing key certainty"),
        (lambda c: c.update(paper_values={"certainty": "SEED"}), "claim bf.1: `paper_values` holds no number"),
        (lambda c: c["rule"].update(test="wilcoxon"), "claim bf.1: `rule.test` must be one of paired_t, equivalence"),
        (lambda c: c["rule"].update(alpha=5), r"claim bf.1: `rule.alpha` must be a number in \(0, 0.5\), got 5"),
        (lambda c: c["rule"].update(side="above"), "claim bf.1: `rule.side` must be one of greater"),
        (lambda c: c["rule"].update(minimal_effect=-1), "claim bf.1: `rule.minimal_effect` must be a number >= 0"),
        (lambda c: c["rule"].pop("minimal_effect"), "claim bf.1: `rule`: missing key minimal_effect"),
        (lambda c: c["rule"].update(margin=2), "claim bf.1: `rule`: unknown key margin"),
        (lambda c: c.update(rule=EQUAL | {"margin": 0}), "claim bf.1: `rule.margin` must be a number > 0"),
        (lambda c: c.update(estimand="t[A, x] -"), "claim bf.1: `estimand` .* no formula"),
    ],
)
def test_broken_claims_are_refused_by_name_and_key(tmp_path, change, message):
    claim = make()
    change(claim)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump([claim]))
    with pytest.raises(ValueError, match=f"c.yaml: {message}"):
        claims.load(tmp_path / "c.yaml")


def test_files_that_hold_no_claims_are_refused(tmp_path):
    path = tmp_path / "c.yaml"
    with pytest.raises(FileNotFoundError, match="no file .*c.yaml"):
        claims.load(path)
    for text, message in [
        (yaml.safe_dump([make(), make()]), "claim bf.1: the `id` occurs twice"),
        ("- {id: a.1, id: a.2}", "key id given twice"),
        ("- [", "not readable YAML"),
        ("claims: []", "must be a list"),
        ("- bf.1", "claim number 1 must be a mapping"),
        ("- {says: x}", "claim number 1: missing key estimand"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            claims.load(path)


# -- the rule's hash -------------------------------------------------------------------------------------------------


def test_the_hash_sees_what_decides_and_not_the_wording():
    first = claims.rule_hash(make())
    reworded = make(says="A beats B", where="Table 9", note="n", id="bf.7", paper_values={"A": 1, "certainty": "SEED"})
    assert claims.rule_hash(reworded) == first
    assert claims.rule_hash(make(formula="t[A, x]\n  -   t[B, x]")) == first
    assert claims.rule_hash(make(rule=PAIRED | {"alpha": 5e-2, "minimal_effect": 1})) == first
    others = [
        make(rule=PAIRED | {"alpha": 0.01}),
        make(rule=PAIRED | {"side": "less"}),
        make(rule=PAIRED | {"minimal_effect": 0.5}),
        make(rule=EQUAL),
        make(formula="t[B, x] - t[A, x]"),
        make(scale="paper"),
    ]
    assert len({first, *map(claims.rule_hash, others)}) == 1 + len(others)


def test_the_hash_stays_what_it_is():
    """Run records hold it; a change of this number would put every rule after its run."""
    known = "sha256:71bf07965ffd1886140de91f43befd266693a9a3c35551f4562f672fa0cbede1"
    assert claims.rule_hash(make()) == known


def test_records_store_the_hashes_of_their_table_and_give_them_back():
    one, two = make(), make("bf.2", "u[A, x] - t[A, x]")
    assert claims.rule_hashes([one, two], "t") == {c["id"]: claims.rule_hash(c) for c in (one, two)}
    assert claims.rule_hashes([one, two], "u") == {"bf.2": claims.rule_hash(two)}
    records = {"t": [{"claims": claims.rule_hashes([one], "t")}, {}], "u": []}
    assert claims.stored_hashes([one, two], records) == {"bf.1": {claims.rule_hash(one), ""}, "bf.2": {""}}


# -- estimands -------------------------------------------------------------------------------------------------------


def test_a_formula_is_evaluated_per_seed_over_common_seeds():
    data = table(A=tables.cell({0: 5, 1: 7, 2: 9}), B=tables.cell({0: 1, 2: 2}))
    assert estimand.evaluate(estimand.parse("t[A, x] - t[B, x]"), data) == {"0": 4.0, "2": 7.0}
    assert estimand.evaluate(estimand.parse("-2*(t[A,x]+1.5e0)/t[B, x]"), data) == {"0": -13.0, "2": -10.5}
    assert estimand.evaluate(estimand.parse("mean(t[A, x], t[B, x], 3)"), data)["0"] == 3.0


def test_the_style_guides_difference_of_differences():
    formula = "mean(bf-t1[width1, thin] - bf-t1[width0, thin]) - mean(bf-t1[width1, large] - bf-t1[width0, large])"
    numbers = {("width0", "thin"): 10, ("width1", "thin"): 19, ("width0", "large"): 50, ("width1", "large"): 52}
    rows = [
        tables.row(w, {c: tables.cell({0: numbers[w, c]}) for c in ("thin", "large")}) for w in ("width0", "width1")
    ]
    data = {"bf-t1": tables.table("bf-t1", "T", "P", "%", ["thin", "large"], rows)}
    parsed = estimand.parse(formula)
    assert estimand.evaluate(parsed, data) == {"0": 7.0}
    assert parsed.tables == ("bf-t1",) and len(parsed.cells) == 4


def test_labels_may_hold_blanks_signs_and_points_and_a_minus_may_touch_an_id():
    data = table("fm-t2", **{"joint F+R": [5.0], "MiT-B2 (1.5)": [2.0]})
    parsed = estimand.parse("3-fm-t2[MiT-B2 (1.5), x]-fm-t2[joint F+R,x]")
    assert estimand.evaluate(parsed, data) == {"0": -4.0}


def test_a_formula_of_arrays_is_that_of_each_element():
    parsed = estimand.parse("mean(t[A, x], 3, t[B, x]) / 2 - -t[A, x]")
    a, b = np.array([1.0, 2.5, -4.0]), np.array([[7.0], [0.5]])
    found = estimand.evaluate_arrays(parsed, {("t", "A", "x"): a, ("t", "B", "x"): b})
    assert found.shape == (2, 3)
    for i, k in np.ndindex(2, 3):
        data = table(A=[a[k]], B=[b[i, 0]])
        assert found[i, k] == pytest.approx(estimand.evaluate(parsed, data)["0"])
    with pytest.raises(ValueError, match=r"`values` lacks \('t', 'B', 'x'\) of estimand"):
        estimand.evaluate_arrays(parsed, {("t", "A", "x"): a})
    ratio = estimand.evaluate_arrays(estimand.parse("1 / t[A, x]"), {("t", "A", "x"): np.array([0.0, 2.0])})
    assert ratio.tolist() == [np.inf, 0.5]


def test_rounding_of_a_formula_is_no_effect():
    data = table(A=[0.3] * 5, B=[0.1] * 5, C=[0.2] * 5)
    parsed = estimand.parse("t[A, x] - t[B, x] - t[C, x]")
    assert set(estimand.evaluate(parsed, data).values()) == {0.0}


@pytest.mark.parametrize(
    "formula",
    [
        "__import__('os').system('true')",
        "t[A, x] + __import__('os').system('true')",
        "t[A, x].__class__",
        "(lambda: 1)() + t[A, x]",
        "[t[A, x] for _ in 'ab']",
        "t[A, x] if 1 else 0",
        "mean(*t[A, x])",
        "mean(x=t[A, x])",
        "mean()+t[A, x]",
        "t[A, x](1)",
        "mean + t[A, x]",
        "t[A, x] ** 9",
        "t[A, x] // 2",
        "t[A, x] > 2",
        "t[A, x] + 'a'",
        "t[A, x] + True",
        "t[A, x] + 1j",
        "t[A, x] + _0",
        "max(t[A, x], 1)",
        "t[A, x] t[B, x]",
        "t[A] - t[B]",
        "exec('1') or t[A, x]",
        "(" * 300 + "t[A, x]" + ")" * 300,
        "-" * 1900 + "t[A, x]",
        "t[A, x] + " * 300 + "1",
    ],
)
def test_nothing_but_arithmetic_is_let_through(formula):
    with pytest.raises(ValueError, match="`estimand`.*(Allowed|at most)"):
        estimand.parse(formula)


def test_formulas_without_cells_or_text_are_refused():
    with pytest.raises(ValueError, match="must name at least one cell"):
        estimand.parse("1 + 2")
    with pytest.raises(TypeError, match="must be a text, got 3"):
        estimand.parse(3)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("u[A, x]", r"`u\[A, x\]` .* no table 'u'; there are \['t'\]"),
        ("t[C, x]", r"t has no row 'C'; its rows are \['A', 'B'\]"),
        ("t[A, y]", r"row A has no cell in column 'y'; it has \['x'\]"),
        ("t[A, x] / (t[B, x] - t[B, x])", "divides by zero at seed 0"),
        ("t[A, x] * 1e308 * 1e308", "not finite at seed 0"),
        ("t[A, x] + 1" + "0" * 400, "not finite at seed 0"),
    ],
)
def test_cells_that_do_not_exist_are_named_with_those_that_do(formula, message):
    with pytest.raises(ValueError, match=message):
        estimand.evaluate(estimand.parse(formula), above(1.0, 2.0))


# -- verdicts --------------------------------------------------------------------------------------------------------

CLEAR, NOISY, NONE = (3.0, 3.5, 2.5, 3.2, 2.8), (3.0, -4.0, 6.0, -1.0, 4.0), (0.1, -0.1, 0.2, -0.2, 0.05)


@pytest.mark.parametrize(
    ("rule", "differences", "word"),
    [
        (PAIRED, CLEAR, "supported"),
        (PAIRED, [-d for d in CLEAR], "contradicted"),
        (PAIRED, NOISY, "inconclusive"),
        (PAIRED, NONE, "inconclusive"),
        (PAIRED, [d / 10 for d in CLEAR], "inconclusive"),  # certain, but too small to matter
        (PAIRED | {"side": "less"}, CLEAR, "contradicted"),
        (PAIRED | {"side": "less"}, [-d for d in CLEAR], "supported"),
        (PAIRED | {"side": "two-sided"}, [-d for d in CLEAR], "supported"),
        (PAIRED | {"side": "two-sided"}, NONE, "contradicted"),
        (PAIRED | {"side": "two-sided"}, NOISY, "inconclusive"),
        (PAIRED | {"side": "two-sided", "minimal_effect": 0}, NONE, "inconclusive"),
        (EQUAL, NONE, "supported"),
        (EQUAL, [d / 2 for d in NOISY], "inconclusive"),
        (EQUAL, CLEAR, "contradicted"),
        (EQUAL, [-d for d in CLEAR], "contradicted"),
        (EQUAL | {"margin": 3.0}, CLEAR, "inconclusive"),  # the mean on the margin
    ],
)
def test_verdicts_on_hand_made_data(rule, differences, word):
    entry = verdict(rule, above(*differences))
    assert entry["verdict"] == word
    assert entry["text"] == f"{word} in miniature" and entry["flags"] == []
    assert entry["n"] == 5 and entry["df"] == 4 and entry["detectable"] > 0
    if rule["test"] == "equivalence":  # the word can be read off the interval
        inside = -rule["margin"] < entry["low"] and entry["high"] < rule["margin"]
        outside = entry["low"] > rule["margin"] or entry["high"] < -rule["margin"]
        assert (inside, outside) == (word == "supported", word == "contradicted")
    elif rule["side"] != "two-sided":
        assert (entry["low"] > 0 or entry["high"] < 0) == (entry["p"] < 0.05)


def test_a_verdicts_numbers_by_hand():
    entry = verdict(PAIRED, above(*CLEAR))  # t = 3 / sqrt(0.58 / 4 / 5) = 17.6; half width 2.776 sqrt(0.58 / 4 / 5)
    assert entry["mean"] == pytest.approx(3.0) and entry["sd"] == pytest.approx(np.sqrt(0.58 / 4))
    assert (entry["low"], entry["high"]) == pytest.approx((3 - 0.4728, 3 + 0.4728), abs=1e-4)
    assert entry["p"] == entry["p_holm"] and entry["p"] == pytest.approx(6.1e-5, rel=0.02)
    assert ledger.effect(entry) == "+3.0 [2.5, 3.5]"


def test_fewer_than_five_pairs_are_shown_and_not_judged():
    entry = verdict(PAIRED, above(3.0, 3.1, 2.9))
    assert (entry["verdict"], entry["text"], entry["p"]) == ("not tested", "not judged (n = 3)", None)
    assert entry["mean"] == pytest.approx(3.0) and ledger.effect(entry).startswith("+3.0 [2.8, 3.2")
    assert verdict(PAIRED, above(3.0))["text"] == "not judged (n = 1)"
    assert verdict(PAIRED, above(*CLEAR[:4]))["verdict"] == "not tested"


def test_pairs_are_counted_not_runs():
    five = BASE[:5]
    shifted = table(A=five, B=tables.cell(dict(zip(range(2, 7), five, strict=True))))
    entry = verdict(PAIRED, shifted)
    assert entry["text"] == "not judged (n = 3)" and entry["left_out"] == ["0", "1", "5", "6"]


def test_what_cannot_be_judged_says_why():
    assert verdict(PAIRED, {})["text"] == "not tested (no table yet: t)"
    idle = table(A=BASE, B=tables.not_run("needs web images"))
    assert verdict(PAIRED, idle)["text"] == "not tested (t / B / x not run: needs web images)"
    smoke = verdict(PAIRED, above(*CLEAR), scale="smoke")
    assert smoke["text"] == "not tested (judged at scale mini; these are smoke results)" and smoke["p"] is None
    with pytest.raises(ValueError, match="claim bf.1: .*t has no row 'B'"):
        verdict(PAIRED, table(A=BASE))


def test_a_verdict_at_the_papers_scale_is_not_called_miniature():
    claim = make(scale="paper")
    found = verdicts.judge([claim], above(*CLEAR), {"bf.1": {claims.rule_hash(claim)}}, scale="paper")
    assert found[0]["text"] == "supported"


def test_a_rule_younger_than_its_run_is_flagged():
    claim, older = make(), make(rule=PAIRED | {"alpha": 0.01})
    new, old = claims.rule_hash(claim), claims.rule_hash(older)
    texts = {
        frozenset(stored): verdicts.judge([claim], above(*CLEAR), {"bf.1": stored})[0]["text"]
        for stored in ({new}, {old}, set(), {new, old}, {new, ""})
    }
    assert texts == {
        frozenset({new}): "supported in miniature",
        frozenset({old}): "supported in miniature (rule set after the run)",
        frozenset(): "supported in miniature (rule set after the run)",
        frozenset({new, old}): "supported in miniature (rule set after some of the runs)",
        frozenset({new, ""}): "supported in miniature (rule set after some of the runs)",
    }
    assert verdicts.judge([claim], above(*CLEAR))[0]["flags"] == ["rule set after the run"]


def test_holm_counts_the_judged_claims_of_one_table():
    weak = (4.0, -0.2, 3.0, 1.0, 3.4)  # p = 0.047 alone
    data = above(*weak) | table("u", A=[b + d for b, d in zip(BASE, weak, strict=False)], B=BASE[:5])
    data["t"]["rows"].append(tables.row("C", {"x": tables.cell(dict(enumerate(BASE[:3])))}))
    alone, other, third = make(), make("bf.2", "u[A, x] - u[B, x]"), make("bf.3", "t[A, x] - t[C, x]")
    found = verdicts.judge([alone, other, third], data)
    assert [e["verdict"] for e in found] == ["supported", "supported", "not tested"]
    assert [e["family"] for e in found] == [1, 1, None]
    together = verdicts.judge([alone, make("bf.4", "t[A, x] - t[B, x]")], data)
    assert [e["verdict"] for e in together] == ["inconclusive"] * 2
    assert together[0]["p_holm"] == pytest.approx(2 * found[0]["p"])
    assert together[0]["detectable"] > found[0]["detectable"]


def test_judging_leaves_its_arguments_alone():
    given = [make()], above(*CLEAR), {"bf.1": {"x"}}
    before = copy.deepcopy(given)
    verdicts.judge(*given)
    assert given == before


def test_no_effect_gets_a_decisive_word_in_at_most_alpha_of_the_draws():
    """A family of three null claims: any "supported" or "contradicted" is false, and alpha bounds the chance of one."""
    rng, draws, false = np.random.default_rng(20), 400, 0
    family = [make(f"bf.{i}", f"t[A{i}, x] - t[B, x]", PAIRED | {"minimal_effect": 0}) for i in range(3)]
    for _ in range(draws):
        base = rng.normal(45, 2, 6)
        data = table(B=base, **{f"A{i}": base + rng.normal(0, 1, 6) for i in range(3)})
        false += any(e["verdict"] in ("supported", "contradicted") for e in verdicts.judge(family, data))
    assert false / draws <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / draws)


def test_a_true_difference_at_the_margin_is_called_equal_in_at_most_alpha_of_the_draws():
    rng, draws = np.random.default_rng(21), 300
    words = []
    for _ in range(draws):
        words.append(verdict(EQUAL, above(*(2.0 + rng.normal(0, 1, 6))))["verdict"])
    assert words.count("supported") / draws <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / draws)
    assert words.count("contradicted") / draws <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / draws)


def test_the_detectable_effect_is_found_with_its_power():
    rng, draws = np.random.default_rng(22), 300
    noise = rng.normal(0, 1, (draws, 6))
    entries = [verdict(PAIRED | {"minimal_effect": 0}, above(*(2.0 + row))) for row in noise]
    detectable = power.detectable(PAIRED | {"minimal_effect": 0}, 1.0, 6)
    found = [verdict(PAIRED | {"minimal_effect": 0}, above(*(detectable + row)))["verdict"] for row in noise]
    assert abs(found.count("supported") / draws - 0.8) <= 3 * np.sqrt(0.16 / draws)
    assert entries[0]["detectable"] == pytest.approx(detectable * entries[0]["sd"])


# -- the ledger ------------------------------------------------------------------------------------------------------


def test_the_ledger_is_written_read_and_the_same_each_time(tmp_path):
    found = verdicts.judge([make(), make("bf.2", "v[A, x] - v[B, x]", EQUAL, note="so | so")], above(*CLEAR))
    path = ledger.write(found, tmp_path, "mini")
    first = path.read_bytes()
    read = ledger.read(tmp_path)
    assert read["profile"] == "mini" and [c["id"] for c in read["claims"]] == ["bf.1", "bf.2"]
    assert json.loads(first)["claims"][0]["mean"] == 3.0
    ledger.write(found, tmp_path, "mini")
    assert path.read_bytes() == first


def test_a_file_that_is_no_ledger_is_named(tmp_path):
    (tmp_path / "ledger.json").write_text("[]")
    with pytest.raises(ValueError, match="ledger.json is no ledger"):
        ledger.read(tmp_path)
    with pytest.raises(ValueError, match="`profile` must be one of"):
        ledger.write([], tmp_path, "tiny")


# -- what is not tested -----------------------------------------------------------------------------------------------


def untested(**other):
    values = {"A": 64.0, "B": {"value": 61.0, "certainty": "RECALLED"}, "certainty": "STATED", "source": "paper"}
    entry = {"id": "bf.9", "paper": "P", "where": "Table 2", "says": "rows of another method", "paper_values": values}
    return entry | {"not_tested": "its definition could not be established"} | other


def test_numbers_that_nothing_tests_are_listed_with_their_reason():
    data = above(2.0, 2.5, 1.5, 2.2, 1.8)
    listed = [make(), untested(note="hm")]
    judged = verdicts.judge(listed, data, {"bf.1": {claims.rule_hash(listed[0])}})
    assert [e["verdict"] for e in judged] == ["supported", "not tested"]
    assert judged[1]["text"] == "not tested (its definition could not be established)" and judged[1]["rule"] is None
    assert judged[0] == verdicts.judge(listed[:1], data, {"bf.1": {claims.rule_hash(listed[0])}})[0], "no new family"
    assert claims.testable(listed) == listed[:1] and claims.rule_hashes(listed, "t").keys() == {"bf.1"}
    assert claims.stored_hashes(listed, {"t": []}).keys() == {"bf.1"}
    assert claims.numbers(listed[1]) == {"A": 64.0, "B": 61.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"not_tested": " "}, "claim bf.9: `not_tested` must be a text"),
        ({"estimand": "t[A, x]"}, "claim bf.9: unknown key estimand"),
        ({"paper_values": {"certainty": "STATED"}}, "holds no number"),
    ],
)
def test_an_entry_of_what_is_not_tested_is_checked(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        claims.validate([untested(**change)])
