"""FMWISS's tables: every row there, the paper's numbers beside it, cells that follow from records, claims that fit."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_records import FAMILY as ALL
from made_records import complete, made_up
from smallzoo import write_cards

from fmseg import claims, estimand, fmwiss_ablations, fmwiss_pseudo, fmwiss_tables, tables
from fmseg.experiment import behind, perform
from fmseg.fmwiss_paper import NOT_RUN, PRINTED, printed
from fmseg.incremental_configs import SETTINGS, run_config
from fmseg.incremental_runs import KEYS, METHODS, OPTIONAL, OPTIONS
from fmseg.incremental_tables import FAMILY, cell_of, measured
from fmseg.records import run_key, write_record
from fmseg.rerun import configs_of
from fmseg.settings import load
from fmseg.verify import Verdict, _records

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_cards(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(autouse=True)
def zoo(home, monkeypatch):
    monkeypatch.setenv("FMSEG_ZOO", str(home))


@pytest.fixture
def smoke():
    return load("smoke", ROOT)


# -- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smoke", "mini"])
def test_every_configuration_is_one_that_a_run_reads(profile):
    settings, seen = load(profile, ROOT), set()
    for experiment in ALL.values():
        for config in experiment.configs(settings):
            assert set(KEYS) <= set(config) <= set(KEYS) | set(OPTIONAL)
            assert config["method"] in METHODS and set(config["options"]) <= set(OPTIONS.get(config["method"], ()))
            assert config["backbone"].startswith("zoo:") and config["train"]["backbone_lr"] == 0.1
            seen.add(config["method"])
    assert seen == set(METHODS), "every method is run somewhere"


def test_joint_is_one_run_for_all_voc_settings_and_ablations_borrow_the_standard(smoke):
    joint = {run_key(run_config(smoke, "joint", 0, s)) for s in SETTINGS if s != "COCO-to-VOC"}
    assert len(joint) == 1 and run_key(run_config(smoke, "joint", 0, "COCO-to-VOC")) not in joint
    standard = run_key(run_config(smoke, "fmwiss", 0, "10-10 overlap"))
    holders = [id for id, e in ALL.items() if standard in {run_key(c) for c in e.configs(smoke)}]
    assert holders == ["fmwiss-t2", *fmwiss_ablations.ROWS, "fmwiss-pseudo"]
    with pytest.raises(ValueError, match="`setting` must be one of 15-5 disjoint"):
        run_config(smoke, "ft", 0, "19-1")


def test_every_variant_differs_from_every_other(smoke):
    for id, rows in fmwiss_ablations.ROWS.items():
        keys = [run_key(fmwiss_ablations.config_of(smoke, v, 0)) for v in rows]
        assert len(set(keys)) == len(keys), id
        labels = [cell_of(fmwiss_ablations.config_of(smoke, v, 0)) for v in rows]
        assert len(set(labels)) == len(labels)
    one, two = (fmwiss_ablations.config_of(smoke, fmwiss_ablations.ROWS["fmwiss-ab-seeds"][0], s) for s in (0, 1))
    assert cell_of(one) == cell_of(two)
    mass = next(v for v in fmwiss_ablations.ROWS["fmwiss-ab-models"] if "attention" in v.label)
    assert "keep" not in fmwiss_ablations.config_of(smoke, mass, 0)["options"], "keep and mass exclude each other"


def test_rows_that_a_claim_reads_have_the_seeds_of_judged_ones():
    settings, read = load("mini", ROOT), set()
    for claim in claims.load(ROOT / "claims.yaml"):
        if claim.get("estimand"):
            read |= {(id, row) for id, row, _ in estimand.parse(claim["estimand"]).cells if id in fmwiss_ablations.ROWS}
    assert len(read) > 10 and {row for _, row in read} <= fmwiss_ablations.JUDGED
    counts = Counter((id, e.label) for id in fmwiss_ablations.ROWS for e in fmwiss_ablations.entries(id, settings))
    assert {counts[place] for place in read} == {5}
    assert {n for (_, row), n in counts.items() if row not in fmwiss_ablations.JUDGED} == {3}


def test_longer_steps_see_the_same_pictures(smoke):
    usual, long = (run_config(smoke, "wilson", 0, "10-10 overlap", length=n) for n in (1, 2))
    assert long["train"]["steps"] == 2 * usual["train"]["steps"]
    assert {k: v for k, v in long.items() if k != "train"} == {k: v for k, v in usual.items() if k != "train"}
    with pytest.raises(ValueError, match="`length` must be 1 on real data"):
        run_config(load("paper", ROOT), "wilson", 0, "10-10 overlap", length=2)


def test_the_headline_that_is_trained_again_has_five_methods_and_three_seeds():
    settings = load("mini", ROOT)
    runs = [c for e in ALL.values() for c in configs_of(e, settings, "headline")]
    assert Counter(c["method"] for c in runs) == dict.fromkeys(("ft", "mib", "plop", "wilson", "fmwiss"), 5 * 3)
    assert {c["seed"] for c in runs} == {0, 1, 2}


def test_on_real_data_the_papers_tables_alone_have_runs():
    paper = load("paper", ROOT)
    for id, experiment in ALL.items():
        configs = experiment.configs(paper)
        assert bool(configs) == (id in fmwiss_tables.EXPERIMENTS)
        made = experiment.table(paper, [None] * len(configs))
        assert all(c["n"] == 0 for r in made["rows"] for c in r["cells"].values())


# -- tables -----------------------------------------------------------------------------------------------------------


def test_what_a_run_says_by_hand():
    config = {"protocol": "mini/coco-to-voc", "base": {"steps": 1}, "method": "ft"}
    found = measured(made_up(config), "COCO-to-VOC")
    assert found["old"] == pytest.approx(100 * np.mean([0.2 + 0.01 * k for k in range(1, 21)]))
    assert found["new"] == pytest.approx(100 * np.mean([0.2 + 0.01 * k for k in range(21, 41)]))
    assert found["all"] == pytest.approx(100 * np.mean([0.2 + 0.01 * k for k in range(41)]))
    assert found["forgetting"] == pytest.approx(10) and found["other"] == pytest.approx(50)


def test_rows_are_the_papers_in_its_order_and_those_not_run_say_why(smoke):
    for id, experiment in fmwiss_tables.EXPERIMENTS.items():
        made = experiment.table(smoke, complete(experiment, smoke))
        rows = {r["label"]: r["cells"] for r in made["rows"]}
        assert list(rows)[: len(PRINTED[id])] == [r.label for r in PRINTED[id]]
        for label, cells in rows.items():
            statuses = {c["status"] for c in cells.values()}
            if label in NOT_RUN:
                assert statuses == {f"not run: {NOT_RUN[label]}"} and all(
                    c["paper"] for column, c in cells.items() if "forgetting" not in column
                )
            elif label == "Joint":
                assert statuses == {"measured", "not run: joint training has no step before"}
            else:
                assert statuses == {"measured"}, label
        assert any("ceiling" in label for label in rows) and "sigmoid base model" in rows


def test_the_papers_numbers_stand_in_their_columns(smoke):
    def paper(id, label, column):
        made = fmwiss_tables.EXPERIMENTS[id].table(smoke, [None] * 500)
        cell = next(r for r in made["rows"] if r["label"] == label)["cells"][column]
        return cell["paper"]["value"], cell["paper"]["certainty"]

    assert paper("fmwiss-t1", "FMWISS", "disjoint all") == (70.7, "STATED")
    assert paper("fmwiss-t1", "FMWISS", "overlap 16-20") == (54.5, "RECALLED")
    assert paper("fmwiss-t1", "SDR", "overlap 1-15") == (75.4, "STATED")
    assert paper("fmwiss-t2", "WILSON", "overlap 11-20") == (57.1, "STATED")
    assert paper("fmwiss-t3", "FMWISS", "VOC new") == (63.6, "RECALLED")
    assert paper("fmwiss-t3", "SS", "VOC new") == (52.4, "STATED")
    with pytest.raises(KeyError, match="prints no row 'Joint'"):
        printed("fmwiss-t3", "Joint")


def test_printed_rows_hold_together():
    """All is the mean over old, new and a background whose IoU must then be plausible (dossier 1.4)."""
    for id, (old, new) in {"fmwiss-t1": (15, 5), "fmwiss-t2": (10, 10)}.items():
        for printed_row in PRINTED[id]:
            for k in (0, 3):
                a, b, whole = printed_row.numbers[k : k + 3]
                background = 21 * whole - old * a - new * b
                if printed_row.label in ("WILSON", "FMWISS"):
                    assert 84 < background < 96, printed_row


def test_ablations_and_pseudo_labels_fill_every_row(smoke):
    for id in (*fmwiss_ablations.ROWS, fmwiss_pseudo.ID):
        experiment = ALL[id]
        made = experiment.table(smoke, complete(experiment, smoke))
        assert all(c["status"] == "measured" for r in made["rows"] for c in r["cells"].values()), id
        empty = experiment.table(smoke, [None] * len(experiment.configs(smoke)))
        assert [r["label"] for r in empty["rows"]] == [r["label"] for r in made["rows"]]
    rows = {r["label"]: r["cells"] for r in ALL[fmwiss_pseudo.ID].table(smoke, complete(experiment, smoke))["rows"]}
    assert list(rows["teacher"]) == list(fmwiss_pseudo.COLUMNS) and rows["union"]["IoU"]["mean"] == 30.0
    assert "student on new classes" not in rows["truth on the grid"]


def test_per_class_numbers_name_the_step(smoke):
    experiment = fmwiss_tables.EXPERIMENTS["fmwiss-t1"]
    found = fmwiss_tables.per_class("fmwiss-t1", smoke, complete(experiment, smoke), "FMWISS", "15-5 disjoint")
    assert [c["step"] for c in found] == [0] * 16 + [1] * 5 and found[0]["name"] == "background"
    assert found[3]["forgotten"] == pytest.approx(10) and found[20]["forgotten"] is None and found[20]["n"] == 1


# -- lending ----------------------------------------------------------------------------------------------------------

TOY = """
def run(config, *, checkpoint=None, checkpoint_every=None):
    base = 0.1 * config["seed"] + 0.01 * len(config["method"])
    result = {"iou": [base], "miou": 100 * base, "weights": str(base), "examples": {}}
    return {"result": result, "curve": [], "seconds": 1.0}
