"""The grounding head: by hand, by the paper's order of operations, by properties; on the mini U-Net's own features."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import Largest

from fmseg.grounding import GroundingHead, feature_channels
from fmseg.grounding_layers import MixConv, SpectralConv
from fmseg.taps import GROUPS, Taps, fold_guidance, grouped, guidance_halves
from fmseg.zoo_configs import UNET

CHANNELS = {"low": 6, "mid": 4, "high": 6, "highest": 4}
TINY = dict(widths=(2, 3, 2, 3), dim=8, heads=2, layers=2, hidden=6, patch=2)
SIDES = (2, 4, 8, 16)
few = settings(max_examples=10, deadline=None)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build(**options):
    return GroundingHead(CHANNELS, 5, **TINY | options).double().eval()


def inputs(batch=1, classes=2, sides=SIDES, seed=1, stretch=1):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features = {g: draw(batch, c, s, stretch * s) for (g, c), s in zip(CHANNELS.items(), sides, strict=True)}
    return features, draw(batch, classes, 5)


def rows(features, text, which):
    return {g: x[which] for g, x in features.items()}, text[which]


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# -- an independent form: everything resized first, every formula spelt out ------------------------------------------


def up(x, side):
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)


def mixed(mix, x, residual="relu"):
    def normal(y):
        mean = y.mean((2, 3), keepdim=True)
        return (y - mean) / (((y - mean) ** 2).mean((2, 3), keepdim=True) + 1e-4) ** 0.5

    def convolved(conv, y):
        matrix = conv.weight.reshape(len(conv.weight), -1)
        v = conv.u[0] @ matrix
        v = v / v.norm()
        u = matrix @ v
        return F.conv2d(y, conv.weight / (u / u.norm() @ matrix @ v), conv.bias, padding=1)

    r = normal(x).clamp(min=0)
    h = convolved(mix.conv2, normal(convolved(mix.conv1, r)).clamp(min=0))
    return h + (r if residual == "relu" else x)


def attended(module, queries, memory, heads):
    q, k, v = (x @ w.T for x, w in zip((queries, memory, memory), module.in_proj_weight.chunk(3), strict=True))
    parts = []
    for a, b, c in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
        scores = (a @ b.T) / a.shape[1] ** 0.5
        parts.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ c)
    return torch.cat(parts, 1) @ module.out_proj.weight.T


def by_definition(head, features, text, size):
    """One picture, in the paper's order."""
    sides = dict(zip(GROUPS, SIDES, strict=True))
    squeezed = {}
    for group, then in zip(GROUPS, (*GROUPS[1:], "highest"), strict=True):
        kernel = head.squeeze[group].weight[:, :, 0, 0]
        squeezed[group] = torch.einsum("oc,bchw->bohw", kernel, up(features[group], sides[then]))
    x = torch.cat([up(squeezed["low"], sides["high"]), squeezed["mid"]], 1)
    x = torch.cat([up(mixed(head.mix["mid"], x), sides["highest"]), squeezed["high"]], 1)
    grid = mixed(head.mix["highest"], torch.cat([mixed(head.mix["high"], x), squeezed["highest"]], 1))
    patches = F.unfold(grid, head.patch, stride=head.patch)[0].T
    memory, queries = patches @ head.to_memory.weight.flatten(1).T, text[0] @ head.to_query.weight.T
    for layer in head.decoder:
        normal = [lambda y, n=n: F.layer_norm(y, (8,), n.weight, n.bias) for n in layer.norms]
        queries = queries + attended(layer.self_attention, *[normal[0](queries)] * 2, 2)
        queries = queries + attended(layer.cross_attention, normal[1](queries), memory, 2)
        queries = queries + layer.outer(layer.inner(normal[2](queries)).clamp(min=0))
    return torch.einsum("bdhw,od->bohw", up(grid, size), head.mlp(queries))


@pytest.mark.parametrize("classes", [1, 3])
def test_equals_the_papers_order_of_operations(classes):
    head, (features, text) = build(), inputs(classes=classes)
    close(head(features, text, size=48), by_definition(head, features, text, 48))


