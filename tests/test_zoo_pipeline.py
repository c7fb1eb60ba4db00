"""The zoo's own pipeline: what its stages rest on, when a training is done again; `make repro` never comes here."""

import json
import re
import subprocess
import sys
import types

import pytest
import torch
import yaml
from toys import ROOT

from fmseg import pipeline, provenance, zoo_pipeline, zoo_train
from fmseg.repro import copy_checkout
from fmseg.zoo_run import Run
from fmseg.zoo_train import BUILDS_ON, MODULES, belongs, sections, train

STAGES = zoo_pipeline.stages(ROOT)
PARAMS = yaml.safe_load((ROOT / "zoo/params.yaml").read_text())


def test_zoo_dvc_yaml_is_what_the_code_says():
    assert (ROOT / "zoo/dvc.yaml").read_text() == zoo_pipeline.text(ROOT), "run `make pipeline`"
    assert yaml.safe_load(zoo_pipeline.text(ROOT))["stages"] == STAGES and list(STAGES) == list(MODULES)


def test_a_stage_rests_on_its_code_its_parameters_and_what_it_builds_on():
    deps = {name: stage["deps"] for name, stage in STAGES.items()}
    assert "../fmseg/zoo_vae.py" in deps["vae"] and "../fmseg/fitting.py" in deps["oracle"]
    assert "../fmseg/zoo_clip.py" not in deps["vae"] and "../fmseg/training.py" not in deps["oracle"]
    built = {name: [d for d in found if d.startswith("build/")] for name, found in deps.items()}
    assert built == {name: [f"build/full/{BUILDS_ON[name]}"] if name in BUILDS_ON else [] for name in MODULES}
    assert built["diffusion"] == ["build/full/vae"] and built["weak-ade"] == ["build/full/diffusion"]
    assert STAGES["clip"]["params"] == ["full.clip", "full.clip-names", "full.clip-pairs", "full.web", "full.icon"]
    assert STAGES["dino"]["outs"] == [{"build/full/dino": {"persist": True}}]


def test_every_parameter_is_there_at_both_scales_and_read_by_somebody():
    read = {section for name in MODULES for section in sections(name)}
    assert set(PARAMS) == {"full", "smoke"} and set(PARAMS["full"]) == set(PARAMS["smoke"]) == read
    for name, module in MODULES.items():
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        for draw in ("icon", "duo"):
            assert (f"run.{draw}s()" in source) == (draw in sections(name)), name
        assert set(re.findall(r'run\.recipe\("(.+?)"\)', source)) == set(sections(name)) - {name, "web", "icon", "duo"}
        if "run.folder(" in source:
            assert re.findall(r'run\.folder\("(.+?)"\)', source)[:1] == [BUILDS_ON[name]]
    for scale in PARAMS:
        for name in MODULES:
            run = Run(name, scale, ROOT, ROOT / "build", MODULES[name], "")
            assert run.recipe().steps > 0 and run.params[name].keys() >= {"steps", "batch_size", "lr"}


def test_models_come_after_those_they_build_on_and_names_cannot_be_mixed_up():
    order = list(MODULES)
    assert all(order.index(below) < order.index(name) for name, below in BUILDS_ON.items())
    assert not [(a, b) for a in order for b in order if b.startswith(f"{a}-")], "state/<name>-* belongs to one model"


def test_no_stage_of_the_root_pipeline_rests_on_a_training():
    roots = {**pipeline.stages(ROOT), **yaml.safe_load(pipeline.realdata_text(ROOT))["stages"]}
    deps = {dep for stage in roots.values() for dep in stage["deps"]}
    own = {f"fmseg/{m.removeprefix('fmseg.')}.py" for m in [*MODULES.values(), "fmseg.zoo_train", "fmseg.zoo_run"]}
    assert "fmseg/zoo.py" in deps and not own & deps and not any("zoo/build" in dep for dep in deps)


