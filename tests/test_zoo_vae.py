"""The autoencoder's training leaves what Stable Diffusion's first stage is: weights, and the scale of its latents."""

from pathlib import Path

import pytest
import torch

from fmseg import zoo_vae
from fmseg.datasets import draw_set
from fmseg.zoo_data import WebImages
from fmseg.zoo_run import Run

ROOT = Path(__file__).parent.parent


def test_the_latents_of_what_was_saved_have_unit_deviation(tmp_path, monkeypatch):
    """diffusers resets what a configuration file calls a default, scaling factor included; 0.18215 is SD's."""
    from diffusers import AutoencoderKL

    drawn = draw_set("web", "train", 400)
    monkeypatch.setattr(Run, "web", lambda self: WebImages(drawn.images, drawn.captions))
    run = Run("vae", "smoke", ROOT, tmp_path, "fmseg.zoo_vae", "no hash", progress=False)
    zoo_vae.train(run)
    vae = AutoencoderKL.from_pretrained(run.folder() / "vae", torch_dtype=torch.float32)
    with torch.no_grad():
        means = vae.encode(zoo_vae.pixels(drawn.images)).latent_dist.mean
    assert means.std().item() * vae.config.scaling_factor == pytest.approx(1, abs=0.05)
    assert vae.config.scaling_factor != 0.18215
