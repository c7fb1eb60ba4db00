"""The shipped zoo: cards, hashes, and what may be shipped. On a made-up model of two small files."""

import json

import pytest
import torch

from fmseg import zoo, zoo_promote
from fmseg.zoo_promote import ABOUT, about, promote
from fmseg.zoo_run import Run
from fmseg.zoo_train import MODULES

STATE = {"weight": torch.tensor([[0.5, -1.25]]), "steps": torch.tensor(70_001)}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's folder; the zoo is its zoo/weights."""
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo/params.yaml").write_text("full:\n  web: 40\n  dino: {steps: 5, batch_size: 2, lr: 0.1, own: 3}\n")
    monkeypatch.setenv("FMSEG_ZOO", str(tmp_path / "zoo/weights"))
    return tmp_path


def trained(project, name="dino", scale="full", **facts):
    """What a training leaves behind."""
    run = Run(name, scale, project, project / "zoo/build/full", "fmseg.zoo_vits", "c0de")
    files = {"model.safetensors": STATE, "part/config.json": {"mean": (0.5, 0.25), "width": 2}}
    if scale == "full":
        run.finish({"steps": 5, "seconds": 61.0} | facts, files)
    else:
        (run.folder()).mkdir(parents=True)
        (run.folder() / "facts.json").write_text(json.dumps({"scale": scale}))
    return run


@pytest.fixture
def shipped(project):
    trained(project)
    promote("dino", project / "zoo/build/full", project / "zoo/weights")
    return project / "zoo/weights/dino"


def test_a_training_reads_its_recipe_and_leaves_weights_configuration_and_facts(project):
    run = trained(project)
    assert (run.recipe().steps, run.recipe().lr) == (5, 0.1) and run.params["web"] == 40
    assert run.loop("a")["checkpoint"] == project / "zoo/build/full/state/dino-a.pt"
    assert json.loads((run.folder() / "part/config.json").read_text()) == {"mean": [0.5, 0.25], "width": 2}
    facts = json.loads((run.folder() / "facts.json").read_text())
    assert facts["recipe"]["own"] == 3 and facts["code"] == "c0de" and facts["seconds"] == 61.0


def test_a_shipped_model_has_a_card_and_single_precision(shipped):
    card = zoo.card("dino")
    assert zoo.names() == ["dino"] and zoo.folder("dino") == shipped
    assert card["name"] == "dino" and "DINO" in card["what"] and card["knows"] and card["data"]
    assert set(card["files"]) == {"model.safetensors", "part/config.json"}
    assert all(zoo.sha256(shipped / part) == digest for part, digest in card["files"].items())
    assert card["bytes"] == sum((shipped / part).stat().st_size for part in card["files"])
    assert card["training"]["recipe"]["steps"] == 5 and card["training"]["scale"] == "full"
    state = zoo.load_state("dino", "model.safetensors")
    assert state["weight"].dtype == torch.float32 and torch.equal(state["weight"], STATE["weight"])
    assert state["steps"].dtype == torch.int64 and state["steps"] == 70_001
    assert len(zoo.weights_hash("dino")) == 16
    with pytest.raises(ValueError, match="has no file 'nothing'; it has model.safetensors, part/config.json"):
        zoo.load_state("dino", "nothing")


def test_a_changed_byte_is_noticed(shipped):
    zoo.folder("dino")  # and its digests are remembered
    path = shipped / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = r"'dino': model.safetensors is not the file its card means .*`git checkout -- zoo/weights/dino` brings"
    for read in (lambda: zoo.folder("dino"), lambda: zoo.load_state("dino", "model.safetensors")):
        with pytest.raises(ValueError, match=message):
            read()


def test_a_missing_file_and_an_unknown_model(shipped):
    (shipped / "part/config.json").unlink()
    with pytest.raises(ValueError, match="'dino' lacks part/config.json; `git checkout -- zoo/weights/dino` brings it"):
        zoo.folder("dino")
    with pytest.raises(ValueError, match=r"the zoo has no model 'dinosaur'; it has dino \(in weights/\)"):
        zoo.card("dinosaur")


def test_an_empty_zoo(project):
    assert zoo.names() == []
    with pytest.raises(ValueError, match="it has none"):
        zoo.folder("clip")


def test_the_zoo_of_this_checkout_is_taken_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("FMSEG_ZOO", raising=False)
    assert zoo.home().parts[-2:] == ("zoo", "weights") and (zoo.home().parent / "params.yaml").is_file()


