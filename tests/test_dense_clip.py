"""Dense CLIP features against a slow re-statement, MaskCLIP's own code, and what must be true of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fmseg.convnet  # noqa: F401  registers the trunk
from fmseg.dense_clip import dense_features, dilated, refine, resized_positions, scores, stride
from fmseg.zoo_configs import CLIP

FIXTURE = Path(__file__).parent / "fixtures" / "dense_clip.npz"
TINY = dict(image_size=16, patch_size=4, width=16, layers=3, heads=2, mlp_ratio=2.0, output_dim=12)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def shaken(tower):
    """In eval mode, with norms that do something and convolutions that keep the size of numbers."""
    for module in tower.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return tower.eval().requires_grad_(False)


def vit(**other):
    from open_clip.transformer import VisionTransformer

    tower = shaken(VisionTransformer(**TINY | other))
    for block in tower.transformer.resblocks:  # biases of attention are zero at first
        block.attn.in_proj_bias.normal_()
        block.attn.out_proj.bias.normal_()
    return tower


def resnet(side=64):
    from open_clip.modified_resnet import ModifiedResNet

    return shaken(ModifiedResNet(layers=[1, 2, 2, 2], output_dim=32, heads=4, image_size=side, width=16))


def mini():
    from open_clip.model import CLIP as Model

    return shaken(Model(**CLIP))


def fixture(prefix):
    with np.load(FIXTURE) as stored:
        return {k.removeprefix(prefix): torch.from_numpy(stored[k]) for k in stored.files if k.startswith(prefix)}


# ----------------------------------------------------------------- a transformer


def norm(x, layer):
    """Layer norm of a vector."""
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * layer.weight + layer.bias


def mlp(x, block):
    hidden = block.mlp.c_fc.weight @ x + block.mlp.c_fc.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return block.mlp.c_proj.weight @ hidden + block.mlp.c_proj.bias


def by_hand(tower, image):
    """One image at the native size, token by token."""
    size, tokens = tower.conv1.kernel_size[0], [tower.class_embedding + tower.positional_embedding[0]]
    side = image.shape[1] // size
    for i in range(side):
        for j in range(side):
            patch = image[:, i * size : (i + 1) * size, j * size : (j + 1) * size]
            seen = torch.einsum("ochw,chw->o", tower.conv1.weight, patch)
            tokens.append(seen + tower.positional_embedding[1 + i * side + j])
    tokens = [norm(token, tower.ln_pre) for token in tokens]
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        attention = block.attn
        parts = [attention.in_proj_weight @ norm(t, block.ln_1) + attention.in_proj_bias for t in tokens]
        q, k, v = torch.stack(parts).reshape(len(tokens), 3, 2, 8).unbind(1)
        weights = (torch.einsum("ihd,jhd->hij", q, k) / 8**0.5).softmax(-1)
        mixed = torch.einsum("hij,jhd->ihd", weights, v).reshape(len(tokens), 16)
        tokens = [
            t + attention.out_proj.weight @ m + attention.out_proj.bias for t, m in zip(tokens, mixed, strict=True)
        ]
        tokens = [t + mlp(norm(t, block.ln_2), block) for t in tokens]
    out = []
    for token in tokens[1:]:
        value = (last.attn.in_proj_weight @ norm(token, last.ln_1) + last.attn.in_proj_bias)[32:]
        value = last.attn.out_proj.weight @ value + last.attn.out_proj.bias + token
        value = value + mlp(norm(value, last.ln_2), last)
        out.append(tower.proj.T @ norm(value, tower.ln_post))
    return torch.stack(out).T.reshape(12, side, side)


def test_a_transformers_features_are_the_recipes_token_by_token():
    tower, images = vit(), torch.randn(2, 3, 16, 16)
    ours = dense_features(tower, images)
    assert ours.shape == (2, 12, 4, 4)
    torch.testing.assert_close(ours[1], by_hand(tower, images[1]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("size", ["16", "24"])
def test_a_transformers_features_are_those_of_maskclips_port(size):
    from open_clip.transformer import VisionTransformer

    tower = VisionTransformer(**TINY).eval().requires_grad_(False)
    tower.load_state_dict(fixture("visual/"))
    ours = dense_features(tower, fixture("images/")[size])
    torch.testing.assert_close(ours, fixture("features/")[size], atol=1e-5, rtol=1e-5)


def test_in_a_transformer_only_the_last_block_does_not_mix():
    """With one block a patch sees itself alone; with two its neighbours, too."""
    for layers, alone in ((1, True), (2, False)):
        tower, images = vit(layers=layers), torch.randn(1, 3, 16, 16)
        other = images.clone()
        other[..., 4:] = 0  # all but the first column of patches
        a, b = dense_features(tower, images), dense_features(tower, other)
        assert torch.equal(a[..., 0], b[..., 0]) == alone
        assert not torch.allclose(a[..., 1], b[..., 1])


def test_layer_scale_and_no_projection_are_heeded():
    tower, images = vit(ls_init_value=0.5), torch.randn(1, 3, 16, 16)
    last = tower.transformer.resblocks[-1]
    before = dense_features(tower, images)
    last.ls_1.gamma.zero_()
    last.ls_2.gamma.zero_()
    tower.proj = None
    after, keys = dense_features(tower, images, return_keys=True)
    assert before.shape == (1, 12, 4, 4) and after.shape == keys.shape == (1, 16, 4, 4)
    last.attn.in_proj_weight[32:] = 0  # the values
    assert torch.equal(dense_features(tower, images), after), "with a scale of zero they do not count"


def test_positions_are_left_alone_at_the_native_size_and_follow_the_grid_elsewhere():
    positions = torch.randn(1 + 4 * 4, 5)
    assert resized_positions(positions, (4, 4), (4, 4)) is positions
    ramp = torch.arange(16.0).reshape(4, 4, 1).expand(4, 4, 2)
    resized = resized_positions(torch.cat([torch.full((1, 2), -7.0), ramp.reshape(16, 2)]), (4, 4), (8, 2))
    assert resized.shape == (17, 2) and (resized[0] == -7).all()
    down = resized[1:, 0].reshape(8, 2)[:, 0]
    assert (down.diff() > 0).all() and down.min() < 2.5 and down.max() > 11
    wide = resized_positions(positions, (4, 4), (2, 8))  # as many cells, another form
    assert wide.shape == positions.shape and not torch.allclose(wide, positions)


# ----------------------------------------------------------------- residual networks


def test_under_attention_pooling_features_are_values_and_their_projection():
    tower, images = resnet().double(), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    x = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(images)))))
    value, key, out = (tower.attnpool.v_proj, tower.attnpool.k_proj, tower.attnpool.c_proj)
    features, keys = dense_features(tower, images, return_keys=True)
    conv = torch.nn.functional.conv2d
    expected = conv(conv(x, value.weight[:, :, None, None], value.bias), out.weight[:, :, None, None], out.bias)
    torch.testing.assert_close(features, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(keys, conv(x, key.weight[:, :, None, None], key.bias), atol=1e-9, rtol=1e-9)
    assert features.shape == (2, 32, 2, 3)


def test_with_one_position_and_no_place_dense_features_are_the_picture_embedding():
    """Attention has nothing to choose from then: open_clip's and timm's own pooling must give the same."""
    tower = resnet(side=32)
    tower.attnpool.positional_embedding.zero_()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(dense_features(tower, images)[..., 0, 0], tower(images), atol=1e-5, rtol=1e-5)
    clip = mini()
    clip.visual.head.pool.pos_embed.zero_()
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(dense_features(clip, images)[..., 0, 0], clip.encode_image(images), atol=1e-5, rtol=1e-5)


def test_the_mini_clips_keys_are_the_middle_third():
    clip, images = mini(), torch.randn(1, 3, 64, 64)
    features, keys = dense_features(clip, images, return_keys=True)
    assert features.shape == (1, 128, 8, 8) and keys.shape == (1, 192, 8, 8)
    last = clip.visual.trunk.forward_features(images)[0, :, 2, 3]
    torch.testing.assert_close(keys[0, :, 2, 3], clip.visual.head.pool.qkv(last)[192:384], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make, by", [(mini, 2), (mini, 4), (resnet, 2), (resnet, 4), (resnet, 8)])
def test_at_every_kth_position_the_dilated_tower_computes_what_the_tower_computes(make, by):
    model, images = make().double(), torch.randn(2, 3, 64, 128).double()
    before, finer = dense_features(model, images), dilated(model, by)
    after = dense_features(finer, images)
    assert after.shape[2:] == (by * before.shape[2], by * before.shape[3])
    assert stride(finer) * by == stride(model)
    torch.testing.assert_close(after[..., ::by, ::by], before, atol=1e-11, rtol=1e-11)
    assert (after[..., 1::by, 1::by] - before).std() > 0.05, "between them are others"
    assert torch.equal(dense_features(model, images), before), "the model itself stays"


def test_dilating_twice_is_dilating_more_and_finer_towers_take_finer_sizes():
    for model in (resnet().double(), mini().double()):
        images = torch.randn(1, 3, 64, 64).double()
        once, twice = dilated(model, 4), dilated(dilated(model, 2), 2)
        torch.testing.assert_close(dense_features(twice, images), dense_features(once, images))
        step = stride(once)
        assert dense_features(once, torch.randn(1, 3, 5 * step, 7 * step).double()).shape[2:] == (5, 7)
        assert dense_features(dilated(model, 1), images).shape == dense_features(model, images).shape


def test_convolutions_are_dilated_as_in_networks_of_stride_8():
    """First blocks keep what came before (contract_dilation), 1x1 convolutions stay."""
    tower = dilated(resnet(), 4)
    spread = [[block.conv2.dilation[0] for block in layer] for layer in (tower.layer2, tower.layer3, tower.layer4)]
    assert spread == [[1, 1], [1, 2], [2, 4]]
    stages = dilated(mini(), 2).trunk.stages
    found = [(b.conv1_kxk.conv.dilation[0], b.conv2_kxk.conv.dilation[0]) for b in stages[-1]]
    assert found == [(1, 2), (2, 2)]
    assert all(m.dilation == (1, 1) for m in stages.modules() if getattr(m, "kernel_size", 0) == (1, 1))


# ----------------------------------------------------------------- sizes of the papers


@pytest.mark.parametrize(
    "name, side, by, grid, width",
    [
        ("ViT-B-16", 224, 1, 14, 512),
        ("ViT-B-16", 512, 1, 32, 512),
        ("RN50", 224, 1, 7, 1024),
        ("RN50", 224, 4, 28, 1024),
        ("RN50", 512, 4, 64, 1024),
        ("RN50x16", 384, 2, 24, 768),
    ],
)
def test_grids_at_full_size(name, side, by, grid, width):
    import open_clip

    with torch.device("meta"):
        model = open_clip.model.CLIP(**open_clip.get_model_config(name)).eval()
        features, keys = dense_features(
            dilated(model, by) if by > 1 else model, torch.empty(1, 3, side, side), return_keys=True
        )
    assert features.shape == (1, width, grid, grid) and keys.shape[2:] == (grid, grid)


def test_grids_of_the_mini_clip():
    clip = mini()
    assert dense_features(clip, torch.randn(1, 3, 64, 64)).shape == (1, 128, 8, 8)
    assert dense_features(clip, torch.randn(1, 3, 128, 128)).shape == (1, 128, 16, 16)
    assert dense_features(dilated(clip), torch.randn(1, 3, 64, 64)).shape == (1, 128, 16, 16)


@pytest.mark.parametrize("make", [vit, resnet, mini])
def test_a_picture_alone_and_in_a_batch_gets_the_same(make):
    model, images = make().double(), torch.randn(3, 3, 64, 64).double()
    torch.testing.assert_close(dense_features(model, images)[1:2], dense_features(model, images[1:2]))


# ----------------------------------------------------------------- scores and refinements


def test_scores_are_cosines():
    features = torch.zeros(1, 2, 1, 3)
    features[0, :, 0, 0], features[0, :, 0, 1] = torch.tensor([3.0, 4.0]), torch.tensor([0.0, -2.0])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    expected = torch.tensor([[0.6, 0.0, 0.0], [0.8, -1.0, 0.0], [1.0, -0.8, 0.0]])
    torch.testing.assert_close(scores(features, text)[0, :, 0], expected)


def test_prompt_denoising_removes_a_class_that_is_nowhere_sure():
    m = torch.full((1, 3, 2, 2), 0.2)
    m[0, 0, 0, 0] = m[0, 1, 1, 1] = 0.3  # 100 x 0.1: sure
    out = refine(m, prompt_denoising=0.5)
    assert (out[0, 2] == -100).all() and torch.equal(out[:, :2], m[:, :2])
    assert torch.equal(refine(m), m), "off"
    assert torch.equal(refine(m, prompt_denoising=0.3), m), "a third everywhere is enough for 0.3"


def test_key_smoothing_asks_positions_with_the_same_key():
    """Two groups of positions: unsure ones get the sum of their group's probabilities, sure ones keep theirs."""
    keys = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]]).reshape(1, 2, 2, 2)
    m = torch.zeros(1, 2, 2, 2)
    m[0, 0, 0, 0] = 0.1  # sure of the first class
    share = 1 / (1 + np.exp(-10.0))
    out = refine(m, keys, key_smoothing=0.9)
    np.testing.assert_allclose(out[0, 0].flatten(), [share, share + 0.5, 1.0, 1.0], rtol=1e-6)
    every = refine(m, keys, key_smoothing=1.0)
    np.testing.assert_allclose(every[0, 0].flatten(), [share + 0.5, share + 0.5, 1.0, 1.0], rtol=1e-6)


