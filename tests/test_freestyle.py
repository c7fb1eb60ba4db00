"""The door to FreestyleNet's checkpoint: names against CompVis' own U-Net, files that are right and wrong."""

import hashlib
import os
import pickle
import re
import sys
import types

import numpy as np
import pytest
import torch

from fmseg.freestyle import PREFIX, diffusers_names, load_freestyle
from fmseg.zoo_configs import UNET

# sha256 of names and shapes of CompVis' UNetModel with configs/stable-diffusion/v1-inference.yaml, "name shape" a line
COMPVIS = "2489855b740ba326b790207b1118e63205e3a533d068913c24787d987ad98626"
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def compvis_name(name):
    """The way back, written down apart from the library: diffusers' name of a weight of Stable Diffusion 1 in CompVis'
    words, from the order in which CompVis numbers its blocks."""
    for theirs, ours in _ENDS.items():
        if name.startswith(theirs + "."):
            return PREFIX + ours + name.removeprefix(theirs)
    where, level, kind, k, rest = re.fullmatch(r"(down|mid|up)_blocks?\.(?:(\d)\.)?(\w+)\.(\d)\.(.+)", name).groups()
    level, k = int(level or 0), int(k)
    if where == "down":
        block = f"input_blocks.{3 * level + (3 if kind == 'downsamplers' else 1 + k)}."
    elif where == "up":
        block = f"output_blocks.{3 * level + (2 if kind == 'upsamplers' else k)}."
    else:
        return f"{PREFIX}middle_block.{2 * k if kind == 'resnets' else 1}.{_inside(kind, rest)}"
    place = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2 if level else 1}[kind]
    return f"{PREFIX}{block}{place}.{_inside(kind, rest)}"


def _inside(kind, rest):
    first, _, last = rest.partition(".")
    if kind == "resnets":
        return f"{_RESNET[first]}.{last}"
    return "op." + last if kind == "downsamplers" else rest


def build(seed):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel.from_config(UNET)


@pytest.fixture(scope="module")
def source():
    return build(0)


@pytest.fixture
def state(source):
    """A whole model's state dict, as FreestyleNet saves it: the U-Net, and what else there is."""
    mine = {compvis_name(name): v.clone() for name, v in source.state_dict().items()}
    others = ("betas", "first_stage_model.encoder.conv_in.weight", "cond_stage_model.transformer.text_model.final.bias")
    return {"state_dict": mine | {name: torch.ones(3) for name in others}}


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_every_name_of_stable_diffusion_maps_once():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768
        )
    mine = unet.state_dict()
    theirs = {compvis_name(name): v for name, v in mine.items()}
    assert len(mine) == len(theirs) == 686
    lines = [f"{name.removeprefix(PREFIX)} {tuple(v.shape)}" for name, v in theirs.items()]
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == COMPVIS, "the official U-Net's own"
    names = diffusers_names(theirs, unet.config)
    assert names.keys() == theirs.keys() and set(names.values()) == mine.keys()
    assert all(compvis_name(ours) == name for name, ours in names.items())
    assert names[PREFIX + "output_blocks.2.1.conv.weight"] == "up_blocks.0.upsamplers.0.conv.weight"
    assert names[PREFIX + "middle_block.2.in_layers.0.bias"] == "mid_block.resnets.1.norm1.bias"
    assert diffusers_names([PREFIX + "elsewhere.weight"], unet.config) == {}


@pytest.mark.parametrize("form", ["whole", "bare", "older", "safetensors"])
def test_weights_arrive_to_the_bit(source, state, form, tmp_path):
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.ckpt")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state["state_dict"], path)
    else:
        content = state if form == "whole" else state["state_dict"]
        torch.save(content, path, _use_new_zipfile_serialization=form != "older")
    unet = build(1)
    assert not same(unet, source)
    assert load_freestyle(path, unet) is unet and same(unet, source)
    before = path.read_bytes()
    with torch.no_grad():
        unet.conv_in.weight.zero_()
    assert path.read_bytes() == before, "weights are the model's own, not the file's"
    half = load_freestyle(str(path), build(1).half())
    assert half.dtype == torch.float16 and torch.equal(half.conv_in.weight, source.conv_in.weight.half())


