"""Loss by pixel, mean loss by class and filter: by hand, by loops, by properties, against FreeMask's own script."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import Largest

from fmseg.label_format import ADE20K
from fmseg.noise import EPSILON, MARGIN, ClassLoss, filter_labels, loss_map

FIXTURE = Path(__file__).parent / "fixtures" / "freemask.npz"
few = settings(max_examples=25, deadline=None)
SIZES = [  # grid, labels
    ((4, 5), (16, 20)), ((3, 2), (9, 10)), ((2, 3), (2, 15)), ((3, 3), (6, 3)), ((1, 1), (4, 4)), ((3, 4), (3, 4)),
    ((4, 5), (15, 18)), ((5, 4), (7, 3)), ((1, 3), (8, 5)), ((8, 8), (1, 1)), ((2, 2), (32, 14)),
]  # fmt: skip


def inputs(grid=(3, 4), size=(12, 16), batch=2, classes=5, seed=0, dtype=torch.float64, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, classes, *grid, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (batch, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits.to(dtype), labels


def unfused(logits, labels):
    z = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(z, labels, ignore_index=255, reduction="none")


def by_loops(logits, labels):
    """Eq. 1 pixel by pixel, in Python's floats."""
    batch, classes, h, w = logits.shape
    height, width = labels.shape[1:]
    out = torch.zeros(labels.shape, dtype=torch.float64)

    def place(pixel, small, large):
        at = max((pixel + 0.5) * small / large - 0.5, 0.0)
        return int(at), min(int(at) + 1, small - 1), at - int(at)

    for b in range(batch):
        for i in range(height):
            top, below, s = place(i, h, height)
            for j in range(width):
                left, right, t = place(j, w, width)
                if labels[b, i, j] == 255:
                    continue
                z = [
                    (1 - s) * ((1 - t) * float(m[top, left]) + t * float(m[top, right]))
                    + s * ((1 - t) * float(m[below, left]) + t * float(m[below, right]))
                    for m in logits[b]
                ]
                out[b, i, j] = math.log(sum(math.exp(x - max(z)) for x in z)) + max(z) - z[labels[b, i, j]]
    return out


def close(ours, expected, tolerance=1e-9):
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


# -- loss by pixel --------------------------------------------------------------------------------------------------


def test_two_classes_by_hand():
    logits = torch.tensor([[[[0.0]], [[math.log(3)]]]])  # probabilities 1/4 and 3/4 everywhere
    loss = loss_map(logits, torch.tensor([[[1, 0], [255, 1]]]))
    close(loss, torch.tensor([[[math.log(4 / 3), math.log(4)], [0.0, math.log(4 / 3)]]]), 1e-6)


def test_between_two_grid_points_by_hand():
    """Class 1 has scores 0 and 8, class 0 has 0: four pixels at 0, 1/4, 3/4 and 1 of the way."""
    logits = torch.tensor([[[[0.0, 0.0]], [[0.0, 8.0]]]])
    expected = [math.log1p(math.exp(z)) for z in (0, 2, 6, 8)]
    close(loss_map(logits, torch.zeros(1, 1, 4, dtype=torch.int64)), torch.tensor([[expected]]), 1e-6)


@pytest.mark.parametrize("grid, size", SIZES)
def test_equals_loops_and_the_unfused_form(grid, size):
    logits, labels = inputs(grid, size)
    ours = loss_map(logits, labels)
    close(ours, by_loops(logits, labels))
    close(ours, unfused(logits, labels))
    assert loss_map(logits.float(), labels).dtype == torch.float32
    close(loss_map(logits.float(), labels), unfused(logits, labels).float(), 4e-6)


@pytest.mark.parametrize("size", [(128, 128), (127, 120)])
def test_equals_the_unfused_form_on_many_classes(size):
    logits, labels = inputs((32, 32), size, batch=1, classes=150, dtype=torch.float32)
    exact = unfused(logits.double(), labels).float()
    close(loss_map(logits, labels), exact, 5e-6)
    assert (loss_map(logits, labels) - exact).abs().max() <= 2 * (unfused(logits, labels) - exact).abs().max() + 1e-6


