import json
import re

import nbformat
import pytest
import yaml
from toys import ROOT

from fmseg import pipeline, provenance
from fmseg.catalogue import EXPERIMENTS

STAGES = pipeline.stages(ROOT)
REALDATA = yaml.safe_load(pipeline.realdata_text(ROOT))["stages"]


def test_dvc_yaml_is_what_the_notebooks_ask_for():
    assert (ROOT / "dvc.yaml").read_text() == pipeline.text(ROOT), "run `make pipeline`"
    assert yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"] == STAGES
    assert (ROOT / "realdata/dvc.yaml").read_text() == pipeline.realdata_text(ROOT), "run `make pipeline`"


def test_stages_with_photographs_have_a_pipeline_of_their_own():
    """Nothing of the root pipeline waits for them, and without the photographs nothing of theirs is deleted."""
    made = yaml.safe_load(pipeline.realdata_text(ROOT))["stages"]
    assert list(made) == ["26_real_photographs", "27_camvid"] == pipeline.stage_names(ROOT, photos=True)
    for name, stage in made.items():
        assert stage["wdir"] == ".." and stage["cmd"].endswith(f"{name} train=missing")
        assert all(options["persist"] for out in stage["outs"] for options in out.values())
        theirs = {path for out in stage["outs"] for path in out}
        assert name not in STAGES and not theirs & {d for s in STAGES.values() for d in s["deps"]}


def test_a_stage_rests_on_what_its_runs_rest_on():
    for experiment in EXPERIMENTS.values():
        modules = provenance.closure(experiment.module, ROOT)
        files = {str(provenance.modules(ROOT)[m].relative_to(ROOT)) for m in modules}
        assert files <= set((STAGES | REALDATA)[experiment.stage]["deps"])
    assert "fmseg/training.py" not in STAGES["98_lift_a_kernel"]["deps"]
    assert "results/${profile}/tables/freemask-real.json" in STAGES["99_ledger"]["deps"]


def outs(stage):
    return {path: options for out in STAGES[stage]["outs"] for path, options in out.items()}


def test_results_live_in_git_and_executed_copies_outside():
    for stage in STAGES:
        for path, options in outs(stage).items():
            assert options.get("persist") is True, "an interrupted stage must leave what was there"
            assert (options.get("cache", True) is False) == ("/notebooks/" not in path)
    assert "results/${profile}/tables/freemask-real.md" in outs("20_freemask_real")
    assert "results/${profile}/runs/freemask-real" in outs("20_freemask_real")


def test_the_book_rests_on_all_other_stages_and_waits_for_no_photographs():
    stage, names = STAGES[pipeline.BOOK], [name for name in STAGES if name != pipeline.BOOK]
    assert names == pipeline.stage_names(ROOT) and list(STAGES)[-1] == pipeline.BOOK
    assert {f"results/${{profile}}/notebooks/{name}.ipynb" for name in names} <= set(stage["deps"])
    assert {"TRIED.md", "CHANGELOG.md", "CITATION.cff", "report.md"} <= set(stage["deps"]), "pages of their own"
    assert {"book", ".dvc/book", "results/${profile}/ledger.json", "fmseg/book.py"} <= set(stage["deps"])
    assert not [dep for dep in stage["deps"] if dep.startswith("results") and "camvid" in dep]
    every = {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert {f"notebooks/{name}.ipynb" for name in every - set(names)} <= set(stage["deps"]), "those that wait"


@pytest.fixture
def write(tmp_path):
    (tmp_path / "fmseg").symlink_to(ROOT / "fmseg")
    (tmp_path / "notebooks").mkdir()

    def write(text, code):
        cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(code)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks/50_new.ipynb")
        return pipeline.stages(tmp_path)["50_new"]

    return write


def test_a_notebook_depends_on_what_it_imports_cites_and_reads(write):
    stage = write("# 50 New\n{{ cite freemask-real/SegFormer/mIoU }}", "%matplotlib inline\nfrom fmseg import metrics")
    assert stage["desc"] == "50 New" and "fmseg/metrics.py" in stage["deps"]
    assert "results/${profile}/tables/freemask-real.json" in stage["deps"] and "fmseg/world.py" not in stage["deps"]
    assert "claims.yaml" not in stage["deps"]
    stage = write("# 50", "from fmseg.claims import load\ntable = read_table('world-supervised')")
    assert "claims.yaml" in stage["deps"] and "results/${profile}/tables/world-supervised.json" in stage["deps"]
    with pytest.raises(ValueError, match="50_new cites no-such, which no stage makes"):
        write("{{ cite no-such/row/column }}", "x = 1")


def test_a_notebook_that_needs_models_is_a_stage_once_they_are_shipped(write, tmp_path):
    write("# 50", "x = 1")
    assert pipeline.stage_names(tmp_path) == ["50_new"]
    with pytest.raises(KeyError):  # not listed
        write("# 50", 'from fmseg import zoo\nzoo.need("clip", "mim")')
    for name in ("clip", "mim"):
        assert pipeline.stage_names(tmp_path) == []
        (tmp_path / pipeline.ZOO / name).mkdir(parents=True)
        (tmp_path / pipeline.ZOO / name / "card.json").write_text("{}")
    assert pipeline.stage_names(tmp_path) == ["50_new"]
    assert pipeline.ZOO in pipeline.stages(tmp_path)["50_new"]["deps"]
    assert pipeline.models_needed(tmp_path / "notebooks/50_new.ipynb") == {"clip", "mim"}


def test_notebooks_ask_for_the_models_that_they_open():
    from fmseg.zoo_train import MODULES

    needed = {path.stem: pipeline.models_needed(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    assert needed["02_clip"] == {"clip"} and needed["03_attention"] == {"clip", "mim"} and not needed["05_zoo"]
    assert needed["04_diffusion"] == {"diffusion", "layout-ade", "weak-ade", "oracle"}
    for name, models in needed.items():
        opened = set(re.findall(r'zoo\.folder\(\\"(.+?)\\"\)', (ROOT / f"notebooks/{name}.ipynb").read_text()))
        assert opened <= models <= set(MODULES), name


def test_source_notebooks_are_clean_and_short():
    mapped = (ROOT / "notebooks/00_start_here.ipynb").read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        lengths = sorted(len("".join(c["source"]).splitlines()) for c in code)
        assert lengths[-1] <= 30 and lengths[len(lengths) // 2] <= 10, path.name
        assert not any(c["outputs"] or c["execution_count"] for c in code)
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        assert re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name)
        assert path.name.startswith("00") or path.name in mapped, f"{path.name} is not on the map in notebook 00"
