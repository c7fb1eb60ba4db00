"""The dense contrastive loss: by hand, by loops, against ContrastiveSeg's own numbers, and what is drawn for it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import Largest

from fmseg.contrast import contrast, dense_contrast, sample_points

FIXTURE = Path(__file__).parent / "fixtures" / "contrast.npz"
CASES = ("groups", "warm", "cold", "one_class", "pairs")
few = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def fixed(seed=0):
    return torch.Generator().manual_seed(seed)


def fixture(case):
    with np.load(FIXTURE) as stored:
        return {k.split("/")[1]: torch.from_numpy(stored[k]) for k in stored.files if k.startswith(f"{case}/")}


def by_loops(embeddings, labels, temperature=0.1):
    """Eq. 7 word by word, in Python's floats; embeddings as they come."""
    rows, labels, losses = embeddings.tolist(), labels.tolist(), []

    def kernel(a, b):
        return math.exp(sum(x * y for x, y in zip(rows[a], rows[b], strict=True)) / temperature)

    for i in range(len(rows)):
        positives = [j for j in range(len(rows)) if j != i and labels[j] == labels[i]]
        against = sum(kernel(i, j) for j in range(len(rows)) if labels[j] != labels[i])
        if positives:
            terms = [math.log(kernel(i, j) / (kernel(i, j) + against)) for j in positives]
            losses.append(-sum(terms) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


@st.composite
def points(draw):
    generator = fixed(draw(st.integers(0, 10**6)))
    count, width, classes = draw(st.integers(0, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    embeddings = torch.randn(count, width, generator=generator, dtype=torch.float64)
    embeddings = torch.nn.functional.normalize(embeddings, dim=1)
    return embeddings, torch.randint(0, classes, (count,), generator=generator), draw(st.sampled_from([0.1, 0.5, 2.0]))


# -- the loss on points ---------------------------------------------------------------------------------------------


def test_two_classes_by_hand():
    """Positives coincide (cosine 1), negatives are orthogonal (cosine 0): each term is -log(e^10 / (e^10 + 2))."""
    embeddings, labels = torch.eye(2).repeat_interleave(2, 0), torch.tensor([4, 4, 9, 9])
    assert contrast(embeddings, labels).item() == pytest.approx(math.log1p(2 * math.exp(-10)), rel=1e-4)
    swapped = contrast(embeddings, torch.tensor([4, 9, 4, 9]))  # positives orthogonal, one negative coincides
    assert swapped.item() == pytest.approx(math.log1p(1 + math.exp(10)), rel=1e-6)


@few
@given(points())
def test_equals_the_equation_by_loops(case):
    embeddings, labels, temperature = case
    ours = contrast(embeddings, labels, temperature=temperature, normalise=False)
    assert ours.item() == pytest.approx(by_loops(embeddings, labels, temperature), rel=1e-9, abs=1e-12)


@few
@given(points(), st.integers(0, 1000))
def test_neither_the_order_of_points_nor_the_names_of_classes_matter(case, seed):
    embeddings, labels, temperature = case
    order, names = torch.randperm(len(labels), generator=fixed(seed)), torch.tensor([40, 7, 100, 0])
    expected = contrast(embeddings, labels, temperature=temperature)
    torch.testing.assert_close(contrast(embeddings[order], names[labels[order]], temperature=temperature), expected)


@pytest.mark.parametrize("case", CASES)
def test_equals_contrastiveseg_on_recorded_inputs(case):
    """fixtures/contrast.md says where from."""
    stored = fixture(case)
    views, temperature = stored["features"].shape[1], stored["temperature"].item()
    given_ = stored["features"].requires_grad_()
    ours = contrast(given_.flatten(0, 1), stored["labels"].repeat_interleave(views), temperature=temperature,
                    normalise=False)  # fmt: skip
    ours.backward()
    torch.testing.assert_close(ours.detach(), stored["loss"], atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(given_.grad, stored["gradient"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_is_supcon_only_where_each_anchor_has_one_positive(case):
    stored = fixture(case)
    labels = stored["labels"].repeat_interleave(stored["features"].shape[1])
    ours = contrast(stored["features"].flatten(0, 1), labels, temperature=stored["temperature"].item())
    assert abs(ours - stored["supcon"]).item() < 1e-5 if case == "pairs" else (stored["supcon"] - ours).item() > 0.1


def test_an_anchor_without_positives_counts_as_a_negative_alone():
    embeddings, labels = torch.randn(5, 3).double(), torch.tensor([0, 0, 1, 1, 2])
    units = torch.nn.functional.normalize(embeddings, dim=1)
    ours = contrast(embeddings, labels).item()
    assert ours == pytest.approx(by_loops(units, labels))
    without = contrast(embeddings[:4], labels[:4]).item()
    assert without == pytest.approx(by_loops(units[:4], labels[:4])) and without < ours


def test_ignored_points_are_neither_anchors_nor_positives_nor_negatives():
    embeddings, labels = torch.randn(7, 4), torch.tensor([255, 0, 1, 255, 0, 1, 1])
    kept = labels != 255
    assert torch.equal(contrast(embeddings, labels), contrast(embeddings[kept], labels[kept]))
    assert contrast(embeddings, labels, ignore_index=9) > contrast(embeddings, labels)  # 255 is a class then


@pytest.mark.parametrize(
    "labels", [[], [3], [0, 1, 2, 3], [255, 255, 255], [255, 0], [5, 5, 5]],
    ids=["no points", "one", "no positives", "ignored", "one counts", "no negatives"],
)  # fmt: skip
def test_nothing_to_tell_apart_costs_nothing_and_moves_nothing(labels):
    """A zero that hangs on the graph: the gradient is zero, neither None nor NaN."""
    embeddings = torch.randn(len(labels), 4, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):
        loss = contrast(embeddings, torch.tensor(labels, dtype=torch.int64))
        loss.backward()
    assert loss.item() == 0.0 and loss.shape == ()
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize("normalise", [True, False])
def test_gradient_is_the_derivative(normalise):
    embeddings = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 255])  # with a lone anchor and an ignored point
    assert torch.autograd.gradcheck(lambda e: contrast(e, labels, temperature=0.3, normalise=normalise), (embeddings,))


def test_lengths_count_only_when_asked_for():
    embeddings, labels = torch.randn(6, 4).double(), torch.tensor([0, 0, 1, 1, 2, 2])
    stretched = embeddings * torch.tensor([1.0, 3, 0.2, 7, 1, 2])[:, None]
    torch.testing.assert_close(contrast(stretched, labels), contrast(embeddings, labels))
    raw = contrast(stretched, labels, normalise=False).item()
    assert raw == pytest.approx(by_loops(stretched, labels)) and raw != pytest.approx(
        contrast(stretched, labels).item()
    )


@pytest.mark.parametrize("temperature", [1e-4, 0.005, 1e4])
def test_small_and_large_temperatures_stay_exact(temperature):
    """At 0.005 the official code is NaN. Cold: the loss is that of the strongest negative, by hand."""
    embeddings = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8], [-1, 0]], requires_grad=True)
    loss = contrast(embeddings, torch.tensor([0, 0, 1, 1]), temperature=temperature)
    loss.backward()
    assert torch.isfinite(embeddings.grad).all()
    gaps = torch.tensor([0.6 - 0.0, 0.8 - 0.0, 0.8 + 0.6, 0.0 + 0.6])  # strongest negative - positive, an anchor
    expected = (gaps / temperature).mean().item() if temperature < 1 else math.log(3)
    assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_zero_vectors_and_half_precision():
    embeddings = torch.cat([torch.zeros(1, 4), torch.randn(5, 4)]).requires_grad_()
    contrast(embeddings, torch.tensor([0, 0, 1, 1, 2, 2])).backward()
    assert torch.isfinite(embeddings.grad).all()
    labels, embeddings = torch.arange(8) // 2, torch.randn(8, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = contrast(embeddings, labels)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, contrast(embeddings.float(), labels))


def test_errors_on_points():
    embeddings, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    for wrong in (0, -0.1, float("nan"), float("inf"), "warm", True):
        with pytest.raises(ValueError, match=r"`temperature` must be a number > 0; got"):
            contrast(embeddings, labels, temperature=wrong)
    with pytest.raises(ValueError, match=r"`embeddings` must be \(A, D\) floats, .*; got \(1, 4, 3\)"):
        contrast(embeddings[None], labels)
    with pytest.raises(ValueError, match="got .* of torch.int64"):
        contrast(embeddings.long(), labels)
    with pytest.raises(ValueError, match=r"`labels` must be \(A,\) = \(4,\), .*; got \(3,\)"):
        contrast(embeddings, labels[:3])
    with pytest.raises(TypeError, match=r"int64 class ids; got torch.int32. labels.long\(\)"):
        contrast(embeddings, labels.int())
    with pytest.raises(ValueError, match=r">= 0 or 255 \(ignored\); found -1 at \[2\]"):
        contrast(embeddings, torch.tensor([0, 0, -1, 1]))
    contrast(embeddings, torch.tensor([0, 0, -1, 1]), ignore_index=-1)
    for bad in (float("nan"), float("inf")):
        embeddings[2, 1] = bad
        with pytest.raises(ValueError, match=rf"`embeddings` must be finite; found {bad} at \[2, 1\]. Has training"):
            contrast(embeddings, labels)


# -- what is drawn --------------------------------------------------------------------------------------------------


@few
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 12))
def test_each_class_gives_so_many_points_or_all_it_has(seed, batch, h, w, count):
    labels = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (batch, h, w), generator=fixed(seed))]
    drawn = sample_points(labels, count, fixed(seed))
    ids = labels.flatten()[drawn].tolist()
    assert len(set(drawn.tolist())) == len(drawn) and ids == sorted(ids)
    for c in (0, 1, 2):
        assert ids.count(c) == min(count, int((labels == c).sum()))
    assert 255 not in ids
    assert torch.equal(drawn, sample_points(labels, count, fixed(seed)))


