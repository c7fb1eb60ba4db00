"""What backbones are trained on: CLIP's dense features, whitened, cached, and the pupil that has to say them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fmseg import zoo_backbones
from fmseg.clip import preprocess
from fmseg.segmenter_configs import CONFIGS
from fmseg.zoo_backbones import DEPTH, Pupil, dense_directions, dense_targets


def test_directions_whiten_the_cells_they_come_from():
    torch.manual_seed(0)
    features = torch.randn(20, 40, 6, 5) * torch.linspace(0.1, 5, 40).view(1, -1, 1, 1) + 3
    mean, directions = dense_directions(features)
    cells = (features.permute(0, 2, 3, 1).reshape(-1, 40) - mean) @ directions
    torch.testing.assert_close(torch.cov(cells.T), torch.eye(DEPTH), atol=1e-3, rtol=0)
    assert cells.mean(0).abs().max() < 1e-4
    strongest = directions[:, 0].abs().argmax()
    assert directions[strongest, 0] > 0, "the sign of a direction is fixed"


@pytest.fixture
def clip(monkeypatch):
    """A CLIP whose dense features are the mean colours of squares of four pixels, repeated with weights."""
    mixture = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))

    def features(tower, images):
        return torch.einsum("dc,bchw->bdhw", mixture, torch.nn.functional.avg_pool2d(images, 4)).tanh()

    monkeypatch.setattr(zoo_backbones, "dense_features", features)
    monkeypatch.setattr(zoo_backbones, "dilated", lambda tower, by: tower)
    monkeypatch.setattr(zoo_backbones, "_CHUNK", 30)
    return SimpleNamespace(model=SimpleNamespace(visual=None), preprocess=preprocess)


def test_targets_are_kept_and_a_killed_run_goes_on(tmp_path, clip):
    images = np.random.default_rng(0).integers(0, 256, (70, 64, 64, 3), dtype=np.uint8)
    whole = dense_targets(tmp_path / "a", clip, images, images[:9])
    assert [part.shape for part in whole] == [(30, DEPTH, 16, 16), (30, DEPTH, 16, 16), (10, DEPTH, 16, 16)]
    for path in sorted((tmp_path / "a").glob("*.npy"))[1:]:
        path.unlink()
    again = dense_targets(tmp_path / "a", clip, images, images[:9])
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not list((tmp_path / "a").glob("*.part*"))


@pytest.mark.parametrize("method", CONFIGS)
def test_a_pupil_says_words_and_places_and_learns_both(method):
    torch.manual_seed(0)
    pupil = Pupil(method, seed=0)
    images = torch.rand(4, 3, 64, 64) * 255
    words, places = pupil(images)
    assert words.shape == (4, 126) and places.shape == (4, DEPTH, 16, 16)
    (words.square().mean() + places.square().mean()).backward()
    silent = [name for name, p in pupil.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    unused = ("bias", "cls_token")  # biases before a norm; mmsegmentation keeps a class token that nobody asks
    assert not [name for name in silent if not name.endswith(unused)], "all of the backbone learns"
