"""Prompt in, picture and masks out: what is asked for, what is refused, the form with and without widgets."""

import sys
from types import SimpleNamespace

import grounded_toys as toys
import IPython.display
import numpy as np
import pytest
import torch

from fmseg import open_vocabulary as words
from fmseg.generation import from_prompts, text_to_image
from fmseg.grounded_full import random_pipeline
from fmseg.grounding import GroundingHead
from fmseg.zoo_configs import UNET

HOW = {"steps": 2, "guidance": 3.0}


@pytest.fixture(scope="module")
def pipe():
    assert set(toys.SMALL) == set(UNET)
    return random_pipeline(toys.SMALL, toys.AUTOENCODER, toys.TEXT)


@pytest.fixture(scope="module")
def head(pipe):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GroundingHead.for_unet(pipe.unet.config, widths=(2, 2, 2, 2), dim=8, heads=2, layers=1, hidden=8)


def test_things_are_found_in_a_sentence():
    assert words.things_in("A photo of a Striped star, and a zigzag bolt on sand.") == ("striped star", "zigzag bolt")
    assert words.things_in("a plain disc and a plain disc") == ("plain disc",)
    assert words.things_in("striped, very striped") == () == words.things_in("a star")
    assert words.strange_words("a photo of a striped unicorn, a unicorn") == ("unicorn",)


def test_the_picture_is_the_sampler_s_and_masks_answer_the_names(pipe, head):
    found = words.answer("a photo of a striped star and a plain disc", head, seed=7, pipe=pipe, **HOW)
    assert found.names == ("striped star", "plain disc") and found.masks.shape == (2, 64, 64)
    plain = from_prompts([found.prompt], [7], pipe=pipe, **HOW)[0]
    assert np.array_equal(found.image, plain), "reading does not disturb painting"
    other = words.answer(found.prompt, head, names=["plain disc"], seed=7, pipe=pipe, **HOW)
    assert np.array_equal(other.image, found.image) and other.masks.shape == (1, 64, 64)
    many = [f"plain {shape}" for shape in ("disc", "ring", "square", "star", "bar")]
    assert words.answer("a photo of nothing", head, names=many, pipe=pipe, **HOW).logits.shape == (5, 64, 64)
    noisy = words.answer(found.prompt, head, seed=7, step=2, pipe=pipe, **HOW)
    assert np.array_equal(noisy.image, found.image) and not np.array_equal(noisy.logits, found.logits)


def test_names_need_not_be_words_of_the_world(pipe, head):
    found = words.answer("a photo of a unicorn", head, names=["unicorn"], pipe=pipe, **HOW)
    said = words.remarks(found, ("plain disc",))
    assert said[0].startswith("unicorn (no name of the world)") and said[1].endswith("the word unicorn")
    two = words.answer("a plain disc and a netted arch", head, pipe=pipe, **HOW)
    said = words.remarks(two, ("plain disc", "striped star"))
    assert "plain disc (seen)" in said[0] and "netted arch (both words new)" in said[1] and len(said) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "  ", "names": ["star"]}, "`prompt` is empty"),
        ({"prompt": "a photo of a unicorn"}, "`prompt` names no thing that can be recognised"),
        ({"prompt": "a plain disc", "names": ["disc", "disc"]}, "`names` must be different"),
        ({"prompt": "a plain disc", "guidance": 1.0}, "`guidance` must be above 1"),
        ({"prompt": "a plain disc", "step": 3}, r"`step` must be in \[1, 2\], counted from the clean end; got 3"),
        ({"prompt": "a plain disc " * 9}, "token"),
    ],
)
def test_mistakes_have_clear_messages(pipe, head, given, said):
    with pytest.raises(ValueError, match=said):
        words.answer(given.pop("prompt"), head, pipe=pipe, **{**HOW, **given})


def test_panels_are_the_picture_and_a_mask_each(pipe, head):
    found = words.answer("a plain disc", head, pipe=pipe, **HOW)
    picture, masked = words.panels(found)
    assert np.array_equal(picture, found.image) and masked.dtype == np.uint8
    outside = ~found.masks[0]
    assert np.array_equal(masked[outside], (found.image // 3)[outside])
    assert len(words.panels(words.answer("a plain disc", head, names=["unicorn", "sea"], pipe=pipe, **HOW))) == 3


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    return shown


def show(prompt, names, seed):
    if not prompt:
        raise ValueError("empty")
    return f"{prompt} | {', '.join(names)} | {seed}"


def test_without_widgets_every_prompt_is_shown(displayed, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # as if it were not installed
    assert words.typed(show, [("a", (), 0), ("", (), 1), ("b", ("c",), 2)], live=True) is None
    assert displayed == ["a |  | 0", "empty", "b | c | 2"]


class Widget:
    """As much of ipywidgets as the form uses."""

    def __init__(self, children=(), **given):
        self.children, self.listeners = children, []
        vars(self).update(given)

    def on_click(self, listener):
        self.listeners.append(listener)

    def click(self):
        for listener in self.listeners:
            listener(self)

    def clear_output(self, wait):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def test_the_form_paints_what_is_typed_and_shows_what_is_wrong(displayed, monkeypatch):
    parts = ("Text", "BoundedIntText", "Button", "Output", "VBox")
    monkeypatch.setitem(sys.modules, "ipywidgets", SimpleNamespace(**dict.fromkeys(parts, Widget)))
    form = words.typed(show, [("a", ("x",), 0), ("b", (), 1)], live=True)
    text, asked, number, button, _ = form.children
    assert not displayed and (text.value, asked.value, number.value) == ("a", "x", 0)
    text.value, asked.value, number.value = "a plain disc", "plain disc, , star", 5
    button.click()
    text.value = ""
    button.click()
    assert displayed == ["a plain disc | plain disc, star | 5", "empty"]


def test_the_head_is_that_of_the_first_split(tmp_path, monkeypatch):
    from fmseg import grounded_configs
    from fmseg.settings import load

    asked = []
    monkeypatch.setattr(words, "shared_head", lambda config: asked.append(config) or "head")
    monkeypatch.setattr(grounded_configs, "weights", lambda *names: {})
    head, seen = words.head_of(load("smoke"), 3)
    assert head == "head" and seen == grounded_configs.split_of("coco", 1).seen
    assert asked[0]["seed"] == 3 and asked[0]["seen"] == list(seen) and asked[0]["draw"] == "coco"
    text_to_image.cache_clear()
