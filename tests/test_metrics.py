"""IoU and its groupings: by hand, by loops, by properties, against mmsegmentation, against WILSON's printed rows."""

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fmseg  # noqa: F401  (before mmseg: clears its import obstacles)
from fmseg.metrics import (
    Confusion,
    confusion_matrix,
    grid_ceiling,
    grouped_iou,
    iou_per_class,
    mean_iou,
    seen_unseen,
)

NAN = float("nan")
few = settings(max_examples=25, deadline=None)


@st.composite
def masks(draw, classes=4, ignore=255):
    """(pred, target) of shape (n, h, w); the truth holds ignored pixels, and often lacks a class."""
    n, h, w = (draw(st.integers(1, 4)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    used = draw(st.integers(1, classes))
    target = rng.integers(0, used, (n, h, w)).astype(np.uint8)
    pred = rng.integers(0, classes, (n, h, w)).astype(np.uint8)
    target[rng.random(target.shape) < draw(st.sampled_from([0.0, 0.2, 1.0]))] = ignore
    return pred, target


def loop_confusion(pred, target, classes, ignore=255):
    matrix = [[0] * classes for _ in range(classes)]
    for t, p in zip(target.flatten().tolist(), pred.flatten().tolist(), strict=True):
        if t != ignore:
            matrix[t][p] += 1
    return matrix


def loop_iou(pred, target, classes, ignore=255):
    values = []
    for c in range(classes):
        pairs = [(t, p) for t, p in zip(target.flatten(), pred.flatten(), strict=True) if t != ignore]
        both = sum(t == c and p == c for t, p in pairs)
        either = sum(t == c or p == c for t, p in pairs)
        values.append(both / either if any(t == c for t, _ in pairs) else NAN)
    return values


# -- the matrix and the IoU -----------------------------------------------------------------------------------------


def test_by_hand():
    target = np.array([[0, 0, 1], [1, 1, 255]], dtype=np.uint8)
    pred = np.array([[0, 1, 1], [1, 0, 2]], dtype=np.uint8)
    assert confusion_matrix(pred, target, 3).tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    iou = Confusion(3).update(pred, target).compute()
    np.testing.assert_array_equal(iou, [1 / 3, 2 / 4, NAN])  # class 2: only on the ignored pixel, so no truth
    assert mean_iou(iou) == pytest.approx((1 / 3 + 1 / 2) / 2)


@few
@given(masks())
def test_equals_the_loop_over_pixels(m):
    pred, target = m
    assert confusion_matrix(pred, target, 4).tolist() == loop_confusion(pred, target, 4)
    np.testing.assert_allclose(Confusion(4).update(pred, target).compute(), loop_iou(pred, target, 4), rtol=1e-15)


@few
@given(masks())
def test_library_and_dtype_do_not_matter(m):
    pred, target = m
    whole = confusion_matrix(pred, target, 4)
    assert whole.dtype == np.int64
    torch_pred, torch_target = torch.from_numpy(pred), torch.from_numpy(target)
    for p, t in [(torch_pred, torch_target), (torch_pred.long(), target), (pred.astype(np.int32), torch_target.int())]:
        np.testing.assert_array_equal(confusion_matrix(p, t, 4), whole)
    pred.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flipped = confusion_matrix(pred[..., ::-1], target[..., ::-1], 4)  # read-only, negative strides
    np.testing.assert_array_equal(flipped, whole)


@few
@given(masks(), st.integers(0, 4))
def test_shards_merged_equal_the_whole(m, cut):
    pred, target = m
    whole = Confusion(4).update(pred, target)
    parts = [Confusion(4).update(p, t) for p, t in [(pred[:cut], target[:cut]), (pred[cut:], target[cut:])]]
    np.testing.assert_array_equal(parts[1].merge(parts[0]).matrix, whole.matrix)
    single = Confusion(4)
    for p, t in zip(pred, target, strict=True):
        single.update(p, t)
    np.testing.assert_array_equal(single.compute(), whole.compute())


def test_more_pixels_than_one_piece_holds():
    rng = np.random.default_rng(0)
    target, pred = rng.integers(0, 3, (2, 5, 300, 300), dtype=np.uint8)
    target[4, 299, 299], pred[4, 299, 299] = 1, 2
    expected = np.zeros((3, 3), dtype=np.int64)
    np.add.at(expected, (target, pred), 1)
    np.testing.assert_array_equal(confusion_matrix(pred, target, 3), expected)
    pred[4, 299, 298] = 7
    with pytest.raises(ValueError, match=r"found 7 at \[4, 299, 298\]"):
        confusion_matrix(pred, target, 3)


@few
@given(masks())
def test_a_batch_of_one_equals_the_image(m):
    pred, target = m
    np.testing.assert_array_equal(confusion_matrix(pred[:1], target[:1], 4), confusion_matrix(pred[0], target[0], 4))


@few
@given(masks(), st.permutations(range(4)))
def test_relabelling_classes_permutes_the_scores(m, order):
    pred, target = m
    table = np.arange(256, dtype=np.uint8)
    table[:4] = order
    before = Confusion(4).update(pred, target).compute()
    after = Confusion(4).update(table[pred], table[target]).compute()
    np.testing.assert_array_equal(after[list(order)], before)


@few
@given(masks())
def test_the_prediction_on_ignored_pixels_does_not_matter(m):
    pred, target = m
    other = np.where(target == 255, 255, pred)  # even an id out of range
    np.testing.assert_array_equal(confusion_matrix(other, target, 4), confusion_matrix(pred, target, 4))


@few
@given(masks())
def test_the_truth_scores_one_and_a_score_is_a_fraction(m):
    pred, target = m
    perfect = Confusion(4).update(target, target).compute()
    assert set(perfect[~np.isnan(perfect)]) <= {1.0}
    iou = Confusion(4).update(pred, target).compute()
    np.testing.assert_array_equal(np.isnan(iou), np.isnan(perfect))
    assert np.nanmin(iou, initial=1.0) >= 0 and np.nanmax(iou, initial=0.0) <= 1


def test_a_class_without_truth_is_left_out_but_stray_pixels_still_cost_their_own_class():
    target = np.zeros((1, 2, 2), dtype=np.uint8)
    pred = np.array([[[0, 0], [0, 1]]], dtype=np.uint8)
    iou = Confusion(3).update(pred, target).compute()
    np.testing.assert_array_equal(iou, [0.75, NAN, NAN])
    assert mean_iou(iou) == 0.75


def test_all_ignored_and_no_images_contribute_nothing():
    confusion = Confusion(3).update(np.zeros((2, 4, 4), np.uint8), np.full((2, 4, 4), 255, np.uint8))
    confusion.update(np.zeros((0, 4, 4), np.uint8), np.zeros((0, 4, 4), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iou = confusion.compute()
        assert np.isnan(iou).all() and np.isnan(mean_iou(iou)) and np.isnan(mean_iou(iou, []))
    assert confusion.matrix.sum() == 0


def test_ignore_index_inside_the_range_leaves_that_class_out():
    target, pred = np.array([[0, 1, 1]]), np.array([[1, 1, 0]])
    assert confusion_matrix(pred, target, 2, ignore_index=0).tolist() == [[0, 0], [1, 1]]
    assert confusion_matrix(pred, np.array([[-1, 1, 1]]), 2, ignore_index=-1).tolist() == [[0, 0], [1, 1]]


def test_bool_masks_count_as_zero_and_one():
    target, pred = np.array([True, False, False]), torch.tensor([True, True, False])
    assert confusion_matrix(pred, target, 2).tolist() == [[1, 1], [0, 1]]


def test_the_matrix_is_the_whole_state():
    rng = np.random.default_rng(1)
    pred, target = rng.integers(0, 3, (2, 2, 5, 5))
    done = Confusion(3).update(pred, target)
    for state in (done.matrix, torch.from_numpy(done.matrix), json.loads(json.dumps(done.matrix.tolist()))):
        resumed = Confusion.from_matrix(state).update(pred, target)
        np.testing.assert_array_equal(resumed.matrix, 2 * done.matrix)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(done)).compute(), done.compute())


def test_from_matrix_does_not_share_memory():
    saved = np.eye(2, dtype=np.int64)
    Confusion.from_matrix(saved).update(np.array([0]), np.array([0]))
    assert saved.tolist() == [[1, 0], [0, 1]]


# -- bad input ------------------------------------------------------------------------------------------------------

GOOD = np.zeros((2, 3, 3), dtype=np.uint8)


def with_one(value, at=(1, 2, 0), dtype=np.int64):
    mask = GOOD.astype(dtype)
    mask[at] = value
    return mask


@pytest.mark.parametrize(
    ("pred", "target", "error", "says"),
    [
        (GOOD, GOOD[:1], ValueError, r"shape of `target`, \(1, 3, 3\); got \(2, 3, 3\)"),
        (np.zeros((2, 5, 3, 3), int), GOOD, ValueError, "class axis"),
        (GOOD, GOOD.astype(np.float32), TypeError, "`target` must hold integer class ids, got float32"),
        (torch.zeros(2, 5, 3, 3), GOOD, TypeError, r"`pred`.*got float32.*argmax over the class axis"),
        (torch.full((2, 5, 3, 3), NAN), GOOD, TypeError, "holds NaN"),
        (np.full((2, 5, 3, 3), NAN), GOOD, TypeError, "holds NaN"),
        (GOOD.tolist(), GOOD, TypeError, "`pred` must be a numpy array or a torch tensor.*got list"),
        (GOOD, with_one(22), ValueError, r"`target` .* \[0, 21\) or 255; found 22 at \[1, 2, 0\].*another data set"),
        (GOOD, with_one(-1), ValueError, r"found -1 at \[1, 2, 0\].*pass ignore_index=-1"),
        (with_one(21), GOOD, ValueError, r"`pred` must hold class ids in \[0, 21\); found 21 at \[1, 2, 0\]"),
        (torch.from_numpy(with_one(-3)), GOOD, ValueError, r"`pred` .* found -3 at \[1, 2, 0\]"),
        (with_one(255, dtype=np.uint8), GOOD, ValueError, "`pred` .* found 255"),
    ],
)
def test_bad_masks_are_named(pred, target, error, says):
    confusion = Confusion(21).update(GOOD, GOOD)
    with pytest.raises(error, match=says):
        confusion.update(pred, target)
    assert confusion.matrix.sum() == confusion.matrix[0, 0] == GOOD.size  # as before


def test_the_first_offender_is_reported():
    target = with_one(30)
    target[0, 1, 1] = 40
    with pytest.raises(ValueError, match=r"found 40 at \[0, 1, 1\]"):
        confusion_matrix(GOOD, target, 21)


def test_unmarked_ignore_label_is_hinted_at():
    with pytest.raises(ValueError, match="pass ignore_index=255"):
        confusion_matrix(GOOD, with_one(255, dtype=np.uint8), 21, ignore_index=0)


def test_merge_refuses_other_protocols():
    with pytest.raises(ValueError, match="num_classes: expected 3, got 4"):
        Confusion(3).merge(Confusion(4))
    with pytest.raises(ValueError, match="ignore_index: expected 255, got 0"):
        Confusion(3).merge(Confusion(3, ignore_index=0))
    with pytest.raises(TypeError, match="from_matrix"):
        Confusion(3).merge(np.zeros((3, 3), int))


def test_bad_states_and_class_counts_are_named():
    with pytest.raises(ValueError, match="square"):
        Confusion.from_matrix(np.zeros((2, 3), int))
    with pytest.raises(TypeError, match="normalised"):
        Confusion.from_matrix(np.eye(2))
    with pytest.raises(ValueError, match=">= 0"):
        iou_per_class(-np.eye(2, dtype=int))
    with pytest.raises(ValueError, match="`num_classes` must be at least 1"):
        Confusion(0)
    with pytest.raises(TypeError, match="`num_classes` must be an integer"):
        Confusion(2.0)


# -- mmsegmentation as witness --------------------------------------------------------------------------------------


def mmseg_iou(pred, target, classes):
    from mmseg.evaluation import IoUMetric

    areas = IoUMetric.intersect_and_union(torch.from_numpy(pred), torch.from_numpy(target), classes, 255)
    return IoUMetric.total_area_to_metrics(*areas)["IoU"]


def test_equals_mmseg_where_every_predicted_class_occurs_in_the_truth():
    rng = np.random.default_rng(2)
    for classes in (2, 21, 49):
        target = rng.integers(0, classes, (2, 64, 64), dtype=np.uint8)
        target[:, :, :5] = 255
        target[target == 1] = 0  # class 1 in neither mask
        target[0, 0, 5:] = np.arange(59) % classes * (np.arange(59) % classes != 1)
        pred = np.where(rng.random(target.shape) < 0.6, target, np.roll(target, 7, axis=2))
        pred[pred == 255] = 0
        ours = Confusion(classes).update(pred, target).compute()
        np.testing.assert_allclose(ours, mmseg_iou(pred, target, classes), rtol=1e-6)
        assert np.isnan(ours[1])


def test_differs_from_mmseg_where_a_class_is_only_predicted():
    target = np.zeros((1, 2, 2), dtype=np.uint8)
    pred = np.array([[[0, 0], [0, 1]]], dtype=np.uint8)
    np.testing.assert_array_equal(mmseg_iou(pred, target, 2), [0.75, 0.0])
    np.testing.assert_array_equal(Confusion(2).update(pred, target).compute(), [0.75, NAN])


# -- groupings ------------------------------------------------------------------------------------------------------

# WILSON (CVPR 2022), supplement, Tables 4-7: IoU of background and classes 1-20, and what it prints in Tables 1 and 2.
WILSON = {
    "15-5 disjoint": (
        "90.5 88.8 40.9 86.4 69.4 77.9 82.9 88.0 92.3 35.4 51.3 56.2 88.3 83.9 77.2 85.1 30.3 47.5 39.2 54.6 47.5",
        15, (73.60, 43.82, 67.31), (73.6, 43.8, 67.3),
    ),
    "15-5 overlap": (
        "89.5 88.6 41.2 84.9 68.7 79.0 83.9 88.5 91.7 39.3 55.7 58.3 89.0 85.7 73.3 85.8 26.5 48.6 36.6 55.7 40.9",
        15, (74.24, 41.66, 67.21), (74.2, 41.7, 67.2),
    ),
    "10-10 disjoint": (
        "89.7 78.8 33.1 87.7 57.8 80.9 75.5 71.3 75.7 28.7 55.0 27.7 66.8 43.3 64.3 59.5 45.9 63.2 37.6 74.3 60.4",
        10, (64.45, 54.30, 60.82), (64.5, 54.3, 60.8),
    ),
    "10-10 overlap": (
        "89.1 83.6 38.1 86.5 62.8 79.6 79.3 83.7 85.4 33.0 72.3 29.0 77.8 64.5 73.9 59.8 40.9 67.9 37.5 57.0 62.3",
        10, (70.43, 57.06, 64.95), (70.4, 57.1, 65.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("setting", WILSON)
def test_wilsons_printed_rows(setting):
    row, last_old, averages, printed = WILSON[setting]
    iou = np.array(row.split(), dtype=float)
    assert len(iou) == 21
    groups = grouped_iou(iou, range(1, last_old + 1), range(last_old + 1, 21))
    assert list(groups) == ["old", "new", "all"]
    np.testing.assert_allclose(list(groups.values()), averages, atol=0.0051)
    np.testing.assert_allclose(list(groups.values()), printed, atol=0.0501)


def test_the_other_grouping_is_not_what_wilson_prints():
    iou = np.array(WILSON["15-5 disjoint"][0].split(), dtype=float)
    assert mean_iou(iou, range(16)) == pytest.approx(74.66, abs=0.005)  # background in old: printed 73.6
    assert mean_iou(iou, range(1, 21)) == pytest.approx(66.16, abs=0.0051)  # no background in all: printed 67.3
    assert grouped_iou(iou, range(16), range(16, 21)) == grouped_iou(iou, range(1, 16), range(16, 21))


def test_classes_of_later_steps_and_without_truth_do_not_enter():
    iou = [0.9, 0.5, NAN, 0.3, 0.0]
    groups = grouped_iou(iou, old=[1, 2], new=[3])
    assert groups == pytest.approx({"old": 0.5, "new": 0.3, "all": (0.9 + 0.5 + 0.3) / 3})
    assert grouped_iou(iou, [0, 1], [3], background=None)["old"] == pytest.approx(0.7)
    assert np.isnan(grouped_iou(iou, [2], [])["old"]) and np.isnan(grouped_iou(iou, [1], [])["new"])


def test_seen_unseen_harmonic():
    iou = [0.6, 0.2, 0.3, NAN]
    assert seen_unseen(iou, [0, 1], [2]) == pytest.approx({"seen": 0.4, "unseen": 0.3, "harmonic": 0.24 / 0.7})
    assert seen_unseen([0.0, 0.0], [0], [1])["harmonic"] == 0.0
    assert seen_unseen([0.5, 0.0], [0], [1])["harmonic"] == 0.0
    assert np.isnan(seen_unseen(iou, [0], [3])["harmonic"])


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_harmonic_lies_below_the_mean_and_near_the_smaller(s, u):
    harmonic = seen_unseen([s, u], [0], [1])["harmonic"]
    assert min(s, u) - 1e-12 <= harmonic <= min((s + u) / 2, 2 * min(s, u)) + 1e-12


def test_mean_iou_reads_json_nulls():
    assert mean_iou([0.5, None, 0.7]) == pytest.approx(0.6)
    assert mean_iou(torch.tensor([0.5, NAN]), np.array([0])) == 0.5


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: mean_iou([0.1, 0.2], [2]), ValueError, r"`classes` .* \[0, 2\).*found 2"),
        (lambda: mean_iou([0.1, 0.2], [-1]), ValueError, "found -1"),
        (lambda: mean_iou([0.1, 0.2], [1, 1]), ValueError, "each class once"),
        (lambda: mean_iou([0.1, 0.2], [0.5]), TypeError, "`classes` must be an integer"),
        (lambda: mean_iou([[0.1, 0.2]]), ValueError, "one value a class"),
        (lambda: grouped_iou([0.1] * 4, [1, 2], [2, 3]), ValueError, r"`old` and `new` .* both hold \[2\]"),
        (lambda: grouped_iou([0.1] * 4, [1], [0]), ValueError, "`background` and `new`"),
        (lambda: seen_unseen([0.1] * 4, [1, 2], [2]), ValueError, "`seen` and `unseen`"),
    ],
)
def test_bad_groups_are_named(call, error, says):
    with pytest.raises(error, match=says):
        call()


# -- the ceiling of a grid ------------------------------------------------------------------------------------------


def test_straight_borders_along_cells_cost_nothing():
    labels = np.zeros((2, 16, 16), dtype=np.uint8)
    labels[0, 4:], labels[1, :, 8:] = 1, 2
    assert grid_ceiling(labels, 3, grid=4).tolist() == [1.0, 1.0, 1.0]


def test_cells_of_at_most_two_pixels_cost_nothing_if_constant():
    labels = np.random.default_rng(3).integers(0, 5, (3, 8, 8)).astype(np.uint8)
    assert grid_ceiling(labels, 5, grid=8).tolist() == [1.0] * 5
    assert grid_ceiling(labels.repeat(2, axis=1).repeat(2, axis=2), 5, grid=8).tolist() == [1.0] * 5


def test_a_single_cell_of_four_pixels_loses_its_corners():
    """Bilinear weight of the own cell: 0.875 or 0.625 an axis; 0.625 ** 2 < 1/2 only in the four corners."""
    labels = np.zeros((1, 16, 16), dtype=np.uint8)
    labels[0, 4:8, 8:12] = 1
    np.testing.assert_allclose(grid_ceiling(labels, 2, grid=4), [240 / 244, 12 / 16])


def test_a_thing_smaller_than_half_a_cell_vanishes():
    labels = np.zeros((1, 16, 16), dtype=np.uint8)
    labels[0, 5:7, 5:7] = 1
    assert grid_ceiling(labels, 2, grid=4).tolist() == [252 / 256, 0.0]


def test_ignored_pixels_are_neither_pooled_nor_scored():
    labels = np.full((1, 8, 8), 255, dtype=np.uint8)
    labels[0, 1, 1], labels[0, 6, 6] = 2, 1  # one counted pixel a cell decides the cell
    np.testing.assert_array_equal(grid_ceiling(labels, 3, grid=2), [NAN, 1.0, 1.0])
    everything = grid_ceiling(np.full((1, 8, 8), 255, np.uint8), 3, grid=2)
    assert np.isnan(everything).all()


def test_a_cell_with_few_counted_pixels_weighs_as_much_as_a_full_one():
    labels = np.full((1, 8, 8), 255, dtype=np.uint8)
    labels[0, :, 3], labels[0, :, 4:] = 0, 1  # own weight 0.625 at the border column; over all 16 pixels 0.156
    assert grid_ceiling(labels, 2, grid=2).tolist() == [1.0, 1.0]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 6]), st.sampled_from([255, -1]))
