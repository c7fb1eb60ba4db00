"""FMWISS on pictures on disk: who sees what, each method's first steps, killed and resumed, the table, the plan."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import count

import numpy as np
import pytest
import torch
from paper_trees import EXPERTS, small_paper, write_coco, write_voc, write_weights
from toys import ROOT

from fmseg import fmwiss_tables, plan, plan_real_incremental, real_experts, real_steps
from fmseg.incremental_configs import run_config
from fmseg.incremental_data import BASE, STEP
from fmseg.real_incremental import JOINT, KEYS, METHODS, OPTIONAL, base_of, experts_of, memory_of, run
from fmseg.records import run_key
from fmseg.settings import load
from fmseg.training import weights_hash

SETTING = "10-10 disjoint"


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    home = tmp_path_factory.mktemp("paper")
    write_voc(write_coco(home / "data"))
    write_weights(home / "weights")
    return home


@pytest.fixture(autouse=True)
def at_home(trees, monkeypatch):
    for name in ("FMSEG_VOC", "FMSEG_COCO", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FMSEG_DATA", str(trees / "data"))
    monkeypatch.setenv("FMSEG_WEIGHTS", str(trees / "weights"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder that runs of this module share."""
    return tmp_path_factory.mktemp("scratch")


def config(method="fmwiss", setting=SETTING, **changes):
    made = run_config(small_paper(ROOT), method, 0, setting)
    return json.loads(json.dumps(made)) | changes


class Killed(Exception):
    pass


def kill_at(step):
    def on_step(done, loss):
        if done == step:
            raise Killed

    return on_step


# -- who sees what ----------------------------------------------------------------------------------------------------


def test_each_step_sees_its_pictures_and_labels(runs):
    steps = real_steps.load(config(), runs / "presence")
    everything = {path: labels_of(path) for path in (*steps.base.masks, *steps.step.masks)}
    assert all(set(ids) & set(range(1, 11)) and max(ids) <= 10 for path, ids in everything.items()
               if path in steps.base.masks)  # fmt: skip
    for path, tags in zip(steps.step.masks, steps.tags, strict=True):
        assert {k + 11 for k in np.flatnonzero(tags)} == {k for k in everything[path] if k > 10} != set()
    weak = steps.weak_source()
    images, labels = weak.take([0, 1], [5, 6])
    pixels = steps.pixel_source().take([0, 1], [5, 6])
    assert (
        np.array_equal(images, pixels[0]) and (labels == 255).all() and set(np.unique(pixels[1])) & set(range(11, 21))
    )
    assert weak.fingerprint() != real_steps.Tagged(steps.step, ~steps.tags, steps.pipeline, steps.crop).fingerprint()
    assert set(np.unique(steps.base_source().take([0], [1])[1])) <= {*range(11), 255}
    assert steps.new_names()[0] == "diningtable" and len(steps.old_names()) == 10
    both = real_steps.load(config(setting="10-10 overlap"), runs / "presence")
    assert sum(map(len, both.joint_sources())) == len({*both.base.images, *both.step.images}) <= 14
    assert len(both.base) > len(steps.base) and both.step.images == steps.step.images
    half = real_steps.load(config() | {"share": 0.5}, runs / "presence")
    assert len(half.step) == round(len(steps.step) / 2) and set(half.step.images) < set(steps.step.images)


def labels_of(path):
    from PIL import Image

    return sorted(set(np.unique(np.array(Image.open(path)))) - {0, 255})


def test_a_weak_step_opens_no_mask_of_its_pictures(trees, tmp_path, monkeypatch):
    root = write_voc(tmp_path / "data")
    monkeypatch.setenv("FMSEG_DATA", str(root))
    before = real_steps.load(config(), tmp_path / "presence")
    for mask in before.step.masks:
        mask.write_bytes(b"x" * mask.stat().st_size)
    after = real_steps.load(config(), tmp_path / "presence")
    assert np.array_equal(after.tags, before.tags)
    weak, many = after.weak_source(), len(after.step)
    assert weak.data.masks == () and len(weak.take(range(many), [0] * many)[0]) == many
    with pytest.raises(ValueError, match="cannot be read"):
        after.pixel_source().take([0], [0])
    with pytest.raises(ValueError, match="cannot be read"):
        real_steps.load(config())
    kept = next((tmp_path / "presence").glob("*.npz"))
    kept.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged .*delete it, masks are then read again"):
        real_steps.load(config(), tmp_path / "presence")


