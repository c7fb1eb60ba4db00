"""Paper size: the dry run's path on small configurations, the real ones by shape alone, the arithmetic by hand."""

import grounded_toys as toys
import pytest
import torch

from fmseg import grounded_full as full
from fmseg.grounding import GroundingHead, feature_channels
from fmseg.oracle import Instance


def test_one_picture_goes_through_every_phase():
    pipe = full.random_pipeline(toys.SMALL, toys.AUTOENCODER, toys.TEXT)
    head = GroundingHead.for_unet(pipe.unet.config, widths=(2, 2, 2, 2), dim=8, heads=2, layers=1, hidden=8)
    seen = []

    def oracle(image):
        seen.append(image.shape)
        mask = torch.zeros(64, 64, dtype=torch.bool)
        mask[10:30, 10:30] = True
        return [Instance(0, 0.9, mask.numpy())]

    found = full.one_picture(pipe, ("striped star", "plain disc"), steps=3, oracle=oracle, head=head)
    assert seen == [(64, 64, 3)] and set(found["seconds"]) == {"step", "decode", "oracle", "forward", "backward"}
    assert all(s >= 0 for s in found["seconds"].values()) and found["loss"] > 0
    assert found["features"] == 2 * sum(
        n * side**2 for n, side in zip(feature_channels(toys.SMALL).values(), (2, 4, 8, 16), strict=True)
    )
    assert all(p.grad is not None for p in head.squeeze.parameters())
    assert all(p.grad is None for p in pipe.unet.parameters())
    assert "not kept" in full.report(found, "this machine")
    with pytest.raises(ValueError, match="`steps` must be at least 2"):
        full.one_picture(pipe, ("striped star",), steps=1, head=head)


def test_the_configurations_are_stable_diffusion_s():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(full.UNET_14), AutoencoderKL.from_config(full.VAE_14)
        text = CLIPTextModel(CLIPTextConfig(**full.TEXT_14))
    counts = [sum(p.numel() for p in part.parameters()) for part in (unet, vae, text)]
    assert counts == [859_520_964, 83_653_863, 123_060_480]  # as the published weights have
    assert feature_channels(full.UNET_14) == {"low": 15360, "mid": 14080, "high": 8320, "highest": 5120}


def test_the_forecast_is_arithmetic():
    seconds = {"step": 2.0, "decode": 1.0, "oracle": 0.5, "forward": 0.25, "backward": 0.25}
    found = full.forecast({"seconds": seconds})
    assert found["a head's training on voc, 5000 pictures"] == 5000 * 102
    assert found["the synthetic set for coco, 110000 pairs"] == 110_000 * 101.25
    assert full.forecast({"seconds": seconds}, 8)["all 3 heads on coco"] == 3 * 5000 * 102 / 8
