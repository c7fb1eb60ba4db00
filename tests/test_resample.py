"""Hardness, counts and the draw: by hand, by loops, golden counts, against FreeMask's own script."""

import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmseg.label_format import ADE20K, COCO_STUFF, LabelFormat
from fmseg.noise import filter_labels
from fmseg.resample import (
    class_counts,
    counts_by_rank,
    draw,
    hardness,
    image_counts,
    image_name,
    manifest,
    nearest,
    pairs,
    saving,
)

ROOT = Path(__file__).parent.parent
FIXTURE = ROOT / "tests/fixtures/freemask.npz"
few = settings(max_examples=25, deadline=None)


def blocks(seed, size=(9, 13), ids=(0, 1, 2, 5, 150)):
    return np.random.default_rng(seed).choice(ids, size).astype(np.uint8)


def official_rounding(masks, most):
    """Eq. 5, one rank at a time, with Python's own rounding."""
    return [min(1 + round((i + 1) / masks * most), most) for i in range(masks)]


# -- counts by class ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(9, 13), (512, 512), (683, 512), (1, 1), (400, 1021)])
@pytest.mark.parametrize("side", [512, 64, 1])
def test_squashing_is_that_of_pil(size, side):
    mask = np.random.default_rng(0).integers(0, 151, size).astype(np.uint8)
    assert (nearest(mask, side) == np.array(Image.fromarray(mask).resize((side, side), Image.NEAREST))).all()


@few
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30), st.sampled_from([None, 16]))
def test_class_counts_equal_loops(seed, height, width, side):
    mask = blocks(seed, (height, width))
    ours = class_counts(mask, ADE20K, side=side)
    small = mask if side is None else np.array(Image.fromarray(mask).resize((side, side), Image.NEAREST))
    expected = [0] * 150
    for value in small.flatten().tolist():
        if value:
            expected[value - 1] += 1
    assert ours.tolist() == expected and ours.dtype == np.int64
    assert (class_counts(mask.astype(np.int64), ADE20K, side=side) == ours).all()


@pytest.mark.parametrize("run", [1, 3, 40])
def test_runs_of_pixels_are_counted_like_pixels(run):
    """Noise, short runs and long ones; whatever the layout in memory."""
    mask = np.random.default_rng(0).integers(0, 151, (401, 511)).astype(np.uint8).repeat(run, 1)[:, :511]
    for given_ in (mask, np.asfortranarray(mask), mask[::-1], mask[:, ::2]):
        assert (class_counts(given_, ADE20K, side=None) == np.bincount(given_.ravel(), minlength=151)[1:]).all()


def test_formats_differ_in_what_counts():
    mask = np.array([[0, 1], [255, 170]], np.uint8)
    counts = class_counts(mask, COCO_STUFF, side=None)
    assert counts[[0, 1, 170]].tolist() == [1, 1, 1] and counts.sum() == 3
    inner = LabelFormat(2, ignore=255)
    assert class_counts(np.array([[0, 1, 255]], np.uint8), inner, side=None).tolist() == [1, 1]
    assert class_counts(np.zeros((3, 3), np.uint8), ADE20K).sum() == 0


def test_errors_of_class_counts():
    mask = np.array([[0, 1], [151, 3]], np.uint8)
    for given_ in (mask, mask.astype(np.int64)):
        with pytest.raises(ValueError, match=r"1 to 150 \(classes\) or 0 \(no label\); found 151 at \[1, 0\]"):
            class_counts(given_, ADE20K, side=None)
    for value in (-1, 256):
        with pytest.raises(ValueError, match=f"found {value} at"):
            class_counts(np.full((2, 2), value), ADE20K)
    with pytest.raises(TypeError, match="`mask` must be an array of integer ids; got float64"):
        class_counts(np.zeros((2, 2)), ADE20K)
    for wrong in (np.zeros((0, 3), np.uint8), np.zeros(3, np.uint8), np.zeros((1, 2, 2), np.uint8)):
        with pytest.raises(ValueError, match=r"`mask` must be \(H, W\), not empty"):
            class_counts(wrong, ADE20K)
    with pytest.raises(ValueError, match="`side` must be at least 1; got 0"):
        class_counts(mask, ADE20K, side=0)


# -- hardness -------------------------------------------------------------------------------------------------------


def test_hardness_by_hand():
    means = np.array([1.0, 4.0, 9.0])
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert hardness(counts, means) == pytest.approx([7 / (4 + 1e-5), 0.0, 9 / (1 + 1e-5)], rel=1e-14)
    assert hardness(counts[0], means) == hardness(counts, means)[0]


@few
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_hardness_equals_loops_whatever_the_order_of_masks_and_classes(seed, masks):
    generator = np.random.default_rng(seed)
    counts, means = generator.integers(0, 50, (masks, 7)), generator.random(7) * 3
    ours = hardness(counts, means)
    for row, value in zip(counts.tolist(), ours, strict=True):
        expected = sum(n * m for n, m in zip(row, means.tolist(), strict=True)) / (sum(row) + 1e-5)
        assert value == pytest.approx(expected, rel=1e-12)
    order, names = generator.permutation(masks), generator.permutation(7)
    assert (hardness(counts[order], means) == ours[order]).all()
    assert hardness(counts[:, names], means[names]) == pytest.approx(ours, rel=1e-12)
    assert (hardness(np.repeat(counts[:1], 9, 0), means) == ours[0]).all(), "equal masks tie"


