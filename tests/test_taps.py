"""The U-Net's taps: on the zoo's small U-Net with random weights, and by shape alone on Stable Diffusion 1.4's."""

import pytest
import torch

from fmseg.taps import GROUPS, TAPS, Taps, fold_guidance, grouped
from fmseg.zoo_configs import UNET

SD14 = dict(
    sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768,
    attention_head_dim=8,
)  # fmt: skip


def build(**changes):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(UNET | changes).eval()


@pytest.fixture(scope="module")
def unet():
    return build()


def call(unet, rows=2, **options):
    torch.manual_seed(1)
    config = unet.config
    latents = torch.randn(rows, 4, config.sample_size, config.sample_size, device=unet.device)
    return unet(latents, 21, torch.randn(rows, 5, config.cross_attention_dim, device=unet.device), **options)


def hooks(unet):
    return sum(len(module._forward_hooks) for module in unet.modules())


def test_every_block_once_by_size(unet):
    with torch.no_grad(), Taps(unet) as features:
        call(unet)
    assert tuple(features) == GROUPS and [len(features[g]) for g in GROUPS] == [6, 6, 6, 7]
    for group, size in zip(GROUPS, (2, 4, 8, 16), strict=True):
        assert {(len(t), *t.shape[2:]) for t in features[group]} == {(2, size, size)}
    widths = {group: [t.shape[1] for t in features[group]] for group in GROUPS}
    assert widths["low"] == [64] * 6 and widths["mid"] == [48, 64, 64, 64, 64, 64]
    assert widths["high"] == [32, 48, 48, 64, 48, 48] and widths["highest"] == [32, 32, 32, 48, 32, 32, 32]


def test_a_tap_is_the_output_of_its_module_in_order_of_execution(unet):
    """Against diffusers' own account of the skip connections, and hooks set by hand."""
    order, by_hand = [], {}

    def note(path):
        def hook(module, args, output):
            order.append(path)
            by_hand[path] = output[0] if isinstance(output, tuple) else output

        return unet.get_submodule(path).register_forward_hook(hook)

    handles = [note(path) for _, path, _ in TAPS]
    skips = []
    handles += [
        block.register_forward_hook(lambda module, args, output: skips.extend(output[1])) for block in unet.down_blocks
    ]
    with torch.no_grad():
        call(unet)
    for handle in handles:
        handle.remove()
    with torch.no_grad(), Taps(unet) as features:
        call(unet)
    assert order == [path for _, path, _ in TAPS]
    for group in GROUPS:
        wanted = [by_hand[path] for _, path, of in TAPS if of == group]
        assert all(torch.equal(a, b) for a, b in zip(features[group], wanted, strict=True))
    encoder = [path for name, path, _ in TAPS if name.startswith("in")]
    assert all(torch.equal(by_hand[path], skip) for path, skip in zip(encoder[1:], skips, strict=True))


def test_out2_is_taken_after_the_upsampler_of_its_block(unet):
    ends = {}
    handles = [
        block.register_forward_hook(lambda module, args, output, k=k: ends.setdefault(k, output))
        for k, block in enumerate(unet.up_blocks)
    ]
    with torch.no_grad(), Taps(unet) as features:
        call(unet)
    for handle in handles:
        handle.remove()
    lasts = [features["mid"][3], features["high"][3], features["highest"][3], features["highest"][6]]
    assert all(torch.equal(ends[k], last) for k, last in enumerate(lasts))


