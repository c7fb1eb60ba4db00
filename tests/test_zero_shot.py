"""Protocol II: synthetic pairs by a head, segmenters that learn from them, baselines; on random weights."""

import grounded_toys as toys
import numpy as np
import pytest
import torch

from fmseg import export, protocols, zero_shot, zero_shot_sets
from fmseg import zero_shot_generator as generator
from fmseg.datasets import draw_set
from fmseg.generation import text_to_image
from fmseg.grounded_pictures import painted
from fmseg.labelmaps import unpack
from fmseg.metrics import confusion_matrix, iou_per_class
from fmseg.segmenters import SCRATCH, build
from fmseg.training import Source

SPLIT = protocols.get("mini/grounded-voc-1")


def test_equal_samples_have_no_distance_and_shifted_ones_do():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    assert float(generator.kernel_distance(x, x)) == pytest.approx(0, abs=1e-5)
    distances = [float(generator.kernel_distance(x, x + shift)) for shift in (0.5, 2.0, 8.0)]
    assert distances == sorted(distances) and distances[0] > 0
    one, two = torch.tensor([[0.0]]), torch.tensor([[2.0]])  # k(0, 2) = sum of exp(-4 / 2 sigma), by hand
    by_hand = 2 * len(generator.BANDWIDTHS) - 2 * sum(np.exp(-2 / s) for s in generator.BANDWIDTHS)
    assert float(generator.kernel_distance(one, two)) == pytest.approx(by_hand, rel=1e-5)
    with pytest.raises(ValueError, match=r"must be \(n, D\) and \(m, D\)"):
        generator.kernel_distance(one, torch.zeros(2, 3))


def world(seed=0):
    """Features that are a linear function of text: classes 0 to 3 have pixels, class 4 is only named."""
    rng = torch.Generator().manual_seed(seed)
    text, linear = torch.randn(5, 4, generator=rng), torch.randn(4, 6, generator=rng)
    text[4] = (text[0] + text[1]) / 2
    labels = torch.arange(400) % 4
    features = text[labels] @ linear + 0.1 * torch.randn(400, 6, generator=rng)
    return features, labels, text, linear


def test_generated_features_are_those_of_their_class():
    features, labels, text, linear = world()
    model = generator.train_generator(features, labels, text, steps=400, lr=3e-3)
    made = model(text, torch.Generator().manual_seed(1))
    means = torch.stack([features[labels == k].mean(0) for k in range(4)])
    assert torch.cdist(made[:4], means).argmin(1).tolist() == [0, 1, 2, 3]
    again = generator.train_generator(features, labels, text, steps=400, lr=3e-3)
    assert torch.equal(again(text, torch.Generator().manual_seed(1)), made)


def test_a_classifier_learns_a_class_that_was_only_generated():
    features, labels, text, linear = world()
    model = generator.train_generator(features, labels, text, steps=400, lr=3e-3)
    torch.manual_seed(0)
    classifier = torch.nn.Conv2d(6, 6, 1)
    generator.train_classifier(classifier, features, labels, model, text, [4], steps=300, lr=0.02)
    unseen = (text[4] @ linear).expand(50, -1) + 0.1 * torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    answer = classifier(torch.cat([features, unseen])[:, :, None, None])[:, :, 0, 0].argmax(1)
    assert (answer[:400] == labels).float().mean() > 0.9 and (answer[400:] == 4).float().mean() > 0.5


