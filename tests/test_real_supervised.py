"""`profile: paper` on a small tree in VOC's layout: every paper-size segmenter, two steps and an evaluation."""

import json
from dataclasses import replace

import numpy as np
import pytest
from toys import ROOT

from fmseg import configs, experiment, export, freemask_real, paper_segmenters, real_supervised, train_table
from fmseg.datasets import draw_set
from fmseg.records import run_key
from fmseg.settings import Settings, load

EVERY = [(name, size) for name, sizes in paper_segmenters.FILES.items() for size in sizes]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "VOCdevkit/VOC2012"
    export.write(draw_set("voc", "train", 6, size=64), folder, "voc", "train_aug")
    export.write(draw_set("voc", "val", 3, size=96), folder, "voc", "val", prefix="val_")
    return folder.parent.parent


@pytest.fixture
def paper(tree, monkeypatch, tmp_path):
    """The paper profile with VOC in every part, small crops and two steps."""
    monkeypatch.setenv("FMSEG_DATA", str(tree))
    for name in ("FMSEG_VOC", "RANK"):
        monkeypatch.delenv(name, raising=False)
    values = load("paper", ROOT).values
    voc = values["data"]["voc"] | {"images": 50}
    small = {"steps": 2, "batch_size": 2, "device": "cpu", "eval_every": None, "warmup_steps": 1}
    values = values | {"data": {part: voc for part in values["data"]}, "crop": 64, "pretrained": False, "seeds": [0]}
    return Settings("paper", values | {"train": small}, tmp_path)


@pytest.mark.parametrize("name, size", EVERY)
def test_two_steps_and_an_evaluation(paper, name, size):
    settings = replace(paper, values=paper.values | {"sizes": paper.values["sizes"] | {name: size}})
    config = configs.real(settings, name, 0, "voc")
    assert config["size"] == size and json.loads(json.dumps(config)) is not None
    before = real_supervised.model_of(config, 21).state_dict()
    done = real_supervised.run(json.loads(json.dumps(config)))
    after = done["model"].state_dict()
    moved = [k for k, v in before.items() if v.is_floating_point() and not np.array_equal(v, after[k])]
    assert len(moved) > 0.6 * len(before)
    result = done["result"]
    assert len(result["iou"]) == 21 and 0 <= result["miou"] <= 100 and result["examples"]["shape"] == [3, 128, 128]
    assert done["curve"] == [[2, result["miou"]]]


def mini(paper, **changes):
    config = configs.real(paper, "segformer", 0, "voc") | {"size": "mini", "crop": [64, 64], "test": {}}
    config["pipeline"] = [{"type": "RandomCrop", "crop_size": [64, 64]}, {"type": "RandomFlip", "prob": 0.5}]
    config["train"] = {"steps": 4, "batch_size": 2, "lr": 1e-3}
    return config | changes


def test_a_run_is_repeatable_and_resumes(paper, tmp_path):
    whole = real_supervised.run(mini(paper))["result"]
    assert real_supervised.run(mini(paper))["result"] == whole

    def stop(step, loss):
        if step == 2:
            raise KeyboardInterrupt

    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        real_supervised.run(mini(paper), checkpoint=path, checkpoint_every=1, on_step=stop)
    assert real_supervised.run(mini(paper), checkpoint=path)["result"] == whole


def test_loader_processes_give_the_same_run(paper):
    config = mini(paper)
    shared = mini(paper, train=config["train"] | {"workers": 2})
    assert real_supervised.run(shared)["result"] == real_supervised.run(config)["result"]


def test_the_paper_profile_asks_for_the_papers_runs(paper):
    runs = freemask_real.run_configs(replace(paper, values=load("paper", ROOT).values))
    assert len(runs) == 15 and {(c["method"], c["size"]) for c in runs} == {
        ("segformer", "b2"), ("segmenter", "s"), ("mask2former", "t")
    }  # fmt: skip
    assert {c["data"] for c in runs} == {"ade20k"} and all(c["pretrained"] for c in runs)
    assert runs[0]["train"]["steps"] == 160_000 and runs[0]["train"]["device"] == "auto"
    with pytest.raises(FileNotFoundError, match="Set FMSEG_WEIGHTS|ade20k"):
        real_supervised.run(runs[0])


def test_train_leaves_records_and_the_table_follows(paper, monkeypatch, capsys):
    EXPERIMENT = freemask_real.EXPERIMENT
    settings = replace(paper, root=paper.root)
    for part in ("fmseg", "claims.yaml"):
        (settings.root / part).symlink_to(ROOT / part)
    monkeypatch.setattr(train_table, "load", lambda profile: settings)
    monkeypatch.setattr(EXPERIMENT.__class__, "trained_by", lambda self, settings: "fmseg.real_supervised")
    assert train_table.main(["freemask-real", "--only", "method=segformer"]) == 0
    assert "run 1 of 1: SegFormer, seed 0" in capsys.readouterr().out
    assert [c["method"] for c in train_table.waiting(EXPERIMENT, settings)] == ["segmenter", "mask2former"]
    outcome = experiment.perform(EXPERIMENT, settings, "one", progress=False)
    assert (outcome.from_records, outcome.trained, outcome.compared) == (1, 0, [])
    cells = {row["label"]: row["cells"] for row in outcome.table["rows"]}
    assert cells["SegFormer"]["mIoU"]["n"] == 1 and cells["SegFormer"]["things"]["n"] == 0
    assert cells["Segmenter"]["mIoU"]["status"].startswith("not run")
    assert not list((settings.root / "build/runs").glob("*.pt"))
    assert train_table.main(["freemask-real", "--only", "method=segfromer"]) == 1
    assert "`only` method=segfromer: the runs of freemask-real have" in capsys.readouterr().err
    assert train_table.main(["freemask"]) == 1 and "Did you mean 'freemask-real'" in capsys.readouterr().err


def test_bad_configurations_are_named(paper, monkeypatch):
    config = mini(paper)
    with pytest.raises(ValueError, match="unknown key of a run's configuration 'tests'|did you mean"):
        real_supervised.run(config | {"tests": {}})
    with pytest.raises(ValueError, match="`backbone` is of mini segmenters, and this one has size 'b2'; see `pretrain"):
        real_supervised.run(config | {"size": "b2", "backbone": "scratch"})
    with pytest.raises(ValueError, match="lacks pipeline, test"):
        real_supervised.run({k: v for k, v in config.items() if k not in ("pipeline", "test")})
    monkeypatch.delenv("FMSEG_DATA")
    with pytest.raises(FileNotFoundError, match="Where does voc lie. Set FMSEG_VOC"):
        real_supervised.run(config)
    monkeypatch.setenv("FMSEG_VOC", "/nowhere")
    with pytest.raises(FileNotFoundError, match="/nowhere, where voc should lie, is no folder"):
        real_supervised.run(config)


def test_runs_that_differ_in_their_data_have_keys_of_their_own(paper):
    keys = {run_key(mini(paper)), run_key(mini(paper, split="train")), run_key(mini(paper, images=3))}
    assert len(keys) == 3
