"""PLOP: local POD and pseudo-labels by hand, by loops, by properties, against the official code."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fmseg.plop import (
    ClassMedians,
    PseudoLabels,
    local_pod,
    pod_loss,
    pseudo_label_loss,
    pseudo_labels,
    uncertainty,
)

FIXTURE = Path(__file__).parent / "fixtures/plop.npz"
CLASSES, OLD = 7, 4
few = settings(max_examples=10, deadline=None)


@pytest.fixture(scope="module")
def recorded():
    return {k: torch.from_numpy(v) for k, v in np.load(FIXTURE).items()}


@st.composite
def maps(draw, sides=(4, 9)):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shape = [draw(st.integers(1, 3)) for _ in range(2)] + [draw(st.integers(*sides)) for _ in range(2)]
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@st.composite
def scenes(draw):
    """Scores of an old model, more or less sure, and labels with background, new classes and ignored pixels."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shape = draw(st.integers(1, 3)), 3, 4
    scores = torch.randn(shape[0], OLD, 3, 4, generator=generator) * draw(st.sampled_from([0.3, 2.0, 8.0]))
    labels = torch.tensor([0, 0, 4, 5, 6, 255])[torch.randint(0, 6, shape, generator=generator)]
    return scores, labels


def loop_pod(x, scales):
    """The means of every row and every column of every region, in no particular order."""
    out = []
    for s in scales:
        rows, columns = x.shape[2] // s, x.shape[3] // s
        for i, j in np.ndindex(s, s):
            region = x[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            out += [region[:, :, v].mean(2) for v in range(rows)] + [region[..., u].mean(2) for u in range(columns)]
    return torch.cat(out, 1)


def sorted_rows(x):
    return x.sort(1).values


def certain(c, k=OLD):
    """Scores of one pixel that is all class c."""
    return 30.0 * F.one_hot(torch.tensor(c), k).float()


# -- local POD -------------------------------------------------------------------------------------------------------


def test_embedding_by_hand():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)  # 0 1 / 2 3
    rows_and_columns = [0.5, 2.5, 1.0, 2.0]
    assert sorted(local_pod(x, (1,))[0].tolist()) == sorted(rows_and_columns)
    assert sorted(local_pod(x, (1, 2))[0].tolist()) == sorted([*rows_and_columns, *2 * [0.0, 1.0, 2.0, 3.0]])