def test_points_are_drawn_uniformly_over_the_whole_mini_batch():
    """4 of 10 pixels of one class, 6 in the first image and 4 in the second: each is drawn two times in five."""
    labels = torch.tensor([[[1, 1, 1, 1, 1, 1]], [[1, 1, 1, 1, 255, 0]]])
    generator, rounds, seen = fixed(), 3000, torch.zeros(12)
    for _ in range(rounds):
        seen[sample_points(labels, 4, generator)[1:]] += 1  # the first is the lone pixel of class 0
    spread = (rounds * 0.4 * 0.6) ** 0.5
    assert ((seen[:10] - 0.4 * rounds).abs() < 5 * spread).all() and (seen[10:] == 0).all()


def test_another_draw_draws_others():
    labels, generator = torch.zeros(2, 8, 8, dtype=torch.int64), fixed()
    first, second = (sample_points(labels, 10, generator) for _ in range(2))
    assert not torch.equal(first, second) and len(sample_points(labels[:0], 10, generator)) == 0


def test_errors_of_the_draw():
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match=f"`points` must be an integer >= 1, the number a class; got {wrong}"):
            sample_points(labels, wrong, fixed())
    with pytest.raises(TypeError, match="`generator` must be a torch.Generator; got int"):
        sample_points(labels, 1, 0)
    with pytest.raises(ValueError, match=r"\(B, h, w\); got \(2, 2\)"):
        sample_points(labels[0], 1, fixed())
    with pytest.raises(TypeError, match="int64 class ids; got torch.uint8"):
        sample_points(labels.byte(), 1, fixed())
    labels[0, 1, 0] = 21
    with pytest.raises(ValueError, match=r"ids in \[0, 21\) or 255 .*; found 21 at \[0, 1, 0\]"):
        sample_points(labels, 1, fixed(), num_classes=21)
    labels[0, 0, 1] = -2
    with pytest.raises(ValueError, match=r"found -2 at \[0, 0, 1\]"):
        sample_points(labels, 1, fixed())