"""


def lending(id, methods, stage="01_x"):
    from fmseg.experiment import Experiment

    def configs(settings):
        return [{"method": m, "seed": s, "train": {"steps": 1}} for m in methods for s in (0, 1)]

    def build(settings, records):
        values = {r["config"]["seed"]: r["result"]["miou"] for r in records if r}
        cells = {"x": tables.cell(values) if values else tables.not_run("no record")}
        return tables.table(id, "T", "P", "%", ["x"], [tables.row("all", cells)])

    others = tuple(other for other in ("toy-a", "toy-b") if other != id)
    return Experiment(id, stage, "fmseg.lending", configs, build, lambda c: c["method"], lenders=others)


def test_a_table_borrows_what_its_family_has_and_trains_the_rest(settings):
    (settings.root / "fmseg/lending.py").write_text(TOY)
    a, b = lending("toy-a", ("m", "mm")), lending("toy-b", ("mm", "mmm"))
    first = perform(a, settings, progress=False)
    assert first.trained == 4 and not first.from_records
    second = perform(b, settings, progress=False)
    assert (second.from_records, second.trained) == (2, 2) and second.table["rows"][0]["cells"]["x"]["n"] == 2
    assert len(list(b.folder(settings).iterdir())) == 2, "borrowed records stay where they are"
    third = perform(b, settings, progress=False)
    assert (third.from_records, third.trained) == (4, 0)
    assert third.compared[0]["run"].startswith("mmm") and third.compared[0]["identical"], "its own run is compared"
    assert perform(b, settings, "none", progress=False).from_records == 4
    assert {r["key"] for r in behind(b, settings)} == {run_key(c) for c in b.configs(settings)}
    again = perform(b, settings, "all", progress=False)
    assert (again.from_records, again.trained) == (2, 2), "a lender's runs are its own to train again"
    for experiment in (a, b):
        found = Verdict()
        _records(experiment, settings, found)
        assert not found.failed


def test_a_lenders_stale_record_is_not_taken(settings):
    (settings.root / "fmseg/lending.py").write_text(TOY)
    a, b = lending("toy-a", ("m", "mm")), lending("toy-b", ("mm",))
    perform(a, settings, progress=False)
    for path in sorted(a.folder(settings).iterdir()):
        record = tables.read_json(path)
        write_record({**record, "code": {**record["code"], "fmseg.lending": "0" * 16}}, a.folder(settings))
    done = perform(b, settings, progress=False)
    assert done.trained == 2 and all(r == ["fmseg.lending was changed"] for r in done.stale.values())
    assert perform(b, settings, "none", progress=False).from_records == 2, "its own fresh ones come before"


def test_the_family_is_whole():
    assert set(ALL) == set(FAMILY)
    for id, experiment in ALL.items():
        assert set(experiment.lenders) == set(FAMILY) - {id} and experiment.module == "fmseg.incremental_runs"


# -- claims -----------------------------------------------------------------------------------------------------------


def test_every_printed_number_is_in_a_claim_or_in_the_list_of_those_not_tested():
    listed = claims.load(ROOT / "claims.yaml")
    held = Counter()
    for entry in listed:
        for name, value in claims.numbers(entry).items():
            for number in ("1", "2", "3"):
                if entry["paper"] == "FMWISS" and (f"Table {number}" in entry["where"] or f"table {number};" in name):
                    held[f"fmwiss-t{number}", name.removeprefix(f"table {number}; "), value] += 1
    for id, rows in PRINTED.items():
        columns = [c for names in fmwiss_tables.COLUMNS[id].values() for g, c in names.items() if g != "forgetting"]
        for printed_row in rows:
            for column, number in zip(columns, printed_row.numbers, strict=True):
                assert held[id, f"{printed_row.label} {column}", number], (id, printed_row.label, column)
    assert len(claims.testable(listed)) >= 38 and len(listed) > len(claims.testable(listed))
    untested = [c for c in listed if "not_tested" in c]
    assert {c["id"].rsplit(".", 1)[1] for c in untested} >= {"cil", "recall", "seam", "eps", "others"}


def test_every_claims_cells_exist_and_are_measured_by_enough_seeds(smoke):
    made = {id: e.table(smoke, complete(e, smoke)) for id, e in ALL.items()}
    mini = load("mini", ROOT)
    for claim in claims.testable(claims.load(ROOT / "claims.yaml")):
        if claim["id"].startswith("fmwiss."):
            formula = estimand.parse(claim["estimand"])
            assert set(formula.tables) <= set(FAMILY)
            assert all(cell["n"] for cell in estimand.find_cells(formula, made)), claim["id"]
    counts = mini.get("incremental.seeds")
    assert min(counts[kind] for kind in ("headline", "others", "judged")) >= 5, "claims need five seed pairs"


def test_a_family_records_the_rules_of_all_its_tables(settings):
    from fmseg.experiment import rules

    mine = rules(replace(ALL["fmwiss-t2"]), settings)
    own = ("fmwiss.", "across.bounded.")
    listed = [c for c in claims.testable(claims.load(ROOT / "claims.yaml")) if c["id"].startswith(own)]
    assert set(mine) == {c["id"] for c in listed}


def test_a_stage_waits_for_earlier_tables_that_lend_and_for_no_later_ones(monkeypatch):
    from fmseg import pipeline

    monkeypatch.setattr(pipeline, "EXPERIMENTS", ALL)
    assert pipeline._lenders("15_fmwiss_t1") == [], "the first of the family"
    assert pipeline._lenders("16_fmwiss_t2") == ["fmwiss-t1"]
    assert pipeline._lenders("18_fmwiss_ablations") == ["fmwiss-t1", "fmwiss-t2", "fmwiss-t3"]