@few
@given(maps())
def test_embedding_equals_the_loop_whatever_the_sides(x):
    ours = local_pod(x)
    assert ours.shape == (len(x), x.shape[1] * sum(s * s * (x.shape[2] // s + x.shape[3] // s) for s in (1, 2, 4)))
    torch.testing.assert_close(sorted_rows(ours), sorted_rows(loop_pod(x, (1, 2, 4))))


@few
@given(maps(sides=(4, 7)))
def test_embedding_keeps_places_apart_that_one_pooling_confuses(x):
    """Whole-map pooling cannot see two pixels of a rectangle swap; pooling of regions can."""
    moved = x.clone()
    moved[..., 0, 0] += 1
    moved[..., 3, 3] += 1
    moved[..., 0, 3] -= 1
    moved[..., 3, 0] -= 1
    torch.testing.assert_close(local_pod(moved, (1,)), local_pod(x, (1,)))
    assert (local_pod(moved, (2,)) - local_pod(x, (2,))).abs().max() > 0.1


def test_pod_by_hand():
    """One pixel, so the embedding holds every value twice: distance sqrt(2) times that of the squares."""
    new, old = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1), torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)
    logits, old_logits = torch.tensor([1.0, 5.0, 2.0]).view(1, 3, 1, 1), torch.tensor([2.0, 5.0]).view(1, 2, 1, 1)
    ours = pod_loss([new], [old], logits, old_logits, weight=0.1, logits_weight=0.01, scales=(1,))
    features, scores = math.sqrt(2) * 8, math.sqrt(2) * 5  # 9 - 1; (1 + 2)^2 - 2^2
    assert ours.item() == pytest.approx(math.sqrt(3 / 1) * (0.1 * features + 0.01 * scores) / 2, rel=1e-6)


def test_pod_grows_with_the_share_of_old_classes():
    x = torch.randn(2, 3, 4, 4)
    logits = torch.zeros(2, 8, 4, 4)  # scores are equal, features differ
    few_new, many_new = (pod_loss([x], [-2 * x], logits, logits[:, :k]).item() for k in (7, 2))
    assert few_new / many_new == pytest.approx(math.sqrt((8 / 1) / (8 / 6)))


@few
@given(maps())
def test_pod_sees_squares(x):
    old = torch.randn_like(x)
    logits = torch.randn(len(x), 3, 4, 4, dtype=torch.float64)
    args = logits, logits[:, :2].clone()
    assert torch.equal(pod_loss([x], [old], *args), pod_loss([-x], [old], *args))
    torch.testing.assert_close(pod_loss([x], [old], *args), pod_loss([x.flip(1)], [old.flip(1)], *args))


def test_pod_of_a_batch_is_the_mean_of_its_images():
    torch.manual_seed(0)
    x, old, logits = torch.randn(3, 2, 5, 5), torch.randn(3, 2, 5, 5), torch.randn(3, 4, 5, 5)
    rows = [pod_loss([x[k]], [old[k]], logits[k], logits[k, :2]).item() for k in ([0], [1], [2])]
    assert pod_loss([x], [old], logits, logits[:, :2]).item() == pytest.approx(np.mean(rows), rel=1e-5)
    turned = pod_loss([x.flip(0)], [old.flip(0)], logits.flip(0), logits[:, :2].flip(0)).item()
    assert turned == pytest.approx(np.mean(rows), rel=1e-5)


def test_pod_of_what_has_not_moved_is_zero_with_zero_gradient():
    x, logits = torch.randn(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 5, 4, 4, requires_grad=True)
    loss = pod_loss([x], [x.detach()], logits, logits[:, :3].detach())
    loss.backward()
    assert loss.item() == 0 and torch.equal(x.grad, torch.zeros_like(x)) and logits.grad.abs().sum() == 0


def test_pod_gradient_is_the_derivative_and_spares_the_old_model():
    torch.manual_seed(0)
    new = [torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    old = [torch.randn(2, 2, 4, 5, dtype=torch.float64) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda x, z: pod_loss([x], old[:1], z, old[1][:, :1]), new)
    old[0].requires_grad_()
    loss = pod_loss(new[:1], old[:1], new[1], old[1][:, :1])
    assert torch.autograd.grad(loss, old[0], allow_unused=True) == (None,)


@pytest.mark.parametrize("side", [8, 9])
def test_pod_equals_the_official_code(recorded, side):
    at = {k.split("/")[2]: v for k, v in recorded.items() if k.startswith(f"pod/{side}/")}
    ours = pod_loss([at["new0"], at["new1"]], [at["old0"], at["old1"]], at["logits"], at["old_logits"])
    torch.testing.assert_close(ours, at["loss"], rtol=1e-5, atol=0)
    embedding = local_pod(at["new0"])
    torch.testing.assert_close(sorted_rows(embedding), sorted_rows(at["embedding"]), rtol=0, atol=1e-6)


def test_pod_errors():
    x, z = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="`scales` must not exceed the sides of the maps, 2 x 4; got 4"):
        local_pod(x[:, :, :2])
    for scales in ((), (0,), (1.5,)):
        with pytest.raises(ValueError, match="`scales` must be integers >= 1"):
            local_pod(x, scales)
    with pytest.raises(ValueError, match="one map for each of the 2 `features`; got 1"):
        pod_loss([x, x], [x], z, z[:, :2])
    with pytest.raises(ValueError, match=r"`old_features\[1\]` must have the shape of `features\[1\]`"):
        pod_loss([x, x], [x, x[..., :2]], z, z[:, :2])
    with pytest.raises(ValueError, match="`logits` must have more than the 3 classes of `old_logits`; got 3"):
        pod_loss([x], [x], z, z)
    with pytest.raises(ValueError, match=r"`features\[0\]` must be finite; found nan at \[0, 0, 0, 0\]"):
        pod_loss([x * math.nan], [x], z, z[:, :2])
    with pytest.raises(ValueError, match="`weight` must be a finite number >= 0; got -1"):
        pod_loss([x], [x], z, z[:, :2], weight=-1)


# -- uncertainty and medians -----------------------------------------------------------------------------------------


def test_uncertainty_by_hand():
    scores = torch.stack([certain(1), torch.zeros(OLD), torch.tensor([0.0, 0.0, -30.0, -30.0])]).T[None, :, None]
    ours = uncertainty(scores, CLASSES)[0, 0]
    scale = OLD * math.log(OLD) * math.log(CLASSES)
    expected = torch.tensor([0.0, math.log(OLD), math.log(2)]) / scale
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert ours.max() <= 1.0001 / (OLD * math.log(CLASSES))


def test_medians_by_hand():
    """Counts 3, 1 have their median at 2/3 of the first of ten bins; 1, 2, 1 at 1/2 of the second."""
    medians = ClassMedians(2, 3, bins=10)
    medians.counts[0, :2] = torch.tensor([3, 1])
    medians.counts[1, :3] = torch.tensor([1, 2, 1])
    torch.testing.assert_close(medians.compute(official=False), torch.tensor([2 / 30, 1.5 / 10]))
    torch.testing.assert_close(medians.compute(), torch.tensor([2 / 30, 0.1 + (2 - 0) / 2 / 10]))  # passed 0, not 1
    assert medians.compute(least=0.1).tolist() == pytest.approx([0.1, 0.2])


def test_medians_beyond_the_first_bin_can_leave_the_scale():
    medians = ClassMedians(2, 3, bins=10)
    medians.counts[0, 5], medians.counts[1, 5] = 1000, 12
    assert medians.compute(official=False).tolist() == pytest.approx([0.55, 0.55])
    ours = medians.compute()
    assert ours[0] == pytest.approx(0.5 + (500 - 10) / 1000 / 10)  # ten is 0 + 1 + 2 + 3 + 4
    assert ours[1].isnan()  # half is 6 = 0 + 1 + 2 + 3: found in the fifth bin, where there is nothing


@few
@given(scenes())
def test_medians_equal_the_loop(scene):
    scores, labels = scene
    medians = ClassMedians(OLD, CLASSES).update(scores, labels)
    counts = torch.zeros(OLD, 100, dtype=torch.int64)
    for b, i, j in zip(*(labels == 0).nonzero(as_tuple=True), strict=True):
        p = scores[b, :, i, j].softmax(0)
        u = float(-(p * (p + 1e-8).log()).sum()) / OLD / math.log(OLD) / math.log(CLASSES)
        counts[int(p.argmax()), min(int(u * 100), 99)] += 1
    assert torch.equal(medians.counts, counts)


@few
@given(scenes(), st.integers(0, 3))
def test_shards_merge(scene, cut):
    scores, labels = scene
    whole = ClassMedians(OLD, CLASSES).update(scores, labels)
    first, second = ClassMedians(OLD, CLASSES), ClassMedians(OLD, CLASSES)
    for part, rows in ((first, slice(0, cut)), (second, slice(cut, None))):
        if len(labels[rows]):
            part.update(scores[rows], labels[rows])
    assert torch.equal(second.merge(first).counts, whole.counts)


def test_only_background_counts():
    scores = torch.randn(1, OLD, 2, 2)
    medians = ClassMedians(OLD, CLASSES).update(scores, torch.tensor([[[4, 255], [6, 5]]]))
    assert medians.counts.sum() == 0 and medians.compute().tolist() == pytest.approx([0.001] * OLD)


@pytest.mark.parametrize("name", ["sure", "mid", "unsure"])
def test_thresholds_equal_the_official_trainer(recorded, name):
    medians = ClassMedians(OLD, CLASSES)
    for scores, labels in zip(recorded[f"{name}/old_logits"].float(), recorded[f"{name}/labels"], strict=True):
        medians.update(scores, labels)
    official = recorded[f"{name}/thresholds"][:OLD]
    torch.testing.assert_close(medians.compute(), official, rtol=0, atol=1e-7)


def test_thresholds_equal_the_official_trainer_where_it_leaves_the_scale(recorded):
    scores = recorded["spread/old_logits"].float()
    medians = ClassMedians(OLD, CLASSES).update(scores, torch.zeros(1, 121, 100, dtype=torch.long))
    ours = medians.compute()
    torch.testing.assert_close(ours, recorded["spread/thresholds"][:OLD], equal_nan=True)
    assert ours[0] == math.inf and ours[1].isnan()
    assert 0 < medians.compute(official=False)[0] < 1 / (OLD * math.log(CLASSES))


def test_median_errors():
    for args, name in (((1, 3), "old_classes"), ((4, 4), "old_classes"), ((2, 3, 0), "bins"), ((2, True), "classes")):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer"):
            ClassMedians(*args)
    medians = ClassMedians(OLD, CLASSES)
    with pytest.raises(ValueError, match="`old_logits` must have 4 classes; got 3"):
        medians.update(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"in \[0, 7\) or 255.*found 9 at \[0, 1, 1\]"):
        medians.update(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 0], [0, 9]]]))
    assert medians.counts.sum() == 0
    with pytest.raises(ValueError, match=r"`other` must have .* = \(4, 7, 100\); got \(4, 7, 10\)"):
        medians.merge(ClassMedians(OLD, CLASSES, bins=10))
    with pytest.raises(ValueError, match="at least 2 classes and fewer than `classes`; got 4 of 4"):
        uncertainty(torch.zeros(1, 4, 2, 2), 4)


