"""Reading segmenters, growing them, heads beside them: nothing that was known may change."""

import pytest
import torch
from torch.testing import assert_close

from fmseg.distill import unbiased_distillation
from fmseg.segmenters import build
from fmseg.step_models import Head, Step, Warm, begin_rare, generator_of_step, grow, localizer_of, read


@pytest.fixture(scope="module")
def segmenter():
    return build("deeplabv3", num_classes=5, seed=3).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_reading_ends_at_the_scores_and_shows_what_lies_before(segmenter, images):
    found = read(segmenter, images, stages=True)
    assert torch.equal(found.grid, segmenter.grid_logits(images))
    assert torch.equal(found.grid, segmenter.model.decode_head.conv_seg(found.embedding))
    assert torch.equal(found.stages[-1], found.encoder) and len(found.stages) == 3
    assert not read(segmenter, images).stages, "hooks are gone"


def test_a_grown_segmenter_scores_old_classes_as_before(segmenter, images):
    more = grow(segmenter, 3, seed=1)
    assert more.num_classes == 8 and segmenter.num_classes == 5
    # not to the bit: for another number of channels a processor may add in another order
    assert_close(read(more, images).grid[:, :5], read(segmenter, images).grid, rtol=0, atol=1e-6)
    assert torch.equal(grow(segmenter, 3, seed=1).model.decode_head.conv_seg.weight,
                       more.model.decode_head.conv_seg.weight)  # fmt: skip
    other = grow(segmenter, 3, seed=2).model.decode_head.conv_seg.weight
    assert torch.equal(other[:5], more.model.decode_head.conv_seg.weight[:5])
    assert not torch.equal(other[5:], more.model.decode_head.conv_seg.weight[5:])
    more.model.decode_head.conv_seg.weight.data.zero_()
    assert read(segmenter, images).grid.abs().sum() > 0, "the copy shares nothing"


def test_a_balanced_start_leaves_old_opinions_alone(segmenter, images):
    logits, old = (read(m, images).grid for m in (grow(segmenter, 3, seed=1, balanced=True), segmenter))
    p, q = logits.softmax(1), old.softmax(1)
    assert torch.allclose(p[:, 1:5], q[:, 1:5], atol=1e-6)
    assert torch.allclose(p[:, :1] + p[:, 5:].sum(1, keepdim=True), q[:, :1], atol=1e-6)
    at_rest = -(q * q.log()).mean()
    assert torch.allclose(unbiased_distillation(logits, old), at_rest, atol=1e-5)


def test_new_classes_can_begin_rare_and_nothing_else_changes(segmenter, images):
    plain, rare = grow(segmenter, 3, seed=1), grow(segmenter, 3, seed=1, prior=0.01)
    assert_close(read(rare, images).grid[:, :5], read(segmenter, images).grid, rtol=0, atol=1e-6)
    assert (
        read(rare, images).grid[:, 5:].sigmoid().mean() < 0.05 < 0.3 < read(plain, images).grid[:, 5:].sigmoid().mean()
    )
    assert torch.equal(*(m.model.decode_head.conv_seg.weight for m in (plain, rare)))
    teacher = Head(segmenter, 9, seed=4, prior=0.01).layers.conv_seg.bias.sigmoid()
    assert torch.allclose(teacher, torch.tensor([0.92, *[0.01] * 8]))
    with pytest.raises(ValueError, match="`balanced` and `prior` exclude each other"):
        grow(segmenter, 3, seed=1, balanced=True, prior=0.01)
    copied = Head(segmenter, 9, seed=4, prior=0.01, copied=True)
    scores, embedding = copied(read(segmenter, images).encoder)
    assert_close(scores[:, :5], read(segmenter, images).grid, rtol=0, atol=1e-6)
    assert scores[:, 5:].sigmoid().mean() < 0.05
    assert torch.equal(embedding, read(segmenter, images).embedding)
    fresh = build("deeplabv3", num_classes=5, seed=3).eval()
    begin_rare(fresh, 0.01, softmax=True)
    start = read(fresh, images).grid.softmax(1).mean((0, 2, 3))
    assert start[0] > 0.9 and start[1:].max() < 0.03


def test_a_head_is_of_the_same_form_with_weights_of_its_own(segmenter, images):
    encoder = read(segmenter, images).encoder
    scores, embedding = Head(segmenter, 9, seed=4)(encoder)
    assert scores.shape[1] == 9 and embedding.shape == read(segmenter, images).embedding.shape
    assert torch.equal(scores, Head(segmenter, 9, seed=4)(encoder)[0])
    assert not torch.allclose(embedding, read(segmenter, images).embedding)
    assert not torch.allclose(embedding, Head(segmenter, 9, seed=5)(encoder)[1])
    assert localizer_of(segmenter, 9, seed=0)(encoder).shape == scores.shape


def test_the_old_model_stays_frozen_and_out_of_training_mode(segmenter):
    step = Step(grow(segmenter, 2, seed=0), segmenter)
    step.train()
    assert step.student.training and not any(m.training for m in step.old.modules())
    assert not any(p.requires_grad for p in step.old.parameters())
    with pytest.raises(ValueError, match="`student` must know more classes than `old`, 5; got 5"):
        Step(segmenter, segmenter)


def test_only_heads_with_one_classifier_are_known():
    model = build("mask2former", num_classes=3)
    with pytest.raises(TypeError, match="must be DeepLabV3"):
        grow(model, 1, seed=0)


def test_warm_up_ends_at_its_share_of_the_steps():
    model = Warm()
    model.warmup = 0.125
    warm = []
    for step in range(40):
        model.at_step(step, 40)
        warm.append(model.warm)
    assert warm == [True] * 5 + [False] * 35, "5 of 40 epochs"


def test_a_steps_draws_follow_the_global_seed():
    torch.manual_seed(7)
    first = torch.rand(3, generator=generator_of_step())
    torch.manual_seed(7)
    assert torch.equal(first, torch.rand(3, generator=generator_of_step()))
    assert not torch.equal(first, torch.rand(3, generator=generator_of_step()))