def test_mistakes_of_the_generator_have_clear_messages():
    features, labels, text, _ = world()
    with pytest.raises(ValueError, match=r"`labels` must be rows of `text`, 0\.\.1; got 3"):
        generator.train_generator(features, labels, text[:2], steps=1)
    with pytest.raises(ValueError, match="N > 0"):
        generator.train_generator(features[:0], labels[:0], text, steps=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("zoo")
    toys.make_zoo(made)
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("parts")


@pytest.fixture
def installed(folder, shared, monkeypatch):
    toys.install(folder, monkeypatch)
    monkeypatch.setenv("FMSEG_PARTS", str(shared))
    yield
    text_to_image.cache_clear()


def pairs(kind="two", **how):
    return zero_shot_sets.synthetic(kind, SPLIT.classes, 20, toys.config(), **how)


def test_a_picture_is_labelled_with_the_classes_of_its_prompt_alone(installed, monkeypatch):
    made = pairs()
    assert made.labels.shape == (20, 64, 64) and made.labels.dtype == np.uint8 and made.classes[-1] == "background"
    for wanted, labels in zip(made.asks, made.labels, strict=True):
        allowed = {SPLIT.classes.index(name) for name in wanted.names} | {20}
        assert set(np.unique(labels)) <= allowed
    assert len(np.unique(made.labels)) > 3
    monkeypatch.setattr(zero_shot_sets, "labelled_by", None)  # a second time nothing is labelled
    assert np.array_equal(pairs().labels, made.labels)
    with pytest.raises(ValueError, match="`count` must be a multiple of 20"):
        zero_shot_sets.synthetic("one", SPLIT.classes, 30, toys.config())


def test_parts_of_a_set_are_labelled_as_its_pictures_lie(installed):
    head = zero_shot_sets.shared_head(toys.config())
    made = zero_shot_sets.synthetic("one", SPLIT.classes, 40, toys.config())
    pictures = painted("one", SPLIT.classes, "zero-shot", 40, steps=2, guidance=3.0)
    features = zero_shot_sets.kept_features(pictures, 1)
    whole = zero_shot_sets.labelled_by(head, pictures, features, SPLIT.classes)
    assert np.array_equal(whole, made.labels) and np.array_equal(made.images, pictures.images)


def test_pairs_can_be_written_for_outside_tools(installed, tmp_path):
    made = pairs()
    export.write(made, tmp_path, "voc", "train")
    names = (tmp_path / "ImageSets/Segmentation/train.txt").read_text().split()
    assert len(names) == 20 and names[0].startswith("grounded-two_000000_")
    assert made.asks[0].names[0].replace(" ", "_") in names[0]
    from PIL import Image

    mask = np.asarray(Image.open(tmp_path / f"SegmentationClass/{names[3]}.png"))
    assert np.array_equal(mask, made.labels[3])


def config(method, **changes):
    made = {
        "method": method, "seed": 0, "draw": "voc", "split": SPLIT.name, "images": 16, "validation": 24, "size": 64,
        "segmenter": "segformer", "backbone": SCRATCH, "zoo": {},
        "train": {"steps": 2, "batch_size": 4, "lr": 0.001},
    }  # fmt: skip
    return made | changes


def test_synthetic_and_real_seen_pictures_train_a_segmenter(installed):
    sets = [{"kind": kind, "count": 20, "rich": kind == "one"} for kind in ("one", "two")]
    result = zero_shot.run(config("model-e", sets=sets, head=toys.config(), real=True))["result"]
    s, u, h = (result[k] for k in ("seen", "unseen", "harmonic"))
    assert h == pytest.approx(0 if s * u == 0 else 2 * s * u / (s + u), abs=1e-2) and len(result["iou"]) == 20
    assert result["miou"] == h
    assert unpack(result["examples"]).shape == (zero_shot.EXAMPLES, 64, 64)
    for kept, what in zip(result["sets"], sets, strict=True):
        made = pairs(kept["kind"], rich=kept["rich"])
        assert kept["kind"] == what["kind"]
        assert np.array_equal(unpack(kept["labels"]), made.labels[: zero_shot.EXAMPLES])


def test_unseen_pixels_of_real_pictures_are_not_labelled():
    real = draw_set("voc", "train", 20)
    source = zero_shot.real_source(real, SPLIT)
    assert len(source) < 20 or (SPLIT.train_table(real.classes)[real.labels] != 255).any((1, 2)).all()
    assert set(np.unique(source.labels)) <= {*range(15), 255}


def test_features_of_unseen_classes_are_imagined_and_only_the_classifier_moves(monkeypatch):
    monkeypatch.setattr(zero_shot, "load_clip", lambda folder: None)
    monkeypatch.setattr(zero_shot.zoo, "folder", lambda name: None)
    words = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(zero_shot, "text_embeddings", lambda clip, names: words)
    model = build("segformer", num_classes=21, image_size=64, backbone=SCRATCH).eval()
    real = zero_shot.real_source(draw_set("voc", "train", 6), SPLIT)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    zero_shot.imagine(model, [real], SPLIT, {"steps": 3, "classifier_steps": 3}, 0)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"model.decode_head.conv_seg.weight", "model.decode_head.conv_seg.bias"}


def test_pixel_features_are_the_classifier_s_inputs_at_labelled_cells():
    model = build("segformer", num_classes=21, image_size=64, backbone=SCRATCH).eval()
    real = draw_set("voc", "train", 3)
    labels = np.full((3, 64, 64), 255, np.uint8)
    labels[1, 8:16, 4:12] = 7
    features, names = zero_shot.pixel_features(model, [Source(real.images, labels)])
    assert features.shape == (4, 64) and names.tolist() == [7] * 4
    images = torch.from_numpy(real.images).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        logits = model.grid_logits(images)[1, :, 2:4, 1:3].flatten(1).T
        again = model.model.decode_head.conv_seg(features[:, :, None, None])[:, :, 0, 0]
    assert torch.allclose(logits, again, atol=1e-4)


def test_background_is_no_answer():
    images, truth = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8)
    truth[:, 4:] = 255
    scores = torch.zeros(3, 8, 8)
    scores[2] = 9.0  # background
    scores[1, :2] = 1.0
    model = torch.nn.Module()
    model.logits = lambda x: scores.expand(len(x), -1, -1, -1)
    found = zero_shot.answers_of(model, images, 2)
    assert found.shape == truth.shape and set(np.unique(found)) == {0, 1} and model.training
    assert iou_per_class(confusion_matrix(found, truth, 2))[0] == 0.5


def test_a_run_that_learns_from_nothing_is_refused():
    with pytest.raises(ValueError, match="the configuration trains on nothing: give `sets`, or `real`"):
        zero_shot.run(config("model-a"))
