"""FreeMask's runs on disk: paradigms on a small ADE20K, full-size pictures through every step, paper configurations."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_real_freemask_chain import MASKS, painter, write_ade
from toys import ROOT

from fmseg import (
    distributed,
    freemask_configs,
    freemask_folders,
    paint_table,
    plan,
    plan_real_freemask,
    real_freemask,
    real_freemask_chain,
    real_painting,
    real_supervised,
)  # fmt: skip
from fmseg.freemask_tables import EXPERIMENTS, LAYOUTS, METHODS
from fmseg.paradigms import repeats
from fmseg.real_freemask import run
from fmseg.real_freemask_chain import Chain
from fmseg.real_freemask_configs import run_config
from fmseg.resample import counts_by_rank
from fmseg.settings import load

SIDE, TRAIN = 64, {"steps": 2, "batch_size": 2, "eval_every": None, "device": "cpu"}
PAPER = load("paper", ROOT)
SMALL = replace(PAPER, values=PAPER.values | {"crop": 64, "pretrained": False, "seeds": [0], "train": TRAIN})


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_ade(tmp_path_factory.mktemp("ade"))


@pytest.fixture
def home(tree, tmp_path, monkeypatch):
    for name in ("FMSEG_ADE20K", "FMSEG_WEIGHTS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FMSEG_DATA", str(tree))
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / "parts"))
    monkeypatch.setattr(Chain.__init__, "__defaults__", (painter, SIDE))
    return tmp_path


def config(paradigm="joint", **changes):
    """A run of the paper's with a mini model, mini judge and made-up generator."""
    made = json.loads(json.dumps(run_config(SMALL, paradigm, "ade", 0, "segformer", large=False, most=3)))
    made["size"] = "mini"
    if paradigm != "real":
        made["filter"] = {"method": "segformer", "size": "mini", "weights": None}
        made["generator"] = {"base": "none", "weights": None, "steps": 4, "guidance": 2.0}
    return made | changes


def test_real_pictures_alone_are_the_supervised_run_to_the_bit(home):
    made = config("real")
    plain = {key: value for key, value in made.items() if key != "paradigm"}
    assert run(made)["result"] == real_supervised.run(plain)["result"]


@pytest.mark.parametrize("paradigm", ["synthetic", "joint", "pretrain"])
def test_runs_with_pictures(home, paradigm):
    done = run(config(paradigm), checkpoint=home / "run.pt", checkpoint_every=1)
    facts, drawn = done["result"]["synthetic"], int(counts_by_rank(MASKS, 3).sum())
    assert facts["pictures"] == drawn and 0 < facts["kept"] <= 1
    assert facts.get("repeat") == (repeats(drawn, MASKS) if paradigm == "joint" else None)
    assert ("miou before finetuning" in facts) == (paradigm == "pretrain")
    assert done["curve"][-1][0] == (4 if paradigm == "pretrain" else 2)
    assert not list(home.glob("*.first.pt"))
    again = run(config(paradigm))
    assert again["result"] == done["result"]


def test_a_set_that_somebody_else_has_made_is_trained_on(home, tree):
    chain = Chain(config())
    made = chain.perform()
    place = tree / "ADE20K_Synthetic"
    for path in (*made.data.images, *made.data.masks):
        freemask_folders.put(place / path.relative_to(chain.root), path.read_bytes())
    ready = config() | {"synthetic": {"ready": "ADE20K_Synthetic"}}
    for key in ("generator", "filter"):
        ready.pop(key)
    result, painted = run(ready)["result"], run(config())["result"]
    assert result["synthetic"]["pictures"] == len(made.data) and result["synthetic"]["repeat"] == 2
    assert result["weights"] == painted["weights"] and list(made.data.images) == sorted(made.data.images)


def test_several_processes_do_not_paint_in_the_middle_of_a_run(home, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: distributed.World(0, 2, 0))
    real, _ = real_supervised.open_data(config())
    with pytest.raises(RuntimeError, match="1 of 1 shards of synthetic pictures are missing; `python -m fmseg paint`"):
        real_freemask.sources(config(), real)
    Chain(config()).perform()
    assert len(real_freemask.sources(config(), real)[0]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paradigm": "both"}, "`paradigm` must be one of real, synthetic, joint, pretrain; got 'both'"),
        ({"paradigm": "pretrain"}, "lacks finetune"),
        ({"repeat": 11}, "unknown key of a run's configuration 'repeat'"),
        ({"synthetic": {"ready": "x"}}, "unknown key of a run's configuration '(generator|filter)'"),
    ],
)
def test_a_configuration_that_nobody_reads_is_refused(home, changes, message):
    with pytest.raises(ValueError, match=message):
        run(config() | changes)


# -- full-size pictures -----------------------------------------------------------------------------------------------


