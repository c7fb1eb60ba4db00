"""SDR: prototypes and the three losses on features by hand, by loops, by properties, against the official code."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg.sdr import Prototypes, attraction, prototype_matching, repulsion, sparsification

FIXTURE = Path(__file__).parent / "fixtures/sdr.npz"
few = settings(max_examples=15, deadline=None)
CLASSES, OLD, D = 6, 3, 4


@pytest.fixture(scope="module")
def recorded():
    return {k: torch.from_numpy(v) for k, v in np.load(FIXTURE).items()}


@st.composite
def batches(draw):
    """Features, labels of the same grid with background, new classes and ignored pixels, old scores, prototypes."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    b, h, w = (draw(st.integers(1, 3)) for _ in range(3))
    features = torch.rand(b, D, h, w, generator=generator, dtype=torch.float64) + 0.1
    labels = torch.tensor([0, 0, 3, 4, 5, 255])[torch.randint(0, 6, (b, h, w), generator=generator)]
    old_logits = torch.randn(b, OLD, h, w, generator=generator, dtype=torch.float64)
    return features, labels, old_logits, torch.rand(CLASSES, D, generator=generator, dtype=torch.float64)


def groups(features, labels):
    """{class: list of its feature vectors}, ignored pixels left out, by ascending id."""
    found = {}
    for b, i, j in np.ndindex(*labels.shape):
        found.setdefault(int(labels[b, i, j]), []).append(features[b, :, i, j])
    return {c: found[c] for c in sorted(found) if c != 255}


def mean_square(a, b):
    return float(((a - b) ** 2).mean())


def close(ours, expected, tolerance=1e-9):
    ours = ours.item() if isinstance(ours, torch.Tensor) else ours
    assert ours == pytest.approx(float(expected), rel=tolerance, abs=tolerance)


# -- prototypes ------------------------------------------------------------------------------------------------------


def test_prototypes_by_hand():
    features = torch.tensor([[[[1.0, 3.0, 9.0]], [[2.0, 4.0, 9.0]]]])
    prototypes = Prototypes(3, 2).update(features, torch.tensor([[[1, 1, 255]]]), background=True)
    assert prototypes.compute().tolist() == [[0, 0], [2, 3], [0, 0]] and prototypes.counts.tolist() == [0, 2, 0]
    prototypes.update(features, torch.tensor([[[0, 2, 1]]]), background=False)
    torch.testing.assert_close(prototypes.compute(), torch.tensor([[0, 0], [13 / 3, 5], [3, 4]]))
    assert prototypes.counts.tolist() == [0, 3, 1]


@few
@given(batches(), st.booleans())
def test_prototypes_are_means_however_the_data_is_cut(batch, background):
    features, labels, _, _ = batch
    whole = Prototypes(CLASSES, D).update(features, labels, background=background)
    parts = Prototypes(CLASSES, D)
    for b in reversed(range(len(labels))):
        parts.merge(Prototypes(CLASSES, D).update(features[b : b + 1], labels[b : b + 1], background=background))
    saved = Prototypes.from_state(parts.sums, parts.counts)
    torch.testing.assert_close(saved.compute(), whole.compute())
    assert torch.equal(saved.counts, whole.counts)
    found = groups(features, labels)
    for c in range(CLASSES):
        seen = found.get(c, []) if c or background else []
        expected = torch.stack(seen).mean(0) if seen else torch.zeros(D)
        torch.testing.assert_close(whole.compute()[c], expected.float())


def test_growing_copies_and_keeps():
    small = Prototypes(2, 2).update(torch.ones(1, 2, 1, 1), torch.tensor([[[1]]]), background=False)
    large = small.grow(4)
    assert large.compute().tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]
    large.update(torch.zeros(1, 2, 1, 1), torch.tensor([[[1]]]), background=False)
    assert small.compute()[1].tolist() == [1, 1] and large.compute()[1].tolist() == [0.5, 0.5]


def test_labels_are_read_on_the_features_grid():
    """Nearest: of each 2 x 2 block the top-left pixel."""
    labels = torch.tensor([[[1, 9, 2, 9], [9, 9, 9, 9]]])
    features = torch.tensor([[[[3.0, 5.0]]]])
    assert Prototypes(3, 1).update(features, labels, background=False).compute().flatten().tolist() == [0, 3, 5]


@pytest.mark.parametrize("name", ["one", "three"])
@pytest.mark.parametrize("step", [0, 1])
def test_prototypes_equal_the_official_trainer(recorded, name, step):
    features, labels, start = (recorded[f"{name}/{k}"] for k in ("features", "labels", "prototypes"))
    counts = torch.arange(len(start)) * 3
    ours = Prototypes.from_state(start.double() * counts[:, None], counts)
    for _ in range(2):
        ours.update(features, labels, background=step == 0, mixed_channels=True)
    official = recorded[f"{name}/step{step}/prototypes"]
    seen = ours.counts > 0  # the official start of a class without pixels is kept as it is
    torch.testing.assert_close(ours.compute()[seen], official[seen], rtol=0, atol=1e-5)
    assert torch.equal(ours.counts, recorded[f"{name}/step{step}/counts"])


