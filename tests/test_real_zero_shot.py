"""Protocol II at the paper's size, on small trees and tiny random models."""

import json
from copy import deepcopy
from dataclasses import replace

import grounded_toys as toys
import numpy as np
import paper_trees as trees
import pytest
import torch

from fmseg import (
    distributed,
    grounded_online,
    names,
    on_disk,
    paint_table,
    parts,
    protocols,
    real_zero_shot,
    zero_shot_table,
)
from fmseg import real_zero_shot_configs as configs
from fmseg.grounded_full import random_pipeline
from fmseg.inference import TestTime, segment
from fmseg.metrics import confusion_matrix
from fmseg.oracle import Instance
from fmseg.real_grounded_pictures import Models

KNOWN = names.COCO[1:]
SPLIT = protocols.get("voc/zs3")


@pytest.fixture(scope="module")
def models():
    pipe = random_pipeline(toys.SMALL, toys.AUTOENCODER, toys.TEXT | {"max_position_embeddings": 77})
    pipe.tokenizer = deepcopy(pipe.tokenizer)
    pipe.tokenizer.model_max_length = 77
    return Models(pipe, half, KNOWN, {"diffusion": "toy", "oracle": "half"})


def half(image):
    mask = np.zeros(image.shape[:2], bool)
    mask[: len(mask) // 2] = True
    return [Instance(label, 0.9, mask) for label in range(len(KNOWN))]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = trees.write_coco(trees.write_voc(tmp_path_factory.mktemp("data")))
    trees.write_weights(root / "weights")
    return root


@pytest.fixture
def paper(tree, models, tmp_path, monkeypatch):
    """The paper profile with two steps of two crops of 64 pixels, a tiny MaskFormer and 20 pairs of a set."""
    monkeypatch.setenv("FMSEG_DATA", str(tree))
    monkeypatch.setenv("FMSEG_WEIGHTS", str(tree / "weights"))
    monkeypatch.setenv("FMSEG_PARTS", str(tree / "parts"))
    for name in ("FMSEG_VOC", "FMSEG_COCO", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(real_zero_shot, "load", lambda diffusion, oracle: models)
    settings = trees.small_paper(tmp_path)
    section = deepcopy(settings.values["grounded_real"])
    section |= {"sampling": {"steps": 2, "train": 3.0, "test": 3.0}, "step": 1, "train": {"steps": 2, "lr": 0.001}}
    section["zero_shot"] = {"size": "mini", "pictures": {"voc": 20, "coco": 20}, "validation": None}
    return replace(settings, values=settings.values | {"grounded_real": section})


def config(paper, method="model-a", draw="voc", **changes):
    made = json.loads(json.dumps(configs.run_config(paper, method, 0, draw))) | changes
    if "head" in made:
        made["head"]["head"] = {"widths": [2, 2, 2, 2], "dim": 8, "heads": 2, "layers": 1, "hidden": 8}
    return made


# -- sources --------------------------------------------------------------------------------------------------------


def test_painted_background_is_the_last_class_and_other_ids_are_the_splits(paper, models):
    (source,) = real_zero_shot.training_sources(config(paper), SPLIT, models)
    pair = source.data[3]
    (name,) = {SPLIT.classes[k] for k in np.unique(source.table[pair.labels]) if k < 20} or {None}
    shown = np.unique(pair.labels[pair.labels > 0])
    assert [names.VOC[k] for k in shown] == ([name] if name else [])
    assert set(source.table[:21]) == set(range(21)) and source.table[0] == 20 and (source.table[21:] == 255).all()
    source.check_ids(21, 255)
    image, labels = source.crop(3, 5)
    assert image.shape == (64, 64, 3) and set(np.unique(labels)) <= {*range(21), 255}


def test_unseen_labels_of_photographs_never_reach_the_training(paper, monkeypatch):
    (source,) = real_zero_shot.training_sources(config(paper, "seen-only"), SPLIT)
    unseen = [names.VOC.index(name) for name in SPLIT.unseen]
    assert (source.table[[0, *unseen]] == 255).all() and sorted(source.table[1:16]) == list(range(15))
    seen = set(range(1, 16))
    everything = [set(np.unique(source.data.labels(k))) for k in range(len(source))]
    assert all(held & seen for held in everything), "a photograph without a seen class teaches nothing"
    before = [source.crop(k, 1)[1] for k in range(len(source))]
    real, last = type(source.data).labels, unseen[-1]

    def other_unseen(data, index):  # the same pictures, every unseen thing called something else
        labels = real(data, index)
        return np.where(np.isin(labels, unseen), last, labels).astype(np.uint8)

    monkeypatch.setattr(type(source.data), "labels", other_unseen)
    after = [source.crop(k, 1)[1] for k in range(len(source))]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_mixtures_are_halves_and_real_pictures_come_last(paper, models):
    paper.values["grounded_real"]["zero_shot"]["pictures"]["voc"] = 40
    some = real_zero_shot.training_sources(config(paper, "model-e"), SPLIT, models)
    assert [s.name for s in some] == ["painted 0, one", "painted 1, two", "real seen"]
    assert [len(s) for s in some[:2]] == [20, 20]
    plain, rich = some[0], real_zero_shot.training_sources(config(paper, "model-a"), SPLIT, models)[0]
    assert plain.fingerprint() != rich.fingerprint()


def test_sets_are_painted_once_and_not_by_several_processes(paper, models, monkeypatch):
    wanted, what = config(paper), {"kind": "two", "count": 20, "rich": False}
    first = real_zero_shot.painted_pairs(wanted["head"], SPLIT, "voc", what, models)[7]
    monkeypatch.setattr(grounded_online, "paint_pairs", None)
    again = real_zero_shot.painted_pairs(wanted["head"], SPLIT, "voc", what)[7]
    assert np.array_equal(first.image, again.image) and np.array_equal(first.labels, again.labels)
    monkeypatch.setattr(distributed, "world", lambda: distributed.World(0, 2))
    with pytest.raises(RuntimeError, match="2 of 4 parts of painted pairs .two. are missing; `python -m fmseg paint"):
        real_zero_shot.painted_pairs(wanted["head"], SPLIT, "voc", what | {"count": 40})


def test_a_head_is_trained_once(paper, models, monkeypatch):
    head = config(paper)["head"]
    one = real_zero_shot.shared_head(head, models)
    monkeypatch.setattr(real_zero_shot.real_grounded, "trained", None)
    two = real_zero_shot.shared_head(head, models)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not any(p.requires_grad for p in two.parameters()) and head["seen"] == list(SPLIT.seen)


def test_rich_prompts_say_more_and_are_a_function_of_the_picture(models, monkeypatch, tmp_path):
    said = []
    encode = grounded_online.encode_prompts
    monkeypatch.setattr(grounded_online, "encode_prompts", lambda pipe, some: said.extend(some) or encode(pipe, some))
    small = {"widths": (2, 2, 2, 2), "dim": 8, "heads": 2, "layers": 1, "hidden": 8}
    head = real_zero_shot.GroundingHead.for_unet(models.pipe.unet.config, **small)
    recipe = grounded_online.Recipe(steps=2, guidance=3.0)
    made = (models.pipe, head, SPLIT.classes, names.VOC, 10)
    for folder in ("a", "b"):
        grounded_online.paint_pairs(*made, tmp_path / folder, recipe, rich=True)
    pictures = [p for p in said if p.endswith(grounded_online.ENDINGS)]
    assert len(pictures) == 20 and pictures[:10] == pictures[10:] and len(set(pictures)) > 5
    assert "endings" in json.loads((tmp_path / "a/about.json").read_text())
    with pytest.raises(ValueError, match="holds pairs of another head or recipe"):
        grounded_online.paint_pairs(*made, tmp_path / "a", recipe)


# -- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_is_scored_on_whole_photographs_without_background(paper):
    wanted = config(paper, "model-d")
    done = real_zero_shot.run(wanted)
    data = on_disk.open_set("voc", on_disk.root_of("voc"), "val")
    table, matrix = SPLIT.evaluation(data.classes), np.zeros((20, 20), np.int64)
    how = TestTime(**wanted["test"])
    for k in range(len(data)):  # by hand: no answer is background, no background counts
        answer = segment(real_zero_shot.Answering(done["model"], 20), data.image(k), how)
        assert answer.max() < 20
        matrix += confusion_matrix(answer, table[data.labels(k)], 20)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    there = matrix.sum(1) > 0
    iou = np.full(20, np.nan)
    iou[there] = np.diag(matrix)[there] / union[there]
    result = done["result"]
    assert [v is None for v in result["iou"]] == list(~there)
    assert np.allclose([v for v in result["iou"] if v is not None], iou[there], atol=1e-6)
    seen, unseen = 100 * np.nanmean(iou[:15]), 100 * np.nanmean(iou[15:])
    assert result["seen"] == pytest.approx(seen, abs=1e-3) and result["unseen"] == pytest.approx(unseen, abs=1e-3)
    harmonic = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
    assert result["miou"] == result["harmonic"] == pytest.approx(harmonic, abs=1e-3)
    assert [s["kind"] for s in result["sets"]] == ["one", "two"] and result["examples"]["shape"][0] == len(data)


def test_a_run_that_was_broken_off_ends_with_the_same_bits(paper, tmp_path):
    wanted = config(paper)
    wanted["train"] |= {"steps": 3}
    whole = real_zero_shot.run(wanted)

    class Stop(Exception):
        pass

    def stop(step, loss):
        if step == 2:
            raise Stop

    path = tmp_path / "run.pt"
    with pytest.raises(Stop):
        real_zero_shot.run(wanted, checkpoint=path, checkpoint_every=1, on_step=stop)
    assert real_zero_shot.run(wanted, checkpoint=path, checkpoint_every=1)["result"] == whole["result"]


def test_clip_answers_without_training(paper):
    done = real_zero_shot.run(config(paper, "clip-dense"))
    again = real_zero_shot.run(config(paper, "clip-dense"))
    assert done["model"] is None and done["result"] == again["result"] and 0 <= done["result"]["seen"] <= 100


def test_coco_has_its_own_split(paper):
    wanted, split = config(paper, "model-b", "coco"), protocols.get("coco/grounded-1")
    assert wanted["split"] == split.name and len(wanted["head"]["seen"]) == 65
    (source,) = real_zero_shot.training_sources(config(paper, "seen-only", "coco"), split)
    assert len(source) and set(np.unique(source.crop(0, 1)[1])) <= {*range(65), 255}


def test_what_cannot_be_run_is_refused(paper):
    with pytest.raises(ValueError, match="lacks split"):
        real_zero_shot.run({k: v for k, v in config(paper).items() if k != "split"})
    with pytest.raises(ValueError, match="trains on nothing: give `sets`, or `real`"):
        real_zero_shot.run({k: v for k, v in config(paper).items() if k != "sets"})
    with pytest.raises(ValueError, match="no validation picture shows a class of one of the groups"):
        real_zero_shot.scores(np.zeros((3, 20, 3), np.int64), SPLIT)


# -- the table ------------------------------------------------------------------------------------------------------


def test_records_of_such_runs_make_the_papers_table(paper):
    experiment = zero_shot_table.T2
    assert experiment.trained_by(paper) == "fmseg.real_zero_shot"
    wanted = experiment.configs(paper)
    assert {(c["draw"], c["method"]) for c in wanted} == {
        (d, m) for d in ("voc", "coco") for m in (*configs.SETS, configs.CLIP_DENSE)
    }
    values = {"seen": 50.0, "unseen": 30.0, "harmonic": 37.5, "miou": 37.5}
    records = [{"config": c, "key": str(k), "code": {}, "result": values} for k, c in enumerate(wanted)]
    made = experiment.table(paper, records)
    rows = {row["label"]: row["cells"] for row in made["rows"]}
    assert rows["Model-C mixture"]["voc unseen"]["mean"] == 30.0
    assert rows["Model-C mixture"]["voc unseen"]["paper"]["value"] == 63.2
    assert "no 1x1" in rows["ZS3-style"]["voc seen"]["status"] and not any("ceiling" in label for label in rows)
    assert {experiment.cell(c) for c in wanted} >= {"Model-A one object on voc", "CLIP dense on coco"}


def test_pairs_are_painted_beforehand(paper, models, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / "parts"))
    monkeypatch.setattr(paint_table, "load", lambda profile: paper)
    seen = []

    def painted(head, split, draw, what):
        seen.append((draw, split.name, *what.values()))
        return [1]

    monkeypatch.setattr(real_zero_shot, "painted_pairs", painted)
    assert paint_table.main(["grounded-t2", "--profile", "paper"]) == 0
    assert ("voc", "voc/zs3", "one", 20, False) in seen and len(seen) == len(set(seen)) == 8
    assert "set 8 of 8" in capsys.readouterr().out
    assert not parts.home().exists()
