"""The official grounding module: its checkpoints' 90 tensors, and its own numbers on drawn weights and features."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fmseg.grounding_official import load_official, official_head, official_names, official_state
from fmseg.taps import GROUPS

FIXTURE = Path(__file__).parent / "fixtures/grounding.npz"
SIDES = (8, 16, 32, 64)
WIDTHS = (  # of the taps, without and with prompt side by side
    [2560] * 6, [1280, *[2560] * 5], [640, 1280, 1280, 2560, 1280, 1280], [640, 640, 640, 1280, 640, 640, 640],
)  # fmt: skip


def dossier_shapes():
    """Dossier 3.1, written out."""
    shapes = {"to_k.weight": (512, 3840), "to_q.weight": (512, 768)}
    for group, (c, k) in dict(low=(16, 15360), mid=(32, 14080), high=(64, 8320), highest=(128, 5120)).items():
        shapes[f"{group}_feature_conv.0.weight"] = (c, k, 1, 1)
    for group, c in dict(mid=48, high=112, highest=240).items():
        block = f"{group}_feature_mix_conv."
        for k in (1, 2):
            shapes |= {block + f"stored_mean{k}": (c,), block + f"stored_var{k}": (c,)}
            conv = {"weight": (c, c, 3, 3), "bias": (c,), "u0": (1, c), "sv0": (1,)}
            shapes |= {block + f"conv{k}.{name}": shape for name, shape in conv.items()}
    for i in range(3):
        layer = f"transfromer_decoder.layers.{i}."
        for attention in ("self_attn", "multihead_attn"):
            shapes |= {layer + attention + ".in_proj_weight": (1536, 512)}
            shapes |= {layer + attention + ".out_proj.weight": (512, 512)}
        shapes |= {layer + "linear1.weight": (2048, 512), layer + "linear1.bias": (2048,)}
        shapes |= {layer + "linear2.weight": (512, 2048), layer + "linear2.bias": (512,)}
        shapes |= {layer + f"norm{k}.{name}": (512,) for k in (1, 2, 3) for name in ("weight", "bias")}
    for i, n in enumerate((512, 512, 240)):
        shapes |= {f"mlp.layers.{i}.weight": (n, 512), f"mlp.layers.{i}.bias": (n,)}
    return shapes


def uniform(rng, *shape):
    """Mean 0 and variance 1, float32."""
    return torch.from_numpy((rng.random(shape, dtype=np.float32) - 0.5) * np.float32(12**0.5))


def drawn_weights(shapes, seed):
    """Weights by their official names, in alphabetical order; the recorded outputs belong to these."""
    rng, state = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        shape, value = shapes[name], uniform(rng, *shapes[name])
        if name.endswith(("stored_var1", "stored_var2", "sv0")):
            value = value.abs() + 1
        elif "norm" in name and name.endswith("weight"):
            value = 1 + 0.1 * value
        elif not name.endswith("u0"):
            value = value / (3 * np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1 * value
        state[name] = value
    return state


def drawn_inputs(seed):
    """Features of one picture as lists, two queries, two masks of 512x512."""
    rng = np.random.default_rng(seed)
    features = {
        group: list(uniform(rng, 1, sum(widths), side, side).split(widths, 1))
        for group, widths, side in zip(GROUPS, WIDTHS, SIDES, strict=True)
    }
    blocks = torch.from_numpy(rng.random((1, 2, 16, 16)) > 0.5).float()
    return features, uniform(rng, 1, 2, 768), F.interpolate(blocks, scale_factor=32)


@pytest.fixture(scope="module")
def recorded():
    with np.load(FIXTURE) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def head(recorded):
    return load_official(drawn_weights(dossier_shapes(), int(recorded["seed"])))


@pytest.fixture(scope="module")
def inputs(recorded):
    return drawn_inputs(int(recorded["seed"]) + 1)


def tiny_inputs(batch):
    torch.manual_seed(0)
    features = {
        g: torch.randn(batch, sum(w), s, s) for g, w, s in zip(GROUPS, WIDTHS, (1, 2, 4, 8), strict=True)
    }  # fmt: skip
    return features, torch.randn(batch, 2, 768)


# -- parity: fixtures/grounding.md says where from -------------------------------------------------------------------


def test_the_table_of_shapes_is_the_official_modules(recorded):
    lines = [f"{name} {','.join(map(str, shape))}" for name, shape in sorted(dossier_shapes().items())]
    assert lines == recorded["shapes"].tolist() and len(lines) == 90


def test_equals_the_official_module_call_by_call(recorded, head, inputs):
    """Official inference moves its buffers at every call, as ours does in training mode."""
    head, (features, text, _) = copy.deepcopy(head), inputs
    with torch.no_grad():
        still = head.eval()(features, text, size=512)
        first = head.train()(features, text, size=512)
        second = head(features, text, size=512)
    assert torch.equal(still, first), "evaluation is the first call, and leaves the buffers alone"
    for ours, name in ((first, "first"), (second, "second")):
        torch.testing.assert_close(ours[..., 3::8, 5::8], torch.from_numpy(recorded[name]), rtol=0, atol=1e-4)
    assert (first - second).abs().max() > 1e-3, "the calls differ, so the comparison sees the buffers"
    assert first.abs().mean() > 0.5, "and logits are not small beside the tolerance"
    state = official_state(head)
    for name in dossier_shapes():
        if name in recorded:
            torch.testing.assert_close(state[name], torch.from_numpy(recorded[name]), rtol=1e-4, atol=1e-4)
    assert sum(name in recorded for name in state) == 24


def test_gradients_equal_the_official_modules(recorded, head, inputs):
    """Of the official loss: binary cross-entropy, a mean over pixels, added over classes."""
    head, (features, text, masks) = copy.deepcopy(head).train(), inputs
    logits = head(features, text, size=512)
    loss = sum(F.binary_cross_entropy_with_logits(logits[:, k], masks[:, k]) for k in (0, 1))
    loss.backward()
    torch.testing.assert_close(loss.item(), float(recorded["loss"]), rtol=1e-5, atol=0)
    names = official_names(head)
    mine = {names[name]: p.grad.flatten() for name, p in head.named_parameters()}
    assert sorted(mine) == recorded["trained"].tolist()
    for row, name in enumerate(sorted(mine)):
        norm = recorded["norms"][row]
        if name.endswith(("conv1.bias", "mid_feature_mix_conv.conv2.bias", "high_feature_mix_conv.conv2.bias")):
            # the next normalisation takes these away again; what is left is rounding
            assert max(norm, mine[name].norm().item()) < 1e-5
            continue
        assert mine[name].norm().item() == pytest.approx(norm, rel=1e-3), name
        ours, theirs = mine[name][:8].numpy(), recorded["heads"][row]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * norm, err_msg=name)


# -- one state, many pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_equals_single_calls_from_the_same_state(head, training):
    features, text = tiny_inputs(3)
    with torch.no_grad():
        together = copy.deepcopy(head).train(training)(features, text, size=16)
        for k in range(3):
            alone = copy.deepcopy(head).train(training)({g: x[[k]] for g, x in features.items()}, text[[k]], size=16)
            torch.testing.assert_close(together[[k]], alone, rtol=0, atol=1e-4)


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_sizes_of_the_official_head(head):
    state, shapes = official_state(head), dossier_shapes()
    assert {name: tuple(v.shape) for name, v in state.items()} == shapes
    assert sum(p.numel() for p in head.parameters()) == 18_796_560
    assert sum(b.numel() for b in head.buffers()) == 2_406
    assert not head.training and head.mix["mid"].residual == "relu" and not head.mix["mid"].frozen_stats


def test_a_checkpoint_goes_there_and_back_to_the_bit(head, tmp_path):
    state = drawn_weights(dossier_shapes(), 3)
    torch.save(state, tmp_path / "checkpoint_latest.pth")
    other = load_official(tmp_path / "checkpoint_latest.pth")
    back = official_state(other)
    assert back.keys() == state.keys() and all(torch.equal(back[k], v) for k, v in state.items())
    half = load_official(state, official_head().half())
    assert torch.equal(half.to_query.weight, state["to_q.weight"].half()) and half is not other


def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(head, tmp_path):
    state = official_state(head)
    target = official_head()
    before = copy.deepcopy(target.state_dict())

    def refused(match, source):
        with pytest.raises(ValueError, match=match):
            load_official(source, target)

    refused("lacks mlp.layers.2.bias. Is it", {k: v for k, v in state.items() if k != "mlp.layers.2.bias"})
    refused("has, and the head has not, conv_sc.weight", state | {"conv_sc.weight": torch.zeros(1)})
    refused(r"other shapes than the head: to_q.weight \(512, 1024\), not \(512, 768\)",
            state | {"to_q.weight": torch.zeros(512, 1024)})  # fmt: skip
    refused("something else than a tensor for to_k.weight", state | {"to_k.weight": [1.0]})
    refused("lacks .*; .*; .* and 87 more", {})
    for name, content in (("list.pth", [1.0]), ("text.pth", None)):
        (tmp_path / name).write_bytes(b"no checkpoint") if content is None else torch.save(content, tmp_path / name)
    refused("holds a list, no state dict", tmp_path / "list.pth")
    refused("text.pth is damaged, or no file of tensors", tmp_path / "text.pth")
    with pytest.raises(FileNotFoundError, match="no file .*absent.pth. Official checkpoints are linked from"):
        load_official(tmp_path / "absent.pth")
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
