"""What the mini layout models read: a name's states whatever stands beside it, a pixel's own words, and their loss."""

import numpy as np
import pytest
import torch
from test_generation import CLASSES, layouts, pipe  # noqa: F401  (a fixture)

from fmseg import layout_model
from fmseg.layout_model import LEAST_PART, Lesson, encode_layouts, enlarged, own_words
from fmseg.rectify import layout_prompt
from fmseg.stable_diffusion import encode_prompts


def test_a_name_reads_the_same_in_any_company_and_place(pipe):  # noqa: F811
    labels = layouts()
    text, owners = encode_layouts(pipe, labels, CLASSES)
    assert owners == layout_prompt(labels, CLASSES, pipe.tokenizer).owners == [(2, 3), (0, 0, 2, 3), (1, 1, 2, 3)]
    for row, ids in enumerate(owners):
        for c in set(ids):
            alone = encode_prompts(pipe, [CLASSES[c]])[0]
            at = 1 + ids.index(c)
            assert torch.allclose(text[row, at : at + ids.count(c)], alone[1 : 1 + ids.count(c)], atol=1e-6)
    together = encode_prompts(pipe, layout_prompt(labels, CLASSES, pipe.tokenizer).prompts)
    for row, ids in enumerate(owners):
        free = [0, *range(1 + len(ids), text.shape[1])]
        assert torch.equal(text[row, free], together[row, free]), "start, end and padding are the whole prompt's"
    assert not torch.allclose(text[1, 4], together[1, 4], atol=1e-3), "else the words before would be in it"


def test_a_map_without_any_class_is_the_empty_prompt(pipe):  # noqa: F811
    text, owners = encode_layouts(pipe, np.full((1, 64, 64), 255, np.uint8), CLASSES)
    assert owners == [()] and torch.equal(text, encode_prompts(pipe, [""]))
    with pytest.raises(ValueError, match="found 9 at"):
        encode_layouts(pipe, np.full((1, 64, 64), 9, np.uint8), CLASSES)


def test_a_pixel_reads_its_own_words_alone(pipe):  # noqa: F811
    labels = layouts()
    labels[0, :8, :8] = 255
    text, owners = encode_layouts(pipe, labels, CLASSES)
    keep = own_words(pipe.unet, labels, owners, text.shape[1])
    assert set(keep) == {16, 8, 4, 2}
    for side, masks in keep.items():
        cells = labels[:, :: 64 // side, :: 64 // side].reshape(3, -1)
        for row, ids in enumerate(owners):
            for place, c in enumerate(cells[row]):
                read = masks[row, 0, place].nonzero()[:, 0].tolist()
                own = [1 + j for j, owner in enumerate(ids) if owner == c]
                assert read == (own or [0, *range(1 + len(ids), text.shape[1])])


def lesson(pipe, labels=None):  # noqa: F811
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    return Lesson(pipe, images, layouts() if labels is None else labels, CLASSES, parts=2)


def test_an_enlarged_part_keeps_picture_and_mask_together():
    labels = np.arange(64)[None, :, None] * 2 + np.zeros((2, 1, 64), np.int64)  # two a row
    images = np.repeat(labels[..., None], 3, 3).astype(np.uint8)  # the label is its own colour
    pictures, masks = enlarged(images, labels, 0)
    assert pictures.shape == images.shape and pictures.dtype == np.uint8 and masks.shape == labels.shape
    assert np.abs(pictures[..., 0].astype(int) - masks).max() <= 2, "no more than a row apart"
    assert np.isin(masks, labels).all() and all(np.unique(m).size >= LEAST_PART * 64 - 1 for m in masks)
    again, others = enlarged(images, labels, 0), enlarged(images, labels, 1)
    assert np.array_equal(again[1], masks) and not np.array_equal(others[1], masks) and not np.array_equal(*masks)


def test_a_part_as_large_as_the_picture_is_the_picture(monkeypatch):
    monkeypatch.setattr(layout_model, "LEAST_PART", 1.0)
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    pictures, masks = enlarged(images, layouts()[:2], 0)
    assert np.array_equal(pictures, images) and np.array_equal(masks, layouts()[:2])


def loss_of(made, pipe, chosen=(0, 1, 3, 5)):  # noqa: F811
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return made.loss(pipe.unet, np.array(chosen))


def test_the_loss_is_a_function_of_the_seed_and_reaches_the_unet(pipe):  # noqa: F811
    made = lesson(pipe)
    assert len(made) == 18 == len(made.text) == len(made.latents)
    assert np.array_equal(made.labels[:3], layouts()) and np.array_equal(made.labels[9:], made.labels[:9, :, ::-1])
    pipe.unet.zero_grad()
    one = loss_of(made, pipe)
    one.backward()
    assert one.isfinite() and float(one.detach()) == float(loss_of(made, pipe).detach())
    read = [p.grad for name, p in pipe.unet.named_parameters() if "attn2.to_v" in name]
    assert all(g is not None and bool(g.abs().sum()) for g in read)
    assert not any(p.grad is not None and bool(p.grad.abs().sum()) for p in pipe.text_encoder.parameters())
    pipe.unet.zero_grad()


def test_exchanged_masks_change_the_loss_but_not_of_pictures_without_text(pipe, monkeypatch):  # noqa: F811
    other = layouts()
    other[:, :32], other[:, 32:] = 2, 3
    for share, same in ((0.0, False), (1.0, True)):
        monkeypatch.setattr(layout_model, "NO_TEXT", share)
        with torch.no_grad():
            first, second = (float(loss_of(lesson(pipe, labels), pipe)) for labels in (layouts(), other))
        assert (first == second) == same
