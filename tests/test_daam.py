"""DAAM: recorded attention against attention worked out from the layers' inputs, heat maps and masks by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg.daam import AttentionRecorder, heat_maps, heat_masks, normalised_heat
from fmseg.zoo_configs import UNET

few = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(UNET).eval()


def call(unet, rows=2, seed=1, size=(16, 16), tokens=5):
    torch.manual_seed(seed)
    with torch.no_grad():
        return unet(torch.randn(rows, 4, *size), 81, torch.randn(rows, tokens, 64)).sample


def attentions(unet):
    return [
        inner.attn2
        for block in [*unet.up_blocks, *unet.down_blocks] if hasattr(block, "attentions")
        for transformer in block.attentions for inner in transformer.transformer_blocks
    ]  # fmt: skip


def by_hand(unet, **options):
    """Probabilities of every layer of one call, head by head, from what went into the layer."""
    inputs = []
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, kwargs: inputs.append((m, args[0], kwargs["encoder_hidden_states"])), with_kwargs=True
        )
        for module in attentions(unet)
    ]
    call(unet, **options)
    for hook in hooks:
        hook.remove()
    found = {}
    for module, hidden, text in inputs:
        query, key = module.to_q(hidden), module.to_k(text)
        pairs = zip(query.chunk(module.heads, 2), key.chunk(module.heads, 2), strict=True)
        found[module] = torch.stack([(q @ k.mT / q.shape[2] ** 0.5).softmax(2) for q, k in pairs], 1)  # (B, h, N, L)
    return [found[module].detach() for module in attentions(unet)]


# -- recording -------------------------------------------------------------------------------------------------------


def test_records_what_the_layers_attend_to(unet):
    wanted = by_hand(unet, rows=4)
    with AttentionRecorder(unet, guided=False) as everything:
        call(unet, rows=4)
    with AttentionRecorder(unet) as conditional:
        call(unet, rows=4)
    assert len(wanted) == 15 == len(everything.maps), "three up blocks of three and three down blocks of two"
    for hand, all_rows, half in zip(wanted, everything.maps, conditional.maps, strict=True):
        side = math.isqrt(hand.shape[2])
        assert all_rows.shape == (4, 2, 5, side, side) and half.shape[0] == 2
        torch.testing.assert_close(all_rows, hand.mT.unflatten(3, (side, side)), rtol=0, atol=1e-5)
        torch.testing.assert_close(half, all_rows[2:], rtol=0, atol=1e-6)
        torch.testing.assert_close(all_rows.sum(2), torch.ones(4, 2, side, side), rtol=0, atol=1e-5)
    assert [m.shape[-1] for m in everything.maps] == [4] * 3 + [8] * 3 + [16] * 3 + [16] * 2 + [8] * 2 + [4] * 2


def test_the_unet_answers_as_before_and_gets_its_processors_back(unet):
    plain, processors = call(unet), dict(unet.attn_processors)
    with AttentionRecorder(unet):
        recorded = call(unet)
    torch.testing.assert_close(recorded, plain, rtol=0, atol=1e-5)
    assert all(unet.attn_processors[name] is p for name, p in processors.items())
    hooks = sum(len(m._forward_pre_hooks) for m in unet.modules())
    with pytest.raises(ZeroDivisionError), AttentionRecorder(unet):
        raise ZeroDivisionError
    assert all(unet.attn_processors[name] is p for name, p in processors.items())
    assert sum(len(m._forward_pre_hooks) for m in unet.modules()) == hooks == 0
    assert torch.equal(call(unet), plain)


def test_calls_add_up_and_a_new_with_begins_anew(unet):
    recorder, parts = AttentionRecorder(unet), []
    for seed in (1, 2):
        with recorder:
            call(unet, seed=seed)
        parts.append(recorder.of(0))
    with recorder:
        call(unet, seed=1)
        call(unet, seed=2)
    for a, b, both in zip(*parts, recorder.of(0), strict=True):
        torch.testing.assert_close(a + b, both)


def test_grids_need_not_be_square(unet):
    with AttentionRecorder(unet, guided=False) as recorder:
        call(unet, rows=1, size=(8, 32))
    assert {tuple(m.shape[3:]) for m in recorder.maps} == {(2, 8), (4, 16), (8, 32)}
    hand = by_hand(unet, rows=1, size=(8, 32))[6]
    torch.testing.assert_close(recorder.maps[6], hand.mT.unflatten(3, (8, 32)), rtol=0, atol=1e-5)


def test_recorder_errors(unet):
    with pytest.raises(RuntimeError, match="Nothing was recorded"), AttentionRecorder(unet):
        pass
    with pytest.raises(ValueError, match="2B rows, unconditional first; got 3.*guided=False"), AttentionRecorder(unet):
        call(unet, rows=3)
    with pytest.raises(ValueError, match="of the same pictures; attention was"), AttentionRecorder(unet):
        call(unet, rows=2)
        call(unet, rows=4)
    recorder = AttentionRecorder(unet)
    with pytest.raises(RuntimeError, match="There are no maps yet"):
        recorder.of(0)
    with pytest.raises(RuntimeError, match="recording already"), recorder, recorder:
        pass
    with pytest.raises(ValueError, match="plain attention processors.*got _Recording"), recorder:
        AttentionRecorder(unet)
    with pytest.raises(ValueError, match="named attn2; this Linear has none"):
        AttentionRecorder(torch.nn.Linear(2, 2))


# -- heat maps and masks ---------------------------------------------------------------------------------------------


def test_heat_by_hand():
    """Two layers of one and two heads on the answer's own grid: a mean over three heads, then over tokens."""
    one, two = torch.zeros(1, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    one[0, 1] = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    two[1, 1] = torch.tensor([[3.0, 6.0], [0.0, 0.0]])
    two[:, 2] = 1.5
    heat = heat_maps([one, two], [(1,), (1, 2)], grid=2)
    assert heat[0].tolist() == [[2.0, 2.0], [0.0, 0.0]]
    assert heat[1].tolist() == [[1.5, 1.5], [0.5, 0.5]]
    assert heat_masks(heat, (2, 2), 0.5).tolist() == [[[True, True], [False, False]]] * 2


@few
@given(st.integers(0, 10**6))
def test_heat_equals_loops_over_layers_heads_and_tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.rand(h, 4, s, s, generator=generator).pow(8) for h, s in ((2, 2), (1, 4), (3, 8))]
    positions = [(1,), (0, 2, 3)]
    for row, tokens in zip(heat_maps(maps, positions, grid=(8, 12)), positions, strict=True):
        words = []
        for k in tokens:
            each = [F.interpolate(head[k][None, None], (8, 12), mode="bicubic")[0, 0] for m in maps for head in m]
            words.append(sum(e.clamp(min=0) for e in each) / 6)
        torch.testing.assert_close(row, sum(words) / len(tokens), rtol=0, atol=1e-6)


