"""Generated pictures are functions of weights, prompt or layout, and seed; checked on random weights."""

import numpy as np
import pytest
import torch

from fmseg import generation
from fmseg.rectify import install
from fmseg.vocabulary import clip_tokenizer
from fmseg.zoo_configs import SCHEDULER, TEXT_ENCODER, UNET, VAE

PROMPTS = ["a photo of a striped star", "a photo of grass", "a photo of a plain disc on sea", "plain disc sky"]
CLASSES = ("plain disc", "striped star", "grass", "sky")


@pytest.fixture(scope="module")
def pipe():
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = StableDiffusionPipeline(
            vae=AutoencoderKL.from_config(VAE), unet=install(UNet2DConditionModel.from_config(UNET)),
            text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)), tokenizer=clip_tokenizer(),
            scheduler=DDIMScheduler(**SCHEDULER), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    made.unet.eval(), made.vae.eval(), made.text_encoder.eval()
    return made


def layouts():
    labels = np.full((3, 64, 64), 2, dtype=np.uint8)
    labels[:, :32] = 3
    labels[1, 20:40, 20:40] = 0
    labels[2, 10:30, 30:60] = 1
    return labels


def test_the_same_prompt_and_seed_give_the_same_bytes(pipe):
    one = generation.from_prompts(PROMPTS, range(4), steps=3, pipe=pipe)
    assert one.shape == (4, 64, 64, 3) and one.dtype == np.uint8
    assert np.array_equal(one, generation.from_prompts(PROMPTS, range(4), steps=3, pipe=pipe))
    assert not np.array_equal(one[0], generation.from_prompts(PROMPTS[:1], [9], steps=3, pipe=pipe)[0])


def test_groups_are_counted_from_the_first_so_restarts_give_the_same_bytes(pipe, monkeypatch):
    monkeypatch.setattr(generation, "GROUP", 2)
    whole = generation.from_prompts(PROMPTS, range(4), steps=2, pipe=pipe)
    second = generation.from_prompts(PROMPTS[2:], range(2, 4), steps=2, pipe=pipe)
    assert np.array_equal(whole[2:], second)


def test_other_group_sizes_agree_within_the_tolerance(pipe, monkeypatch):
    together = generation.from_prompts(PROMPTS, range(4), steps=3, pipe=pipe).astype(float)
    monkeypatch.setattr(generation, "GROUP", 1)
    alone = generation.from_prompts(PROMPTS, range(4), steps=3, pipe=pipe)
    assert np.abs(together - alone).mean((1, 2, 3)).max() <= generation.TOLERANCE


def test_a_layout_s_picture_does_not_depend_on_its_neighbours(pipe):
    labels = layouts()
    together = generation.from_layouts(labels, CLASSES, range(3), "layout-ade", steps=3, pipe=pipe).astype(float)
    order = [2, 0, 1]
    moved = generation.from_layouts(labels[order], CLASSES, order, "layout-ade", steps=3, pipe=pipe)
    assert np.abs(together[order] - moved).mean((1, 2, 3)).max() <= generation.TOLERANCE


def test_the_layout_reaches_the_picture(pipe):
    labels = layouts()
    flipped = np.ascontiguousarray(labels[:1, ::-1])
    a = generation.from_layouts(labels[:1], CLASSES, [0], "layout-ade", steps=3, pipe=pipe)
    b = generation.from_layouts(flipped, CLASSES, [0], "layout-ade", steps=3, pipe=pipe)
    assert not np.array_equal(a, b)


def test_lists_of_unequal_length_are_refused(pipe):
    with pytest.raises(ValueError, match="`seeds` must be as many as `prompts`; got 3 for 4"):
        generation.from_prompts(PROMPTS, range(3), pipe=pipe)
    with pytest.raises(ValueError, match="`seeds` must be as many as `labels`; got 1 for 3"):
        generation.from_layouts(layouts(), CLASSES, [0], "layout-ade", pipe=pipe)
