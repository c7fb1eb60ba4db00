"""The door to CLIP and its prompts, against open_clip's own classifier."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fmseg.convnet  # noqa: F401  registers the trunk, before open_clip
from fmseg.clip import (
    CONFIG,
    MEAN,
    STD,
    TEMPLATES,
    WEIGHTS,
    imagenet_templates,
    load_clip,
    preprocess,
    prompt,
    text_embeddings,
    zero_shot_scores,
)  # fmt: skip
from fmseg.vocabulary import CONTEXT_LENGTH, KNOWN_WORDS
from fmseg.words import STUFF, WEB_THINGS
from fmseg.zoo_configs import CLIP

SMALL = {  # CLIP's own tokenizer
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
ARCHITECTURE = "fmseg-tests-small"


def build(config):
    from open_clip.model import CLIP as Model

    torch.manual_seed(0)
    model = Model(**config).eval()
    model.visual.requires_grad_(False)
    return model


def folder_of(folder, config=CLIP, model=None, preprocessing=None):
    model = model or build(config)
    folder.mkdir(exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": preprocessing or {"interpolation": "bicubic"}}
    (folder / CONFIG).write_text(json.dumps(content))
    half = {k: (v.half() if v.is_floating_point() else v).contiguous().clone() for k, v in model.state_dict().items()}
    save_file(half, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return load_clip(folder_of(tmp_path_factory.mktemp("zoo") / "clip"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An architecture known to open_clip by name, and files with its weights."""
    import open_clip

    folder = tmp_path_factory.mktemp("small")
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder)
    model = build(SMALL)
    state = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
    save_file(state, folder / "w.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "w.pt")
    return folder, model


# ----------------------------------------------------------------- the door


def test_a_folder_of_the_zoo_comes_back_in_full_precision(tmp_path):
    model = build(CLIP)
    clip = load_clip(folder_of(tmp_path / "clip", model=model))
    assert (clip.mean, clip.std, clip.name) == (MEAN, STD, "clip")
    assert not any(module.training for module in clip.model.modules())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in clip.model.parameters())
    loaded = clip.model.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value.half().float() if value.is_floating_point() else value)
    assert clip.tokenizer(["a photo of a striped star"]).shape == (1, CONTEXT_LENGTH)
    assert clip.model.encode_image(preprocess(np.zeros((2, 64, 64, 3), np.uint8))).shape == (2, 128)


def test_a_folder_with_another_vocabulary_and_other_colours(tmp_path):
    colours = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.3, 0.4]}
    clip = load_clip(str(folder_of(tmp_path / "other", SMALL, preprocessing=colours)))
    assert clip.mean == (0.5, 0.5, 0.5) and clip.std == (0.2, 0.3, 0.4)
    white = clip.preprocess(np.full((1, 4, 4, 3), 255, np.uint8))[0, :, 0, 0]
    assert white.tolist() == pytest.approx([2.5, 5 / 3, 1.25])
    assert clip.tokenizer(["a person"]).shape == (1, 77)


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
def test_an_architecture_with_a_local_file(small, file):
    folder, model = small
    clip = load_clip(ARCHITECTURE, weights=folder / file)
    assert clip.name == f"{ARCHITECTURE} ({file})" and clip.mean == MEAN
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(clip.model.encode_image(images), model.encode_image(images))


def test_a_tag_downloads_and_without_a_network_the_door_says_what_to_do(monkeypatch):
    import open_clip

    asked = []

    def offline(name, pretrained, **options):
        asked.append((name, pretrained))
        raise RuntimeError("Failed to download weights for tag 'openai': no route")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(ConnectionError, match=r"ViT-B-16 \(openai\) .*no route.*weights=file"):
        load_clip("ViT-B/16", weights="openai")
    assert asked == [("ViT-B-16", "openai")]


def test_errors_of_the_door(tmp_path, small):
    with pytest.raises(FileNotFoundError, match=f"no folder .*gone.*{CONFIG}"):
        load_clip(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="ViT-B-16"):
        load_clip("ViT-B-61", weights="openai")
    with pytest.raises(FileNotFoundError, match="openai, yfcc15m, cc12m.*there is no 'opanai'"):
        load_clip("RN50", weights="opanai")
    with pytest.raises(FileNotFoundError, match="there is no None"):
        load_clip("RN50")
    folder = folder_of(tmp_path / "a")
    with pytest.raises(ValueError, match="in the folder already"):
        load_clip(folder, weights="openai")
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS}; it should hold the weights"):
        load_clip(folder)
    for text in ("{", "[]", "{}", '{"model_cfg": {}}'):
        (folder / CONFIG).write_text(text)
        with pytest.raises(ValueError, match=f"{CONFIG} should be JSON with `model_cfg`"):
            load_clip(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=f"{CONFIG}; it should hold"):
        load_clip(folder)
    wider = CLIP | {"embed_dim": 64}
    with pytest.raises(ValueError, match=f"{WEIGHTS} does not hold the weights.*size mismatch"):
        load_clip(folder_of(tmp_path / "b", CLIP, model=build(wider)))
    with pytest.raises(ValueError, match=f"{WEIGHTS} does not hold the weights.*Missing key"):
        load_clip(folder_of(tmp_path / "c", CLIP, model=build(CLIP).visual))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>", "empty", "tensor"])
