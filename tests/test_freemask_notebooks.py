"""Notebooks 24 to 26 cell by cell on made-up records: tables, figures, verdicts follow from whatever was measured."""

import ast
import csv
import json
import shutil

import numpy as np
import pytest
from toys import ROOT

from fmseg import experiment, freemask_camvid, freemask_tables, freemask_truth
from fmseg.experiment import Outcome
from fmseg.filter_truth import FAULTS, ONE
from fmseg.labelmaps import pack
from fmseg.names import CAMVID
from fmseg.records import run_key
from fmseg.settings import Settings, load

NEEDED = ["clip", "diffusion", "oracle"] + [
    f"{kind}-{draw}" for kind in ("layout", "weak") for draw in ("ade", "stuff")
]
NEEDED += [f"backbone-{method}" for method in ("segformer", "segmenter", "mask2former")]
TABLES = {
    "24_freemask_joint": [
        "freemask-transfer", "freemask-joint-ade", "freemask-joint-coco", "freemask-pretrain", "freemask-schedule",
    ],
    "25_freemask_ablations": [
        "freemask-ablation-transfer", "freemask-ablation-joint", "freemask-nmax", "freemask-margin",
        "freemask-generator", "freemask-fewer", "freemask-filter-truth",
    ],
    "26_real_photographs": ["freemask-camvid"],
}  # fmt: skip
FIGURES = {
    "24_freemask_joint": [
        "curves", "gains", "gains-as-long", "gains-by-class", "kept-and-gained", "predictions", "schedule", "transfer",
    ],
    "25_freemask_ablations": [
        "distance", "fewer", "filter-and-resampling", "filter-truth", "freemask-f6", "layout-miou", "margin",
        "pictures-a-mask",
    ],
    "26_real_photographs": ["classes", "gains", "miou", "predictions"],
}  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project without any model or photograph: cards, parameters, claims."""
    for name in NEEDED:
        (tmp_path / "zoo" / name).mkdir(parents=True)
        (tmp_path / "zoo" / name / "card.json").write_text(json.dumps({"files": {"weights": name}}))
    monkeypatch.setenv("FMSEG_ZOO", str(tmp_path / "zoo"))
    for name in ("FMSEG_DATA", "FMSEG_CAMVID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(ROOT / "claims.yaml", tmp_path)
    values = load("mini", ROOT).values
    return Settings("mini", values | {"world": values["world"] | {"val": 6}}, tmp_path)


def record_of(config):
    """A made-up result with everything that a run of this kind leaves."""
    rng = np.random.default_rng(int(run_key(config), 16))
    classes = len(CAMVID) if "data" in config else 48
    iou = rng.uniform(0.1, 0.9, classes).round(4).tolist()
    result = {"iou": iou, "miou": round(100 * float(np.mean(iou)), 4), "weights": run_key(config)}
    result["examples"] = pack(rng.integers(0, classes, (6, 64, 64)).astype(np.uint8))
    if "alphas" in config:
        counts = np.array([[[1000, 100, 150, 90], [3000, 50, 120, 20]]] * len(config["alphas"]))
        kinds = {kind: counts.tolist() for kind in ("training", "cross-fitted", ONE)}
        result["truth"] = {name: kinds for name in (*FAULTS, "generated")}
        result["losses"] = {"training loss": 0.5, "validation loss": 1.5, "miou": 20.0}
        result["means"] = {"training": rng.uniform(0.1, 2, classes).tolist()}
        result["by class"] = {"generated": [[100, 10, 20, 5]] * classes}
    elif "synthetic" in config:
        shares = rng.uniform(0, 1, classes).tolist()
        result["synthetic"] = {"kept": 0.5, "pictures": 7, "kept by class": shares}
        ends = [f"0001TP_00{k} 0" for k in range(6)]
        result["judge"] = {"means": shares, "mean": 0.7, "hardness": [0.1, 0.2, 0.3, 0.4, 0.5], "easiest": ends,
                           "hardest": ends}  # fmt: skip
        result["generator"] = {"images": 8, "steps": 2, "exposures": 4, "loss": [[2, 0.5]], "weights": "made up"}
    if "quality" in config:
        result["generator"] = {"layout": 20.0, "real": 60.0, "frechet": float(rng.uniform(1, 9))}
    made = {"key": run_key(config), "config": config, "code": {}, "claims": {}, "result": result, "seconds": 60.0}
    return made | {"curve": [[100, result["miou"] / 2], [200, result["miou"]]]}


def run_notebook(name, settings, monkeypatch, recorded):
    """All code cells in one namespace, runs being what ``recorded`` makes of configurations; {table: outcome}."""
    performed = {}

    def perform(experiment, given, train, again=None):
        configs = experiment.configs(given)
        assert again is None or again in configs
        records = [recorded(config) for config in configs]
        performed[experiment.id] = Outcome(experiment.table(given, records), records, len(records))
        return performed[experiment.id]

    monkeypatch.setattr(experiment, "perform", perform)
    monkeypatch.setattr("fmseg.settings.load", lambda profile: settings)
    names = {}
    for cell in json.loads((ROOT / f"notebooks/{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile(ast.parse("".join(cell["source"])), name, "exec"), names)
    return performed, names


@pytest.mark.parametrize("name", TABLES)
def test_tables_and_figures_follow_from_records(name, project, monkeypatch):
    performed, names = run_notebook(name, project, monkeypatch, record_of)
    assert sorted(performed) == sorted(TABLES[name])
    folder = project.results / "figures" / name
    assert sorted(path.stem for path in folder.glob("*.png")) == FIGURES[name]
    for path in folder.glob("*.csv"):
        assert list(csv.DictReader(path.open())), path.name
    if name != "26_real_photographs":
        assert names["found"] and all(c["verdict"] != "not tested" for c in names["found"])
        said = names["freemask_verdicts"].in_words(names["found"])
        assert said.count("\n* ") == len(names["found"]) - 1 and "; measured " in said and "the paper: " in said


@pytest.mark.parametrize("profile", ["mini", "paper"])
@pytest.mark.parametrize("name", TABLES)
def test_a_notebook_without_a_single_run_reaches_its_end_and_draws_nothing(
    name, profile, project, monkeypatch, capsys
):  # fmt: skip
    if profile == "paper":
        project = Settings("paper", load("paper", ROOT).values, project.root)
    _, names = run_notebook(name, project, monkeypatch, lambda config: None)
    assert not list((project.results / "figures").rglob("*.png"))
    assert capsys.readouterr().out.count("no run") >= len(FIGURES[name]) - 1
    if name != "26_real_photographs":
        assert {c["verdict"] for c in names["found"]} == {"not tested"}


def test_every_claim_of_the_tables_is_said_in_one_of_the_notebooks(project, monkeypatch):
    from fmseg import claims
    from fmseg.estimand import parse

    listed = [c for c in claims.testable(claims.load(ROOT / "claims.yaml")) if c["paper"] == "FreeMask"]
    ours = {c["id"] for c in listed if any(t in ids for ids in TABLES.values() for t in parse(c["estimand"]).tables)}
    said = set()
    for ids in TABLES.values():
        said |= {c["id"] for c in listed if set(parse(c["estimand"]).tables) <= set(ids)}
    assert said == ours
    heads = "".join(
        "".join(json.loads((ROOT / f"notebooks/{n}.ipynb").read_text())["cells"][0]["source"]) for n in TABLES
    )
    for id in ours:
        assert id.rpartition(".")[0] in heads


def test_the_notebooks_are_the_stages_that_tables_name_and_wait_for_their_models():
    from fmseg import pipeline

    made = [*freemask_tables.EXPERIMENTS.values(), freemask_truth.EXPERIMENT, freemask_camvid.EXPERIMENT]
    for name, ids in TABLES.items():
        assert sorted(e.id for e in made if e.stage == name) == sorted(ids)
        needed = pipeline.models_needed(ROOT / f"notebooks/{name}.ipynb")
        assert "diffusion" in needed and needed <= set(NEEDED)