# -- matching --------------------------------------------------------------------------------------------------------


def test_matching_by_hand():
    features = torch.tensor([[[[1.0, 3.0, 7.0, 7.0]]]])
    old_logits = torch.tensor([[0, 1, 0, 0], [5, 0, 5, 9], [0, 3, 0, 0.0]])[None, :, None]  # says 1, 2, 1, 1
    labels = torch.tensor([[[0, 0, 4, 255]]])
    prototypes = torch.tensor([[9.0], [2.0], [0.0]])
    close(prototype_matching(features, labels, old_logits, prototypes), (1 + 9) / 2)


@few
@given(batches())
def test_matching_equals_the_loop(batch):
    features, labels, old_logits, prototypes = batch
    behind = torch.where(labels == 0, old_logits.argmax(1), 255)
    behind[behind == 0] = 255
    found = groups(features, behind)
    expected = np.mean([mean_square(torch.stack(e).mean(0), prototypes[c]) for c, e in found.items()]) if found else 0
    close(prototype_matching(features, labels, old_logits, prototypes), expected)


def test_matching_reads_the_old_scores_on_the_features_grid():
    features, prototypes = torch.zeros(1, 1, 1, 2), torch.tensor([[0.0], [1.0], [3.0]])
    old_logits = torch.zeros(1, 3, 2, 4)
    old_logits[0, 1, 0, 0] = old_logits[0, 2, 0, 2] = 1
    close(prototype_matching(features, torch.zeros(1, 4, 8, dtype=torch.long), old_logits, prototypes), (1 + 9) / 2)


# -- attraction and repulsion ----------------------------------------------------------------------------------------


def test_attraction_by_hand():
    features, labels = torch.tensor([[[[1.0, 3.0, 5.0, 7.0]]]]), torch.tensor([[[0, 0, 2, 255]]])
    prototypes = torch.tensor([[2.0], [0.0], [1.0]])
    close(attraction(features, labels, prototypes, equal_classes=True), (1 + 16) / 2)
    close(attraction(features, labels, prototypes), 1 / 4 + 16 / 2)


@few
@given(batches(), st.booleans())
def test_attraction_equals_the_loop(batch, equal):
    features, labels, _, prototypes = batch
    expected, found = 0.0, groups(features, labels)
    for c, own in found.items():
        expected += np.mean([mean_square(e, prototypes[c]) for e in own])
        expected /= 1 if equal else len(found)  # inside the loop, as in the released code
    expected /= max(len(found), 1) if equal else 1
    close(attraction(features, labels, prototypes, equal_classes=equal), expected)


def test_repulsion_by_hand():
    features = torch.tensor([[[[0.0, 0.0, 3.0, 0.0]], [[-1.0, 1.0, 4.0, 2.0]]]])
    labels = torch.tensor([[[0, 0, 4, 5]]])  # means (0, 0), (3, 4), (0, 2)
    close(repulsion(features, labels), (1 / 5 + 1 / 2 + 1 / math.sqrt(9 + 4)) / 3, 1e-6)


@few
@given(batches())
def test_repulsion_equals_the_loop(batch):
    features, labels, _, _ = batch
    means = [torch.stack(own).mean(0) for own in groups(features, labels).values()]
    pairs = [1 / float((a - b).norm()) for k, a in enumerate(means) for b in means[:k]]
    close(repulsion(features, labels), np.mean(pairs) if pairs else 0)


def test_equal_means_are_no_pair():
    features = torch.ones(1, 2, 1, 3, requires_grad=True)
    labels = torch.tensor([[[0, 1, 1]]])
    loss = repulsion(features, labels)
    loss.backward()
    assert loss.item() == 0 and torch.equal(features.grad, torch.zeros_like(features))


# -- sparsity --------------------------------------------------------------------------------------------------------


def test_sparsity_by_hand():
    features = torch.tensor([[[[2.0, 1.0, 5.0]], [[0.0, 1.0, 5.0]]]])  # of the largest, 2: (1, 0) and (1/2, 1/2)
    expected = ((math.e + 1) / 1 + 2 * math.exp(0.5) / 1) / 2
    close(sparsification(features, torch.tensor([[[4, 4, 255]]])), expected, 1e-6)