# -- pseudo-labels ---------------------------------------------------------------------------------------------------


def test_pseudo_labels_by_hand():
    sure, unsure = certain(2), torch.zeros(OLD)
    scores = torch.stack([sure, unsure, sure, sure, unsure, certain(1)]).T[None, :, None]
    labels = torch.tensor([[[0, 0, 5, 255, 6, 0]]])
    pseudo = pseudo_labels(scores, labels, torch.full((OLD,), 0.001), CLASSES)
    assert pseudo.labels.tolist() == [[[2, 255, 5, 255, 6, 1]]] and pseudo.labels.dtype == torch.int64
    assert pseudo.weight.tolist() == pytest.approx([2 / 3])


def test_a_pixel_at_the_threshold_is_not_sure():
    scores = torch.randn(1, OLD, 1, 1, generator=torch.Generator().manual_seed(0))
    labels, limit = torch.zeros(1, 1, 1, dtype=torch.long), uncertainty(scores, CLASSES).flatten().expand(OLD)
    assert pseudo_labels(scores, labels, limit, CLASSES).labels.item() == 255
    above = torch.nextafter(limit, torch.tensor(1.0))
    assert pseudo_labels(scores, labels, above, CLASSES).labels.item() == scores.argmax().item()


@few
@given(scenes(), st.floats(0, 0.1))
def test_pseudo_labels_equal_the_loop(scene, threshold):
    scores, labels = scene
    limits = torch.tensor([threshold, 0.02, 0.0, 1.0])
    ours = pseudo_labels(scores, labels, limits, CLASSES)
    unsure = uncertainty(scores, CLASSES)
    for b in range(len(labels)):
        sure = background = 0
        for i, j in np.ndindex(3, 4):
            y, c = int(labels[b, i, j]), int(scores[b, :, i, j].argmax())
            passes = bool(unsure[b, i, j] < limits[c])
            expected = y if y else c if passes else 255
            assert ours.labels[b, i, j] == expected
            sure, background = sure + (not y and passes), background + (not y)
        assert ours.weight[b].item() == pytest.approx(sure / (background + 1e-6), abs=1e-6)


