"""The autoencoder's training leaves what Stable Diffusion's first stage is: weights, and the scale of its latents."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fmseg.convnet  # noqa: F401  registers the trunk
from fmseg import zoo_vae
from fmseg.clip import preprocess
from fmseg.datasets import draw_set
from fmseg.zoo_configs import CLIP
from fmseg.zoo_data import WebImages
from fmseg.zoo_run import Run

ROOT = Path(__file__).parent.parent


def untrained_clip():
    from open_clip.model import CLIP as Model

    torch.manual_seed(0)
    return SimpleNamespace(model=Model(**CLIP).eval())


def test_the_latents_of_what_was_saved_have_unit_deviation(tmp_path, monkeypatch):
    """diffusers resets what a configuration file calls a default, scaling factor included; 0.18215 is SD's."""
    from diffusers import AutoencoderKL

    drawn = draw_set("web", "train", 400)
    pictures = WebImages(drawn.images, drawn.captions)
    monkeypatch.setattr(Run, "web", lambda self: pictures)
    monkeypatch.setattr(Run, "icons", lambda self: pictures.first(100))
    run = Run("vae", "smoke", ROOT, tmp_path, "fmseg.zoo_vae", "no hash", progress=False)
    monkeypatch.setattr(zoo_vae, "load_clip", lambda folder: untrained_clip())
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


def test_the_distance_of_features_by_hand():
    """Two stages, their features of length 1 at every position; the pictures normalised as the CLIP's own."""
    drawn = draw_set("icon", "train", 4)
    clip = untrained_clip().model
    made, trunk = [], clip.visual.trunk
    handles = [stage.register_forward_hook(lambda m, i, o: made.append(o)) for stage in trunk.stages]
    with torch.no_grad():
        trunk.forward_features(preprocess(drawn.images))
    for handle in handles:
        handle.remove()
    expected = 0.0
    for stage in made:
        a, b = ((x / x.norm(dim=1, keepdim=True)).double() for x in (stage[:2], stage[2:]))
        expected += float(sum((a - b).square()[i, :, y, x].sum() for i in range(2) for y in range(a.shape[2])
                              for x in range(a.shape[3])) / (2 * a.shape[2] * a.shape[3]))  # fmt: skip
    features = zoo_vae.Features(clip)
    x = zoo_vae.pixels(drawn.images)
    assert len(made) == 2 and features(x[:2], x[2:]).item() == pytest.approx(expected, rel=1e-4)
    assert features(x, x).item() == 0


def test_features_teach_the_picture_and_not_the_network():
    features = zoo_vae.Features(untrained_clip().model)
    found = torch.zeros(2, 3, 64, 64, requires_grad=True)
    features(found, torch.ones(2, 3, 64, 64)).backward()
    assert found.grad.abs().max() > 0 and all(p.grad is None for p in features.parameters())
    assert not features.trunk.training
