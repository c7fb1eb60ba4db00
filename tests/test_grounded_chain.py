"""From the smoke profile's parameters to tables: one run of every kind, on random weights and an oracle of blobs."""

import copy
import json

import grounded_toys as toys
import pytest
import torch
from toys import ROOT

from fmseg import grounded_runs, tables, zero_shot, zoo
from fmseg import grounded_tables as grounded
from fmseg.generation import text_to_image
from fmseg.records import new_record
from fmseg.settings import Settings, load
from fmseg.zero_shot_table import T2

KINDS = {  # of each table one run a kind, told apart by these keys
    grounded.T1: lambda c: c["method"],
    grounded.NOVELTY: lambda c: c["method"],
    grounded.T3: lambda c: c["undetected"],
    grounded.T4: lambda c: len(c["seen"]) == 3 or None,
    grounded.TIMESTEPS: lambda c: c["step"] == 2 or None,
    grounded.INVERSION: lambda c: c["pictures"]["from"],
    T2: lambda c: c["method"] if c["method"] in ("model-a", "model-e", "zs3-style", "clip-dense") else None,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("zoo")
    toys.make_zoo(made)
    (made / "backbone-segformer").mkdir()
    (made / "backbone-segformer" / zoo.CARD).write_text(json.dumps({"files": {"model": "none"}}))
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("parts")


@pytest.fixture
def settings(folder, shared, monkeypatch):
    """The smoke profile with two steps of the sampler and a smaller head."""
    toys.install(folder, monkeypatch)
    monkeypatch.setenv("FMSEG_PARTS", str(shared))
    monkeypatch.setattr(zero_shot, "load_clip", lambda folder: None)
    words = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(zero_shot, "text_embeddings", lambda clip, names: words)
    monkeypatch.setattr(
        zero_shot, "dense_scores", lambda clip, images, text, by: torch.rand(len(images), len(text), 8, 8)
    )
    values = copy.deepcopy(load("smoke", ROOT).values)
    values["grounded"]["sampling"]["steps"] = 2
    values["grounded"]["timesteps"] = {1: 1, 2: 50}
    values["grounded"]["real"] = {"images": 20, "validation": 20}
    values["grounded"]["novel"] = 40
    values["grounded"]["head"] = {"widths": [2, 2, 2, 2], "dim": 8, "heads": 2, "layers": 1, "hidden": 8}
    values["grounded"]["zero_shot"] |= {"backbone": "scratch"}
    values["world"]["val"] = 40
    yield Settings("smoke", values, ROOT)
    text_to_image.cache_clear()


def one_of_each(experiment, settings):
    chosen = {}
    for config in experiment.configs(settings):
        kind = KINDS[experiment](config)
        if kind is not None:
            chosen.setdefault(kind, config)
    return chosen.values()


@pytest.mark.parametrize("experiment", list(KINDS), ids=lambda e: e.id)
def test_one_run_of_every_kind_fills_its_cells(experiment, settings):
    module, records = zero_shot if experiment is T2 else grounded_runs, []
    for config in one_of_each(experiment, settings):
        done = module.run(config)
        records.append(new_record(config, {}, done["result"], curve=done["curve"], seconds=done["seconds"]))
        assert json.loads(json.dumps(records[-1], allow_nan=False))["result"]["weights"]
        assert 0 <= done["result"]["miou"] <= 100
    made = experiment.table(settings, records)
    tables.validate(made)
    filled = [row["label"] for row in made["rows"] for c in row["cells"].values() if c["status"] == "measured"]
    assert len(set(filled)) >= len(records)
    assert experiment.module == module.__name__