def test_what_hangs_on_the_weights_changes_with_them_and_not_with_the_words(shipped):
    before = zoo.weights_hash("dino")
    card = json.loads((shipped / "card.json").read_text())
    (shipped / "card.json").write_text(json.dumps(card | {"what": "reworded"}))
    assert zoo.weights_hash("dino") == before
    card["files"]["model.safetensors"] = "0" * 64
    (shipped / "card.json").write_text(json.dumps(card))
    assert zoo.weights_hash("dino") != before


def test_only_finished_full_trainings_are_shipped(project):
    build, weights = project / "zoo/build/full", project / "zoo/weights"
    with pytest.raises(ValueError, match="dino is not trained; `python -m fmseg.zoo_train dino` does it"):
        promote("dino", build, weights)
    trained(project, scale="smoke")
    with pytest.raises(ValueError, match="dino was trained at scale 'smoke'; only 'full' ones are shipped"):
        promote("dino", build, weights)
    assert not weights.exists()


def test_shipped_weights_are_replaced_only_on_request(project, shipped):
    build, weights = project / "zoo/build/full", project / "zoo/weights"
    before = zoo.weights_hash("dino")
    with pytest.raises(ValueError, match="dino is shipped already; --replace replaces it"):
        promote("dino", build, weights)
    (shipped / "of the old one").write_text("x")
    (build / "dino/part/config.json").write_text("{}")
    promote("dino", build, weights, replace=True)
    assert zoo.folder("dino") and zoo.weights_hash("dino") != before and not (shipped / "of the old one").exists()


def test_what_is_shipped_together_has_a_limit(project, shipped, monkeypatch):
    build, weights = project / "zoo/build/full", project / "zoo/weights"
    (project / "zoo/params.yaml").write_text("full: {web: 40, dino: {}, mim: {}}\n")
    trained(project, "mim")
    there = sum(p.stat().st_size for p in weights.rglob("*") if p.is_file())
    size = zoo.card("dino")["bytes"]
    monkeypatch.setattr(zoo_promote, "LARGEST", there + size - 1)
    with pytest.raises(ValueError, match=rf"mim has {size} bytes; with the other {there} that is more than"):
        promote("mim", build, weights)
    assert zoo.names() == ["dino"]
    promote("dino", build, weights, replace=True)  # what it replaces does not count
    monkeypatch.setattr(zoo_promote, "LARGEST", there + size)
    promote("mim", build, weights)
    assert zoo.names() == ["dino", "mim"] and zoo_promote.LARGEST < 30_000_000


def test_where_the_trainer_had_its_weights_is_not_shipped(project):
    run, config = trained(project), {"_name_or_path": "/where/it/was/trained/the/trainer", "width": 2, "act": "silu"}
    (run.folder() / "unet").mkdir()
    (run.folder() / "unet/config.json").write_text(json.dumps(config))
    card = promote("dino", project / "zoo/build/full", project / "zoo/weights")
    shipped = zoo.folder("dino")  # checks the card's hashes
    assert json.loads((shipped / "unet/config.json").read_text()) == {"width": 2, "act": "silu"}
    assert card["bytes"] == sum((shipped / part).stat().st_size for part in card["files"])
    same = [part for part in card["files"] if part != "unet/config.json"]
    assert len(same) == 2 and all((shipped / p).read_bytes() == (run.folder() / p).read_bytes() for p in same)


def test_latents_are_not_shipped(project):
    run = trained(project)
    (run.folder() / "latents").mkdir()
    (run.folder() / "latents/0.npy").write_bytes(b"x")
    card = promote("dino", project / "zoo/build/full", project / "zoo/weights")
    assert not any("latents" in name for name in card["files"])


def test_every_model_that_is_shipped_can_be_described():
    assert zoo_promote.LARGEST == 30_000_000
    for name in set(MODULES) - {"vae"}:  # shipped within diffusion
        words = about(name)
        assert set(words) == {"what", "data", "knows"} and all(words.values()), name
        assert not any(sign in text for text in words.values() for sign in "{}")
    assert "deeplabv3" in about("backbone-deeplabv3")["what"] and "`ade`" in about("layout-ade")["data"]
    assert all(name in MODULES or name.endswith("-") for name in ABOUT)


def test_what_the_zoo_lacks_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(zoo, "names", lambda: ["clip", "vae"])
    assert zoo.lacking() is None and zoo.lacking("clip", "vae") is None
    assert zoo.lacking("mim", "clip", "dino", "mim") == "the zoo has no mim, dino yet"
    zoo.need("clip")
    with pytest.raises(ValueError, match="the zoo has no mim yet; `python -m fmseg.zoo_train` trains, "):
        zoo.need("clip", "mim")