@few
@given(st.sampled_from(SIZES), st.integers(1, 2000), st.integers(0, 10**6))
def test_chunk_size_does_not_matter(sizes, chunk, seed):
    logits, labels = inputs(*sizes, seed=seed)
    close(loss_map(logits, labels, chunk=chunk), loss_map(logits, labels), 1e-12)


@few
@given(st.sampled_from(SIZES), st.integers(0, 10**6))
def test_classes_and_images_have_no_order(sizes, seed):
    logits, labels = inputs(*sizes, batch=3, seed=seed)
    expected = loss_map(logits, labels)
    generator = torch.Generator().manual_seed(seed)
    names, order = torch.randperm(5, generator=generator), torch.randperm(3, generator=generator)
    renamed = torch.where(labels == 255, 255, names[labels.clamp(max=4)])
    close(loss_map(logits[:, names.argsort()], renamed), expected, 1e-12)
    close(loss_map(logits[order], labels[order]), expected[order], 0)
    for b in range(3):
        close(loss_map(logits[b : b + 1], labels[b : b + 1]), expected[b : b + 1], 0)


@pytest.mark.parametrize("size", [(12, 16), (11, 16)])
@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_scores_far_apart_neither_overflow_nor_vanish(scale, size):
    logits, labels = inputs(size=size, scale=scale)
    close(loss_map(logits, labels), unfused(logits, labels))
    close(loss_map(logits.float(), labels), unfused(logits, labels).float(), 1e-7 * max(100.0, scale))


def test_a_large_common_offset_costs_little_precision():
    logits, labels = inputs(dtype=torch.float32)
    close(loss_map(logits + 1024, labels), unfused((logits + 1024).double(), labels).float(), 2e-6)


def test_one_image_with_a_wide_spread_leaves_the_others_alone():
    logits, labels = inputs(dtype=torch.float32)
    alone = loss_map(logits[:1], labels[:1])
    logits[1] *= 1000
    assert torch.equal(loss_map(logits, labels)[:1], alone)


def test_half_precision_is_computed_in_single_precision():
    logits, labels = inputs(dtype=torch.float16)
    for half in (logits, logits.bfloat16()):
        assert torch.equal(loss_map(half, labels), loss_map(half.float(), labels))


def test_ignored_pixels_and_masks_cost_nothing_and_change_nothing():
    logits, labels = inputs()
    loss = loss_map(logits, labels)
    assert (loss[labels == 255] == 0).all() and (loss[labels != 255] > 0).all()
    full = loss_map(logits, torch.where(labels == 255, 3, labels))
    assert torch.equal(full[labels != 255], loss[labels != 255])
    assert torch.equal(loss_map(logits, torch.full_like(labels, 255)), torch.zeros(2, 12, 16, dtype=torch.float64))
    assert torch.equal(loss_map(logits, torch.where(labels == 255, -1, labels), ignore_index=-1), loss)


def test_layout_and_inputs_are_left_alone():
    logits, labels = inputs()
    before = logits.clone(), labels.clone()
    close(loss_map(logits.contiguous(memory_format=torch.channels_last), labels), loss_map(logits, labels), 0)
    assert torch.equal(before[0], logits) and torch.equal(before[1], labels)
    assert not loss_map(logits.requires_grad_(), labels).requires_grad


def test_edges_are_neutral():
    logits, labels = inputs()
    assert loss_map(logits[:0], labels[:0]).shape == (0, 12, 16)
    close(loss_map(logits[:, :1], torch.zeros(2, 12, 16, dtype=torch.int64)), torch.zeros(2, 12, 16).double(), 1e-15)
    pixel = logits[:1, :, :1, :1], labels[:1, :1, :1].clamp(max=4)
    close(loss_map(*pixel), unfused(*pixel))


@pytest.mark.parametrize("size", [(128, 128), (127, 128)])
def test_full_size_maps_are_never_made(size):
    logits, labels = inputs((32, 32), size, batch=1, classes=150, dtype=torch.float32)
    with Largest() as seen:
        loss_map(logits, labels, chunk=1 << 14)
    assert seen.bytes <= 150 * 34 * 34 * 4, "the grid and its frame"
    assert seen.bytes < 150 * 128 * 128 * 4 / 14