def test_coco_gives_the_pictures_without_a_class_of_vocs_and_both_sets_judge(runs):
    made = config("ft", "COCO-to-VOC")
    steps = real_steps.load(made, runs / "presence")
    assert [path.stem for path in steps.base.images] == [f"{k:012d}" for k in range(3)], "the fourth has a person"
    assert len(steps.step) == 14 and steps.step.name == "voc" and list(steps.held_out) == ["coco", "voc"]
    result = run(made, checkpoint=runs / "coco.pt")["result"]
    assert len(result["iou"]) == len(result["other_iou"]) == 81 and len(result["base_iou"]) == 61
    assert all(value is None for value in result["other_iou"][1:61]), "VOC's pictures hold no other class"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "mini/10-10/overlap"}, "`protocol` must be one of voc/15-5/disjoint, .*coco-to-voc; got 'mini"),
        ({"protocol": "coco-to-voc"}, "`sets` of coco-to-voc must be coco, voc; got voc"),
        ({"share": 0.0}, r"`share` must be in \(0, 1\]"),
        ({"sets": {"voc": {"split": "train_aug", "validation": "val", "images": 1}}}, "may see none of the 1 pictures"),
        ({"method": "cam"}, "`method` must be one of joint, ft, .*wilson, fmwiss; got 'cam'"),
        ({"method": "wilson"}, "unknown option of wilson 'use'"),
        ({"size": "r50"}, "`size` must be one of mini, r101-abn, r101; got 'r50'"),
        ({"options": {"alhpa": 1}}, "unknown option of fmwiss 'alhpa'; did you mean 'alpha'"),
        ({"base": None}, "`base` must be None for joint training, and is needed by all others"),
        ({"method": "ft", "options": {}}, "fmwiss needs `experts`, no other method takes them"),
        ({"seeds": 1}, "unknown key of a run's configuration 'seeds'"),
    ],
)
def test_a_configuration_that_nobody_reads_is_refused(changes, message, runs):
    with pytest.raises(ValueError, match=message):
        run(config() | changes, checkpoint=runs / "refused.pt")


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [JOINT, "ft", "mib", "plop", "sdr", "wilson", "fmwiss"])
def test_one_base_and_one_incremental_training(method, runs):
    done = run(config(method), checkpoint=runs / f"{method}.pt")
    result = done["result"]
    assert json.loads(json.dumps(result)) == result and len(result["iou"]) == 21 and done["model"].num_classes == 21
    assert done["curve"] == [[2, result["miou"]]] and result["examples"]["shape"] == [3, 128, 128]
    if method == JOINT:
        assert result["seen"] == [14]
    else:
        assert len(result["base_iou"]) == 11 and sum(result["seen"]) <= 14
    if method == "fmwiss":
        assert len(result["memory"]) == 10 and 0 < sum(result["memory"])
        assert set(result["experts"]) == {"clip", "vit"}
    bases = list((runs / "bases").glob("*.pt"))
    assert len(bases) <= 3, "softmax and sigmoid of this setting, one of COCO-to-VOC"


def test_killed_and_resumed_ends_with_the_same_bits(runs, tmp_path):
    made = config()
    whole = run(made, checkpoint=runs / "whole.pt")["result"]
    steps = real_steps.load(made, runs / "presence")
    with pytest.raises(Killed):
        base_of(made, steps, tmp_path / "bases", on_step=kill_at(1))
    resumed, after = base_of(made, steps, tmp_path / "bases")
    kept, before = base_of(made, steps, runs / "bases")
    assert after.resumed_from == 1 and before.resumed_from == 2 and weights_hash(resumed) == weights_hash(kept)
    options = {"checkpoint": tmp_path / "run.pt", "checkpoint_every": 1}
    with pytest.raises(Killed):
        run(made, on_step=kill_at(1), **options)
    assert run(made, **options)["result"] == whole


# -- experts and memory -----------------------------------------------------------------------------------------------


