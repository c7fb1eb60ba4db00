"""The weights that are shipped: those of their cards, small enough, and good for something."""

import json

import numpy as np
import pytest
import torch

from fmseg import zoo
from fmseg.zoo_promote import LARGEST, about
from fmseg.zoo_train import MODULES

SHIPPED = zoo.names()


def there(name):
    return pytest.mark.skipif(name not in SHIPPED, reason=f"{name} is not shipped yet")


def test_all_together_are_small_and_known():
    assert sum(zoo.card(name)["bytes"] for name in SHIPPED) <= LARGEST
    assert set(SHIPPED) <= set(MODULES)


@pytest.mark.parametrize("name", SHIPPED)
def test_files_are_those_of_the_card(name):
    folder, card = zoo.folder(name), zoo.card(name)
    held = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {zoo.CARD}
    assert held == set(card["files"])
    assert card["bytes"] == sum((folder / part).stat().st_size for part in held)
    assert {key: card[key] for key in ("what", "data", "knows")} == about(name)
    assert card["training"]["scale"] == "full" and card["training"]["seconds"] > 60


@pytest.mark.parametrize("name", SHIPPED)
def test_no_configuration_says_where_the_trainer_had_its_files(name):
    for path in zoo.folder(name).rglob("config.json"):
        assert "_name_or_path" not in json.loads(path.read_text()), path


@there("clip")
def test_clip_names_what_it_sees():
    from fmseg.measure_perception import clip_recall

    assert clip_recall(200, "voc", 60)["all"] > 50  # chance: 3


@there("clip")
def test_clip_s_maps_point_at_the_object():
    from fmseg.clip import load_clip, text_embeddings
    from fmseg.measure_perception import dense_scores, fresh

    drawn = fresh("voc", 200, 40)
    maps = dense_scores(load_clip(zoo.folder("clip")), drawn.images, text_embeddings(load_clip(zoo.folder("clip")),
                        list(drawn.classes[1:])), by=2)  # fmt: skip
    inside, elsewhere = [], []
    for i in range(len(drawn)):
        truth = drawn.labels[i, 2::4, 2::4]
        for c in np.flatnonzero(drawn.present[i, 1:]):
            if (truth == c + 1).any():
                score = maps[i, c].numpy()
                inside.append(score[truth == c + 1].mean())
                elsewhere.append(score[truth != c + 1].mean())
    assert np.mean(np.array(inside) > np.array(elsewhere)) > 0.8


@pytest.mark.parametrize("name", [pytest.param(n, marks=there(n)) for n in ("dino", "mim")])
def test_attention_does_better_than_chance(name):
    from fmseg.measure_perception import attention_iou

    found = attention_iou(200, name, 30)
    assert found["attention"] > 25


@pytest.mark.parametrize("name", [pytest.param(n, marks=there(n)) for n in MODULES if n.startswith("backbone-")])
def test_backbones_fit_their_segmenters(name):
    from fmseg.segmenters import build, zoo_backbone

    method = name.removeprefix("backbone-")
    scratch = build(method, num_classes=5, seed=3)
    model = build(method, num_classes=5, seed=3, backbone=zoo_backbone(method))
    state = zoo.load_state(name, "backbone.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in model.model.backbone.state_dict().items())
    head, fresh = model.model.decode_head.state_dict(), scratch.model.decode_head.state_dict()
    assert all(torch.equal(head[key], fresh[key]) for key in head)
    with pytest.raises(ValueError, match="Weights that a record means are in the commit that made it"):
        build(method, num_classes=5, backbone="zoo:0000")


@there("diffusion")
def test_generated_pictures_agree_across_group_sizes(monkeypatch):
    from fmseg import generation

    prompts, seeds = ["a photo of a striped star", "a photo of grass", "a photo of a plain heart on sea"], [1, 2, 3]
    together = generation.from_prompts(prompts, seeds).astype(float)
    assert np.array_equal(together, generation.from_prompts(prompts, seeds))
    monkeypatch.setattr(generation, "GROUP", 1)
    alone = generation.from_prompts(prompts, seeds)
    assert np.abs(together - alone).mean((1, 2, 3)).max() <= generation.TOLERANCE


@there("diffusion")
def test_inversion_reconstructs():
    from fmseg.generation import text_to_image
    from fmseg.measure_perception import fresh
    from fmseg.stable_diffusion import encode_images, encode_prompts, generate_latents, invert

    pipe, drawn = text_to_image(), fresh("web", 200, 2)
    clean, text = encode_images(pipe, drawn.images), encode_prompts(pipe, list(drawn.captions))
    back = generate_latents(pipe, text, invert(pipe, clean, text, steps=40), steps=40, guidance=1.0)
    assert (back - clean).square().mean() < 0.25 * clean.square().mean()


@there("oracle")
def test_the_oracle_knows_no_word_of_the_web_alone():
    from fmseg.oracle import load_oracle
    from fmseg.words import STUFF, THINGS

    assert load_oracle()[1] == THINGS + STUFF


@there("diffusion")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=there(n)) for n in MODULES if n.startswith(("layout-", "weak-"))]
)
def test_layout_models_paint_what_the_seed_says(name):
    from fmseg.generation import from_layouts
    from fmseg.measure_perception import fresh

    drawn = fresh(name.partition("-")[2], 200, 2)
    images = from_layouts(drawn.labels, drawn.classes, [0, 1], name, steps=4)
    assert images.shape == drawn.images.shape and images.dtype == np.uint8
    assert np.array_equal(images, from_layouts(drawn.labels, drawn.classes, [0, 1], name, steps=4))
    assert not np.array_equal(images, from_layouts(drawn.labels, drawn.classes, [2, 3], name, steps=4))
