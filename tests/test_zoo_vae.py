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
    pictures = WebImages(drawn.images, drawn.captions)
    monkeypatch.setattr(Run, "web", lambda self: pictures)
    monkeypatch.setattr(Run, "icons", lambda self: pictures.first(100))
    run = Run("vae", "smoke", ROOT, tmp_path, "fmseg.zoo_vae", "no hash", progress=False)
    zoo_vae.train(run)
    vae = AutoencoderKL.from_pretrained(run.folder() / "vae", torch_dtype=torch.float32)
    with torch.no_grad():
        means = vae.encode(zoo_vae.pixels(drawn.images)).latent_dist.mean
    assert means.std().item() * vae.config.scaling_factor == pytest.approx(1, abs=0.05)
    assert vae.config.scaling_factor != 0.18215


def test_the_colour_loss_sees_colours_and_no_fine_pattern():
    wanted = torch.zeros(1, 3, 16, 16)
    stripes = torch.ones(16).cumsum(0).remainder(2) * 2 - 1  # +-1, columns in turn
    assert zoo_vae.colour_loss(wanted + stripes, wanted) == 0
    assert zoo_vae.colour_loss(wanted + 0.25, wanted) == pytest.approx(0.5)  # twice: squares of 4 and of 8
    assert zoo_vae.reconstruction_loss(wanted + stripes, wanted) > 1