def test_errors_of_hardness():
    with pytest.raises(ValueError, match=r"`counts` must be \(..., C\) and `means` \(C,\).*\(2, 3\) and \(4,\)"):
        hardness(np.zeros((2, 3), int), np.zeros(4))
    with pytest.raises(TypeError, match="`counts` must be an array of integer ids; got float64"):
        hardness(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="`counts` must be >= 0.*found -1"):
        hardness(np.array([1, -1]), np.zeros(2))
    for value in (math.inf, math.nan, -1.0):
        with pytest.raises(ValueError, match=f"found {value} for class 1. Take ClassLoss.compute"):
            hardness(np.array([1, 1]), np.array([0.5, value]))


# -- counts by rank -------------------------------------------------------------------------------------------------

FORTY = (
    "1 2 3 3 3 4 5 5 5 6 7 7 7 8 9 9 9 10 11 11 11 12 13 13 13 14 15 15 15 16 17 17 17 18 19 19 19 20 20 20"
)  # fmt: skip


@pytest.mark.parametrize(
    "masks, most, expected",
    [(10, 20, "3 5 7 9 11 13 15 17 19 20"), (12, 6, "1 2 3 3 3 4 5 5 5 6 6 6"), (1, 20, "20"), (2, 20, "11 20"),
     (3, 6, "3 5 6"), (40, 20, FORTY)],
)  # fmt: skip
def test_golden_counts(masks, most, expected):
    assert counts_by_rank(masks, most).tolist() == [int(n) for n in expected.split()]


@pytest.mark.parametrize(
    "masks, most, total",
    [(20_210, 6, 79_158), (20_210, 10, 120_254), (20_210, 20, 221_814), (118_287, 6, 463_293)],
)  # fmt: skip
def test_golden_totals(masks, most, total):
    counts = counts_by_rank(masks, most)
    assert counts.sum() == total and (np.diff(counts) >= 0).all()
    assert counts.tolist() == official_rounding(masks, most)


def test_golden_histogram_of_ade20k():
    seen = Counter(counts_by_rank(20_210, 20).tolist())
    assert seen[1] == 505 and seen[20] == 1_516 and {seen[n] for n in range(2, 20)} == {1_010, 1_011}
    assert round(221_814 / 20_210) == 11 and round(463_293 / 118_287) == 4, "real images are repeated so often"


@few
@given(st.integers(0, 500), st.integers(1, 30))
def test_counts_are_python_s_rounding_and_floor_is_never_more(masks, most):
    assert counts_by_rank(masks, most).tolist() == official_rounding(masks, most)
    floor = counts_by_rank(masks, most, rounding="floor")
    assert floor.tolist() == [min(1 + math.floor((i + 1) / masks * most), most) for i in range(masks)]


def test_harder_masks_get_more_and_ties_keep_their_order():
    assert image_counts([0.5, 0.1, 0.9], 6).tolist() == [5, 3, 6]
    assert image_counts([0.5, 0.5, 0.5], 6).tolist() == [3, 5, 6]
    assert image_counts([], 6).tolist() == []
    order = np.random.default_rng(0).permutation(40)
    assert image_counts(order.astype(float)).tolist() == [int(FORTY.split()[k]) for k in order]


def test_errors_of_counts():
    with pytest.raises(ValueError, match="`most` must be at least 1; got 0"):
        counts_by_rank(3, 0)
    with pytest.raises(TypeError, match="`masks` must be an integer; got 3.0"):
        counts_by_rank(3.0, 2)
    with pytest.raises(ValueError, match="`rounding` must be 'even' or 'floor'; got 'up'"):
        counts_by_rank(3, 2, rounding="up")
    with pytest.raises(ValueError, match=r"`hardness` must be finite.*found nan at \[1\]"):
        image_counts([0.1, math.nan])


# -- the draw and its manifest --------------------------------------------------------------------------------------


def test_a_draw_has_no_repeats_and_depends_on_seed_and_mask_alone():
    first = draw(7, 20, 0, "ADE_train_00000001")
    assert first == draw(7, 20, 0, "ADE_train_00000001") and len(set(first)) == 7 and first == sorted(first)
    assert set(first) <= set(range(20)) and draw(20, 20, 3, "a") == list(range(20)) and draw(0, 20, 3, "a") == []
    others = {tuple(draw(7, 20, seed, mask)) for seed in (0, 1) for mask in ("a", "b", 0, 1, "0", "1")}
    assert len(others) == 12, "names and numbers, masks and seeds do not share draws"


def test_a_larger_draw_holds_the_smaller_one():
    for count in range(20):
        assert set(draw(count, 20, 5, "m")) < set(draw(count + 1, 20, 5, "m"))


