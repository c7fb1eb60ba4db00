"""Weights in eight bits: by hand, by bounds, and in pictures."""

import copy

import numpy as np
import pytest
import torch
from test_generation import CLASSES, PROMPTS, layouts, pipe  # noqa: F401

from fmseg import eight_bits, generation
from fmseg.rectify import install
from fmseg.zoo_configs import WEAK_UNET


def test_a_row_by_hand():
    rows = torch.zeros(2, 512)
    rows[0, :4] = torch.tensor([127.0, -64.0, 0.4, 0.6])
    rows[1, 0] = -0.254
    packed = eight_bits.pack({"w": rows, "b": torch.ones(600), "n": torch.tensor(70_001)})
    assert packed["w"].dtype == torch.int8 and packed["w"][0, :5].tolist() == [127, -64, 0, 1, 0]
    assert packed["w:scale"].dtype == torch.float16 and packed["w:scale"][0] == 1.0
    assert packed["w"][1, 0] == -127 and packed["w:scale"][1].item() == pytest.approx(0.002, rel=1e-3)
    assert packed["b"].dtype == torch.float16 and packed["n"] == 70_001 and "b:scale" not in packed
    back = eight_bits.unpack(packed)
    assert back["w"].dtype == torch.float32 and back["w"][0, :4].tolist() == [127.0, -64.0, 0.0, 1.0]
    assert set(back) == {"w", "b", "n"} and back["n"].dtype == torch.int64


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_no_entry_is_off_by_more_than_half_a_step(size):
    generator = torch.Generator().manual_seed(0)
    kernel = size * torch.randn(24, 8, 3, 3, generator=generator) * torch.logspace(-1, 1, 24).view(-1, 1, 1, 1)
    back = eight_bits.unpack(eight_bits.pack({"w": kernel}))["w"]
    step = kernel.abs().amax((1, 2, 3), keepdim=True) / 127
    assert back.shape == kernel.shape and ((back - kernel).abs() <= 0.51 * step + 2**-25 * 127).all()
    again = eight_bits.unpack(eight_bits.pack({"w": back}))["w"]
    assert ((again - back).abs() <= 0.02 * step + 2**-25 * 127).all(), "packed twice it hardly moves"


def test_what_cannot_be_packed_is_named():
    bad = torch.full((32, 32), float("nan"))
    with pytest.raises(ValueError, match=r"`state\['up.w'\]` must be finite and below"):
        eight_bits.pack({"up.w": bad})
    with pytest.raises(ValueError, match="must not have names that end with ':scale', got 'a:scale'"):
        eight_bits.pack({"a:scale": torch.ones(1)})
    good = eight_bits.pack({"w": torch.ones(32, 32)})
    with pytest.raises(ValueError, match="w:scale must have a scale for each row of an int8 tensor w"):
        eight_bits.unpack(good | {"w:scale": torch.ones(31).half()})


def test_pictures_differ_by_less_than_three_of_255_from_half_precision(pipe, tmp_path):  # noqa: F811
    half, eight = copy.copy(pipe), copy.copy(pipe)
    half.unet = copy.deepcopy(pipe.unet).half().float()
    path = eight_bits.save_unet(pipe.unet, tmp_path / "unet")
    eight.unet = install(eight_bits.load_unet(tmp_path / "unet"))
    assert not torch.equal(eight.unet.conv_in.weight, half.unet.conv_in.weight)
    bytes_in_half = 2 * sum(p.numel() for p in pipe.unet.parameters())
    assert path.stat().st_size < 0.58 * bytes_in_half
    for make in (
        lambda p: generation.from_prompts(PROMPTS, range(4), steps=6, pipe=p),
        lambda p: generation.from_layouts(layouts(), CLASSES, range(3), "layout-ade", steps=6, pipe=p),
    ):
        one, other = make(half).astype(float), make(eight).astype(float)
        assert 0 < np.abs(one - other).mean((1, 2, 3)).max() < 3


def test_both_layouts_are_read_and_what_is_missing_is_named(pipe, tmp_path):  # noqa: F811
    copy.deepcopy(pipe.unet).half().save_pretrained(tmp_path / "half", safe_serialization=True)
    found = eight_bits.load_unet(tmp_path / "half")
    assert found.dtype == torch.float32 and not found.training
    assert torch.equal(found.conv_in.weight, pipe.unet.conv_in.weight.half().float())
    with pytest.raises(FileNotFoundError, match="nowhere/config.json; it should describe the U-Net"):
        eight_bits.load_unet(tmp_path / "nowhere")
    eight_bits.save_unet(pipe.unet, tmp_path / "eight").unlink()
    with pytest.raises(FileNotFoundError, match="neither eight_bits.safetensors nor diffusion_pytorch_model"):
        eight_bits.load_unet(tmp_path / "eight")
    eight_bits.save_unet(pipe.unet, tmp_path / "eight")
    small = type(pipe.unet).from_config(WEAK_UNET)
    small.save_config(tmp_path / "eight")
    with pytest.raises(ValueError, match="does not hold the weights of its config.json"):
        eight_bits.load_unet(tmp_path / "eight")