@few
@given(batches(), st.booleans())
def test_sparsity_equals_the_loop(batch, official):
    features, labels, _, _ = batch
    renamed = torch.where(labels == 255, 9, labels) if official else labels  # then 255 is a class like any other
    found, values = groups(features, renamed), []
    for own in found.values():
        largest = max(float(e.max()) for e in own)
        values += [float((e / largest).exp().sum() / (e / largest).sum()) for e in own]
    expected = np.mean(values) if found and [*found] != [0] else 0
    close(sparsification(features, labels, ignore_index=None if official else 255), expected)


def test_the_ratio_has_its_least_value_e_where_all_channels_are_equal():
    """So it is lower for dense features than for sparse ones, and its gradient lifts whatever is below the maximum."""
    sparse = torch.zeros(1, 8, 1, 1)
    sparse[0, 0] = 1.0
    labels = torch.tensor([[[1]]])
    close(sparsification(torch.full((1, 8, 1, 1), 0.3), labels), math.e, 1e-6)
    close(sparsification(sparse, labels), math.e + 7, 1e-6)
    features = torch.rand(2, 8, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = sparsification(features, torch.ones(2, 3, 3, dtype=torch.long))
    (gradient,) = torch.autograd.grad(loss, features)
    below = features.detach() < features.detach().max()
    assert loss > math.e and (gradient[below] < 0).all()
    torch.testing.assert_close(sparsification(3 * features, torch.ones(2, 3, 3, dtype=torch.long)), loss)


# -- all of them -----------------------------------------------------------------------------------------------------


def losses(features, labels, old_logits, prototypes):
    return {
        "matching": prototype_matching(features, labels, old_logits, prototypes),
        "attraction": attraction(features, labels, prototypes),
        "equal": attraction(features, labels, prototypes, equal_classes=True),
        "repulsion": repulsion(features, labels),
        "sparsity": sparsification(features, labels),
    }


@few
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_images_and_pixels_does_not_matter(batch, random):
    features, labels, old_logits, prototypes = batch
    order = random.sample(range(len(labels)), len(labels))
    expected = losses(*batch)
    for name, value in losses(features[order], labels[order], old_logits[order], prototypes).items():
        close(value, expected[name])
    for name, value in losses(features.mT, labels.mT, old_logits.mT, prototypes).items():
        close(value, expected[name])


@few
@given(batches())
def test_renaming_new_classes_changes_only_the_released_weights(batch):
    features, labels, old_logits, prototypes = batch
    rename = torch.arange(256)
    rename[3:6] = torch.tensor([5, 4, 3])
    turned = losses(features, rename[labels], old_logits, prototypes[rename[:CLASSES]])
    expected = losses(*batch)
    for name in ("matching", "equal", "repulsion", "sparsity"):
        close(turned[name], expected[name])


@few
@given(batches())
def test_ignored_features_do_not_matter(batch):
    features, labels, old_logits, prototypes = batch
    other = torch.where((labels == 255)[:, None], 50 * torch.rand_like(features), features)
    expected = losses(*batch)
    for name, value in losses(other, labels, old_logits, prototypes).items():
        close(value, expected[name])
    kept = Prototypes(CLASSES, D).update(features, labels, background=True)
    torch.testing.assert_close(Prototypes(CLASSES, D).update(other, labels, background=True).sums, kept.sums)


@pytest.mark.parametrize("label", [0, 255])
def test_nothing_to_learn_costs_nothing_and_moves_nothing(label):
    labels, prototypes = torch.full((2, 4, 4), label), torch.rand(CLASSES, D)
    old_logits = torch.zeros(2, OLD, 4, 4)
    old_logits[:, 0] = 1  # background, says the old model
    for name in ("matching", "repulsion", "sparsity", *(["attraction", "equal"] if label else [])):
        features = torch.rand(2, D, 2, 2, requires_grad=True)
        value = losses(features, labels, old_logits, prototypes)[name]
        value.backward()
        assert value.item() == 0 and torch.equal(features.grad, torch.zeros_like(features)), name
    kept = Prototypes(CLASSES, D).update(torch.rand(2, D, 2, 2), labels, background=False)
    assert kept.counts.sum() == 0


def test_gradients_are_the_derivatives():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, D, 2, 3, generator=generator, dtype=torch.float64) + 0.1
    labels = torch.tensor([[[0, 3, 255], [4, 0, 3]], [[0, 0, 4], [255, 4, 0]]])
    old_logits = torch.randn(2, OLD, 2, 3, generator=generator, dtype=torch.float64)
    prototypes = torch.rand(CLASSES, D, generator=generator, dtype=torch.float64)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: tuple(losses(f, labels, old_logits, prototypes).values()), features)


