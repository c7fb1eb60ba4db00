"""Training on line and painting sets at the paper's size, on tiny random models."""

from copy import deepcopy
from dataclasses import replace

import grounded_toys as toys
import numpy as np
import pytest
import torch
from PIL import Image

from fmseg import export, grounded_detector, names, parts
from fmseg import grounded_online as online
from fmseg.grounded_full import random_pipeline
from fmseg.grounding import GroundingHead
from fmseg.oracle import Instance

KNOWN = ("plain disc", "striped star", "dotted ring", "plain bar")
SEEN = KNOWN[:3]
RECIPE = online.Recipe(iterations=4, steps=2, guidance=3.0, lr=1e-3)


@pytest.fixture(scope="module")
def pipe():
    """With room for words that the zoo's tokenizer spells out."""
    made = random_pipeline(toys.SMALL, toys.AUTOENCODER, toys.TEXT | {"max_position_embeddings": 77})
    made.tokenizer = deepcopy(made.tokenizer)
    made.tokenizer.model_max_length = 77
    return made


def fresh(pipe):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return GroundingHead.for_unet(pipe.unet.config, widths=(2, 2, 2, 2), dim=8, heads=2, layers=1, hidden=8)


def everywhere(image):
    """An oracle that sees the upper half of everything but the third class."""
    mask = np.zeros(image.shape[:2], bool)
    mask[: len(mask) // 2] = True
    return [Instance(label, 0.9, mask) for label in (0, 1)]


def learned(pipe, oracle=everywhere, recipe=RECIPE, **how):
    return online.train(pipe, oracle, KNOWN, SEEN, recipe, head=fresh(pipe), **how)


def test_pictures_are_a_function_of_seed_and_step(pipe):
    one, features = online.painted(pipe, SEEN[:1], 7, RECIPE)
    again, _ = online.painted(pipe, SEEN[:1], 7, RECIPE)
    other, noisier = online.painted(pipe, SEEN[:1], 7, replace(RECIPE, step=2))
    assert np.array_equal(one, again) and np.array_equal(one, other), "reading does not disturb painting"
    assert len(features["low"]) == 12 and not torch.equal(features["low"][0], noisier["low"][0])
    with pytest.raises(ValueError, match=r"`step` must be in \[1, 2\], counted from the clean end; got 3"):
        online.painted(pipe, SEEN[:1], 7, replace(RECIPE, step=3))


def test_classes_are_spoken_as_the_official_lists_spell_them():
    assert [online.spoken(n) for n in ("airplane", "tv", "hot dog", "sofa")] == [
        "aeroplane",
        "tvmonitor",
        "hot dog",
        "sofa",
    ]


def test_what_is_not_found_is_no_step(pipe):
    before = {k: v.clone() for k, v in fresh(pipe).state_dict().items()}
    head, how = learned(pipe, lambda image: [])
    assert how["losses"] == [None] * 4 and how["passed"] == 4
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    head, how = learned(pipe, lambda image: [], replace(RECIPE, undetected="zero"))
    assert how["passed"] == 0 and not all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    _, how = learned(pipe)
    assert 0 < how["passed"] + sum(loss is not None for loss in how["losses"]) == 4


def test_a_run_that_was_broken_off_ends_with_the_same_bits(pipe, tmp_path):
    whole, how = learned(pipe)
    path = tmp_path / "head.checkpoint"
    learned(pipe, recipe=replace(RECIPE, iterations=2), checkpoint=path, checkpoint_every=1)
    steps = []
    rest, again = learned(pipe, checkpoint=path, checkpoint_every=1, on_step=lambda step, loss: steps.append(step))
    assert steps == [3, 4] and again["losses"] == how["losses"]
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in rest.state_dict().items())
    with pytest.raises(ValueError, match="belongs to another run: lr"):
        learned(pipe, recipe=replace(RECIPE, lr=1.0), checkpoint=path)


def test_the_detector_may_be_handed_red_for_blue(pipe):
    seen = []
    for swapped in (False, True):
        learned(pipe, lambda image: seen.append(image) or [], replace(RECIPE, iterations=1, swapped=swapped))
    assert np.array_equal(seen[0], seen[1][..., ::-1]) and not np.array_equal(*seen)


def test_an_unknown_class_is_refused(pipe):
    with pytest.raises(ValueError, match="`class of the oracle` must be one of 4 known names; got 'plain star'"):
        online.train(pipe, everywhere, KNOWN, ("plain star",), RECIPE)


def test_a_set_is_shared_and_goes_on(pipe, tmp_path, monkeypatch):
    dataset, head = ("background", *KNOWN), fresh(pipe)
    made = online.paint_pairs(pipe, head, SEEN, dataset, 20, tmp_path / "parts", RECIPE)
    first = made[3]
    assert len(made) == 20 and first.image.shape == (64, 64, 3) and set(np.unique(first.labels)) <= {0, 1, 2, 3}
    assert any(made[k].labels.any() for k in range(20))
    with pytest.raises(IndexError, match=r"\[0, 20\); got 20"):
        made[20]
    parts.file_of(tmp_path / "parts", 0).unlink()  # another process has part 1
    painted = []
    monkeypatch.setattr(online, "painted", lambda *a, real=online.painted, **k: painted.append(a[2]) or real(*a, **k))
    again = online.paint_pairs(pipe, head, SEEN, dataset, 20, tmp_path / "parts", RECIPE)
    assert len(painted) == 10 and np.array_equal(again[3].labels, first.labels)
    export.write(again, tmp_path / "voc", "voc", "train")
    mask = np.asarray(Image.open(tmp_path / "voc/SegmentationClass/grounded_000003.png"))
    assert np.array_equal(mask, first.labels)
    with pytest.raises(ValueError, match="holds pairs of another head or recipe"):
        online.paint_pairs(pipe, head, SEEN, dataset, 20, tmp_path / "parts", replace(RECIPE, guidance=5.0))
    with pytest.raises(ValueError, match="`count` must be a multiple of 10"):
        online.paint_pairs(pipe, head, SEEN, dataset, 15, tmp_path / "parts", RECIPE)


