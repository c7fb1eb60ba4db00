"""MiB's balanced start of new classes: by properties, and against the official code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg.distill import balanced_classifier, unbiased_distillation

FIXTURE = Path(__file__).parent / "fixtures/distill.npz"


def random(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
def test_new_classes_share_the_background_equally(old, new, seed):
    generator = torch.Generator().manual_seed(seed)
    weight, bias, x = random(generator, old, 6), random(generator, old), random(generator, 6, 10)
    before = (weight @ x + bias[:, None]).softmax(0)
    grown, shifted = balanced_classifier(weight, bias, new)
    after = (grown @ x + shifted[:, None]).softmax(0)
    torch.testing.assert_close(after[1:old], before[1:])
    for c in (0, *range(old, old + new)):
        torch.testing.assert_close(after[c], before[0] / (new + 1))


def test_the_balanced_start_makes_unbiased_distillation_optimal():
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = random(generator, 3, 6), random(generator, 3), random(generator, 6, 2, 1, 4)
    grown, shifted = balanced_classifier(weight, bias, 2)

    def scores(w, b):
        return torch.einsum("cd,dbhw->bchw", w, x) + b[:, None, None]

    new, old = scores(grown, shifted).requires_grad_(), scores(weight, bias)
    (gradient,) = torch.autograd.grad(unbiased_distillation(new, old), new)
    assert gradient.abs().max() < 1e-12


def test_the_balanced_start_copies():
    layer = torch.nn.Conv2d(4, 3, 1)
    kept = layer.weight.clone(), layer.bias.clone()
    weight, bias = balanced_classifier(layer.weight, layer.bias, 2)
    assert weight.shape == (5, 4, 1, 1) and not weight.requires_grad and not bias.requires_grad
    weight.zero_(), bias.zero_()
    assert torch.equal(layer.weight, kept[0]) and torch.equal(layer.bias, kept[1])


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"`weight` must be \(K, D, ...\) and `bias` \(K,\).*\(3, 4\) and \(4,\)"):
        balanced_classifier(torch.zeros(3, 4), torch.zeros(4), 2)
    with pytest.raises(ValueError, match="`new_classes` must be an integer >= 1; got 0"):
        balanced_classifier(torch.zeros(3, 4), torch.zeros(3), 0)


def test_equals_the_official_start_of_a_third_step():
    r = {name: torch.from_numpy(value) for name, value in np.load(FIXTURE).items()}
    weight, bias = balanced_classifier(r["cls/weight"], r["cls/bias"], 3)
    assert torch.equal(weight, r["cls/weight_after"])
    torch.testing.assert_close(bias, r["cls/bias_after"], rtol=0, atol=1e-6)