def test_lightnings_own_objects_are_passed_over(source, state, tmp_path, monkeypatch):
    """Checkpoints of Lightning 1 name a class of its and hold numbers of numpy."""
    home = "pytorch_lightning.callbacks.model_checkpoint"
    for name in (home.partition(".")[0], home.rpartition(".")[0], home):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    kind = type("ModelCheckpoint", (), {"__module__": home})
    sys.modules[home].ModelCheckpoint = kind
    callbacks = {kind: {"best_model_score": np.float64(0.5), "best_model_path": "a"}}
    allowed = list(torch.serialization.get_safe_globals())
    torch.save(state | {"epoch": 3, "callbacks": callbacks}, tmp_path / "last.ckpt")
    monkeypatch.undo()
    assert same(load_freestyle(tmp_path / "last.ckpt", build(1)), source)
    left = set(map(str, torch.serialization.get_safe_globals())) - set(map(str, allowed))
    assert not left, "allowed only while the file is read"


class Order:
    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("plain", [False, True])
def test_a_file_with_code_is_not_run(state, plain, tmp_path):
    path, made = tmp_path / "model.ckpt", tmp_path / "made"
    if plain:
        path.write_bytes(pickle.dumps(state | {"x": Order(made)}, protocol=2))
    else:
        torch.save(state | {"x": Order(made)}, path)
    unet, before = build(1), build(1)
    with pytest.raises(ValueError, match=f"{path}.*" + ("" if plain else "asks for .*mkdir.*run code")):
        load_freestyle(path, unet)
    assert not made.exists() and same(unet, before)


@pytest.mark.parametrize("ending, older", [("ckpt", False), ("ckpt", True), ("safetensors", False)])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_file_cut_short(state, ending, older, share, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / f"model.{ending}"
    if ending == "ckpt":
        torch.save(state, path, _use_new_zipfile_serialization=not older)
    else:
        save_file(state["state_dict"], path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=f"{path} is damaged, or no checkpoint.*essunny310/FreestyleNet"):
        load_freestyle(path, build(1))


def test_a_page_in_place_of_the_file_and_no_file(tmp_path):
    path = tmp_path / "model.ckpt"
    with pytest.raises(FileNotFoundError, match=f"no file {path}.*essunny310/FreestyleNet"):
        load_freestyle(path, build(1))
    path.write_text("<!DOCTYPE html><title>Google Drive - Quota exceeded</title>")
    with pytest.raises(ValueError, match="is damaged, or no checkpoint"):
        load_freestyle(path, build(1))
    torch.save([torch.ones(1)], path)
    with pytest.raises(ValueError, match="holds a list"):
        load_freestyle(path, build(1))


def refused(content, tmp_path, match):
    path, unet, before = tmp_path / "model.ckpt", build(1), build(1)
    torch.save(content, path)
    with pytest.raises(ValueError, match=match) as error:
        load_freestyle(path, unet)
    assert str(path) in str(error.value) and same(unet, before), "all or nothing"


def test_weights_that_do_not_fit_are_named(state, tmp_path):
    weights = state["state_dict"]
    lacking = {k: v for k, v in weights.items() if "middle_block.1.transformer" not in k}
    refused(lacking, tmp_path, r"no weights for mid_block.attentions.0.transformer_blocks.0.attn1.+ and 17 more. Is it")
    surplus = weights | {PREFIX + "label_emb.0.0.weight": torch.ones(1)}
    refused(surplus, tmp_path, f"that this U-Net lacks: {PREFIX}label_emb.0.0.weight. Is it of")
    deeper = weights | {PREFIX + "input_blocks.11.1.proj_in.weight": torch.ones(1)}
    refused(deeper, tmp_path, f"that this U-Net lacks: {PREFIX}input_blocks.11.1.proj_in.weight")
    wide = weights | {PREFIX + "input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)}  # an inpainting model's
    refused(wide, tmp_path, "of another shape for conv_in.weight")


def test_files_of_another_kind_are_named(source, tmp_path):
    lora = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.ones(4, 32)}
    refused(lora, tmp_path, r"no weights named model.diffusion_model.\*, but a LoRA's")
    refused(source.state_dict(), tmp_path, "but diffusers' own names")
    refused({"backbone.weight": torch.ones(1)}, tmp_path, "its first is backbone.weight")
    refused({}, tmp_path, "nor any others")