def test_refinements_are_the_official_ones_on_recorded_inputs():
    stored = fixture("refine/")
    thresholds = {"pd": (0.5, 0.0), "ks": (0.0, 1.0), "ks_half": (0.0, 0.5), "both": (0.5, 0.7)}
    for name, (denoising, smoothing) in thresholds.items():
        given = {"prompt_denoising": denoising, "key_smoothing": smoothing}
        ours = refine(stored["scores"], stored["keys"], **given, key_norm="positions")
        torch.testing.assert_close(ours, stored[name], atol=1e-6, rtol=1e-5)
        if smoothing:
            cosines = refine(stored["scores"], stored["keys"], **given)
            assert not torch.allclose(cosines, stored[name], atol=1e-2), "the official norm is along positions"
    assert (stored["pd"] == -100).any() and (stored["pd"] > 0).any()


def test_gradients():
    features = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    text = torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1).requires_grad_()
    assert torch.autograd.gradcheck(scores, (features, text))
    m = (0.02 * torch.randn(1, 4, 2, 2, dtype=torch.float64)).requires_grad_()
    keys = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    for norm_of in ("channels", "positions"):

        def both(m, keys, norm_of=norm_of):
            return refine(m, keys, prompt_denoising=0.4, key_smoothing=0.8, key_norm=norm_of)

        assert torch.autograd.gradcheck(both, (m, keys))


