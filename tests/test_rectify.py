"""Rectified cross-attention: by hand, by loops, against FreestyleNet's own outputs, inside diffusers' U-Net."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fmseg  # noqa: F401  (before open_clip: clears its import obstacles)
from fmseg.rectify import (
    RectifiedAttnProcessor,
    UnrectifiedAttnProcessor,
    install,
    keep_masks,
    layout_prompt,
    rectified_attention,
    with_guidance,
)
from fmseg.vocabulary import CONTEXT_LENGTH, clip_tokenizer
from fmseg.words import STUFF, THINGS
from fmseg.zoo_configs import SCHEDULER, TEXT_ENCODER, UNET, VAE

FIXTURE = Path(__file__).parent / "fixtures/rectified_attention.npz"
SIZES = (16, 8, 4, 2)  # of the mini U-Net's cross-attention
few = settings(max_examples=20, deadline=None)


class ClipPieces:
    """The real CLIP's byte-pair encoding, which open_clip's wheel brings along."""

    model_max_length = 77

    def __init__(self):
        from open_clip.tokenizer import SimpleTokenizer

        self.tokenize = SimpleTokenizer().encode


@st.composite
def layouts(draw, side=8, length=9, ignore=255):
    """Label maps and owners with repeated tokens; some owners own no pixel, some pixels have no owner."""
    batch = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.choice([0, 1, 2, 3, ignore], (batch, side, side)).astype(np.uint8)
    labels[rng.random(batch) < 0.2] = ignore
    owners = [tuple(sorted(rng.integers(0, 5, rng.integers(0, length - 1)).tolist())) for _ in labels]
    return labels, owners


def loop_keep(labels, owners, h, length):
    keep = torch.ones(len(labels), 1, h * h, length, dtype=torch.bool)
    step = labels.shape[1] // h
    for row, ids in enumerate(owners):
        for u in range(h * h):
            for j, owner in enumerate(ids):
                keep[row, 0, u, j + 1] = bool(labels[row, u // h * step, u % h * step] == owner)
    return keep


def loop_attention(query, key, value, keep):
    """Scores, the most negative number where nothing may be seen, softmax, sum: one query after the other."""
    out = torch.zeros_like(query)
    for b, head, u in np.ndindex(*query.shape[:3]):
        scores = [float(query[b, head, u] @ k) / math.sqrt(len(k)) for k in key[b, head]]
        scores = [s if seen else -torch.finfo(query.dtype).max for s, seen in zip(scores, keep[b, 0, u], strict=True)]
        weights = [math.exp(s - max(scores)) for s in scores]
        for w, v in zip(weights, value[b, head], strict=True):
            out[b, head, u] += w / sum(weights) * v
    return out


def attention(query_dim=12, context_dim=10, **options):
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    return Attention(query_dim, context_dim, heads=2, dim_head=4, **options).eval()


@pytest.fixture(scope="module")
def unets():
    """The zoo's U-Net twice, with the same random weights: stock, and with rectified attention installed."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    stock = UNet2DConditionModel.from_config(UNET).eval()
    ours = UNet2DConditionModel.from_config(UNET).eval()
    ours.load_state_dict(stock.state_dict())
    return stock, install(ours)


@pytest.fixture(scope="module")
def batch():
    """Two label maps of the world's classes with all that the U-Net needs for them; text states are random."""
    names = (*THINGS, *STUFF)
    labels = torch.full((2, 64, 64), names.index("sea"))
    labels[0, :32, :32], labels[1, 16:48, 16:48] = names.index("plain disc"), names.index("dotted heart")
    labels[1, :8] = 255
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, CONTEXT_LENGTH, UNET["cross_attention_dim"], generator=generator)
    owners = layout_prompt(labels, names, clip_tokenizer()).owners
    return latents, text, keep_masks(labels, owners, SIZES, CONTEXT_LENGTH)


def noise(unet, latents, text, keep=None):
    with torch.no_grad():
        return unet(latents, 500, text, cross_attention_kwargs=keep and {"rectify": keep}).sample


