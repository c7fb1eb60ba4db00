"""The network in whose eyes the U-Net's pictures are judged: what it says, and that it is not taught by it."""

import numpy as np
import torch

from fmseg.fitting import Recipe
from fmseg.zoo_backbones import DEPTH, targets_of
from fmseg.zoo_run import Run
from fmseg.zoo_sight import Sight, teach
from fmseg.zoo_vae import feature_distance


def test_it_says_words_and_places():
    torch.manual_seed(0)
    sight = Sight()
    words, places = sight(torch.randn(3, 4, 16, 16))
    assert words.shape == (3, 126) and places.shape == (3, DEPTH, 16, 16)
    assert [tuple(m.shape[1:]) for m in sight.maps(torch.randn(2, 4, 16, 16))] == [
        (64, 16, 16),
        (96, 8, 8),
        (128, 4, 4),
    ]


def test_the_distance_grows_with_what_is_wrong_and_teaches_the_picture_alone():
    torch.manual_seed(0)
    sight, clean = Sight().requires_grad_(False), torch.randn(4, 4, 16, 16)
    far = [feature_distance(sight.maps(clean + s * torch.randn(4, 4, 16, 16)), sight.maps(clean)) for s in (0, 0.2, 1)]
    assert far[0] == 0 < far[1] < far[2] <= 12
    found = torch.randn(4, 4, 16, 16, requires_grad=True)
    feature_distance(sight.maps(found), sight.maps(clean)).backward()
    assert found.grad.abs().sum() > 0 and all(p.grad is None for p in sight.parameters())


def test_it_is_taught_names_and_places_and_taken_up_again(tmp_path, monkeypatch):
    """Latents whose mean says the word, and whose target is a copy of their first number."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(40, 4, 16, 16)).astype(np.float32)
    first = np.repeat(latents[:, :1], DEPTH, 1).astype(np.float16)
    named = {
        kind: torch.zeros(40, n, dtype=torch.bool)
        for kind, n in (("pattern", 6), ("shape", 16), ("ground", 8), ("thing", 96))
    }
    monkeypatch.setattr(Run, "params", {"diffusion": {}, "diffusion-sight": {}, "web": 40})
    run = Run("diffusion", "full", tmp_path, tmp_path, "fmseg.zoo_diffusion", "code", progress=False)
    recipe = Recipe(steps=30, batch_size=8, lr=0.02)
    losses = []

    def chosen(step):
        losses.append(step)
        return np.arange(8) + step % 32

    sight = teach(run, recipe, latents, [first], named, chosen)
    with torch.no_grad():
        wrong = (sight(torch.from_numpy(latents))[1] - targets_of([first], np.arange(40))).square().mean()
    assert wrong < 0.5, "a variance of 1 was there to explain"
    assert len(losses) == 30 and not any(p.requires_grad for p in sight.parameters())
    again = teach(run, recipe, latents, [first], named, chosen)
    assert len(losses) == 30, "taken up where it was: done"
    torch.testing.assert_close(again.state_dict(), sight.state_dict())