# ----------------------------------------------------------------- errors


def test_errors_say_what_is_wrong():
    tower, clip = vit(), mini()
    with pytest.raises(ValueError, match="multiples of 4; got 16 x 18"):
        dense_features(tower, torch.randn(1, 3, 16, 18))
    with pytest.raises(ValueError, match="multiples of 8; got 60 x 64"):
        dense_features(clip, torch.randn(1, 3, 60, 64))
    with pytest.raises(ValueError, match="preprocess"):
        dense_features(clip, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="eval"):
        dense_features(vit().train(), torch.randn(1, 3, 16, 16))
    with pytest.raises(TypeError, match="Linear"):
        dense_features(torch.nn.Linear(2, 2), torch.randn(1, 3, 16, 16))
    with pytest.raises(TypeError, match="VisionTransformer"):
        dense_features(vit_with_pooling(), torch.randn(1, 3, 16, 16))
    with pytest.raises(TypeError, match="larger images"):
        dilated(tower)
    for by in (0, 3, 16):
        with pytest.raises(ValueError, match=r"\[2, 2\]"):
            dilated(clip, by)


def vit_with_pooling():
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(**TINY, attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2).eval()


def test_errors_of_scores_and_refinements():
    features, text = torch.randn(1, 4, 2, 2), torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    with pytest.raises(ValueError, match="same CLIP"):
        scores(features[:, :3], text)
    with pytest.raises(ValueError, match="length 1; found 2 to 2"):
        scores(features, 2 * text)
    m = scores(features, text)
    with pytest.raises(ValueError, match="return_keys"):
        refine(m, key_smoothing=0.5)
    with pytest.raises(ValueError, match=r"`prompt_denoising` must be in \[0, 1\]; got 50"):
        refine(m, prompt_denoising=50)
    with pytest.raises(ValueError, match="grid of `scores`"):
        refine(m, torch.randn(1, 4, 2, 3), key_smoothing=0.5)
    with pytest.raises(ValueError, match="'channels' or 'positions'"):
        refine(m, torch.randn(1, 4, 2, 2), key_smoothing=0.5, key_norm="rows")