def test_prototypes_and_the_old_model_get_no_gradient():
    prototypes, features = torch.rand(CLASSES, D, requires_grad=True), torch.rand(1, D, 2, 2, requires_grad=True)
    old_logits, labels = torch.randn(1, OLD, 2, 2, requires_grad=True), torch.tensor([[[0, 0], [3, 4]]])
    total = sum(losses(features, labels, old_logits, prototypes).values())
    assert torch.autograd.grad(total, (prototypes, old_logits), allow_unused=True) == (None, None)
    assert not Prototypes(CLASSES, D).update(features, labels, background=True).sums.requires_grad


def test_mixed_channels_are_whole_features_only_in_a_batch_of_one():
    torch.manual_seed(0)
    features, prototypes = torch.rand(2, D, 2, 3), torch.rand(CLASSES, D)
    labels = torch.tensor([[[0, 3, 3], [4, 0, 3]], [[0, 0, 4], [3, 4, 0]]])
    for loss in (partial(attraction, prototypes=prototypes), repulsion):
        one, mixed_one = (loss(features[:1], labels[:1], mixed_channels=m) for m in (False, True))
        both, mixed_both = (loss(features, labels, mixed_channels=m) for m in (False, True))
        torch.testing.assert_close(mixed_one, one)
        assert (mixed_both - both).abs() > 1e-3


@pytest.mark.parametrize("name", ["one", "three"])
def test_equal_the_official_code_on_recorded_inputs(recorded, name):
    at = {k.split("/", 1)[1]: v for k, v in recorded.items() if k.startswith(name)}
    labels, old_logits, prototypes = at["labels"].long(), at["old_logits"].float(), at["prototypes"]
    features = at["features"].requires_grad_()
    mixed = {"mixed_channels": True}
    ours = {
        "matching": prototype_matching(features, labels, old_logits, prototypes, **mixed),
        "attraction": attraction(features, labels, prototypes, **mixed),
        "repulsion": repulsion(features, labels, **mixed),
        "sparsity": sparsification(features, labels, ignore_index=None),
    }
    for key, value in ours.items():
        close(value, at[key], 1e-5)
        (gradient,) = torch.autograd.grad(value, features, retain_graph=True)
        torch.testing.assert_close(gradient, at[f"{key}_grad"], rtol=1e-4, atol=1e-6)
    close(sparsification(features, torch.where(labels == 255, 0, labels)), at["sparsity_full"], 1e-5)


def test_errors_name_the_argument():
    features, labels = torch.rand(2, D, 2, 2), torch.zeros(2, 4, 4, dtype=torch.long)
    old_logits, prototypes = torch.zeros(2, OLD, 4, 4), torch.zeros(CLASSES, D)
    with pytest.raises(ValueError, match=r"`features` must be finite; found nan at \[0, 0, 0, 0\]"):
        repulsion(features * math.nan, labels)
    with pytest.raises(ValueError, match=r"`labels` must be \(B, H, W\) with B = 2.*got \(4, 4\).*labels\[None\]"):
        sparsification(features, labels[0])
    with pytest.raises(TypeError, match="`labels` must be a tensor of integer class ids; got torch.float32"):
        attraction(features, labels.float(), prototypes)
    with pytest.raises(ValueError, match=r"`prototypes` must be \(C, D\) with D = 4.*got \(6, 3\)"):
        attraction(features, labels, prototypes[:, :3])
    with pytest.raises(ValueError, match="class 8 has none of the 6. See Prototypes.grow"):
        attraction(features, labels + 8, prototypes)
    with pytest.raises(ValueError, match="class 2 has none of the 2"):
        prototype_matching(features, labels, old_logits, prototypes[:2])
    with pytest.raises(ValueError, match="`old_logits` must have the batch of `features`, 2; got 1"):
        prototype_matching(features, labels, old_logits[:1], prototypes)
    with pytest.raises(ValueError, match="`prototypes` must be finite; found nan"):
        attraction(features, labels, prototypes * math.nan)
    state = Prototypes(3, D)
    with pytest.raises(ValueError, match="`features` must have 4 channels; got 2"):
        state.update(features[:, :2], labels, background=True)
    with pytest.raises(ValueError, match=r"in \[0, 3\) or 255.*found 5 at \[0, 0, 0\]"):
        state.update(features, labels + 5, background=True)
    with pytest.raises(ValueError, match=r"`other` must be \(3, 4\); got \(6, 4\).*grow"):
        state.merge(Prototypes(6, D))
    with pytest.raises(ValueError, match="`classes` must be at least the 3 there are; got 2"):
        state.grow(2)
    with pytest.raises(ValueError, match=r"`sums` must be \(C, D\), `counts` \(C,\); got \(3, 4\), \(2,\)"):
        Prototypes.from_state(state.sums, state.counts[:2])
    for args, name in (((0, 4), "classes"), ((3, 1.5), "channels")):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1"):
            Prototypes(*args)
