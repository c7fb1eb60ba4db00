"""Last-block attention against a slow re-statement, DINO's own code and timm's blocks; and the door to the models."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fmseg  # noqa: F401  before timm
from fmseg.attention import last_attention, load_vit, query_map, seed_attention

FIXTURE = Path(__file__).parent / "fixtures" / "attention.npz"
TINY = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "num_classes": 0,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def vit(**other):
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(**TINY | other).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases and prefixes that do something, attention that is no mean
        parameter.mul_(4).add_(0.1 * torch.randn_like(parameter))
    return model


def fixture(prefix):
    with np.load(FIXTURE) as stored:
        return {k.removeprefix(prefix): torch.from_numpy(stored[k]) for k in stored.files if k.startswith(prefix)}


# ----------------------------------------------------------------- the attention


def by_hand(model, images, queries):
    """DINO's semantics with timm's forward for all blocks but the last: one head, one query, one key at a time."""
    seen = []
    handle = model.blocks[-1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model.forward_features(images)
    handle.remove()
    x, attention = model.blocks[-1].norm1(seen[0]), model.blocks[-1].attn
    width = x.shape[2] // attention.num_heads
    q, k = (
        x @ attention.qkv.weight[i : i + x.shape[2]].T + attention.qkv.bias[i : i + x.shape[2]] for i in (0, x.shape[2])
    )
    out = torch.zeros(len(x), attention.num_heads, len(queries), x.shape[1])
    for b in range(len(x)):
        for head in range(attention.num_heads):
            part = slice(head * width, (head + 1) * width)
            for row, query in enumerate(queries):
                logits = [torch.dot(q[b, query, part], key) / width**0.5 for key in k[b, :, part]]
                out[b, head, row] = torch.stack(logits).exp() / torch.stack(logits).exp().sum()
    return out


def test_attention_is_the_official_semantics_key_by_key():
    model, images = vit(), torch.randn(2, 3, 16, 16)
    ours = last_attention(model, images)
    assert ours.shape == (2, 2, 17, 17)
    torch.testing.assert_close(ours[:, :, [0, 3, 16]], by_hand(model, images, [0, 3, 16]), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("size", ["16", "24"])
def test_attention_is_dinos_own(size):
    """On its own grid and on another; the official names of weights are timm's."""
    model = vit()
    model.load_state_dict(fixture("vit/"))
    ours = last_attention(model, fixture("images/")[size])
    torch.testing.assert_close(ours, fixture("attention/")[size], atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": True},
        {"init_values": 0.1, "reg_tokens": 3},
        {"reg_tokens": 2, "no_embed_class": True, "pre_norm": True},
        {"class_token": False, "global_pool": "avg", "qkv_bias": False},
        {"pos_embed": "none"},
        {"dynamic_img_size": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("fused", [True, False])
def test_attention_times_values_is_what_the_block_computes(options, fused):
    model, images, seen = vit(**options).double(), torch.randn(2, 3, 16, 16).double(), []
    last = model.blocks[-1].attn
    last.fused_attn = fused
    hooks = (
        last.qkv.register_forward_hook(lambda module, given, made: seen.append(made)),
        last.proj.register_forward_pre_hook(lambda module, given: seen.append(given[0])),
    )
    model.forward_features(images)
    qkv, mixed = seen
    for hook in hooks:
        hook.remove()
    attention = last_attention(model, images)
    values = qkv.unflatten(2, (3, 2, 8))[:, :, 2].transpose(1, 2)
    torch.testing.assert_close((attention @ values).transpose(1, 2).flatten(2), mixed)
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:3]).double())


def test_any_size_that_is_a_multiple_of_the_patch():
    model = vit(reg_tokens=1)
    for height, width in ((4, 4), (24, 16), (8, 32), (32, 32)):
        assert last_attention(model, torch.randn(1, 3, height, width)).shape[2] == 2 + height * width // 16
    alone, images = last_attention(model, torch.ones(1, 3, 24, 8)), torch.randn(3, 3, 24, 8)
    images[1] = 1
    torch.testing.assert_close(last_attention(model, images)[1:2], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(2, 2), (4, 2), (0, 4)])