def small_pipeline():
    """Stable Diffusion's layout and latents of 64x64 for pictures of 512x512, next to no channels."""
    from fmseg.grounded_full import random_pipeline
    from fmseg.zoo_configs import TEXT_ENCODER, UNET, VAE

    unet = UNET | {"sample_size": 64, "block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1,
                   "attention_head_dim": 2}  # fmt: skip
    vae = VAE | {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [4, 4, 8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 512,
    }
    return random_pipeline(unet, vae, TEXT_ENCODER, seed=1)  # fmt: skip


def test_full_size_pictures_go_through_every_step(home, tmp_path, monkeypatch):
    small_pipeline().save_pretrained(tmp_path / "weights/tiny-diffusion", safe_serialization=True)
    monkeypatch.setenv("FMSEG_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(Chain.__init__, "__defaults__", (None, 512))
    generator = {"base": "tiny-diffusion", "weights": None, "steps": 4, "guidance": 2.0}
    made = config(images=2, generator=generator, synthetic={"most": 1, "resample": True, "alpha": 1.0, "draw": 0})
    done = run(made)
    assert done["result"]["synthetic"]["pictures"] == 2 == 2 * done["result"]["synthetic"]["repeat"]
    chain = Chain(made)
    data = chain.perform().data
    assert data.image(0).shape == (512, 512, 3) and data.labels(0).shape == (512, 512)
    assert not np.array_equal(data.image(0), data.image(1)) and chain.missing() == 0
    pipe = real_painting.pipeline(generator, "cpu")
    assert real_painting.side_of(pipe) == 512
    with pytest.raises(ValueError, match="`labels` must be 512x512, which this pipeline paints"):
        real_painting.paint(pipe, np.zeros((64, 64), np.uint8), ("sky",), 0, steps=4, guidance=2.0)
    each = plan_real_freemask.calibrate(made["filter"], iter(range(100)).__next__, pipe)
    assert each.call == each.rest == each.judge == 1 and each.device == "CPU" and each.memory is None


def test_the_generators_weights_decide_where_its_pictures_lie(home, tmp_path, monkeypatch):
    (tmp_path / "weights/base").mkdir(parents=True)
    (tmp_path / "weights/base/model_index.json").write_text("{}")
    (tmp_path / "weights/a.ckpt").write_bytes(b"a" * 100)
    (tmp_path / "weights/b.ckpt").write_bytes(b"b" * 100)
    monkeypatch.setenv("FMSEG_WEIGHTS", str(tmp_path / "weights"))
    options = {"steps": 50, "guidance": 2.0}
    one, other = (real_painting.identity({"base": "base", "weights": f"{n}.ckpt", **options}) for n in "ab")
    assert one["weights file"] != other["weights file"] and one["base files"] == other["base files"] != []
    with pytest.raises(FileNotFoundError, match="there is no c.ckpt in .*put c.ckpt there"):
        real_painting.identity({"base": "base", "weights": "c.ckpt", **options})


# -- configurations, tables, plan -------------------------------------------------------------------------------------


def test_the_papers_runs_have_the_papers_lengths_and_sizes():
    joint = run_config(PAPER, "joint", "ade", 0, large=False)
    assert joint["size"] == "b2" and joint["train"]["steps"] == 320_000 and "repeat" not in joint
    assert joint["synthetic"] == {"most": 20, "resample": True, "alpha": 1.25, "draw": 0}
    assert run_config(PAPER, "real", "ade", 0)["size"] == "b4"
    assert run_config(PAPER, "real", "ade", 0)["train"]["steps"] == 160_000
    assert run_config(PAPER, "real", "stuff", 0, long=True)["train"]["steps"] == 160_000
    before = run_config(PAPER, "pretrain", "ade", 0)
    assert before["train"] == before["finetune"] and before["train"]["steps"] == 160_000
    raw = run_config(PAPER, "synthetic", "stuff", 0, resample=False, alpha=None)
    assert raw["synthetic"] == {"most": 6, "resample": False, "alpha": None, "draw": 0}
    assert raw["generator"]["steps"] == 50 and raw["generator"]["guidance"] == 2.0
    own = PAPER.get("freemask") | {"ready": {"ade": "ADE20K_Synthetic"}}
    ready = replace(PAPER, values=PAPER.values | {"freemask": own})
    assert run_config(ready, "joint", "ade", 0)["synthetic"] == {"ready": "ADE20K_Synthetic"}
    assert "generator" in run_config(ready, "joint", "ade", 0, alpha=None)
    assert "generator" in run_config(ready, "joint", "stuff", 0)


def test_every_table_has_its_runs_at_paper_size_or_says_why_not():
    assert freemask_configs.lacking(PAPER) is None
    for id, experiment in EXPERIMENTS.items():
        runs = experiment.configs(PAPER)
        assert bool(runs) == (id not in ("freemask-generator", "freemask-fewer", "freemask-schedule"))
        for made in runs:
            real_freemask.check(made)
            assert experiment.cell(made).split()[0] in METHODS.values()
        table = experiment.table(PAPER, [None] * len(runs))
        states = {c["status"].removeprefix("not run: ") for r in table["rows"] for c in r["cells"].values()}
        assert ("no record of its runs" in states) == bool(runs) and experiment.trained_by(
            PAPER
        ) == "fmseg.real_freemask"
    cells = {r["label"]: r["cells"] for r in EXPERIMENTS["freemask-joint-ade"].table(PAPER, [])["rows"]}
    assert "disturb pictures strongly" in cells["SegFormer"]["strong augmentation"]["status"]
    excluded = next(cells[label]["joint"] for label in cells if "excluded" in label)
    assert "mmsegmentation's own" in excluded["status"]
    sizes = {c["size"] for c in EXPERIMENTS["freemask-joint-ade"].configs(PAPER)}
    assert sizes == {"b2", "s", "t"} and {c["size"] for c in LAYOUTS["freemask-nmax"].runs(PAPER)} == {"b4"}


def test_what_a_table_needs_painted_is_listed_once(home):
    sets = paint_table.chains(PAPER, "freemask-ablation-transfer")
    wanted = {(c["data"], c["synthetic"]["resample"], c["synthetic"]["alpha"]) for c in sets}
    assert len(sets) == len(wanted) == 8
    assert len(paint_table.chains(PAPER, "freemask-joint-ade")) == 1
    with pytest.raises(ValueError, match="runs of the mini world paint what they need"):
        paint_table.chains(load("mini", ROOT), "freemask-nmax")
    with pytest.raises(ValueError, match="`table` must be one of"):
        paint_table.chains(PAPER, "freemask-joint")


def test_the_command_paints_and_says_what_it_did(home, monkeypatch, capsys):
    wanted = {k: v for k, v in config().items() if k in paint_table.DECIDES}
    monkeypatch.setattr(paint_table, "chains", lambda settings, table: [wanted])
    assert paint_table.main(["freemask-joint-ade", "--profile", "paper"]) == 0
    said = capsys.readouterr().out
    assert f"{MASKS} masks of ade20k, 1 of 1 shards missing" in said and "of the pixels kept" in said
    monkeypatch.setenv("FMSEG_DATA", str(home / "nowhere"))
    assert paint_table.main(["freemask-joint-ade", "--profile", "paper"]) == 1
    assert "is no folder" in capsys.readouterr().err


def test_the_plan_of_a_table_says_how_to_paint_and_how_to_train(monkeypatch, tmp_path):
    for name in ("FMSEG_DATA", "FMSEG_ADE20K"):
        monkeypatch.delenv(name, raising=False)
    each = plan_real_freemask.Seconds(0.1, 0.4, 0.05, None, "made up")
    monkeypatch.setattr(plan_real_freemask, "calibrate", lambda *given: each)
    experiment, cost = EXPERIMENTS["freemask-joint-ade"], plan.Cost(0.5, 0.1, 0.0, 10**9, 10**6, "made up")
    costs = {plan.kind_of(made): cost for made in experiment.configs(PAPER)}
    said = plan.report(experiment, PAPER, costs, workers=2)
    assert "python -m fmseg paint freemask-joint-ade" in said and "-m fmseg train freemask-joint-ade" in said
    assert "221,814 pictures" in said and "segformer b2 on ade20k" in said
    fewer = EXPERIMENTS["freemask-joint-ade"].configs(replace(PAPER, values=PAPER.values | {"seeds": [0]}))
    assert sum(made["train"]["steps"] for made in fewer) == (3 * 160 + 3 * 320 + 320) * 1000


def test_the_plan_counts_pictures_by_hand(monkeypatch):
    for name in ("FMSEG_DATA", "FMSEG_ADE20K", "FMSEG_COCO"):
        monkeypatch.delenv(name, raising=False)
    joint = EXPERIMENTS["freemask-joint-ade"].configs(PAPER)
    (one,) = plan_real_freemask.needs(joint)
    assert (one.painted, one.judged, one.real, one.steps) == (221_814, 221_814, 20_210, 50)
    both = {n.data: n for n in plan_real_freemask.needs(EXPERIMENTS["freemask-ablation-transfer"].configs(PAPER))}
    assert both["ade20k"].painted == 20 * 20_210 and both["coco-stuff"].painted == 6 * 118_287
    assert both["ade20k"].judged == 20 * 20_210 + 221_814 and both["coco-stuff"].real == 118_287
    assert plan_real_freemask.needs(EXPERIMENTS["freemask-joint-ade"].configs(PAPER)[:1]) == []
    each = plan_real_freemask.Seconds(0.1, 0.4, 0.05, None, "made up")
    assert plan_real_freemask.seconds_of(one, each) == pytest.approx(221_814 * 5.5 + (221_814 + 20_210) * 0.05)
    monkeypatch.setattr(plan_real_freemask, "calibrate", lambda *given: each)
    said = "\n".join(plan_real_freemask.lines("freemask-joint-ade", joint, None))
    assert "221,814 pictures of 50 steps" in said and "python -m fmseg paint freemask-joint-ade" in said
    assert "made up" in said and "13.3 GB" in said and torch.is_grad_enabled()
    assert real_freemask_chain.SYNTHETIC == ("most", "resample", "alpha", "draw")