def test_convolution_and_resize_commute_but_two_resizes_are_not_one():
    features = torch.randn(1, 6, 3, 3, dtype=torch.float64)
    kernel = torch.randn(2, 6, 1, 1, dtype=torch.float64)
    close(F.conv2d(up(features, 7), kernel), up(F.conv2d(features, kernel), 7))
    assert (up(up(features, 6), 12) - up(features, 12)).abs().max() > 0.01
    assert (up(features, 6).relu() - up(features.relu(), 6)).abs().max() > 0.01, "nor do ReLUs commute"


# -- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", ["relu", "input"])
def test_mix_convolution_by_hand(residual):
    """One channel of two places, -1 and 1, and kernels that only scale: spectral normalisation makes them 1."""
    mix = MixConv(1, residual).double().eval()
    for conv, scale in ((mix.conv1, 3.0), (mix.conv2, 0.2)):
        with torch.no_grad():
            conv.weight.zero_()[0, 0, 1, 1] = scale
            conv.bias.zero_()
    x = torch.tensor([[[[-1.0, 1.0]]]], dtype=torch.float64)
    a = 1 / (1 + 1e-4) ** 0.5  # r = (0, a)
    b = (a / 2) / (a * a / 4 + 1e-4) ** 0.5  # (0, a) normalised is (-b, b)
    wanted = [0, b + a] if residual == "relu" else [-1, b + 1]
    close(mix(x).flatten(), torch.tensor(wanted, dtype=torch.float64))


def test_spectral_convolution_finds_the_largest_singular_value():
    conv = SpectralConv(4).double()
    for _ in range(200):
        conv(torch.zeros(1, 4, 3, 3, dtype=torch.float64))
    close(conv.sigma[0], torch.linalg.svdvals(conv.weight.detach().flatten(1))[0], atol=1e-6)
    before = copy.deepcopy(conv.state_dict())
    conv.eval()(torch.zeros(1, 4, 3, 3, dtype=torch.float64))
    assert all(torch.equal(v, before[k]) for k, v in conv.state_dict().items())
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)

    def of(weight):
        return torch.func.functional_call(conv, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(of, conv.weight.detach().clone().requires_grad_(), atol=1e-4, fast_mode=True)


def test_frozen_statistics_are_running_means_and_only_in_evaluation():
    mix, free = MixConv(3, frozen_stats=True).double(), MixConv(3).double()
    free.load_state_dict(mix.state_dict())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64) * 2 + 1
    with torch.no_grad():
        assert torch.equal(mix(x), free(x)), "the same in training"
    close(mix.mean1, 0.1 * x.mean((0, 2, 3)))
    unbiased = torch.stack([p.flatten(1).var(1) for p in x]).mean(0)
    close(mix.var1, 0.9 + 0.1 * unbiased)
    with torch.no_grad():
        frozen = mix.eval()(x)
        assert (frozen - free.eval()(x)).abs().max() > 0.1
        r = ((x - mix.mean1[:, None, None]) / (mix.var1[:, None, None] + 1e-4) ** 0.5).relu()
        mix.conv2.weight.zero_()[0, 0, 0, 0] = 1e-30  # what is left is r and a bias
        mix.conv2.bias.zero_()
        close(mix(x)[:, 1:], r[:, 1:])
    assert frozen.shape == x.shape


# -- properties ------------------------------------------------------------------------------------------------------


@few
@given(st.integers(2, 4), st.integers(0, 1000), st.booleans())
def test_a_batch_is_its_pictures_one_by_one_from_the_same_state(batch, seed, training):
    torch.manual_seed(seed)
    head, (features, text) = build().train(training), inputs(batch, seed=seed)
    with torch.no_grad():
        together = copy.deepcopy(head)(features, text, size=20)
        for k in range(batch):
            close(together[k : k + 1], copy.deepcopy(head)(*rows(features, text, [k]), size=20))


@few
@given(st.permutations(range(4)))
def test_the_order_of_classes_does_not_matter_but_their_company_does(order):
    head, (features, text) = build(), inputs(2, 4)
    logits = head(features, text)
    close(head(features, text[:, order]), logits[:, order])
    assert (head(features, text[:, :2]) - logits[:, :2]).abs().max() > 1e-6