def test_files_that_are_no_weights(tmp_path, small, name, content):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".pt":
        torch.save({} if content == "empty" else torch.zeros(2), path)
    else:
        save_file({} if content == "empty" else {"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=f"{name} does not hold the weights of {ARCHITECTURE}"):
        load_clip(ARCHITECTURE, weights=path)


@pytest.mark.filterwarnings("ignore:.*TorchScript archive")
def test_a_torchscript_archive_is_turned_down(tmp_path, small):
    """The form in which OpenAI published its weights."""
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "ViT-B-16.pt")
    with pytest.raises(ValueError, match="no TorchScript archive"):
        load_clip(ARCHITECTURE, weights=tmp_path / "ViT-B-16.pt")


# ----------------------------------------------------------------- prompts


def test_articles():
    assert prompt("a photo of {a}", "arch") == "a photo of an arch"
    assert prompt("a photo of {a}", "striped star") == "a photo of a striped star"
    assert prompt("a photo of {a}", "sky") == "a photo of sky"
    assert prompt("a photo of the {}.", "arch") == "a photo of the arch."
    with pytest.raises(ValueError, match="got 'a photo'"):
        prompt("a photo", "arch")


def test_the_zoos_vocabulary_knows_every_word_and_every_sentence_fits(mini):
    assert len(set(TEMPLATES)) == len(TEMPLATES) >= 5
    for template in TEMPLATES:
        for name in (*WEB_THINGS, *STUFF):
            text = prompt(template, name)
            assert set(text.split()) <= set(KNOWN_WORDS)
            assert (mini.tokenizer([text])[0] != 0).sum() <= len(text.split()) + 2 <= CONTEXT_LENGTH


def test_the_85_templates_of_maskclip():
    templates = imagenet_templates()
    assert len(set(templates)) == 85 and all(template.count("{}") == 1 for template in templates)
    assert templates[0] == "a bad photo of a {}." and templates[79] == "a tattoo of the {}."
    assert templates[80:] == tuple(
        f"{start} {{}} in the scene."
        for start in ("there is a", "there is the", "this is a", "this is the", "this is one")
    )


@pytest.mark.parametrize("count", [80, 85])
def test_text_embeddings_are_open_clips_zero_shot_classifier(tmp_path, count):
    from open_clip import build_zero_shot_classifier

    clip = load_clip(folder_of(tmp_path / "small", SMALL))
    names, templates = ["person", "dining table", "apple"], imagenet_templates()[:count]
    ours = text_embeddings(clip, names, templates)
    theirs = build_zero_shot_classifier(clip.model, clip.tokenizer, names, templates).T
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert (ours * theirs).sum(1).min() > 0.999


def test_text_embeddings_are_unit_means_of_unit_rows(mini):
    names = ["striped star", "sky"]
    ours = text_embeddings(mini, names)
    assert ours.shape == (2, 128) and ours.dtype == torch.float32
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(2))
    for row, words in zip(ours, ("a striped star", "sky"), strict=True):
        texts = [template.replace("{a}", words) for template in TEMPLATES]
        each = mini.model.encode_text(mini.tokenizer(texts))
        mean = (each / each.norm(dim=1, keepdim=True)).mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), atol=1e-6, rtol=1e-5)
    alone = text_embeddings(mini, ["sky"], ["a photo of {a}"])
    direct = mini.model.encode_text(mini.tokenizer(["a photo of sky"]), normalize=True)
    torch.testing.assert_close(alone, direct)
    torch.testing.assert_close(text_embeddings(mini, names[::-1]), ours.flip(0), atol=1e-6, rtol=1e-5)


def test_errors_of_prompts(mini):
    for names in ("sky", [], ()):
        with pytest.raises(ValueError, match="`names` must be"):
            text_embeddings(mini, names)
    for templates in ("a {}", []):
        with pytest.raises(ValueError, match="`templates` must be"):
            text_embeddings(mini, ["sky"], templates)


# ----------------------------------------------------------------- whole pictures


def test_zero_shot_scores_are_cosines_in_any_batch(mini):
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    text = text_embeddings(mini, ["striped star", "sky", "plain ring"])
    ours = zero_shot_scores(mini, images, text, batch=2)
    assert ours.shape == (5, 3) and ours.abs().max() <= 1
    seen = mini.model.encode_image(preprocess(images))
    torch.testing.assert_close(ours, (seen / seen.norm(dim=1, keepdim=True)) @ text.T, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours, zero_shot_scores(mini, images, text), atol=1e-6, rtol=1e-5)


def test_pictures_of_another_size_are_resized_and_other_colours_heeded(mini, tmp_path):
    text = torch.nn.functional.normalize(torch.randn(2, 128), dim=1)
    flat = np.full((1, 64, 64, 3), 77, dtype=np.uint8)
    larger = np.full((1, 96, 128, 3), 77, dtype=np.uint8)
    torch.testing.assert_close(zero_shot_scores(mini, larger, text), zero_shot_scores(mini, flat, text))
    colours = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}
    other = load_clip(folder_of(tmp_path / "other", SMALL, preprocessing=colours))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images / 255.0).permute(0, 3, 1, 2).float()
    seen = other.model.encode_image((pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5, normalize=True)
    torch.testing.assert_close(zero_shot_scores(other, images, torch.eye(12)), seen, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "shape, dtype", [((64, 64, 3), "uint8"), ((1, 3, 64, 64), "uint8"), ((1, 64, 64, 3), "float32")]
)
def test_pictures_must_be_bytes_channels_last(mini, shape, dtype):
    with pytest.raises(ValueError, match=r"must be \(N, H, W, 3\) uint8"):
        zero_shot_scores(mini, np.zeros(shape, dtype), torch.eye(128))