def test_an_image_smaller_than_a_patch_is_refused(size):
    with pytest.raises(ValueError, match=f"sides that are multiples of 4; got {size[0]} x {size[1]}"):
        last_attention(vit(), torch.zeros(1, 3, *size))


def test_sizes_of_the_papers():
    import timm

    model = timm.create_model("vit_base_patch16_224.dino", num_classes=0).eval().requires_grad_(False)
    attention = last_attention(model, torch.randn(1, 3, 224, 224))
    assert attention.shape == (1, 12, 197, 197)
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 12, 197), atol=1e-5, rtol=0)
    with torch.device("meta"):
        large = timm.create_model("vit_large_patch16_224", num_classes=0).eval()
        assert last_attention(large, torch.empty(1, 3, 512, 512)).shape == (1, 16, 1025, 1025)


# ----------------------------------------------------------------- seeds


def test_seeds_are_rows_of_patches():
    attention = torch.rand(2, 3, 8, 8).softmax(-1)  # two prefix tokens, a grid of 2 x 3
    seeds = torch.tensor([[0, 5, 5, 2], [1, 1, 0, 4]])
    maps = seed_attention(attention, seeds, (2, 3), num_prefix=2)
    assert maps.shape == (2, 3, 4, 2, 3)
    for b in range(2):
        for s, seed in enumerate(seeds[b].tolist()):
            for row in range(2):
                for column in range(3):
                    expected = attention[b, :, 2 + seed, 2 + 3 * row + column]
                    assert torch.equal(maps[b, :, s, row, column], expected)
    torch.testing.assert_close(query_map(attention, seeds, (2, 3), 2), (maps[:, 0] + maps[:, 1] + maps[:, 2]) / 3)
    every = torch.arange(6).expand(2, -1)
    lost = attention[:, :, 2:, :2].sum(-1)
    torch.testing.assert_close(seed_attention(attention, every, (2, 3), 2).sum((3, 4)), 1 - lost)


def test_errors_of_kernels():
    model, images = vit(), torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match="multiples of 4; got 16 x 18"):
        last_attention(model, torch.randn(1, 3, 16, 18))
    with pytest.raises(ValueError, match="preprocess"):
        last_attention(model, torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="eval"):
        last_attention(vit().train(), images)
    with pytest.raises(TypeError, match="Linear"):
        last_attention(torch.nn.Linear(2, 2), images)
    from timm.models.vision_transformer import ResPostBlock

    with pytest.raises(TypeError, match="plain blocks"):
        last_attention(vit(block_fn=ResPostBlock, init_values=1.0), images)
    attention, seeds = last_attention(model, images), torch.tensor([[3, 16]])
    with pytest.raises(ValueError, match=r"T = 1 \+ 4 \* 5; got \(1, 2, 17, 17\)"):
        seed_attention(attention, seeds, (4, 5))
    with pytest.raises(ValueError, match=r"in \[0, 16\); found 3 to 16"):
        seed_attention(attention, seeds, (4, 4))
    with pytest.raises(ValueError, match="int64 with B = 1"):
        seed_attention(attention, seeds[0], (4, 4))


# ----------------------------------------------------------------- the door


def zoo_folder(folder, model, **other):
    kwargs = {key: value for key, value in TINY.items() if key != "num_classes"}
    config = {"architecture": "vit", "kwargs": kwargs, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]} | other
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.half() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def test_a_folder_of_the_zoo_comes_back_in_full_precision(tmp_path):
    model = vit()
    loaded = load_vit(zoo_folder(tmp_path / "dino", model))
    assert (loaded.mean, loaded.std, loaded.name) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "dino")
    assert not loaded.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value.half().float())
    grey = loaded.preprocess(np.full((1, 16, 16, 3), 51, dtype=np.uint8))
    torch.testing.assert_close(grey[0, :, 0, 0], torch.tensor([-1.5, -1.0, -1.0]))
    assert last_attention(loaded.model, grey).shape == (1, 2, 17, 17)


def official(extra):
    """A transformer whose heads have 64 channels, and its weights as they are published or saved."""
    from timm.models.vision_transformer import VisionTransformer

    shape = TINY | {"embed_dim": 128, "num_heads": 2, "mlp_ratio": 4.0, "depth": 2} | extra
    return VisionTransformer(**shape).eval()