@few
@given(scenes())
def test_infinite_and_missing_thresholds(scene):
    scores, labels = scene
    everything = pseudo_labels(scores, labels, torch.full((OLD,), math.inf), CLASSES)
    assert torch.equal(everything.labels, torch.where(labels == 0, scores.argmax(1), labels))
    nothing = pseudo_labels(scores, labels, torch.full((OLD,), math.nan), CLASSES)
    assert torch.equal(nothing.labels, torch.where(labels == 0, 255, labels)) and nothing.weight.sum() == 0


def test_loss_is_plain_cross_entropy_where_all_is_sure():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, CLASSES, 3, 3), torch.randint(0, CLASSES, (2, 3, 3))
    labels[0, 0, 0] = 255
    pseudo = PseudoLabels(labels, torch.tensor([1.0, 0.5]))
    per_image = F.cross_entropy(logits, labels, ignore_index=255, reduction="none").mean((1, 2))
    expected = (per_image[0] + 0.5 * per_image[1]) / 2
    torch.testing.assert_close(pseudo_label_loss(logits, pseudo), expected)
    one = pseudo_label_loss(logits[1:], PseudoLabels(labels[1:], torch.tensor([0.5])))
    torch.testing.assert_close(one, 0.5 * per_image[1])


def test_no_sure_pixel_costs_nothing_and_moves_nothing():
    scores, labels = torch.zeros(2, OLD, 2, 2), torch.tensor([[[0, 5], [0, 0]], [[5, 5], [6, 255]]])
    pseudo = pseudo_labels(scores, labels, torch.full((OLD,), 0.001), CLASSES)
    assert pseudo.weight.tolist() == [0, 0]  # the second image has no background at all
    for target in (pseudo, PseudoLabels(torch.full_like(labels, 255), torch.ones(2))):
        logits = torch.randn(2, CLASSES, 2, 2, requires_grad=True)
        loss = pseudo_label_loss(logits, target)
        loss.backward()
        assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_loss_gradient_is_the_derivative():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    pseudo = PseudoLabels(torch.tensor([[[0, 1], [2, 255]], [[1, 1], [0, 2]]]), torch.tensor([0.3, 1.0]))
    assert torch.autograd.gradcheck(lambda z: pseudo_label_loss(z, pseudo), logits)


