import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fmseg import image_counts, supervised, zoo
from fmseg.evaluation import evaluate, predict
from fmseg.fitting import save_weights
from fmseg.labelmaps import unpack
from fmseg.metrics import mean_iou
from fmseg.provenance import closure
from fmseg.segmenters import build, zoo_backbone

CONFIG = {
    "method": "segformer", "backbone": "scratch", "seed": 100, "draw": "voc", "split": "train", "images": 12,
    "validation": 6, "size": 32,
    "train": {"steps": 4, "batch_size": 4, "lr": 0.002, "eval_every": 2},
}  # fmt: skip


def test_a_run_is_a_function_of_its_configuration():
    first, again = supervised.run(CONFIG), supervised.run(CONFIG)
    assert first["result"] == again["result"] and first["curve"] == again["curve"]
    other = supervised.run({**CONFIG, "seed": 101})
    assert other["result"]["weights"] != first["result"]["weights"]


def test_the_result_is_that_of_the_model():
    done = supervised.run(CONFIG)
    _, held_out = supervised.sources(CONFIG)
    iou = evaluate(done["model"], held_out.images, held_out.labels, 21).compute()
    assert done["result"]["miou"] == pytest.approx(100 * mean_iou(iou), abs=1e-3)
    assert [value is None for value in done["result"]["iou"]] == np.isnan(iou).tolist()
    assert done["curve"][-1] == [4, done["result"]["miou"]]
    counted = image_counts.iou(image_counts.unpack(done["result"]["images"]))
    np.testing.assert_allclose(counted, iou, rtol=1e-12)
    assert (unpack(done["result"]["examples"]) == predict(done["model"], held_out.images[:6])).all()


def test_a_key_that_nobody_reads_is_refused():
    with pytest.raises(ValueError, match="unknown key of a run's configuration 'imges'; did you mean 'images'"):
        supervised.run({**CONFIG, "imges": 3})
    with pytest.raises(ValueError, match="lacks size"):
        supervised.run({key: value for key, value in CONFIG.items() if key != "size"})
    with pytest.raises(ValueError, match="steps"):
        supervised.run({**CONFIG, "train": {"stepz": 3}})


def test_a_run_rests_on_kernels_and_not_on_what_shows_results():
    names = set(closure("fmseg.supervised", Path(__file__).parent.parent))
    assert {"fmseg.world", "fmseg.textures", "fmseg.segmenter_configs", "fmseg.metrics", "fmseg.training"} <= names
    assert not {"fmseg.tables", "fmseg.claims", "fmseg.cite", "fmseg.ledger"} & names


def test_a_run_on_the_zoo_s_backbone_starts_from_its_weights(tmp_path, monkeypatch):
    state = build("segformer", num_classes=2, seed=7).model.backbone.state_dict()
    save_weights(tmp_path / "backbone-segformer/backbone.safetensors", state)
    files = {"backbone.safetensors": zoo.sha256(tmp_path / "backbone-segformer/backbone.safetensors")}
    (tmp_path / "backbone-segformer/card.json").write_text(json.dumps({"files": files}))
    monkeypatch.setenv("FMSEG_ZOO", str(tmp_path))
    still = {"steps": 1, "batch_size": 4, "lr": 0.002, "backbone_lr": 0.0, "weight_decay": 0.0}
    config = CONFIG | {"backbone": zoo_backbone("segformer"), "train": still}
    trained = supervised.run(config)["model"].model
    first = next(name for name, _ in trained.backbone.named_parameters())
    assert torch.equal(trained.backbone.get_parameter(first), state[first].half().float()), "it may not learn here"
    scratch = supervised.run(config | {"backbone": "scratch"})["model"].model
    assert not torch.equal(scratch.backbone.get_parameter(first), trained.backbone.get_parameter(first))
    with pytest.raises(ValueError, match="Weights that a record means are in the commit that made it"):
        supervised.run(config | {"backbone": "zoo:0000"})