def only(keep, rows):
    return {h: mask[rows] for h, mask in keep.items()}


# -- the prompt -----------------------------------------------------------------------------------------------------


def test_prompt_by_hand():
    labels = torch.tensor([[[2, 255], [0, 2]], [[1, 1], [1, 1]], [[255, 255], [255, 255]]])
    layout = layout_prompt(labels, ["plain disc", "sky", "zebra"], clip_tokenizer())
    assert layout.prompts == ["plain disc zebra", "sky", ""]
    assert layout.owners == [(0, 0, 2, 2, 2, 2, 2), (1,), ()]  # the mini vocabulary spells z-e-b-r-a


def test_owners_count_what_the_encoder_reads():
    tokenizer, names = clip_tokenizer(), ["striped flower", "zebra", "sea", "giraffe's"]
    (prompt,), (owners,) = layout_prompt(torch.tensor([[[3, 0], [2, 1]]]), names, tokenizer)
    ids = tokenizer(prompt).input_ids
    assert len(ids) == len(owners) + 2
    for c, name in enumerate(names):
        own = [token for token, owner in zip(ids[1:-1], owners, strict=True) if owner == c]
        assert own == tokenizer(name).input_ids[1:-1]


def test_multiplicities_of_the_real_vocabulary_are_the_official_ones():
    names = {1: "wall", 49: "skyscraper", 41: "pedestal", 57: "pool table", 131: "screen", 142: "screen"}
    layout = layout_prompt(torch.tensor([[[*names]]]), names, ClipPieces(), ignore_index=0)
    assert layout.owners == [(1, 41, 41, 49, 49, 49, 57, 57, 131, 142)]
    assert layout.prompts == ["wall pedestal skyscraper pool table screen screen"]


def test_arrays_as_they_come():
    labels = np.array([[[0, 255], [1, 1]]], dtype=np.uint8)
    expected = layout_prompt(torch.tensor(labels), ["sky", "sea"], clip_tokenizer())
    labels.setflags(write=False)
    assert layout_prompt(labels[..., ::-1], ["sky", "sea"], clip_tokenizer()) == expected
    assert torch.equal(keep_masks(labels[..., ::-1], [(0, 1)], [2], 4)[2][0, 0, :2, 1], torch.tensor([False, True]))


def test_prompt_errors():
    tokenizer, names = clip_tokenizer(), ["zebra", "sky", "giraffe", "elephant", "  "]
    small = SimpleNamespace(tokenize=tokenizer.tokenize, model_max_length=22)
    labels = torch.tensor([[[1, 1], [1, 1]], [[0, 1], [2, 3]]])
    assert len(layout_prompt(labels, names, small).owners[1]) == 20
    small.model_max_length = 21
    longest = r"Longest: 'giraffe' \(7\), 'elephant' \(7\), 'zebra' \(5\)"
    with pytest.raises(ValueError, match=rf"4 class names of `labels\[1\]` need 22 .* room for 21\. {longest}"):
        layout_prompt(labels, names, small)
    with pytest.raises(ValueError, match=r"ids of the 5 `class_names` or 255; found 7 at \[1, 0, 1\]"):
        layout_prompt(torch.tensor([[[0, 1]], [[1, 7]]]), names, tokenizer)
    with pytest.raises(ValueError, match="name of class 4 has no tokens"):
        layout_prompt(torch.tensor([[[0, 4]]]), names, tokenizer)
    with pytest.raises(ValueError, match=r"\(B, H, W\); got \(1, 2\)"):
        layout_prompt(torch.tensor([[0, 1]]), names, tokenizer)
    with pytest.raises(TypeError, match="integer dtype; got torch.float32"):
        layout_prompt(torch.zeros(1, 2, 2), names, tokenizer)


# -- the masks ------------------------------------------------------------------------------------------------------