def test_stages_that_read_the_zoo_depend_on_the_shipped_weights(tmp_path):
    for part in ("fmseg", "notebooks"):
        (tmp_path / part).symlink_to(ROOT / part)
    assert not any(pipeline.ZOO in stage["deps"] for stage in pipeline.stages(tmp_path).values())
    (tmp_path / pipeline.ZOO).mkdir(parents=True)
    for stage in pipeline.stages(tmp_path).values():
        assert (pipeline.ZOO in stage["deps"]) == ("fmseg/zoo.py" in stage["deps"])
    assert any(pipeline.ZOO in stage["deps"] for stage in pipeline.stages(tmp_path).values())


# -- when a training is done again -------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Trainings of `vae` and `diffusion` that take no time: (how to start one, what was trained)."""
    trained = []

    def made(run):
        trained.append(run.name)
        checkpoint = run.loop()["checkpoint"]
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text("state")
        if run.code == "killed":
            raise KeyboardInterrupt
        run.finish({"seconds": 0}, {"a.safetensors": {"w": torch.tensor([float(len(trained))])}})

    monkeypatch.setitem(sys.modules, "fmseg.zoo_made", types.SimpleNamespace(train=made))
    names = [section for name in ("clip", "vae", "diffusion") for section in sections(name)]
    params = {name: {"steps": 1} for name in names} | {"web": 4, "icon": 2, "duo": 2}
    (tmp_path / "zoo").mkdir()

    def start(name, code="c1", renew=False, **changed):
        (tmp_path / "zoo/params.yaml").write_text(yaml.safe_dump({"full": params | changed}))
        return train(Run(name, "full", tmp_path, tmp_path / "zoo/build/full", "fmseg.zoo_made", code), renew)

    return start, trained


def test_a_training_is_done_once_and_renewed_where_something_moved(project):
    start, trained = project
    assert start("clip") and not start("clip") and not start("clip", renew=True)
    assert not start("clip", code="c2"), "only `--renew` looks at what moved"
    assert start("clip", code="c2", renew=True) and not start("clip", code="c2", renew=True)
    assert start("clip", code="c2", renew=True, clip={"steps": 2}) and trained == ["clip"] * 3
    assert not start("clip", code="c2", renew=True, clip={"steps": 2}, vae={"steps": 5}), "that is not its own"


def test_a_model_is_renewed_with_the_one_below_it(project):
    start, trained = project
    with pytest.raises(ValueError, match="vae builds on clip, which is not trained; train it first"):
        start("vae")
    start("clip")
    assert start("vae") and not start("vae", renew=True)
    start("clip", code="c2", renew=True)
    assert start("vae", renew=True) and trained == ["clip", "vae", "clip", "vae"]


def test_a_killed_training_goes_on_unless_something_moved(project, tmp_path):
    start, _ = project
    checkpoint, stamp = (tmp_path / "zoo/build/full/state" / f"clip{end}" for end in ("-checkpoint.pt", ".json"))
    with pytest.raises(KeyboardInterrupt):
        start("clip", code="killed")
    run = Run("clip", "full", tmp_path, tmp_path / "zoo/build/full", "fmseg.zoo_made", "killed")
    assert checkpoint.exists() and belongs(run) and json.loads(stamp.read_text())["code"] == "killed"
    other = Run("clip", "full", tmp_path, tmp_path / "zoo/build/full", "fmseg.zoo_made", "c1")
    assert not belongs(other)
    stamp.unlink()
    assert belongs(other), "without a stamp the checkpoint speaks for itself"
    start("clip", renew=True)
    (tmp_path / "zoo/build/full/state/clip-part.log").write_text("old")
    start("clip", code="c2", renew=True)
    assert not (tmp_path / "zoo/build/full/state/clip-part.log").exists()
    assert json.loads(stamp.read_text())["code"] == "c2"


def test_latents_that_another_training_left_do_not_count(project, tmp_path):
    start, _ = project
    for name in ("clip", "vae", "diffusion"):
        start(name)
    (tmp_path / "zoo/build/full/vae/latents").mkdir()
    (tmp_path / "zoo/build/full/vae/latents/a.npy").write_bytes(b"x")
    assert not start("diffusion", renew=True)