def test_errors_of_the_loss():
    logits, labels = inputs(dtype=torch.float32)
    with pytest.raises(TypeError, match="`logits` must be a tensor of floats; got torch.int64"):
        loss_map(labels, labels)
    with pytest.raises(ValueError, match=r"`logits` must be \(B, C, h, w\).*got \(5, 3, 4\). One image is x\[None\]"):
        loss_map(logits[0], labels)
    with pytest.raises(TypeError, match="`labels` must be int64 class ids; got torch.uint8"):
        loss_map(logits, labels.byte())
    for wrong in (labels[:1], labels[0], labels[:, :0]):
        with pytest.raises(ValueError, match=r"`labels` must be \(B, H, W\) with B = 2"):
            loss_map(logits, wrong)
    with pytest.raises(ValueError, match="`chunk` must be an integer >= 1.*got 0"):
        loss_map(logits, labels, chunk=0)
    labels[1, 2, 3] = 5
    with pytest.raises(ValueError, match=r"ids in \[0, 5\) or 255 .*; found 5 at \[1, 2, 3\]"):
        loss_map(logits, labels)
    labels[1, 2, 3] = 255
    for value in ("nan", "inf", "-inf"):
        broken = logits.clone()
        broken[1, 4, 2, 3] = float(value)
        with pytest.raises(ValueError, match=rf"`logits` must be finite; found {value} at \[1, 4, 2, 3\]"):
            loss_map(broken, labels)
    with pytest.raises(ValueError, match="these sum to 1 over the classes: probabilities, as `predict`"):
        loss_map(logits.softmax(1), labels)
    assert loss_map(logits.softmax(1) * 2, labels).isfinite().all()


# -- mean loss by class ---------------------------------------------------------------------------------------------


def test_means_are_by_pixel_not_by_image_and_by_hand():
    stats = ClassLoss(3)
    stats.update(torch.tensor([[1.0, 1.0, 1.0, 7.0]]), torch.tensor([[0, 0, 0, 255]]))
    stats.update(torch.tensor([[5.0, 0.5]]), torch.tensor([[0, 2]]))
    assert stats.compute() == pytest.approx([8 / (4 + 1e-5), 0.0, 0.5 / (1 + 1e-5)], rel=1e-12)  # by image: 3 for id 0
    assert stats.counts.tolist() == [4, 0, 1] and stats.sums.tolist() == [8.0, 0.0, 0.5]