@pytest.mark.parametrize("name", ["sure", "mid", "unsure"])
def test_pseudo_labels_and_loss_equal_the_official_trainer(recorded, name):
    scores, labels = recorded[f"{name}/old_logits"][0].float(), recorded[f"{name}/labels"][0].long()
    torch.testing.assert_close(uncertainty(scores, CLASSES), recorded[f"{name}/entropy"], rtol=0, atol=1e-7)
    pseudo = pseudo_labels(scores, labels, recorded[f"{name}/thresholds"][:OLD], CLASSES)
    assert torch.equal(pseudo.labels, recorded[f"{name}/pseudo"].long())
    ours = pseudo_label_loss(recorded[f"{name}/logits"], pseudo)
    assert ours.item() == pytest.approx(recorded[f"{name}/loss"].item(), rel=1e-5, abs=1e-7)


def test_pseudo_label_errors():
    scores, labels = torch.zeros(1, OLD, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"`thresholds` must be \(4,\), one an old class; got \(7,\)"):
        pseudo_labels(scores, labels, torch.zeros(CLASSES), CLASSES)
    with pytest.raises(ValueError, match=r"`labels` must be \(B, H, W\) = \(1, 2, 2\).*got \(1, 4, 4\)"):
        pseudo_labels(scores, torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(OLD), CLASSES)
    with pytest.raises(ValueError, match=r"`pseudo.weight` must be \(1,\); got \(2,\)"):
        pseudo_label_loss(torch.zeros(1, CLASSES, 2, 2), PseudoLabels(labels, torch.ones(2)))