def test_absent_classes_are_seen_by_nobody_and_have_no_mask():
    head, (features, text) = build(), inputs(3, 3)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    logits = head(features, text, present=present)
    for k, here in enumerate(present):
        one, queries = rows(features, text, [k])
        close(logits[k : k + 1, here], head(one, queries[:, here]))
        assert not logits[k, ~here].any()
    moved = torch.where(present[:, :, None], text, 100.0)
    assert torch.equal(head(features, moved, present=present), logits)
    assert torch.equal(head(features, text, present=present | True), head(features, text))


@pytest.mark.parametrize("sides, stretch, patch", [(SIDES, 1, 2), ((1, 2, 3, 6), 1, 3), ((2, 3, 5, 8), 2, 4)])
def test_any_resolution_and_size_only_resizes(sides, stretch, patch):
    head, (features, text) = build(patch=patch), inputs(2, sides=sides, stretch=stretch)
    logits = head(features, text)
    assert logits.shape == (2, 2, sides[3], stretch * sides[3])
    for size in ((21, 33), sides[3]):
        answer = head(features, text, size=size)
        full = (size, size) if isinstance(size, int) else size
        close(answer, F.interpolate(logits, full, mode="bilinear", align_corners=False))


def test_features_come_in_lists_in_halves_or_in_half_precision():
    head, (features, text) = build().float(), inputs(3)
    text = text.float()
    taps = {g: [x.float().chunk(2, 1)[k].repeat(2, 1, 1, 1)[:4] for k in (0, 1)] for g, x in features.items()}
    taps = {g: [t * torch.randn(4, 1, 1, 1) for t in ts] for g, ts in taps.items()}  # 2B = 4 rows
    head = GroundingHead({g: 2 * n for g, n in CHANNELS.items()}, 5, **TINY).eval()
    folded = fold_guidance(taps)
    wanted = head(grouped(folded), text[:2])
    close(head(folded, text[:2]), wanted, 1e-5)
    halves = guidance_halves(taps)
    close(head(halves, text[:2]), wanted, 1e-5)
    assert halves["low"][1].data_ptr() == taps["low"][0][2:].data_ptr(), "views"
    coarse = {g: [t.half() for t in ts] for g, ts in halves.items()}
    close(head(coarse, text[:2]), wanted, 0.05)
    close(head.segment(head.reduce(halves), text[:2], size=9), head(halves, text[:2], size=9), 1e-6)


def test_evaluation_leaves_the_buffers_alone_and_repeats_itself():
    head, (features, text) = build(), inputs()
    before = copy.deepcopy(head.state_dict())
    assert torch.equal(head(features, text), head(features, text))
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    first, second = head.train()(features, text), head(features, text)
    changed = {k.rsplit(".", 1)[1] for k, v in head.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"u", "sigma", "mean1", "var1", "mean2", "var2"}
    assert not torch.equal(first, second), "power iteration goes on"


def test_gradients_are_the_derivatives_and_reach_every_weight():
    head, (features, text) = build(), inputs(sides=(1, 1, 2, 4))
    wanted = [features["low"], features["high"], text, head.squeeze["mid"].weight, head.to_memory.weight]
    leaves = [x.detach().clone().requires_grad_() for x in wanted]

    def of(low, high, queries, squeeze, to_memory):
        weights = {"squeeze.mid.weight": squeeze, "to_memory.weight": to_memory}
        return torch.func.functional_call(head, weights, (features | {"low": low, "high": high}, queries), {"size": 5})

    assert torch.autograd.gradcheck(of, leaves, fast_mode=True, atol=1e-6)
    features, text = inputs(2)
    head.train()(features, text).square().sum().backward()
    without = {name for name, p in head.named_parameters() if not p.grad.abs().max() > 1e-9}
    lost = {f"mix.{g}.conv{k}.bias" for g in GROUPS[1:] for k in (1, 2)} - {"mix.highest.conv2.bias"}
    assert without == lost, "biases that the next normalisation takes away again"