@st.composite
def images(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    made = []
    for _ in range(draw(st.integers(0, 5))):
        shape = draw(st.integers(1, 4)), draw(st.integers(1, 5))
        labels = torch.randint(0, 4, shape, generator=generator)  # class 4 is absent
        labels[torch.rand(shape, generator=generator) < 0.3] = 255
        made.append((torch.rand(shape, generator=generator).double() * 5, labels))
    return made


@few
@given(images())
def test_means_equal_loops_and_shards_in_any_order(made):
    serial, shards, total, pixels = ClassLoss(5), [ClassLoss(5), ClassLoss(5)], [0.0] * 5, [0] * 5
    for k, (loss, labels) in enumerate(made):
        serial.update(loss, labels)
        shards[k % 2].update(loss, labels)
        for value, label in zip(loss.flatten().tolist(), labels.flatten().tolist(), strict=True):
            if label != 255:
                total[label] += value
                pixels[label] += 1
    expected = [t / (n + EPSILON) for t, n in zip(total, pixels, strict=True)]
    assert serial.compute() == pytest.approx(expected, rel=1e-12) and serial.compute()[4] == 0.0
    merged = shards[1].merge(shards[0])
    assert merged.compute() == pytest.approx(serial.compute(), rel=1e-12)
    assert (merged.counts == serial.counts).all()
    backwards = ClassLoss(5)
    for loss, labels in reversed(made):
        backwards.update(loss.float()[None], labels[None])
    assert backwards.compute() == pytest.approx(serial.compute(), rel=1e-6)


def test_sums_of_many_small_losses_do_not_stall():
    """In float32 adding 1e-4 to a sum of 2,000 changes nothing any more."""
    stats = ClassLoss.from_state([0], [2048.0])
    stats.update(torch.full((1000, 1000), 1e-4), torch.zeros(1000, 1000, dtype=torch.int64))
    assert stats.sums[0] == pytest.approx(2148.0, rel=1e-7)


def test_a_saved_state_goes_on_and_prints():
    stats = ClassLoss(3).update(torch.tensor([1.0, 2.0]), torch.tensor([0, 2]))
    again = ClassLoss.from_state(stats.counts.tolist(), stats.sums.tolist())
    again.update(torch.tensor([4.0]), torch.tensor([0]))
    assert again.counts.tolist() == [2, 0, 1] and again.sums.tolist() == [5.0, 0.0, 2.0]
    assert stats.sums.tolist() == [1.0, 0.0, 2.0], "its arrays are its own"
    assert repr(again) == "ClassLoss(3 classes, 3 pixels of 2 classes, ignores 255)"


def test_what_is_ignored_is_not_looked_at():
    stats = ClassLoss(2).update(torch.tensor([math.nan, 1.0, -3.0]), torch.tensor([255, 1, 255]))
    assert stats.sums.tolist() == [0.0, 1.0]
    assert ClassLoss(2).update(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).compute().tolist() == [0.0, 0.0]


def test_errors_of_the_means_leave_the_state_alone():
    stats = ClassLoss(2).update(torch.tensor([1.0]), torch.tensor([1]))
    loss, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([[0, 1]])
    for bad, match in (
        (torch.tensor([[1.0, math.nan]]), r"`loss` must be finite and >= 0, nats; found nan at \[0, 1\]"),
        (torch.tensor([[1.0, math.inf]]), r"found inf at \[0, 1\]"), (-loss, r"found -1.0 at \[0, 0\]"),
        (loss[0], r"one shape; got \(2,\) and \(1, 2\)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            stats.update(bad, labels)
    with pytest.raises(TypeError, match="`loss` must be a tensor of floats; got torch.int64"):
        stats.update(labels, labels)
    with pytest.raises(ValueError, match=r"ids in \[0, 2\) or 255 .*found 2 at \[0, 1\]"):
        stats.update(loss, labels * 2)
    with pytest.raises(TypeError, match="`other` must be a ClassLoss; got list"):
        stats.merge([1])
    for other in (ClassLoss(3), ClassLoss(2, ignore_index=-1)):
        with pytest.raises(ValueError, match="as many classes and ignore the same label"):
            stats.merge(other)
    with pytest.raises(ValueError, match="`absent` must be 'drop' or 'keep'; got 'zero'"):
        stats.compute("zero")
    assert stats.counts.tolist() == [0, 1] and stats.sums.tolist() == [0.0, 1.0]
    for wrong in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match="`num_classes` must be an integer >= 1"):
            ClassLoss(wrong)
    for counts, sums in (([1, 2], [1.0]), ([-1], [1.0]), ([1], [math.nan]), ([1.5], [1.0]), ([], [])):
        with pytest.raises(ValueError, match="`counts` and `sums` must be"):
            ClassLoss.from_state(counts, sums)


# -- filter ---------------------------------------------------------------------------------------------------------


def test_the_threshold_is_strict_and_a_pixel_s_own_class_decides():
    means = np.array([1.0, 2.0])
    loss = torch.tensor([[1.25, 1.2501, 2.5, 2.5001, 9.0]])
    labels = torch.tensor([[0, 0, 1, 1, 255]])
    assert filter_labels(loss, labels, means).tolist() == [[0, 255, 1, 255, 255]]
    assert labels.tolist() == [[0, 0, 1, 1, 255]], "not changed"
    assert filter_labels(loss[:, :1], labels[:, :1], means).tolist() == [[0]], "a single pixel"


def test_a_tie_is_kept_in_the_precision_of_the_losses():
    """1.1 * 0.3 is smaller than the nearest float32: compared as doubles, that float32 would be filtered."""
    nearest = torch.tensor([1.1 * 0.3], dtype=torch.float32)
    assert nearest.double().item() > 1.1 * 0.3
    labels, means = torch.tensor([0]), np.array([0.3])
    assert filter_labels(nearest, labels, means, alpha=1.1).item() == 0
    above = torch.nextafter(nearest, torch.tensor([1.0]))
    assert filter_labels(above, labels, means, alpha=1.1).item() == 255


@few
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 1.0, 1.25, 3.0]), st.sampled_from(["drop", "keep"]))
def test_the_filter_equals_loops_and_keeps_more_with_a_larger_margin(seed, alpha, absent):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (2, 3, 5), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    loss = 3 * torch.rand(labels.shape, generator=generator, dtype=torch.float64)
    known = labels.clone()
    known[known == 3] = 255  # class 3 is absent from the statistics
    means = ClassLoss(4).update(torch.rand(labels.shape, generator=generator), known).compute(absent)
    ours = filter_labels(loss, labels, means, alpha=alpha)
    for value, label, mine in zip(*(x.flatten().tolist() for x in (loss, labels, ours)), strict=True):
        gone = label == 255 or (absent == "drop" if label == 3 else value > alpha * means[label])
        assert mine == (255 if gone else label)
    more = filter_labels(loss, labels, means, alpha=alpha + 0.5)
    assert (more[ours != 255] == ours[ours != 255]).all()
    order, names = torch.tensor([1, 0]), torch.tensor([2, 0, 3, 1])
    assert torch.equal(filter_labels(loss[order], labels[order], means, alpha=alpha), ours[order])
    renamed, back = (torch.where(x == 255, 255, names[x.clamp(max=3)]) for x in (labels, ours))
    assert torch.equal(filter_labels(loss, renamed, means[names.argsort().numpy()], alpha=alpha), back)


