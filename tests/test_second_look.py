"""The bootstrap over validation images: a loop oracle, FMWISS's tables, what it flags, what it cannot say."""

import numpy as np
import pytest
from made_records import FAMILY, counts, made_up, with_images
from smallzoo import write_cards
from test_claims import EQUAL, PAIRED, make
from toys import ROOT

from fmseg import claims, estimand, image_counts, ledger, report, second_look, tables, verdicts
from fmseg.second_look import Run, add, cells_of, interval, mean_of, multiplicities, says
from fmseg.settings import load

C, B, SEEDS = 4, 12, range(5)
IDS = [1, 2, 3]


def cells(sums):
    return {"x": mean_of(second_look.iou(sums["images"]), IDS)}


def run(row, seed, own):
    return Run(row, seed, {"images": image_counts.pack(own)}, {"images": "val"}, cells)


def table(runs, id="t"):
    """What a table would hold: the value of all images once."""
    found = {}
    for one in runs:
        value = float(cells({"images": image_counts.unpack(one.packed["images"]).sum(0)})["x"])
        found.setdefault(one.row, {})[one.seed] = value
    rows = [tables.row(label, {"x": tables.cell(v)}) for label, v in found.items()]
    return {id: tables.table(id, "T", "P", "%", ["x"], rows)}


def pair(a=0.8, b=0.6, spread=0.0):
    """Runs of rows A and B at five seeds, on the same truth."""
    runs = []
    for seed in SEEDS:
        truth, shift = np.random.default_rng(9), np.random.default_rng(seed).normal(0, spread)
        runs.append(run("A", seed, counts(truth, a + shift)))
        runs.append(run("B", seed, counts(np.random.default_rng(9), b)))
    return runs


def judged(rule, runs, **other):
    claim = make(rule=rule)
    data = table(runs)
    found = verdicts.judge([claim], data, {"bf.1": {claims.rule_hash(claim)}})
    return add(found, data, {"t": runs}, **other)[0]


# -- the arithmetic --------------------------------------------------------------------------------------------------


def test_a_loop_says_the_same():
    runs = pair(spread=0.02)
    entry = judged(PAIRED, runs, resamples=40, seed=3)
    own = {(r.row, r.seed): image_counts.unpack(r.packed["images"]) for r in runs}
    effects = []
    for drawn in multiplicities("val", B, 40, 3)[1:]:
        again = np.repeat(np.arange(B), drawn.astype(int))
        assert len(again) == B
        value = {k: 100 * np.nanmean(image_counts.iou(v[again])[IDS]) for k, v in own.items()}
        effects.append(np.mean([value["A", s] - value["B", s] for s in SEEDS]))
    low, high = np.quantile(effects, [0.025, 0.975])
    assert (entry["images_low"], entry["images_high"]) == pytest.approx((low, high))
    assert low < entry["mean"] < high and entry["images_word"] == "supported" and entry["images_why"] is None


def test_every_run_on_the_same_images_gets_the_same_draw():
    one = multiplicities("val", B)
    np.testing.assert_array_equal(one, multiplicities("val", B))
    assert one.shape == (1001, B) and (one[0] == 1).all() and (one.sum(1) == B).all()
    for other in (multiplicities("other", B), multiplicities("val", B, seed=1)):
        assert (one[1:] != other[1:]).any()


