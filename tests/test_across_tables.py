"""Tables, figures, verdicts and notebook 90 follow from whatever was measured, also where nothing was."""

import ast
import csv
import json
import shutil

import numpy as np
import pytest
from made_records import made_up
from toys import ROOT

from fmseg import across_configs, across_reading, across_tables, claims, experiment, ledger, pipeline, rerun, tables
from fmseg.estimand import parse
from fmseg.experiment import Outcome
from fmseg.labelmaps import pack
from fmseg.records import run_key
from fmseg.settings import Settings, load

STAGE = "90_across_the_papers"
MODELS = ("clip", "mim", "diffusion", "oracle", "backbone-segformer", "backbone-deeplabv3")
FIGURES = ["dropped", "handed-on", "handed-on-precision", "labels", "marks", "marks-and-students", "pairs", "teachers"]
FIGURES += ["things-and-grounds"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project without any model: cards, parameters, claims, and tables of FreeMask that were never measured."""
    others = (f"{kind}-{draw}" for kind in ("layout", "weak") for draw in ("ade", "stuff"))
    for name in (*MODELS, *others, "backbone-segmenter", "backbone-mask2former"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        (tmp_path / "zoo" / name / "card.json").write_text(json.dumps({"files": {"weights": name}}))
    monkeypatch.setenv("FMSEG_ZOO", str(tmp_path / "zoo"))
    shutil.copy(ROOT / "claims.yaml", tmp_path)
    values = load("mini", ROOT).values
    made = Settings("mini", values | {"world": values["world"] | {"val": 6}}, tmp_path)
    for id in across_reading.BORROWED:
        (tmp_path / "results/mini/tables").mkdir(parents=True, exist_ok=True)
        tables.write(borrowed(id), tmp_path / "results/mini/tables")
    return made


def borrowed(id):
    """A table of FreeMask in which only the cells that are borrowed were measured."""
    rows = {}
    for cells in across_reading.BESIDE.values():
        for table, label, column in cells.values():
            if table == id:
                rows.setdefault(label, {})[column] = tables.cell({seed: 40.0 + seed for seed in range(5)})
    columns = list(dict.fromkeys(c for cells in rows.values() for c in cells))
    return tables.table(id, "T", "P", "%", columns, [tables.row(label, cells) for label, cells in rows.items()])


def record_of(config):
    """A made-up record with everything that a run of this kind leaves."""
    rng = np.random.default_rng(int(run_key(config), 16))
    if "protocol" in config:
        made = made_up(config, int(rng.integers(9)))
        made["result"]["marks"] = pack(rng.integers(0, 6, (6, 64, 64)).astype(np.uint8))
        if config["masks"]["by"] == across_tables.FILTERED:
            after = {"precision": 0.9, "recall": 0.4, "iou": 0.35}
            made["result"]["filter"] = {"masks": {"before": after, "after": after}, "wrong": 0.75, "found": 0.5}
        return made
    iou = rng.uniform(0.1, 0.9, 48).round(4).tolist()
    result = {"iou": iou, "miou": round(100 * float(np.mean(iou)), 4), "weights": run_key(config)}
    if "pairs" in config:
        labels = rng.integers(0, 48, (6, 64, 64)).astype(np.uint8)
        result["synthetic"] = {"kept": 0.5, "oracle": 33.0, "examples": pack(labels)}
    return {"key": run_key(config), "config": config, "code": {}, "claims": {}, "result": result, "curve": [],
            "seconds": 60.0}  # fmt: skip


def performed(settings, id, recorded=record_of):
    made = across_tables.EXPERIMENTS[id]
    records = [recorded(config) for config in made.configs(settings)]
    return Outcome(made.table(settings, records), records, len(records))


def cells(outcome):
    return {line["label"]: line["cells"] for line in outcome.table["rows"]}


# -- tables ----------------------------------------------------------------------------------------------------------


def test_cells_of_pairs_are_those_of_their_own_runs(project):
    outcome = performed(project, across_tables.PAIRS)
    found = cells(outcome)
    for label, alpha in ((across_tables.LABELLED, None), (across_tables.CLEAN, 1.25)):
        for column, paradigm in across_tables.PARADIGMS.items():
            wanted = {str(s): record_of(across_configs.pairs(project, paradigm, s, alpha))["result"] for s in range(5)}
            assert found[label][column]["values"] == {s: r["miou"] for s, r in wanted.items()}
            things = {s: round(100 * np.mean(r["iou"][:40]), 4) for s, r in wanted.items()}
            assert found[label][f"{column} things"]["values"] == pytest.approx(things, abs=1e-3)
            grounds = {s: round(100 * np.mean(r["iou"][40:]), 4) for s, r in wanted.items()}
            assert found[label][f"{column} grounds"]["values"] == pytest.approx(grounds, abs=1e-3)
        assert found[label]["pixels kept"]["mean"] == 50 and found[label]["oracle's mIoU"]["mean"] == 33
    assert found[across_tables.REAL]["alone"]["n"] == project.get("freemask.other_seeds")
    kinds = {across_tables.cell_of(r["config"]) for r in outcome.records}
    assert len(kinds) == 5 and len(outcome.records) == 4 * 5 + 3


def test_the_cheapest_run_on_pairs_needs_no_picture(project):
    configs = across_tables.PAIRS_TABLE.configs(project)
    assert min(configs, key=lambda c: c["train"]["steps"])["paradigm"] == "real"


def test_cells_of_a_step_are_those_of_their_own_runs(project):
    outcome = performed(project, across_tables.STEP)
    found = cells(outcome)
    for label, make in across_tables.STEPS.items():
        results = {str(s): record_of(make(project, s))["result"] for s in range(5)}
        new = {s: round(100 * np.mean(r["iou"][16:21]), 4) for s, r in results.items()}
        assert found[label]["new"]["values"] == pytest.approx(new, abs=1e-3)
        wanted = 90 if "filter" in results["0"] else 50
        assert found[label]["marks precision"]["mean"] == pytest.approx(wanted) and found[label]["forgetting"]["n"] == 5
    assert len({across_tables.STEP_TABLE.cell(r["config"]) for r in outcome.records}) == 5
    assert across_tables.STEP_TABLE.configs(project)[0]["masks"] == {"by": "co-segmentation"}, "leaves the judges"
    again = [rerun.configs_of(e, project, "headline") for e in across_tables.EXPERIMENTS.values()]
    assert again == [[], []], "no paper's headline"


def test_what_is_handed_on_begins_with_the_marks_that_the_teacher_got(project):
    outcomes = {across_tables.STEP: performed(project, across_tables.STEP)}
    found = {line["label"]: line["cells"] for line in across_reading.handed_on(project, outcomes)["rows"]}
    assert list(found) == list(across_tables.STEPS)
    for label, line in found.items():  # of made_records: 40 % everywhere; of filtered marks as many are left
        assert [line[who]["mean"] for who in across_reading.HANDED_ON] == pytest.approx([40.0] * 3), label
    precise = across_reading.handed_on(project, outcomes, "precision")["rows"]
    assert [line["cells"]["marks"]["mean"] for line in precise] == pytest.approx([50.0, 90.0, 90.0, 50.0, 50.0])
    results = [r["result"] for r in outcomes[across_tables.STEP].records if "filter" in r["result"]]
    for result in results:
        result["filter"]["masks"]["after"]["recall"] = 0.25
    found = {line["label"]: line["cells"] for line in across_reading.handed_on(project, outcomes)["rows"]}
    means = [line["marks"]["mean"] for line in found.values()]
    assert results and means == pytest.approx([40.0, 25.0, 25.0, 40.0, 40.0]), "filtered, and the control"


def test_a_table_without_runs_says_so_in_every_cell(project):
    real = Settings("paper", load("paper", ROOT).values, project.root)
    for id, made in across_tables.EXPERIMENTS.items():
        assert made.configs(real) == []
        statuses = {c["status"] for line in made.table(real, [])["rows"] for c in line["cells"].values()}
        assert statuses == {"not run: its runs are those of the mini world"}
        empty = made.table(project, [None] * len(made.configs(project)))
        lines = [line for line in empty["rows"] if "ceiling" not in line["label"]]
        statuses = {c["status"] for line in lines for c in line["cells"].values()}
        assert statuses == {"not run: no record of its runs"}, id


def test_a_zoo_without_a_model_has_no_runs(project):
    shutil.rmtree(project.root / "zoo" / "mim")
    assert "mim" in across_configs.lacking(project)
    assert all(made.configs(project) == [] for made in across_tables.EXPERIMENTS.values())


def test_freemasks_cells_stand_beside_as_they_are(project):
    mine = performed(project, across_tables.PAIRS).table
    others = {id: borrowed(id) for id in across_reading.BORROWED}
    found = {line["label"]: line["cells"] for line in across_reading.side_by_side(mine, others)["rows"]}
    assert list(found)[0] == across_tables.REAL and list(found)[-1] == across_tables.CLEAN
    assert found["FreeMask's filtered and re-sampled"]["joint"]["values"]["3"] == 43
    own = {line["label"]: line["cells"] for line in mine["rows"]}
    assert found[across_tables.CLEAN]["joint"] == own[across_tables.CLEAN]["joint"]
    del others["freemask-ablation-joint"]
    found = {line["label"]: line["cells"] for line in across_reading.side_by_side(mine, others)["rows"]}
    assert found["FreeMask's as painted"]["joint"]["n"] == 0 and found["FreeMask's as painted"]["alone"]["n"] == 5


# -- claims ----------------------------------------------------------------------------------------------------------


def own_claims():
    """Of notebook 90; the others of no paper are notebook 18's."""
    listed = [c for c in claims.load(ROOT / "claims.yaml") if c["paper"] == ledger.ACROSS]
    return [c for c in listed if not c["id"].startswith("across.bounded.")]


def test_claims_name_cells_that_the_tables_have_with_all_seeds(project):
    found = {id: performed(project, id).table for id in across_tables.EXPERIMENTS}
    found |= {id: borrowed(id) for id in across_reading.BORROWED}
    listed = own_claims()
    assert len(listed) == 10
    assert all(c["where"].startswith("ours") and c["note"].startswith("Of no paper") for c in listed)
    for claim in listed:
        formula = parse(claim["estimand"])
        assert formula.tables[0] in across_tables.EXPERIMENTS, "it is judged with its own kind, not with a paper's"
        for id, label, column in formula.cells:
            line = next(line for line in found[id]["rows"] if line["label"] == label)
            assert line["cells"][column]["n"] == 5


def test_a_claim_of_ours_is_not_called_a_papers():
    listed = {c["id"]: c for c in own_claims()}
    entry = listed["across.teacher.1"] | {"rule_hash": "x" * 20, "verdict": "not tested", "why": "", "left_out": []}
    assert "For comparison: FMWISS overlap 16-20: 54.5" in ledger.details(entry)
    assert "The paper's numbers" in ledger.details(entry | {"paper": "FMWISS"})


# -- the notebook ----------------------------------------------------------------------------------------------------


def run_notebook(settings, monkeypatch, recorded):
    """All code cells in one namespace, runs being what ``recorded`` makes of configurations."""

    def perform(made, given, train):
        return performed(given, made.id, recorded)

    monkeypatch.setattr(experiment, "perform", perform)
    monkeypatch.setattr("fmseg.settings.load", lambda profile: settings)
    monkeypatch.setattr(
        across_reading, "first_pairs", lambda config, count: np.zeros((count, 64, 64, 3), np.uint8)
    )  # fmt: skip
    names = {}
    for cell in json.loads((ROOT / f"notebooks/{STAGE}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile(ast.parse("".join(cell["source"])), STAGE, "exec"), names)
    return names


def test_the_notebook_follows_from_records(project, monkeypatch):
    names = run_notebook(project, monkeypatch, record_of)
    folder = project.results / "figures" / STAGE
    assert sorted(path.stem for path in folder.glob("*.png")) == FIGURES
    assert all(list(csv.DictReader(path.open())) for path in folder.glob("*.csv"))
    assert {c["id"] for c in names["found"]} == {c["id"] for c in own_claims()}
    assert all(c["verdict"] != "not tested" for c in names["found"])
    said = names["freemask_verdicts"].in_words(names["found"])
    assert said.count("for comparison: ") == len(names["found"]) and "the paper: " not in said


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_the_notebook_without_a_run_reaches_its_end_and_draws_nothing(profile, project, monkeypatch, capsys):
    if profile == "paper":
        folder = project.results / "tables"
        project = Settings("paper", load("paper", ROOT).values, project.root)
        shutil.copytree(folder, project.results / "tables")
    for id in across_reading.BORROWED:
        empty = borrowed(id)
        for line in empty["rows"]:
            line["cells"] = {column: tables.not_run("no record of its runs") for column in line["cells"]}
        tables.write(empty, project.results / "tables")
    names = run_notebook(project, monkeypatch, lambda config: None)
    assert not list((project.results / "figures").rglob("*.png"))
    assert capsys.readouterr().out.count("no run") >= len(FIGURES)
    assert {c["verdict"] for c in names["found"]} == {"not tested"}


def test_the_notebook_is_the_stage_of_its_tables_and_waits_for_what_it_needs():
    path = ROOT / f"notebooks/{STAGE}.ipynb"
    assert {e.stage for e in across_tables.EXPERIMENTS.values()} == {STAGE}
    assert pipeline.models_needed(path) == set(MODELS)
    head = "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert all(claim["id"].rpartition(".")[0] in head for claim in own_claims())


def test_first_images_have_the_new_classes_numbered_from_one(project):
    made = across_configs.marked(Settings("smoke", load("smoke", ROOT).values, project.root), 100)
    images, truth, names = across_reading.first_images(made, 4)
    assert images.shape == (4, 64, 64, 3) and truth.max() <= 5 and (truth > 0).any() and len(names) == 6