def test_absent_classes_and_the_ends_of_the_margin():
    stats = ClassLoss(2).update(torch.tensor([1.0]), torch.tensor([0]))
    loss, labels = torch.tensor([0.0, 1e-6, 5.0]), torch.tensor([1, 1, 1])
    assert filter_labels(loss, labels, stats.compute()).tolist() == [1, 255, 255]
    assert filter_labels(loss, labels, stats.compute("keep")).tolist() == [1, 1, 1]
    assert filter_labels(loss, labels, stats.compute("keep"), alpha=0).tolist() == [1, 1, 1]
    for absent in ("drop", "keep"):
        assert filter_labels(loss, labels, stats.compute(absent), alpha=math.inf).tolist() == [1, 1, 1]
    nothing = torch.full((2, 3), 255)
    assert torch.equal(filter_labels(torch.zeros(2, 3), nothing, stats.compute()), nothing)
    assert filter_labels(torch.zeros(0), nothing[:0, 0], stats.compute()).shape == (0,)
    assert filter_labels(torch.tensor([9.0]), torch.tensor([0]), stats.compute(), ignore_index=-1).tolist() == [-1]


def test_errors_of_the_filter():
    loss, labels, means = torch.tensor([1.0, 2.0]), torch.tensor([0, 1]), np.array([1.0, 2.0])
    for alpha in (-0.1, math.nan, "1", True):
        with pytest.raises(ValueError, match=f"`alpha` must be a number >= 0, {MARGIN} in the paper"):
            filter_labels(loss, labels, means, alpha=alpha)
    for wrong in (means[None], means[:0], np.array([1.0, math.nan]), -means):
        with pytest.raises(ValueError, match=r"`means` must be \(C,\) numbers >= 0.*See ClassLoss.compute"):
            filter_labels(loss, labels, wrong)
    with pytest.raises(ValueError, match="found 1 at"):
        filter_labels(loss, labels, means[:1])
    with pytest.raises(ValueError, match="found nan at"):
        filter_labels(loss * math.nan, labels, means)


# -- the official script --------------------------------------------------------------------------------------------


def test_equals_the_official_filter_on_recorded_inputs():
    """fixtures/freemask.md says where from; classes 120 and 150 are in no real image."""
    with np.load(FIXTURE) as stored:
        recorded = dict(stored)

    def judged(name):
        labels = torch.from_numpy(ADE20K.read(recorded[f"{name}/mask"]))[None]
        return loss_map(torch.from_numpy(recorded[f"{name}/logits"])[None], labels), labels

    stats = ClassLoss(150)
    for name in "abc":
        stats.update(*judged(f"real/{name}"))
    np.testing.assert_allclose(stats.compute(), recorded["means"], rtol=1e-6)
    for name in "pq":
        clean = filter_labels(*judged(f"synthetic/{name}"), stats.compute())
        mask, official = recorded[f"synthetic/{name}/mask"], recorded[f"synthetic/{name}/filtered"]
        assert (ADE20K.write(clean[0].numpy()) == official).all() and 0.05 < (official != mask).mean() < 0.5
    assert np.isin(mask, [120, 150]).any() and not np.isin(official, [120, 150]).any()