def test_stable_diffusions_shapes_and_sums():
    """Dossier 2.3, which read them off the official U-Net."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD14).eval()
        with torch.no_grad(), Taps(unet) as features:
            call(unet)
    assert [t.shape[1] for t in features["mid"]] == [640, 1280, 1280, 1280, 1280, 1280]
    assert [t.shape[1] for t in features["high"]] == [320, 640, 640, 1280, 640, 640]
    assert [t.shape[1] for t in features["highest"]] == [320, 320, 320, 640, 320, 320, 320]
    whole = {"low": (2, 7680, 8, 8), "mid": (2, 7040, 16, 16), "high": (2, 4160, 32, 32), "highest": (2, 2560, 64, 64)}
    assert {group: tuple(t.shape) for group, t in grouped(features).items()} == whole
    folded = {group: (1, 2 * s[1], *s[2:]) for group, s in whole.items()}  # the official module's input widths
    assert {group: tuple(t.shape) for group, t in grouped(fold_guidance(features)).items()} == folded


@pytest.mark.parametrize("batch", [1, 3])
def test_folding_pairs_each_picture_with_itself(batch):
    torch.manual_seed(0)
    features = {"low": [torch.randn(2 * batch, c, 2, 2) for c in (3, 5)], "mid": [torch.randn(2 * batch, 4, 4, 4)]}
    found = grouped(fold_guidance(features))
    for b in range(batch):
        first, second = features["low"]
        wanted = torch.cat([first[b], first[batch + b], second[b], second[batch + b]])
        assert torch.equal(found["low"][b], wanted)
        assert torch.equal(found["mid"][b], torch.cat([features["mid"][0][b], features["mid"][0][batch + b]]))
    official = features["low"][0].reshape(batch, 6, 2, 2)
    assert torch.equal(official, found["low"][:, :6]) == (batch == 1), "right for one picture, wrong for more"


def test_pictures_do_not_depend_on_their_batch(unet):
    """Dossier, ambiguity 7: the features of a picture in a batch are those it has alone."""
    torch.manual_seed(2)
    latents, without, text = torch.randn(3, 4, 16, 16), torch.randn(1, 5, 64), torch.randn(3, 5, 64)

    def of(rows):
        with torch.no_grad(), Taps(unet) as features:
            unet(latents[rows].repeat(2, 1, 1, 1), 81, torch.cat([without.expand(len(rows), -1, -1), text[rows]]))
        return grouped(fold_guidance(features))

    together, alone = of([0, 1, 2]), [of([k]) for k in range(3)]
    for group in GROUPS:
        assert torch.allclose(together[group], torch.cat([a[group] for a in alone]), atol=1e-4)


def test_gradients_flow_only_if_asked(unet):
    with Taps(unet, keep_grad=True) as kept:
        call(unet)
    with Taps(unet) as detached:
        call(unet)
    assert not any(t.requires_grad for tensors in detached.values() for t in tensors)
    sum(t.square().mean() for tensors in kept.values() for t in tensors).backward()
    assert unet.conv_in.weight.grad.abs().sum() > 0 and unet.up_blocks[3].attentions[2].proj_out.weight.grad is not None
    unet.zero_grad(set_to_none=True)


def test_hooks_are_gone_afterwards_also_after_an_error(unet):
    before = hooks(unet)
    taps = Taps(unet)
    with torch.no_grad(), taps as first:
        assert hooks(unet) == before + len(TAPS)
        answer = call(unet, return_dict=False)
    assert hooks(unet) == before and isinstance(answer, tuple)
    with pytest.raises(ZeroDivisionError), taps:
        raise ZeroDivisionError
    assert hooks(unet) == before
    with torch.no_grad(), taps as second:
        call(unet)
    assert taps.features is second is not first and len(first["low"]) == 6, "armed again, with lists of its own"


def test_one_call_belongs_to_the_taps(unet):
    before = hooks(unet)
    with pytest.raises(RuntimeError, match="0 of 25 .* not called"), Taps(unet):
        pass
    with pytest.raises(RuntimeError, match="second time"), torch.no_grad(), Taps(unet):
        call(unet)
        call(unet)
    with pytest.raises(RuntimeError, match="1 of 25 .* went around"), torch.no_grad(), Taps(unet):
        unet.conv_in(torch.zeros(1, 4, 16, 16))
    taps = Taps(unet)
    with pytest.raises(RuntimeError, match="armed already"), taps, taps:
        pass
    assert hooks(unet) == before


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(layers_per_block=1), "has no module down_blocks.0.attentions.1"),
        (dict(layers_per_block=3), "has a module down_blocks.0.resnets.2"),
        (
            dict(
                block_out_channels=[32, 48, 64],
                down_block_types=["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
                up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2,
            ),
            "has no module down_blocks.2.attentions.0",
        ),
        (dict(down_block_types=["CrossAttnDownBlock2D"] * 4), "has a module down_blocks.3.attentions"),
    ],
)
def test_another_layout_is_refused_by_name(changes, match):
    with pytest.raises(ValueError, match=match) as error:
        Taps(build(**changes))
    assert "layers_per_block=2" in str(error.value)


def test_features_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="'low' must be .*guidance"):
        fold_guidance({"low": [torch.zeros(3, 2, 1, 1)]})
    with pytest.raises(ValueError, match="'mid' must agree"):
        grouped({"mid": [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 8, 8)]})
    with pytest.raises(ValueError, match="'mid' must agree"):
        grouped({"mid": []})