def test_pairs_are_read_one_by_one_as_whole_parts_hold_them(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"images": (10, 6, 5, 3), "labels": (10, 6, 5)}
    whole = {name: rng.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
    file = parts.file_of(tmp_path, 0)
    np.savez(file, **whole)
    made = online.PaintedPairs(tmp_path, ("background",), 20)
    for k in (0, 3, 9):
        assert np.array_equal(made[k].image, whole["images"][k]) and np.array_equal(made[k].labels, whole["labels"][k])
    with pytest.raises(FileNotFoundError, match="00001.npz was not made yet"):
        made[10]
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(ValueError, match="00000.npz is damaged .*delete it, it is then made again"):
        made[0]


def test_rich_prompts_are_seeded_and_change_the_words_alone(pipe, tmp_path, monkeypatch):
    asked = []

    def painted(pipe, classes, seed, recipe, *, end=""):
        asked.append((tuple(classes), seed, end))
        return np.zeros((64, 64, 3), np.uint8), {}

    monkeypatch.setattr(online, "painted", painted)
    monkeypatch.setattr(online, "label_map", lambda *given, background: torch.zeros(1, 64, 64))
    dataset, head = ("background", *KNOWN), fresh(pipe)
    monkeypatch.setattr(type(head), "forward", lambda self, features, text, size: torch.zeros(1))
    for name, rich in (("plain", False), ("rich", True), ("again", True)):
        online.paint_pairs(pipe, head, SEEN, dataset, 20, tmp_path / name, RECIPE, rich=rich)
    plain, rich, again = asked[:20], asked[20:40], asked[40:]
    assert rich == again and [a[:2] for a in plain] == [a[:2] for a in rich], "same classes, same noise"
    assert {a[2] for a in plain} == {""} and {a[2] for a in rich} <= set(online.ENDINGS)
    assert len({a[2] for a in rich}) > 8
    with pytest.raises(ValueError, match="holds pairs of another head or recipe"):
        online.paint_pairs(pipe, head, SEEN, dataset, 20, tmp_path / "plain", RECIPE, rich=True)
    every = {online.spoken(n) for n in (*names.VOC, *names.COCO)}
    assert not every & {w.strip(",") for end in online.ENDINGS for w in end.split()} and len(online.ENDINGS) >= 30


def test_the_end_of_a_prompt_changes_the_picture_and_not_the_queries(pipe):
    one, _ = online.painted(pipe, SEEN[:1], 7, RECIPE)
    other, _ = online.painted(pipe, SEEN[:1], 7, RECIPE, end=" at night")
    assert not np.array_equal(one, other)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A folder with a tiny random Mask2Former of three classes, and its processor."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    swin = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2, image_size=64,
                      out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=8,
        dim_feedforward=8, encoder_layers=1, decoder_layers=1, num_attention_heads=1, num_queries=6,
        id2label={0: "cat", 1: "dog", 2: "tv"}, label2id={"cat": 0, "dog": 1, "tv": 2},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("detector")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}, size_divisor=32).save_pretrained(folder)
    return folder


def test_a_detector_gives_scored_masks_of_the_picture_s_size(detector):
    detect, known = grounded_detector.load(str(detector))
    image = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    found = detect(image)
    assert known == ("cat", "dog", "tv") and found
    assert [i.score for i in found] == sorted((i.score for i in found), reverse=True)
    for instance in found:
        assert instance.mask.shape == (48, 40) and instance.mask.dtype == bool and 0 <= instance.label < 3
        assert grounded_detector.LEAST <= instance.score <= 1


def test_a_detector_that_is_not_there_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as Mask2Former .* give the folder"):
        grounded_detector.load(str(tmp_path))


def test_the_commands_train_a_head_and_paint_with_it(pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(online, "_pipeline", lambda given: pipe)
    monkeypatch.setattr(grounded_detector, "load", lambda source, device: (everywhere, names.COCO[1:]))
    monkeypatch.setattr(online, "GroundingHead", Small)
    common = ["--weights", "sd", "--split", "voc/zs3", "--sampler-steps", "2"]
    assert (
        online.main(["head", *common, "--detector", "m2f", "--out", str(tmp_path / "head.pt"), "--iterations", "1"])
        == 0
    )
    assert (tmp_path / "head.pt").is_file() and "1 pictures" in capsys.readouterr().out
    out = ["--head", str(tmp_path / "head.pt"), "--out", str(tmp_path / "pairs"), "--count", "10"]
    assert online.main(["pairs", *common, *out]) == 0
    assert online.main(["pairs", *common, *out, "--rich"]) == 1, "another set"
    assert "holds pairs of another head or recipe" in capsys.readouterr().err
    assert len(list((tmp_path / "pairs/voc/SegmentationClass").glob("*.png"))) == 10
    assert online.main(["pairs", *common, "--out", "x"]) == 1 and "`--head` is needed" in capsys.readouterr().err
    assert online.main(["head", *common, "--out", "x"]) == 1 and "`--detector` is needed" in capsys.readouterr().err


class Small(GroundingHead):
    @classmethod
    def for_unet(cls, config):
        return GroundingHead.for_unet(config, widths=(2, 2, 2, 2), dim=8, heads=2, layers=1, hidden=8)
