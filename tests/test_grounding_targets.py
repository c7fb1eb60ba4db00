"""What the grounding head learns: masks from an oracle, the loss with its options, one label a pixel."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg.grounding_targets import grounding_loss, label_map, oracle_targets
from fmseg.oracle import Instance

few = settings(max_examples=20, deadline=None)


def instance(label, score, *places):
    mask = np.zeros((2, 3), dtype=bool)
    for at in places:
        mask.flat[at] = True
    return Instance(label, score, mask)


@st.composite
def scenes(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2, 3
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    masks = torch.rand(shape, generator=generator) > 0.5
    return logits, masks, *(torch.rand(shape[:2], generator=generator) > 0.3 for _ in range(2))


def by_loops(logits, masks, detected, present, undetected, average):
    losses = []
    for b in range(len(logits)):
        for o in range(logits.shape[1]):
            if not present[b, o] or (undetected == "skip" and not detected[b, o]):
                continue
            total = 0.0
            for score, m in zip(logits[b, o].flatten().tolist(), masks[b, o].flatten().tolist(), strict=True):
                m, p = m and bool(detected[b, o]), 1 / (1 + math.exp(-score))
                total -= math.log(p if m else 1 - p)
            losses.append(total / logits[0, 0].numel())
    return sum(losses) / (len(logits) if average == "pictures" else max(len(losses), 1))


def test_the_loss_by_hand():
    """Logits 0 cost log 2 whatever the mask; two classes add up, two pictures are averaged."""
    logits, masks = torch.zeros(2, 2, 3, 3), torch.rand(2, 2, 3, 3) > 0.5
    detected = torch.tensor([[True, True], [True, False]])
    assert grounding_loss(logits, masks).item() == pytest.approx(2 * math.log(2))
    assert grounding_loss(logits, masks, detected).item() == pytest.approx(1.5 * math.log(2))
    assert grounding_loss(logits, masks, detected, average="objects").item() == pytest.approx(math.log(2))
    assert grounding_loss(logits, masks, detected, undetected="zero").item() == pytest.approx(2 * math.log(2))


@few
@given(scenes(), st.sampled_from(["skip", "zero"]), st.sampled_from(["pictures", "objects"]))
def test_equals_the_equation_by_loops(scene, undetected, average):
    logits, masks, detected, present = scene
    ours = grounding_loss(logits, masks, detected, present=present, undetected=undetected, average=average)
    assert ours.item() == pytest.approx(by_loops(*scene, undetected, average), rel=1e-9, abs=1e-12)


def test_the_official_sum_at_one_picture():
    """train.py: nn.BCEWithLogitsLoss of each detected class, added up, over batch size 1."""
    torch.manual_seed(0)
    logits, masks = torch.randn(1, 3, 8, 8), torch.rand(1, 3, 8, 8) > 0.5
    detected = torch.tensor([[True, False, True]])
    official = sum(F.binary_cross_entropy_with_logits(logits[:, k], masks[:, k].float()) for k in (0, 2))
    assert grounding_loss(logits, masks, detected).item() == pytest.approx(official.item(), rel=1e-6)


def test_a_zero_mask_teaches_that_nothing_is_there():
    logits = torch.full((1, 2, 2, 2), 3.0, requires_grad=True)
    masks, detected = torch.ones(1, 2, 2, 2), torch.tensor([[True, False]])
    for undetected, push in (("skip", 0.0), ("zero", torch.sigmoid(torch.tensor(3.0)).item() / 4)):
        (gradient,) = torch.autograd.grad(grounding_loss(logits, masks, detected, undetected=undetected), logits)
        assert (gradient[0, 0] < 0).all() and gradient[0, 1, 0, 0].item() == pytest.approx(push)


def test_nothing_detected_costs_nothing_and_moves_nothing():
    logits = torch.full((1, 2, 2, 2), math.nan, requires_grad=True)
    loss = grounding_loss(logits, torch.ones(1, 2, 2, 2), torch.zeros(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_gradient_is_the_derivative():
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    masks, detected = torch.rand(2, 2, 2, 3, dtype=torch.float64), torch.tensor([[True, True], [False, True]])
    for undetected in ("skip", "zero"):
        assert torch.autograd.gradcheck(
            lambda z, u=undetected: grounding_loss(z, masks, detected, undetected=u), logits
        )


def test_loss_errors():
    z, m, d = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), torch.ones(1, 2, dtype=torch.bool)
    for match, args, options in (
        ("must both be .* got .* and \\(1, 2, 4, 3\\). Ask the head for the masks' `size`", (z, m[..., :3]), {}),
        ("`detected` must be bool of \\(B, O\\) = \\(1, 2\\); got \\(2,\\)", (z, m, d[0]), {}),
        ("`present` must be bool .* torch.float32", (z, m, d), {"present": d.float()}),
        ("`masks` must be bool or in \\[0, 1\\]; found 0 to 255", (z, m + 255 * torch.eye(4)), {}),
        ("`logits` must be finite. Has training diverged", (z * math.nan, m), {}),
        ("`undetected` must be 'skip' or 'zero'", (z, m), {"undetected": "empty"}),
        ("`average` must be 'pictures' or 'objects'", (z, m), {"average": "mean"}),
    ):
        with pytest.raises(ValueError, match=match):
            grounding_loss(*args, **options)


def test_the_best_instance_or_all_of_them():
    found = [instance(7, 0.3, 0), instance(7, 0.9, 1, 2), instance(4, 0.5, 5), instance(7, 0.8, 3)]
    masks, detected = oracle_targets(found, [4, 7, 1], (2, 3))
    assert detected.tolist() == [True, True, False]
    assert masks.flatten(1).nonzero().tolist() == [[0, 5], [1, 1], [1, 2]]
    masks, _ = oracle_targets(found, [7], (2, 3), rule="union", least=0.8)
    assert masks.flatten().tolist() == [False, True, True, True, False, False]
    masks, detected = oracle_targets(found, [7, 4], (2, 3), least=0.6)
    assert detected.tolist() == [True, False] and not masks[1].any()
    assert oracle_targets([], [7], (2, 3))[1].tolist() == [False]
    with pytest.raises(ValueError, match="must be of `size`, \\(4, 4\\); got \\(2, 3\\) for class 7"):
        oracle_targets(found, [7], (4, 4))
    with pytest.raises(ValueError, match="`rule` must be 'best' or 'union'"):
        oracle_targets(found, [7], (2, 3), rule="all")


def test_one_label_a_pixel():
    logits = torch.tensor([[[[-1.0, 2.0, 1.0]], [[-2.0, 3.0, 1.0]]]])
    assert label_map(logits, [5, 9]).tolist() == [[[0, 9, 5]]], "background, the higher, of equals the first"
    assert label_map(logits, [5, 9], background=255)[0, 0, 0] == 255
    assert label_map(logits.flip(1), [9, 5]).tolist() == [[[0, 9, 9]]]
    with pytest.raises(ValueError, match="with O = 1, the number of `classes`"):
        label_map(logits, [5])