# -- both together --------------------------------------------------------------------------------------------------


def batch(classes=4, shape=(3, 4, 5), width=6, dtype=torch.float64):
    labels = torch.randint(0, classes, shape)
    labels[torch.rand(shape) < 0.2] = 255
    return torch.randn(shape[0], width, *shape[1:], dtype=dtype), labels


def test_dense_is_the_loss_of_the_points_drawn():
    features, labels = batch()
    ours = dense_contrast(features, labels, fixed(3), points=5, temperature=0.2)
    rows, ids = [], []
    for at in sample_points(labels, 5, fixed(3)).tolist():
        b, i, j = at // 20, at % 20 // 5, at % 5
        rows.append(features[b, :, i, j] / features[b, :, i, j].norm())
        ids.append(labels[b, i, j])
    assert ours.item() == pytest.approx(by_loops(torch.stack(rows), torch.stack(ids), 0.2))


def test_with_all_points_drawn_neither_images_nor_places_nor_layout_matter():
    features, labels = batch()
    every = dict(points=1000, generator=fixed())
    expected = dense_contrast(features, labels, **every)
    order = torch.tensor([2, 0, 1])
    for same in (
        dense_contrast(features[order], labels[order], **every),
        dense_contrast(features.flip(3), labels.flip(2), **every),
        dense_contrast(features.mT, labels.mT, **every),
        dense_contrast(features.contiguous(memory_format=torch.channels_last), labels, **every),
    ):
        torch.testing.assert_close(same, expected)