def test_the_ceiling_equals_one_hot_pooling_written_out(seed, grid, ignore):
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, 3, (2, 6, 12)))
    hot = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    pooled = hot.view(2, 3, grid, 6 // grid, grid, 12 // grid).sum((3, 5)) / (6 // grid * 12 // grid)
    torch.testing.assert_close(pooled, torch.nn.functional.adaptive_avg_pool2d(hot, grid))
    back = torch.nn.functional.interpolate(pooled, size=(6, 12), mode="bilinear", align_corners=False)
    expected = Confusion(3).update(back.argmax(1), labels).compute()
    np.testing.assert_array_equal(grid_ceiling(labels, 3, grid, ignore), expected)


def test_the_ceiling_does_not_depend_on_how_images_are_cut(monkeypatch):
    labels = np.random.default_rng(4).integers(0, 3, (5, 8, 8)).astype(np.uint8).repeat(2, axis=1)
    whole = grid_ceiling(labels, 3, grid=4)
    monkeypatch.setattr("fmseg.metrics._SCORES_AT_ONCE", 1)
    np.testing.assert_array_equal(grid_ceiling(labels, 3, grid=4), whole)
    labels[3, 2, 1] = 9
    with pytest.raises(ValueError, match=r"`labels` .* found 9 at \[3, 2, 1\]"):
        grid_ceiling(labels, 3, grid=4)


def test_finer_grids_reach_higher():
    y, x = np.mgrid[:64, :64]
    labels = ((y - 30) ** 2 + (x - 33) ** 2 < 200).astype(np.uint8)[None]
    means = [mean_iou(grid_ceiling(labels, 2, grid)) for grid in (4, 8, 16, 32, 64)]
    assert means == sorted(means) and means[-1] == 1.0 and means[0] < 0.9


@pytest.mark.parametrize(
    ("labels", "grid", "error", "says"),
    [
        (GOOD, 2, ValueError, "3 x 3 pixels do not split into 2 x 2"),
        (GOOD[0], 3, ValueError, r"labels\[None\]"),
        (GOOD.astype(float), 3, TypeError, "`labels` must hold integer class ids"),
        (GOOD, 0, ValueError, "`grid` must be at least 1"),
        (GOOD, 1.5, TypeError, "`grid` must be an integer"),
    ],
)
def test_bad_ceiling_input_is_named(labels, grid, error, says):
    with pytest.raises(error, match=says):
        grid_ceiling(labels, 2, grid)