def test_experts_are_asked_in_english_and_go_where_the_pictures_are(runs, monkeypatch):
    made = config()
    steps = real_steps.load(made, runs / "presence")
    experts = experts_of(made, steps)
    assert experts.text.shape == (10, 32) and experts.rivals is None
    assert experts.to(torch.device("cpu")) is experts
    pictures = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    masks = experts.masks(pictures, torch.ones(2, 10, dtype=torch.bool), (4, 4), torch.Generator().manual_seed(0))
    assert masks.shape == (2, 10, 4, 4) and masks.any()
    assert real_experts.spoken(("aeroplane", "dog", "tvmonitor")) == ("airplane", "dog", "tv monitor")
    moved = experts.to(torch.device("meta"))
    assert moved.text.device.type == "meta" and next(moved.vit.model.parameters()).device.type == "meta"
    with pytest.raises(ValueError, match="unknown key of `experts` 'clips'; did you mean 'clip'"):
        real_experts.of_config({**EXPERTS, "clips": 1}, ("dog",), ())
    with pytest.raises(ValueError, match="`experts.templates` must be one of imagenet, plain; got 'none'"):
        real_experts.of_config({**EXPERTS, "templates": "none"}, ("dog",), ())
    with pytest.raises(FileNotFoundError, match="must be a local file or one of open_clip's tags"):
        real_experts.clip_of({"model": "ViT-B-16", "weights": "nowhere.pt"})
    monkeypatch.delenv("FMSEG_WEIGHTS")
    with pytest.raises(FileNotFoundError, match="There is no folder tiny-clip"):
        real_experts.clip_of({"model": "tiny-clip"})


def test_the_memory_holds_objects_of_the_base_steps_pictures(runs):
    made = config()
    steps = real_steps.load(made, runs / "presence")
    memory = memory_of(made, steps)
    assert sorted(memory.archives) == list(range(1, 11)) and len(memory) > 0
    assert memory_of(made | {"options": {"capacity": 0}}, steps) is None
    one = memory_of(made | {"options": {"capacity": 1}}, steps)
    kept = {k: [i.key for i in archive][:1] for k, archive in memory.archives.items()}
    assert {k: [i.key for i in archive] for k, archive in one.archives.items()} == kept, "the draw's first stay"


# -- configurations, table, plan --------------------------------------------------------------------------------------