def test_dense_gradient_is_the_derivative_and_reaches_the_points_drawn_alone():
    features, labels = batch(classes=2, shape=(2, 3, 3), width=3)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: dense_contrast(f, labels, fixed(), points=2), (features,))
    dense_contrast(features, labels, fixed(), points=2).backward()
    moved = (features.grad != 0).any(1).flatten().nonzero()[:, 0]
    assert set(moved.tolist()) == set(sample_points(labels, 2, fixed()).tolist())


@pytest.mark.parametrize("label", [0, 255])
def test_a_batch_of_one_class_or_none_costs_nothing_and_moves_nothing(label):
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = dense_contrast(features, torch.full((2, 3, 3), label), fixed())
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(features.grad, torch.zeros_like(features))


def test_a_step_downhill_brings_classes_together():
    features, labels = batch(classes=3)
    features.requires_grad_()
    loss = dense_contrast(features, labels, fixed(), points=50)
    (gradient,) = torch.autograd.grad(loss, features)
    assert dense_contrast(features - 0.1 * gradient, labels, fixed(), points=50) < loss


def test_memory_grows_with_points_not_with_pixels():
    """Of 24 maps of 32x32 the pixel-by-pixel similarities alone would be 2.4 GB."""
    features, labels = batch(classes=21, shape=(24, 32, 32), width=256, dtype=torch.float32)
    features.requires_grad_()
    with Largest() as forward:
        loss = dense_contrast(features, labels, fixed())
    assert forward.bytes <= 210 * 256 * 4, "the points drawn"
    with Largest() as backward:
        loss.backward()
    assert backward.bytes == features.numel() * 4, "the gradient of the maps"


def test_errors_of_the_dense_loss():
    features, labels = batch(shape=(2, 3, 4))
    with pytest.raises(ValueError, match=r"`features` must be \(B, D, h, w\) floats; got \(6, 3, 4\)"):
        dense_contrast(features[0], labels, fixed())
    for wrong in (labels[:1], labels[:, :2], labels.mT):
        with pytest.raises(ValueError, match=r"`labels` must be \(B, h, w\) = \(2, 3, 4\), on the grid of `features`"):
            dense_contrast(features, wrong, fixed())
    with pytest.raises(ValueError, match=r"found 3 at .*"):
        dense_contrast(features, torch.full((2, 3, 4), 3), fixed(), num_classes=3)
    with pytest.raises(ValueError, match="`points`"):
        dense_contrast(features, labels, fixed(), points=0)
    with pytest.raises(ValueError, match="`temperature`"):
        dense_contrast(features, labels, fixed(), temperature=-1)
    features[1, 5, 2, 3], labels[1, 2, 3] = float("nan"), 1
    with pytest.raises(ValueError, match=r"`features` must be finite; found nan at \[1, 5, 2, 3\]"):
        dense_contrast(features, labels, fixed(), points=100)
    labels[1, 2, 3] = 255
    assert torch.isfinite(dense_contrast(features, labels, fixed(), points=100)), "not drawn, not looked at"
    assert dense_contrast(features[:0], labels[:0], fixed()) == 0