def test_pairs_are_resampled_together():
    """A constant advantage on images of very different difficulty: apart it would drown, in pairs it is certain."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.1, 0.9, (40, 1))
    truth = np.full((40, C), 100)
    runs = []
    for seed in SEEDS:
        for row, more in (("A", 0.08), ("B", 0.0)):
            right = np.round(truth * (hard + more)).astype(int)
            runs.append(run(row, seed, np.stack([right, truth, right], -1)))
    entry = judged(PAIRED, runs)
    apart = [cells_of([r])["A", "x"][str(r.seed)] for r in runs if r.row == "A"][0][1:]
    wide = interval(apart, 0.95)
    assert entry["images_high"] - entry["images_low"] < 0.1 * (wide[1] - wide[0])
    assert entry["images_word"] == "supported"


def test_iou_and_means_are_those_of_counts_and_tables():
    own = counts(np.random.default_rng(1), 0.7)
    own[:, 2] = 0  # a class without truth
    np.testing.assert_array_equal(second_look.iou(own.sum(0)), image_counts.iou(own))
    found = mean_of(second_look.iou(np.stack([own.sum(0), np.zeros((C, 3))])), IDS)
    assert found[0] == pytest.approx(100 * np.nanmean(image_counts.iou(own)[IDS])) and np.isnan(found[1])


# -- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "centre", "spread", "word"),
    [
        (PAIRED, 3.0, 0.5, "supported"),
        (PAIRED, -3.0, 0.5, "contradicted"),
        (PAIRED, 3.0, 5.0, "inconclusive"),
        (PAIRED, 0.5, 0.05, "inconclusive"),  # certain, but smaller than what matters
        (PAIRED | {"side": "less"}, -3.0, 0.5, "supported"),
        (PAIRED | {"side": "two-sided"}, -3.0, 0.5, "supported"),
        (PAIRED | {"side": "two-sided"}, 0.0, 0.1, "contradicted"),
        (EQUAL, 0.5, 0.5, "supported"),
        (EQUAL, 0.5, 5.0, "inconclusive"),
        (EQUAL, 4.0, 0.5, "contradicted"),
        (EQUAL, 2.9, 0.5, "inconclusive"),  # outside at 90, not at 95 percent
    ],
)
def test_words_by_rule(rule, centre, spread, word):
    effect = centre + spread * np.linspace(-2, 2, 401)
    assert says(rule, centre, effect) == word


def test_a_verdict_that_rests_on_one_image_is_flagged():
    rng, runs = np.random.default_rng(0), []
    same = counts(rng, 0.6)
    for seed in SEEDS:
        lucky = same.copy()
        lucky[0] = [[9000 + 40 * seed, 10_000, 9000 + 40 * seed]] * C
        unlucky = same.copy()
        unlucky[0] = [[6000, 10_000, 6000]] * C
        runs += [run("A", seed, lucky), run("B", seed, unlucky)]
    entry = judged(PAIRED, runs)
    assert entry["verdict"] == "supported" and entry["images_word"] == "inconclusive"
    assert entry["flags"] == ["over images inconclusive"]
    assert entry["text"] == "supported in miniature (over images inconclusive)"
    assert "Over images alone: inconclusive." in report.markdown({"profile": "mini", "claims": [entry]}, {})


def test_surer_images_than_seeds_are_no_disagreement():
    entry = judged(PAIRED, pair(0.62, 0.6, spread=0.15))
    assert entry["verdict"] == "inconclusive" and entry["flags"] == []
    assert entry["images_word"] is not None and entry["text"] == "inconclusive in miniature"


# -- what it cannot say ----------------------------------------------------------------------------------------------


def test_records_without_images_have_no_second_look():
    runs = pair()
    claim, data = make(), table(pair())
    for given in ({}, {"t": [r for r in runs if r.row == "A"]}, {"t": runs[:-1]}):
        entry = add(verdicts.judge([claim], data), data, given)[0]
        assert (entry["images_low"], entry["images_why"]) == (None, "records hold no images")
        assert ledger.over_images(entry) == "no second look: records hold no images"
    unmeasured = add(verdicts.judge([claim], {}), {}, {})[0]
    assert unmeasured["images_why"] is None and ledger.over_images(unmeasured) == ""


def test_a_column_that_does_not_follow_from_counts_is_named():
    runs = pair()
    data = table(runs)
    for row in data["t"]["rows"]:
        row["cells"]["forgetting"] = row["cells"]["x"]
    data["t"]["columns"].append("forgetting")
    claim = make(formula="t[A, forgetting] - t[B, x]")
    entry = add(verdicts.judge([claim], data), data, {"t": runs})[0]
    assert entry["images_why"] == "t / A / forgetting is not counted by image"


def test_one_image_says_always_the_same():
    rng = np.random.default_rng(0)
    own = {row: counts(rng, share, images=1) + 1 for row, share in (("A", 0.9), ("B", 0.5))}
    entry = judged(PAIRED, [run(row, seed, own[row]) for seed in SEEDS for row in "AB"])
    assert entry["images_low"] == pytest.approx(entry["mean"]) == entry["images_high"]


def test_rare_classes_are_left_out_where_no_image_has_them_and_an_estimand_of_nothing_but_them_is_refused():
    runs = pair()
    rare = []
    for one in runs:
        own = image_counts.unpack(one.packed["images"])
        own[:, IDS[1:]] = 0
        own[1:, IDS[0]] = 0
        own[0, IDS[0]] = [50, 100, 60]
        rare.append(run(one.row, one.seed, own))
    entry = judged(EQUAL, rare)
    assert entry["images_low"] == entry["images_high"] == 0.0, "a third of the draws lack the image; the others agree"
    few = [run(r.row, r.seed, np.concatenate([image_counts.unpack(r.packed["images"])])) for r in rare]
    drawn = cells_of(few, 50)
    for values in drawn["A", "x"].values():
        values[5:] = np.nan
    formula = estimand.parse("t[A, x] - t[B, x]")
    found = second_look.look(entry, formula, table(few), {("t", *k): v for k, v in drawn.items()})
    assert found["images_why"].startswith("too few images")


def test_counts_of_another_table_are_refused():
    runs = pair()
    data = table(pair(0.7))
    with pytest.raises(ValueError, match=r"the counts of t / A / x, seed 0, make .*; make the table anew"):
        add(verdicts.judge([make()], data), data, {"t": runs})
    with pytest.raises(ValueError, match="must hold one for row 'A', column 'x' and seed 0; got two"):
        cells_of([runs[0], runs[0]])
    with pytest.raises(ValueError, match="`images` and `resamples` must be at least 1, got 0 and 10"):
        multiplicities("val", 0, 10)


# -- FMWISS's tables -------------------------------------------------------------------------------------------------


@pytest.fixture
def mini(tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_ZOO", str(write_cards(tmp_path / "zoo")))
    return load("mini", ROOT)


def test_fmwiss_tables_give_their_claims_a_second_look(mini):
    listed = [c for c in claims.load(ROOT / "claims.yaml") if c["id"].startswith("fmwiss")]
    made, runs = {}, {}
    for id in ("fmwiss-t1", "fmwiss-t2", "fmwiss-t3", "fmwiss-ab-data"):
        one = FAMILY[id]
        records = [with_images(made_up(config, k), k) for k, config in enumerate(one.configs(mini))]
        made[id], runs[id] = one.table(mini, records), one.by_image(mini, records)
    for id, own in runs.items():
        for (row, column), values in cells_of(own, 1).items():
            table_cell = next(r["cells"][column] for r in made[id]["rows"] if r["label"] == row)
            assert {s: v[0] for s, v in values.items()} == pytest.approx(table_cell["values"], abs=1e-3)
    entries = {e["id"]: e for e in add(verdicts.judge(listed, made), made, runs, resamples=20)}
    looked = {id for id, e in entries.items() if e["images_low"] is not None}
    assert {"fmwiss.pooled.new", "fmwiss.t1.disjoint_old", "fmwiss.t3.coco_voc", "fmwiss.data.orders"} <= looked
    measured = {id for id, e in entries.items() if e["mean"] is not None}
    assert looked == measured, {id: entries[id]["images_why"] for id in measured - looked}


def test_other_tables_records_hold_no_images(mini):
    one = FAMILY["fmwiss-t1"]
    records = [made_up(config, k) for k, config in enumerate(one.configs(mini))]
    assert one.by_image(mini, records) == []