def test_an_error_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fmseg").symlink_to(ROOT / "fmseg")
    assert zoo_train.main(["diffusion"]) == 1
    assert capsys.readouterr().err == "fmseg: diffusion builds on vae, which is not trained; train it first\n"
    with pytest.raises(SystemExit):
        zoo_train.main(["dinosaur"])


# -- in temporary copies -----------------------------------------------------------------------------------------------


def dvc(checkout, *words):
    run = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=checkout, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


def stages_listed(text):
    return re.findall(r"Running stage '(.+?)'", text)


@pytest.fixture
def up_to_date(tmp_path):
    """A copy with a shipped model, in which the root pipeline has nothing to do: its outs are placeholders."""
    checkout = tmp_path / "checkout"
    copy_checkout(ROOT, checkout)
    (checkout / "zoo/weights/dino").mkdir(parents=True, exist_ok=True)
    (checkout / "zoo/weights/dino/made.txt").write_text("weights")
    (checkout / "dvc.yaml").write_text(pipeline.text(checkout))
    profile = yaml.safe_load((checkout / "params.yaml").read_text())["profile"]
    for stage in pipeline.stages(checkout).values():
        for out in stage["outs"]:
            path = checkout / next(iter(out)).replace("${profile}", profile)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("made by a test") if path.suffix else path.mkdir()
    dvc(checkout, "commit", "--force", "dvc.yaml")
    assert not stages_listed(dvc(checkout, "repro", "--dry"))
    return checkout


@pytest.mark.pipeline
def test_a_changed_training_runs_nothing_of_the_root_pipeline(up_to_date):
    for module in {*MODULES.values(), "fmseg.zoo_run", "fmseg.zoo_train"}:
        with (provenance.modules(up_to_date)[module]).open("a") as file:
            file.write("\nMOVED = 1\n")
    params = up_to_date / "zoo/params.yaml"
    params.write_text(params.read_text().replace("steps: ", "steps: 1"))
    assert not stages_listed(dvc(up_to_date, "repro", "--dry")), "neither a training nor a stage"
    for below in set(BUILDS_ON.values()):  # a dry run wants them there
        (up_to_date / "zoo/build/full" / below).mkdir(parents=True)
    listed = stages_listed(dvc(up_to_date, "repro", "--dry", "zoo/dvc.yaml"))
    assert sorted(listed) == sorted(f"zoo/dvc.yaml:{name}" for name in MODULES)
    (up_to_date / "zoo/weights/dino/made.txt").write_text("other weights")
    listed = stages_listed(dvc(up_to_date, "repro", "--dry"))
    assert listed and not any("zoo/dvc.yaml" in name for name in listed), "shipped weights count, trainings do not"


@pytest.mark.pipeline
def test_the_whole_zoo_trains_at_smoke_scale_and_a_second_time_nothing_does(tmp_path):
    from fmseg.zoo_repro import repro, smoke

    checkout = tmp_path / "checkout"
    before = sorted((ROOT / "zoo/weights").rglob("*"))
    assert smoke(ROOT, checkout) == 0
    build = checkout / "zoo/build/full"
    assert all((build / name / "facts.json").exists() for name in MODULES)
    facts = json.loads((build / "layout-ade/facts.json").read_text())
    assert facts["steps"] == PARAMS["smoke"]["layout-ade"]["steps"] and facts["loss"]
    assert sorted((ROOT / "zoo/weights").rglob("*")) == before
    dvc(checkout, "commit", "--force", "zoo/dvc.yaml")
    assert not stages_listed(dvc(checkout, "repro", "--dry", "zoo/dvc.yaml"))
    layouts, times = checkout / "fmseg/zoo_layouts.py", (build / "weak-ade/facts.json").stat().st_mtime_ns
    layouts.write_text(layouts.read_text() + "# in other words\n")
    assert len(stages_listed(dvc(checkout, "repro", "--dry", "zoo/dvc.yaml"))) == 4
    assert repro(checkout, ("--no-commit",)) == 0
    assert (build / "weak-ade/facts.json").stat().st_mtime_ns == times, "the same meaning: nothing was trained"