def test_the_paper_profile_asks_for_wilsons_schedule():
    settings = load("paper", ROOT)
    listed = [c for e in fmwiss_tables.EXPERIMENTS.values() for c in e.configs(settings)]
    assert all(set(KEYS) <= set(c) <= {*KEYS, *OPTIONAL} for c in listed)
    assert {c["method"] for c in listed} == set(METHODS) and len({run_key(c) for c in listed}) == len(listed) - 1
    assert Counter(c["method"] for c in listed)["fmwiss"] == 3 * 5, "three seeds in five settings"
    made = run_config(settings, "fmwiss", 0, "15-5 disjoint")
    assert made["protocol"] == "voc/15-5/disjoint" and made["crop"] == [512, 512] and made["size"] == "r101-abn"
    assert made["base"]["steps"] == 30 * (8437 // 24) and made["train"]["steps"] == 40 * (2145 // 24)
    assert made["train"]["batch_size"] == 24 and made["train"]["lr"] == 0.001 and made["base"]["lr"] == 0.01
    assert {key: v["lr"] for key, v in made["train"]["keys"].items()} == dict.fromkeys(
        ("decode_head", "teacher", "localizer"), 10.0
    )  # fmt: skip
    joint = run_config(settings, "joint", 0, "10-10 disjoint")
    assert joint["base"] is None and joint["train"]["steps"] == 30 * (10582 // 24)
    assert joint == run_config(settings, "joint", 0, "15-5 overlap")
    with pytest.raises(ValueError, match="`order` must be 0 on real data"):
        run_config(settings, "ft", 0, "15-5 disjoint", order=1)


def test_the_table_follows_from_records(runs):
    settings, experiment = small_paper(ROOT), fmwiss_tables.EXPERIMENTS["fmwiss-t2"]
    assert experiment.trained_by(settings) == "fmseg.real_incremental"
    configs, records = experiment.configs(settings), []
    for one in configs:
        record = None
        if one["method"] in ("ft", "wilson", "fmwiss") and "disjoint" in one["protocol"]:
            again = json.loads(json.dumps(one))
            result = run(again, checkpoint=runs / f"{one['method']}.pt")["result"]
            record = {"key": run_key(one), "config": again, "code": {}, "result": result, "seconds": 1.0}
        records.append(record)
    assert sum(r is not None for r in records) == 3
    rows = {row["label"]: row["cells"] for row in experiment.table(settings, records)["rows"]}
    cell = rows["FMWISS"]["disjoint all"]
    ours = next(r for r in records if r and r["config"]["method"] == "fmwiss")["result"]
    assert cell["mean"] == pytest.approx(100 * np.mean([v for v in ours["iou"] if v is not None]), abs=1e-3)
    assert cell["n"] == 1 and cell["paper"]["value"] == 64.6 and rows["FMWISS"]["overlap all"]["n"] == 0
    assert rows["sigmoid base model"]["disjoint 1-10"]["n"] == 1
    assert rows["CAM"]["disjoint all"]["status"].startswith("not run: its hard labels are made beforehand")
    assert not any("ceiling" in label for label in rows)


def test_a_step_is_timed_on_made_pictures_and_base_models_are_counted():
    ticks = count()
    made = config()
    made["train"] = made["train"] | {"batch_size": 4}
    cost = plan_real_incremental.calibrate(made, lambda: float(next(ticks)))
    assert cost.step == 1.0 and cost.scaled is None and cost.memory is None and cost.device == "CPU"
    assert cost.prepare == pytest.approx(plan_real_incremental.SHARED * made["base"]["steps"])
    again = plan_real_incremental.calibrate(made | {"seed": 1}, lambda: pytest.fail("a method is timed once"))
    assert again.step == cost.step and again.model is cost.model
    whole = plan.calibrate(made)
    assert whole.step == 1.0 and whole.picture > 0 and plan.validation_pictures(made) == 3
    assert plan.kind_of(made) != plan.kind_of(config("wilson")) != plan.kind_of(config("wilson", "10-10 overlap"))
    settings = small_paper(ROOT)
    experiment = fmwiss_tables.EXPERIMENTS["fmwiss-t3"]
    costs = {plan.kind_of(c): whole for c in experiment.configs(settings)}
    text = plan.report(experiment, settings, costs, workers=1)
    assert "python -m fmseg train fmwiss-t3 --profile paper" in text and "22.1 GB of data" in text


def test_made_pictures_hold_classes_of_their_step(tmp_path):
    steps = plan_real_incremental.made(config(setting="COCO-to-VOC"), tmp_path, 3)
    assert steps.tags.shape == (3, 20) and steps.tags.any(1).all()
    seen = [{*np.unique(s.labels(0))} - {0} for s in (steps.base, steps.step)]
    tables = [steps.protocol.evaluation(k, s.classes) for k, s in ((BASE, steps.base), (STEP, steps.step))]
    assert all(table[list(ids)].all() for table, ids in zip(tables, seen, strict=True)) and all(seen)


# -- several processes ------------------------------------------------------------------------------------------------

WORKER = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from fmseg.distributed import joined, world
from fmseg.real_incremental import run
folder = Path(sys.argv[1])
with joined("cpu"):
    result = run(json.loads((folder / "config.json").read_text()), checkpoint=folder / "run.pt")["result"]
    (folder / f"{world().rank}.json").write_text(json.dumps(result))
"""


def test_two_processes_share_a_run(runs, tmp_path):
    made = config()
    for part in ("base", "train"):
        made[part] = made[part] | {"batch_size": 4}  # batch norm wants two pictures a process
    (tmp_path / "config.json").write_text(json.dumps(made))
    (tmp_path / "worker.py").write_text(WORKER)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "worker.py")]
    subprocess.run(
        [sys.executable, *words, str(tmp_path)], check=True, cwd=ROOT, timeout=500,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    alone = run(made, checkpoint=runs / "batches-of-four.pt")["result"]
    for one in (first, second):
        assert one["memory"] == alone["memory"] and one["seen"] == alone["seen"] and one["data"] == alone["data"]
        assert one["iou"] == first["iou"] and one["base_iou"] == first["base_iou"], "equal in every process"
    assert len(list((tmp_path / "bases").glob("*.pt"))) == 1 and len(list((tmp_path / "presence").glob("*.npz"))) == 1