def test_masks_by_hand():
    labels = torch.tensor([[[0, 9, 1, 9], [9, 9, 9, 9], [255, 9, 0, 9], [9, 9, 9, 1]]])
    keep = keep_masks(labels, [(0, 0, 1)], sizes=(2, 1), length=6)
    assert keep[2].shape == (1, 1, 4, 6) and keep[2].dtype == torch.bool
    assert keep[2][0, 0].int().tolist() == [
        [1, 1, 1, 0, 1, 1],  # start, class 0, class 0, class 1, end, padding
        [1, 0, 0, 1, 1, 1],
        [1, 0, 0, 0, 1, 1],  # ignored
        [1, 1, 1, 0, 1, 1],  # its cell's last pixel is of class 1, its first counts
    ]
    assert keep[1][0, 0].int().tolist() == [[1, 1, 1, 0, 1, 1]]  # at this size nobody reads class 1


@few
@given(layouts())
def test_masks_equal_the_loop_over_pixels_and_tokens(layout):
    labels, owners = layout
    keep = keep_masks(labels, owners, (8, 4, 2, 1), 9)
    assert [*keep] == [8, 4, 2, 1]
    for h, mask in keep.items():
        assert torch.equal(mask, loop_keep(labels, owners, h, 9))
        assert mask[..., 0].all()  # no pixel without a token


@few
@given(layouts())
def test_start_end_and_padding_can_be_hidden_from_pixels_that_own_a_word(layout):
    labels, owners = layout
    for h, mask in keep_masks(labels, owners, (8, 4, 2, 1), 9, shared=False).items():
        shared = loop_keep(labels, owners, h, 9)
        for row, ids in enumerate(owners):
            content = torch.tensor([1 <= j <= len(ids) for j in range(9)])
            for place in range(h * h):
                own = shared[row, 0, place] & content
                assert torch.equal(mask[row, 0, place], own if own.any() else ~content)


@few
@given(layouts(), st.sampled_from([8, 4, 2]))
def test_cells_are_those_of_nearest_interpolation(layout, h):
    labels = torch.from_numpy(layout[0])
    keep = keep_masks(labels, [(0, 1, 2, 3)] * len(labels), [h], 6)[h]
    for c in range(4):
        own = torch.nn.functional.interpolate((labels == c).float()[:, None], (h, h), mode="nearest")
        assert torch.equal(keep[:, 0, :, c + 1], own.flatten(1) > 0.5)


@few
@given(layouts(), st.randoms(use_true_random=False))
def test_masks_of_a_batch_are_those_of_its_rows(layout, random):
    labels, owners = layout
    whole = keep_masks(labels, owners, [4], 9)[4]
    order = random.sample(range(len(labels)), len(labels))
    assert torch.equal(keep_masks(labels[order], [owners[k] for k in order], [4], 9)[4], whole[order])
    for k in order:
        assert torch.equal(keep_masks(labels[k : k + 1], owners[k : k + 1], [4], 9)[4], whole[k : k + 1])


def test_guidance_puts_the_free_half_first():
    keep = keep_masks(torch.tensor([[[0, 255], [1, 1]]]), [(0, 1)], (2, 1), 5)
    both = with_guidance(keep)
    for h in (2, 1):
        assert both[h].shape == (2, 1, h * h, 5) and both[h].dtype == torch.bool
        assert both[h][0].all() and torch.equal(both[h][1:], keep[h])


def test_mask_errors():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    for h in (3, 16, 0, -2):
        with pytest.raises(ValueError, match=f"must divide the label maps' side 8; got {h}"):
            keep_masks(labels, [(0,)], [4, h], 5)
    with pytest.raises(ValueError, match="must be square.*got 8x4"):
        keep_masks(labels[:, :, :4], [(0,)], [4], 5)
    with pytest.raises(ValueError, match="each of the 1 label maps; got 2"):
        keep_masks(labels, [(0,), (0,)], [4], 5)
    assert keep_masks(labels, [(0, 0, 0)], [4], 5)[4].shape == (1, 1, 16, 5)
    with pytest.raises(ValueError, match=r"`owners\[0\]` has 4 tokens; with start and end they do not fit 5"):
        keep_masks(labels, [(0, 0, 0, 0)], [4], 5)
    with pytest.raises(TypeError, match="integer dtype; got torch.bool"):
        keep_masks(labels.bool(), [(0,)], [4], 5)