def test_draws_are_uniform():
    """Each of 20 images in 1/4 of 4,000 draws; four standard deviations are 0.027."""
    seen = Counter(i for mask in range(4_000) for i in draw(5, 20, 0, mask))
    assert all(abs(seen[i] / 4_000 - 0.25) < 0.03 for i in range(20))


def test_another_process_draws_the_same():
    code = "from fmseg.resample import draw; import sys; print(draw(6, 20, 1, 'ADE_train_1'), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == f"{draw(6, 20, 1, 'ADE_train_1')} False"


def test_errors_of_the_draw():
    with pytest.raises(ValueError, match="`count` must be at most `most`, 20.*got 21"):
        draw(21, 20, 0, "m")
    for wrong in (dict(root_seed=-1), dict(count=-1), dict(mask=-1), dict(most=0)):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be at least"):
            draw(**{"count": 0, "most": 20, "root_seed": 0, "mask": "m"} | wrong)
    with pytest.raises(TypeError, match="`mask` must be an integer; got None"):
        draw(1, 20, 0, None)


def test_a_manifest_says_what_to_generate_whatever_the_order_of_masks():
    values = {"b": 0.5, "a": 0.5, "c": 0.1}
    plan = manifest(values, 6, root_seed=7)
    assert plan == manifest(dict(sorted(values.items(), reverse=True)), 6, root_seed=7)
    assert [(r["mask"], r["rank"], len(r["images"])) for r in plan["masks"]] == [("a", 2, 5), ("b", 3, 6), ("c", 1, 3)]
    assert (plan["most"], plan["root_seed"], plan["rounding"]) == (6, 7, "even")
    assert json.loads(json.dumps(plan)) == plan
    assert pairs(plan) == [(r["mask"], i) for r in plan["masks"] for i in r["images"]] and len(set(pairs(plan))) == 14
    assert plan["masks"][0]["images"] == draw(5, 6, 7, "a")
    assert manifest(values, 6, root_seed=8) != plan
    assert saving(plan) == {"drawn": 14, "all": 18, "share": 14 / 18}
    assert math.isnan(saving(manifest({}))["share"])
    assert image_name("ADE_train_00000001", 19) == "ADE_train_00000001_seed_61"
    with pytest.raises(ValueError, match="`hardness` must be finite"):
        manifest({"a": math.inf})


# -- re-sample first, filter only what was drawn --------------------------------------------------------------------


def test_filtering_what_was_drawn_is_drawing_from_what_was_filtered():
    generator = np.random.default_rng(0)
    masks = {f"m{k}": blocks(k, (8, 8)) for k in range(12)}
    means = generator.random(150) * 3
    losses = {(name, i): torch.from_numpy(generator.random((8, 8)) * 5) for name in masks for i in range(6)}
    filtered = []

    def clean(name, index):
        filtered.append((name, index))
        return filter_labels(losses[name, index], torch.from_numpy(ADE20K.read(masks[name])), means)

    plan = manifest({n: float(hardness(class_counts(m, ADE20K, side=8), means)) for n, m in masks.items()}, 6)
    drawn_first = {pair: clean(*pair) for pair in pairs(plan)}
    assert len(filtered) == saving(plan)["drawn"] == 49
    everything = {pair: clean(*pair) for pair in losses}
    filtered_first = {pair: everything[pair] for pair in pairs(plan)}
    assert len(everything) == saving(plan)["all"] == 72 and drawn_first.keys() == filtered_first.keys()
    assert all(torch.equal(drawn_first[pair], filtered_first[pair]) for pair in drawn_first)


@pytest.mark.parametrize("masks, most, drawn, whole", [(20_210, 20, 221_814, 404_200), (118_287, 6, 463_293, 709_722)])
def test_the_saving_at_the_papers_size(masks, most, drawn, whole):
    plan = {"most": most, "masks": [{"mask": "", "images": range(n)} for n in counts_by_rank(masks, most).tolist()]}
    assert saving(plan) == {"drawn": drawn, "all": whole, "share": drawn / whole}
    assert round(100 * drawn / whole, 1) == {20: 54.9, 6: 65.3}[most]


# -- the official script --------------------------------------------------------------------------------------------


def test_equals_the_official_script_on_recorded_inputs():
    """fixtures/freemask.md says where from; one mask has no label, two are equal."""
    with np.load(FIXTURE) as stored:
        recorded = dict(stored)
    names = [key.split("/")[1] for key in recorded if key.startswith("resample/m")]
    random.Random(0).shuffle(names)
    values = hardness(
        np.stack([class_counts(recorded[f"resample/{n}/mask"], ADE20K) for n in names]), recorded["means"]
    )
    plan = manifest(dict(zip(names, values.tolist(), strict=True)))
    ranked = sorted(plan["masks"], key=lambda row: row["rank"])
    assert [row["mask"] for row in ranked] == recorded["resample/order"].tolist()
    np.testing.assert_allclose([row["hardness"] for row in ranked], recorded["resample/hardness"], rtol=1e-12)
    assert [len(row["images"]) for row in ranked] == recorded["resample/counts"].tolist()