def test_nothing_large_is_made_on_the_way():
    """Only thin maps are resized to the picture: 2 of 64x64 floats, not 240 of them."""
    head = GroundingHead(CHANNELS, 5, dim=16, heads=2, hidden=16, patch=4).eval()
    features, text = inputs()
    with torch.no_grad(), Largest() as largest:
        head({g: x.float() for g, x in features.items()}, text.float(), size=64)
    assert largest.bytes <= max(240 * 16 * 16 * 4, head.mix["highest"].conv1.weight.numel() * 4)


def test_learns_two_masks_of_one_picture():
    head = GroundingHead(CHANNELS, 5, **TINY | dict(dim=16, widths=(4, 4, 4, 4)))
    features, text = inputs(sides=SIDES)
    features, text = {g: x.float() for g, x in features.items()}, text.float()
    target = torch.zeros(1, 2, 16, 16)
    target[:, 0, :, :8] = target[:, 1, 4:12, 4:12] = 1
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(head(features, text), target).backward()
        optimizer.step()
    found, target = head.eval()(features, text) > 0, target > 0
    iou = (found & target).sum((2, 3)) / (found | target).sum((2, 3))
    assert iou.min() > 0.8, "in evaluation as in training"


# -- with U-Nets -----------------------------------------------------------------------------------------------------


def test_one_class_serves_the_mini_unet_and_stable_diffusion():
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(UNET).eval()
    with torch.no_grad(), Taps(unet) as features:
        unet(torch.randn(4, 4, 16, 16), 81, torch.randn(4, 5, 64))
    assert {g: x.shape[1] for g, x in grouped(fold_guidance(features)).items()} == feature_channels(unet.config)
    assert {g: x.shape[1] for g, x in grouped(features).items()} == feature_channels(unet.config, guided=False)
    head = GroundingHead.for_unet(unet.config, dim=64, heads=4, hidden=128, patch=2).eval()
    logits = head(guidance_halves(features), torch.randn(2, 1, 64), size=64)
    assert logits.shape == (2, 1, 64, 64) and logits.isfinite().all()
    large = feature_channels(dict(block_out_channels=(320, 640, 1280, 1280), layers_per_block=2))
    assert large == {"low": 15360, "mid": 14080, "high": 8320, "highest": 5120}


def test_what_does_not_fit_is_refused_by_name():
    head, (features, text) = build(), inputs(2)

    def refused(match, change=None, queries=text, **options):
        with pytest.raises(ValueError, match=match):
            head(features if change is None else features | change, queries, **options)

    refused("'mid' must have 4 channels in all; got 3", {"mid": features["mid"][:, :3]})
    refused("'low' must have 6 channels in all; got 3. Rows without and with", {"low": features["low"][:, :3]})
    refused(r"same number of pictures; got \[1, 2\]", {"low": features["low"][:1]})
    refused(r"'high' must be floats \(B, C, h, w\)", {"high": [features["high"], features["high"][..., :4]]})
    refused("'highest' must be finite", {"highest": features["highest"] / 0})
    refused("`text` must be finite", queries=text / 0)
    refused(r"`text` must be \(B, O, D\) with B = 2, D = 5 .* got \(2, 5\). .*text\[None\]", queries=text[0])
    refused("multiples of the patch, 2; got", {"highest": features["highest"][..., :15]})
    refused("`present` must be bool", present=torch.ones(2, 2))
    refused("picture 1 has none", present=torch.tensor([[True, True], [False, False]]))
    with pytest.raises(ValueError, match="groups low, mid, high, highest; got low"):
        head({"low": features["low"]}, text)
    for option, match in (
        (dict(heads=3), "`heads` must divide `dim`, 8; got 3"), (dict(patch=0), "`patch` must be an integer >= 1"),
        (dict(residual="raw"), "`residual` must be 'relu'"), (dict(widths=(1, 2)), "`widths` must be four numbers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            build(**option)
    with pytest.raises(ValueError, match="`channels` must give a number"):
        GroundingHead({"low": 3}, 5)
    with pytest.raises(ValueError, match="four levels with layers_per_block=2; got .* 1"):
        feature_channels(UNET | dict(layers_per_block=1))
    with pytest.raises(ValueError, match="'low' must be .*guidance"):
        guidance_halves({"low": [torch.zeros(3, 2, 1, 1)]})