# -- the attention --------------------------------------------------------------------------------------------------


def test_attention_by_hand():
    query = torch.zeros(1, 1, 2, 1)  # equal scores: the mean of what is seen
    value = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 1, 3, 1)
    keep = torch.tensor([[True, True, False], [True, False, True]])[None, None]
    assert rectified_attention(query, torch.ones_like(value), value, keep).flatten().tolist() == [1.5, 3.5]


@few
@given(layouts(side=4, length=6))
def test_attention_equals_the_loop(layout):
    keep = keep_masks(*layout, [2], 9)[2]
    query, key, value = (torch.randn(len(keep), 2, n, 3, dtype=torch.float64) for n in (4, 9, 9))
    ours = rectified_attention(query, key, value, keep)
    torch.testing.assert_close(ours, loop_attention(query, key, value, keep), rtol=0, atol=1e-12)
    flat = torch.zeros(len(keep), 1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(rectified_attention(query, key, value, keep, flat), ours, rtol=0, atol=1e-12)
    flat[..., 1:] = -math.inf  # both masks hold: all read the start token
    start = value[:, :, :1].expand_as(ours)
    torch.testing.assert_close(rectified_attention(query, key, value, keep, flat), start)


def test_equals_the_official_code_on_recorded_inputs():
    recorded = np.load(FIXTURE)
    attn = attention(processor=RectifiedAttnProcessor())
    attn.load_state_dict({k[7:]: torch.from_numpy(v) for k, v in recorded.items() if k.startswith("weight.")})
    names = dict(zip(recorded["ids"].tolist(), recorded["names"].tolist(), strict=True))
    owners = layout_prompt(recorded["label"], names, ClipPieces(), ignore_index=0).owners
    keep = keep_masks(recorded["label"], owners, (8, 4), 77)
    context = torch.from_numpy(recorded["context"])
    for h in (8, 4):
        expected, x = torch.from_numpy(recorded[f"y{h}"]), torch.from_numpy(recorded[f"x{h}"])
        with torch.no_grad():
            torch.testing.assert_close(attn(x, context, rectify=keep), expected, rtol=0, atol=1e-5)
            assert (attn(x, context) - expected).abs().max() > 0.05


def test_no_gradient_reaches_the_words_of_other_classes():
    keep = keep_masks(torch.tensor([[[0, 1], [1, 255]]]), [(0, 1, 1)], [2], 6)[2]
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 4, requires_grad=True) for n in (4, 6, 6))
    out = rectified_attention(query, key, value, keep)
    for pixel, seen in enumerate(([0, 1, 4, 5], [0, 2, 3, 4, 5], [0, 2, 3, 4, 5], [0, 4, 5])):
        by_value, by_key = torch.autograd.grad(out[:, :, pixel].sum(), (value, key), retain_graph=True)
        assert by_value.abs().sum((0, 1, 3)).nonzero().flatten().tolist() == seen
        assert by_key.abs().sum((0, 1, 3)).nonzero().flatten().tolist() == seen


def test_gradient_is_the_derivative():
    keep = keep_masks(torch.tensor([[[0, 1], [1, 255]]]), [(0, 1, 1)], [2], 6)[2]
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 6, 6)]
    assert torch.autograd.gradcheck(lambda *qkv: rectified_attention(*qkv, keep), inputs)


def test_swapping_the_masks_of_two_classes_swaps_their_regions():
    labels = torch.tensor([[[3, 3, 5, 5]] * 4])
    attn, context = attention(processor=RectifiedAttnProcessor()), torch.randn(1, 4, 10)
    same = torch.randn(1, 1, 12).expand(1, 16, 12)  # all pixels ask the same: what they see makes the difference
    with torch.no_grad():
        out, swapped = (
            attn(same, context, rectify=keep_masks(labels, [owners], [4], 4)).reshape(4, 4, 12)
            for owners in [(3, 5), (5, 3)]
        )
    torch.testing.assert_close(swapped, out.flip(1))
    assert (out[:, 0] - out[:, -1]).abs().max() > 1e-3


