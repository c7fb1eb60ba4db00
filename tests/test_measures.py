"""What the zoo is measured with: by hand, by loops, by properties."""

import numpy as np
import pytest
import torch

from fmseg import measure_generation as generation
from fmseg import measure_perception as perception
from fmseg.datasets import draw_set


def test_recall_counts_the_k_best_of_k_present():
    scores = np.array([[0.9, 0.8, 0.1, 0.0], [0.9, 0.8, 0.7, 0.0], [0.1, 0.2, 0.3, 0.4]])
    present = np.array([[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    found = perception.recall_at_k(scores, present)
    assert found[:2].tolist() == [0.5, 1.0] and np.isnan(found[2])
    assert np.array_equal(perception.recall_at_k(scores[:, ::-1], present[:, ::-1])[:2], found[:2])


def test_the_best_threshold_is_found_by_trying_all():
    rng = np.random.default_rng(0)
    score, mask = rng.integers(0, 50, (8, 8)) + rng.random((8, 8)), rng.random((8, 8)) < 0.3
    tried = []
    for threshold in score.ravel():
        kept = score >= threshold
        tried.append((kept & mask).sum() / (kept | mask).sum())
    assert perception.best_threshold_iou(score, mask) == pytest.approx(max(tried))
    assert perception.best_threshold_iou(mask.astype(float), mask) == 1.0
    assert perception.best_threshold_iou(3 * score + 5, mask) == perception.best_threshold_iou(score, mask)


def test_absent_classes_never_win_and_grounds_are_background():
    maps = torch.zeros(1, 4, 2, 2)  # two classes, two grounds
    maps[0, 0, 0, 0], maps[0, 1], maps[0, 3, 1, 1] = 0.9, 0.95, 0.99
    found = perception.dense_labels(maps, np.array([[True, False]]), 2)
    assert found[0, 0, 0] == 1 and found[0, 1, 1] == 0 and 2 not in found


def test_seeds_lie_inside_their_object():
    drawn = draw_set("voc", "val", 12)
    chosen = perception.seeds_inside(drawn, 16, np.random.default_rng(0))
    assert len(chosen) > 12
    for picture, instance, patch in chosen:
        y, x = divmod(patch, 16)
        assert drawn.instances[picture][4 * y + 2, 4 * x + 2] == instance
    assert chosen == perception.seeds_inside(drawn, 16, np.random.default_rng(0))


def test_a_map_is_cut_at_its_own_quantile():
    maps = np.random.default_rng(1).random((3, 20, 20)) * np.array([1, 10, 100])[:, None, None]
    kept = perception.thresholded(maps, 0.25)
    assert kept.shape == maps.shape and kept.mean((1, 2)) == pytest.approx([0.25] * 3, abs=0.01)
    assert all(maps[i][kept[i]].min() >= maps[i][~kept[i]].max() for i in range(3))


def test_the_probe_sees_a_mask_wherever_it_lies():
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:20, 12:22] = True
    moved = np.roll(mask, (25, 30), (0, 1))
    assert np.allclose(perception.centred(mask), perception.centred(moved), atol=0.02)


def test_fresh_pictures_are_nobodys_validation_or_training_pictures():
    for draw in ("voc", "web", "ade"):
        ours = perception.fresh(draw, 3, 2)
        assert not np.array_equal(ours.images, draw_set(draw, "val", 2).images)
        assert not np.array_equal(ours.images, perception.fresh(draw, 4, 2).images)


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((400, 3))
    assert generation.frechet(a, a) == pytest.approx(0, abs=1e-4)
    shifted = a + np.array([0.3, 0.0, -0.4])
    assert generation.frechet(a, shifted) == pytest.approx(100 * 0.25, rel=1e-6)
    scaled = (a - a.mean(0)) * 2 + a.mean(0)  # same mean, four times the covariance: trace of one of them
    assert generation.frechet(a, scaled) == pytest.approx(100 * np.trace(np.cov(a, rowvar=False)), rel=1e-5)
    assert generation.frechet(a, scaled) == pytest.approx(generation.frechet(scaled, a), rel=1e-6)


def test_a_picture_counts_if_every_named_thing_is_found(monkeypatch):
    from fmseg.oracle import Instance

    known = ("plain disc", "plain ring", *(f"ground {k}" for k in range(8)))
    seen = [[Instance(0, 0.9, None)], [Instance(0, 0.9, None), Instance(1, 0.5, None)], []]
    monkeypatch.setattr(generation, "load_oracle", lambda name: (None, known))
    monkeypatch.setattr(generation, "detect", lambda model, images, ids: seen if list(ids) == [0, 1] else None)
    both = [("plain disc", "plain ring")] * 3
    pictures, one = np.zeros((3, 4, 4, 3)), [("plain disc",)] * 3
    assert generation.found_rates(pictures, both, "oracle").tolist() == [False, True, False]
    assert generation.found_rates(pictures, one, "oracle").tolist() == [True, True, False]


def test_prompts_and_seeds_are_those_of_the_measurement():
    assert generation.prompts_of([("plain arch", "plain disc")]) == ["a photo of a plain arch and a plain disc"]
    seeds = {s for seed in range(3) for what in range(1, 5) for s in generation.seeds_of(seed, what, 50)}
    assert len(seeds) == 3 * 4 * 50 and all(0 <= s < 2**64 for s in seeds)


def test_the_probe_is_fair_true_masks_tell_the_shape_and_not_the_pattern():
    found = perception.mask_probe(100, perception.TRUTH, 120)
    assert found["shape"] > 3 * found["shape, most frequent"] and found["shape"] > 60
    assert found["pattern"] < 60, "a shape of `voc` has two of the four patterns: half of them can be guessed"
    assert found == perception.mask_probe(100, perception.TRUTH, 120)