HEAD = {"head.last_layer.weight_v": torch.zeros(2, 2), "head.mlp.0.bias": torch.zeros(3)}


def whole(state):
    """A training checkpoint of DINO's or iBOT's."""
    inside = {f"module.backbone.{k}": v for k, v in state.items()} | {f"module.{k}": v for k, v in HEAD.items()}
    wrong = {k: torch.zeros_like(v) for k, v in inside.items()}
    return {"student": wrong, "teacher": inside, "epoch": 3, "args": argparse.Namespace(arch="vit", lr=0.1)}


FORMS = {
    "bare": dict,
    "state_dict": lambda state: {
        "state_dict": state | {"head.weight": torch.zeros(1), "masked_embed": torch.zeros(1, 128)}
    },
    "training": whole,
    "training, one process": lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()} | HEAD},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [None, 0.1], ids=["", "layer scale"])
def test_official_checkpoints(tmp_path, form, scale):
    model = official({"init_values": scale} if scale else {})
    state = {
        k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in model.state_dict().items()
    }
    torch.save(FORMS[form](state), tmp_path / "teacher.pth")
    loaded = load_vit(tmp_path / "teacher.pth")
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(last_attention(loaded.model, images), last_attention(model, images))
    assert loaded.mean == (0.485, 0.456, 0.406) and loaded.name == "teacher"


def test_a_timm_name_with_a_local_file(tmp_path, monkeypatch):
    import timm

    made = []

    def create(name, pretrained, num_classes):
        made.append((name, pretrained, num_classes))
        model = vit()
        model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
        return model

    monkeypatch.setattr(timm, "create_model", create)
    model = vit()
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    loaded = load_vit("vit_base_patch16_224.dino", weights=tmp_path / "mine.safetensors")
    assert made == [("vit_base_patch16_224.dino", False, 0)] and loaded.mean == (0.1, 0.2, 0.3)
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(last_attention(loaded.model, images), last_attention(model, images))


def test_without_a_network_the_door_says_what_to_do(monkeypatch):
    import timm

    def offline(*args, **options):
        raise OSError("We couldn't connect")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConnectionError, match=r"load_vit\('vit_small_patch16_224.dino', weights=file\)"):
        load_vit("vit_small_patch16_224.dino")


def test_errors_of_the_door(tmp_path):
    with pytest.raises(FileNotFoundError, match="vit_base_patch16_224"):
        load_vit("vit_base_patch16_225")
    with pytest.raises(FileNotFoundError, match="facebookresearch/dino"):
        load_vit("vit_base_patch16_224.dino", weights=tmp_path / "gone.pth")
    folder = zoo_folder(tmp_path / "a", vit())
    with pytest.raises(ValueError, match="holds its own"):
        load_vit(folder, weights=tmp_path / "b.pth")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        load_vit(folder)
    for config in ({"architecture": "unet"}, {"kwargs": {"imgsize": 16}}, {"mean": None}):
        with pytest.raises(ValueError, match="config.json"):
            load_vit(zoo_folder(tmp_path / "c", vit(), **config))
    with pytest.raises(ValueError, match=r"has another shape \(\d+ such"):
        load_vit(zoo_folder(tmp_path / "d", vit(embed_dim=32)))
    with pytest.raises(ValueError, match=r"blocks.2.attn.proj.bias is missing \(12 such entries\)"):
        load_vit(zoo_folder(tmp_path / "e", vit(depth=2)))
    with pytest.raises(ValueError, match=r"blocks.3.attn.proj.bias is left over"):
        load_vit(zoo_folder(tmp_path / "f", vit(depth=4)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="config.json; it should hold"):
        load_vit(tmp_path / "empty")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", "tensor", "other"])
def test_files_that_are_no_checkpoint(tmp_path, content):
    for name in ("x.pth", "x.safetensors"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name == "x.pth":
            torch.save(torch.zeros(2) if content == "tensor" else {"conv.weight": torch.zeros(2)}, path)
        else:
            save_file({"conv.weight": torch.zeros(2)}, path)
        with pytest.raises(ValueError, match=f"{name} is no"):
            load_vit(path)