def test_ignored_maps_read_start_end_and_padding_only():
    keep = keep_masks(torch.full((1, 4, 4), 255), [(0, 1, 1)], [4], 7)
    attn, x, context = attention(processor=RectifiedAttnProcessor()), torch.randn(1, 16, 12), torch.randn(1, 7, 10)
    with torch.no_grad():
        out = attn(x, context, rectify=keep)
        torch.testing.assert_close(out, attn(x, context[:, [0, 4, 5, 6]]))
        context[:, 1:4] = 1e3
        assert torch.equal(attn(x, context, rectify=keep), out)


def test_attention_errors():
    query, key = torch.zeros(2, 1, 4, 3), torch.zeros(2, 1, 5, 3)
    with pytest.raises(TypeError, match="must be bool.*got torch.float32"):
        rectified_attention(query, key, key, torch.ones(2, 1, 4, 5))
    with pytest.raises(ValueError, match=r"= \(2, 1, 4, 5\); got \(1, 1, 4, 5\).*with_guidance"):
        rectified_attention(query, key, key, torch.ones(1, 1, 4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"= \(2, 1, 4, 5\); got \(2, 1, 4, 6\)\.$"):
        rectified_attention(query, key, key, torch.ones(2, 1, 4, 6, dtype=torch.bool))
    attn, keep = attention(processor=RectifiedAttnProcessor()), keep_masks(torch.zeros(1, 8, 8).int(), [()], (8, 4), 5)
    for queries in (4, 15):
        with pytest.raises(ValueError, match=rf"mask for {queries} queries.*sides are \[8, 4\]"):
            attn(torch.zeros(1, queries, 12), torch.zeros(1, 5, 10), rectify=keep)


# -- in diffusers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"residual_connection": True, "rescale_output_factor": 2.0, "norm_num_groups": 3},
        {"bias": True, "cross_attention_norm": "layer_norm", "qk_norm": "layer_norm"},
    ],
)
@pytest.mark.parametrize("shape", [(2, 16, 12), (2, 12, 4, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_without_masks_it_is_the_stock_processor(options, shape, masked):
    from diffusers.models.attention_processor import AttnProcessor2_0

    attn = attention(processor=AttnProcessor2_0(), **options)
    x, context = torch.randn(shape), torch.randn(2, 5, 10)
    bias = torch.randn(2, 1, 5) if masked else None
    with torch.no_grad():
        expected = attn(x, context, attention_mask=bias)
        attn.set_processor(RectifiedAttnProcessor())
        torch.testing.assert_close(attn(x, context, attention_mask=bias), expected)
        free = {4: torch.ones(2, 1, 16, 5, dtype=torch.bool)}
        torch.testing.assert_close(attn(x, context, attention_mask=bias, rectify=free), expected)


def test_self_attention_leaves_the_masks_unused():
    from diffusers.models.attention_processor import AttnProcessor2_0

    attn, x = attention(context_dim=None, processor=AttnProcessor2_0()), torch.randn(2, 16, 12)
    with torch.no_grad():
        expected = attn(x)
        attn.set_processor(UnrectifiedAttnProcessor())
        torch.testing.assert_close(attn(x, rectify={}), expected)


def text_layers(unet):
    return {name for name, kind in unet.attn_processors.items() if type(kind) is RectifiedAttnProcessor}


SIXTEEN = {
    f"{block}.attentions.{k}.transformer_blocks.0.attn2.processor"
    for blocks, count in [(("down_blocks.0", "down_blocks.1", "down_blocks.2"), 2), (("mid_block",), 1),
                          (("up_blocks.1", "up_blocks.2", "up_blocks.3"), 3)]
    for block in blocks
    for k in range(count)
}  # fmt: skip


def test_every_text_attention_of_the_mini_unet_carries_it(unets):
    stock, ours = unets
    assert len(SIXTEEN) == 16 and text_layers(ours) == SIXTEEN and not text_layers(stock)
    rest = {name: type(kind) for name, kind in ours.attn_processors.items() if name not in SIXTEEN}
    assert set(rest) == {name.replace("attn2", "attn1") for name in SIXTEEN}
    assert set(rest.values()) == {UnrectifiedAttnProcessor}
    assert [*ours.state_dict()] == [*stock.state_dict()]  # no new parameters
    assert text_layers(install(ours)) == SIXTEEN


def test_every_text_attention_of_stable_diffusion_carries_it():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    assert text_layers(install(unet)) == SIXTEEN
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964  # version 1.4's own


def test_install_needs_text_attention():
    from diffusers import UNet2DModel

    with torch.device("meta"), pytest.raises(ValueError, match="this UNet2DModel has none"):
        install(UNet2DModel(block_out_channels=(8, 8), norm_num_groups=4, attention_head_dim=4,
                            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2))  # fmt: skip


def test_free_masks_leave_the_unet_as_it_is(unets, batch):
    stock, ours = unets
    latents, text, keep = batch
    free = {h: torch.ones_like(mask) for h, mask in keep.items()}
    expected = noise(stock, latents, text)
    torch.testing.assert_close(noise(ours, latents, text, free), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(noise(ours, latents, text), expected, rtol=0, atol=1e-5)
    assert (noise(ours, latents, text, keep) - expected).abs().max() > 1e-3


def test_rows_do_not_mix(unets, batch):
    latents, text, keep = batch
    whole = noise(unets[1], latents, text, keep)
    turned = noise(unets[1], latents.flip(0), text.flip(0), only(keep, [1, 0]))
    torch.testing.assert_close(turned, whole.flip(0), rtol=0, atol=1e-5)
    first = noise(unets[1], latents[:1], text[:1], only(keep, [0]))
    torch.testing.assert_close(first, whole[:1], rtol=0, atol=1e-5)


def test_the_masks_reach_the_unet_without_a_warning(unets, batch, caplog):
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        noise(unets[0], *batch)
        assert "will be ignored" in caplog.text  # what the stock processors say
        caplog.clear()
        noise(unets[1], *batch)
        assert not caplog.records
    finally:
        logger.removeHandler(caplog.handler)


def test_training_reaches_every_weight(unets, batch):
    latents, text, keep = batch
    unet = unets[1]
    unet(latents, 500, text, cross_attention_kwargs={"rectify": keep}).sample.square().mean().backward()
    still = [name for name, p in unet.named_parameters() if not p.grad.abs().sum() > 0]
    unet.zero_grad()
    assert not still


def test_a_missing_size_is_named(unets, batch):
    latents, text, keep = batch
    with pytest.raises(ValueError, match=r"mask for 4 queries.*sides are \[16, 8, 4\]"):
        noise(unets[1], latents, text, {h: keep[h] for h in (16, 8, 4)})


def test_guidance_in_the_pipeline_is_guidance_by_hand(unets):
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(2)
    tokenizer, unet, scheduler = clip_tokenizer(), unets[1], DDIMScheduler(**SCHEDULER)
    encoder, start = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)).eval(), torch.randn(2, 4, 16, 16)
    names, labels = ["plain disc", "sea"], torch.zeros(2, 64, 64, dtype=torch.int64)
    labels[0, 20:], labels[1, :, 40:] = 1, 255
    prompts, owners = layout_prompt(labels, names, tokenizer)
    keep = keep_masks(labels, owners, SIZES, CONTEXT_LENGTH)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE), unet=unet, text_encoder=encoder, tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    ours = pipe(
        prompts, 64, 64, num_inference_steps=2, guidance_scale=2.0, latents=start, output_type="latent",
        cross_attention_kwargs={"rectify": with_guidance(keep)},
    ).images  # fmt: skip

    def states(texts):
        return encoder(tokenizer(texts, padding="max_length", return_tensors="pt").input_ids).last_hidden_state

    latents = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            free = unet(latents, t, states(["", ""])).sample
            bound = unet(latents, t, states(prompts), cross_attention_kwargs={"rectify": keep}).sample
            latents = scheduler.step(free + 2.0 * (bound - free), t, latents).prev_sample
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-4)