def test_undershoot_is_cut_before_the_mean():
    spike = torch.zeros(2, 1, 4, 4)
    spike[0, 0, 0, 0] = 1.0
    spike[1, 0] = 0.2
    resized = F.interpolate(spike[:1], (16, 16), mode="bicubic")
    assert resized.min() < 0
    heat = heat_maps([spike], [(0,)], grid=16)
    assert heat.min().item() == pytest.approx(0.1) and heat.max() > 0.4


def test_masks_follow_the_threshold_not_the_scale():
    heat = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    normalised = normalised_heat(heat, (2, 2))
    torch.testing.assert_close(normalised, heat / 4)
    counts = [int(heat_masks(heat, (2, 2), t).sum()) for t in (0, 0.2, 0.4, 0.6)]
    assert counts == [3, 3, 2, 1]
    assert torch.equal(heat_masks(100 * heat + 7, (2, 2)), heat_masks(heat, (2, 2)))
    assert not heat_masks(torch.ones(1, 2, 2), (4, 4)).any(), "the same everywhere is no object"
    assert heat_masks(heat, (6, 9)).shape == (1, 6, 9)


def test_heat_errors():
    maps = [torch.zeros(2, 4, 2, 2)]
    for match, given_maps, positions in (
        ("`maps` must be at least one", [], [(1,)]), ("L the same in all", [*maps, maps[0][:, :3]], [(1,)]),
        ("`positions` must be of at least one class", maps, []),
        ("`positions\\[1\\]` must be .* \\[0, 4\\); got \\[\\]", maps, [(1,), ()]),
        ("`positions\\[0\\]` must be .* got \\[1, 4\\]", maps, [(1, 4)]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            heat_maps(given_maps, positions)
    with pytest.raises(ValueError, match="`threshold` must be in \\[0, 1\\).* got 1.2"):
        heat_masks(torch.zeros(1, 2, 2), (2, 2), 1.2)
    with pytest.raises(ValueError, match="`heat` must be floats \\(O, h, w\\)"):
        heat_masks(torch.zeros(2, 2), (2, 2))


def test_from_the_unet_to_masks(unet):
    """End to end on the U-Net: keys of zero spread attention evenly, so no place stands out."""
    module = attentions(unet)[0]
    before = module.to_k.weight.detach().clone()
    with torch.no_grad():
        module.to_k.weight.zero_()
    with AttentionRecorder(unet) as recorder:
        call(unet)
        call(unet)
    with torch.no_grad():
        module.to_k.weight.copy_(before)
    torch.testing.assert_close(recorder.of(0)[0], torch.full((2, 5, 4, 4), 2 / 5))
    heat = heat_maps(recorder.of(0), [(1, 2), (4,)], grid=16)
    assert heat.shape == (2, 16, 16) and heat.min() >= 0
    masks = heat_masks(heat, (64, 64))
    assert masks.any() and not masks.all()
