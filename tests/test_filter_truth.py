"""Faults painted in: what is wrong is known; precision and recall by hand; a run on a zoo of random weights."""

import numpy as np
import pytest
import torch
import toy_zoo

from fmseg import filter_truth, zoo
from fmseg.datasets import get_draw, labels_of, scene_of
from fmseg.filter_truth import FAULTS, FIRST, by_margin, fault_set, outcome, paint_fault, rates, run
from fmseg.segmenters import zoo_backbone
from fmseg.world import render

ADE = get_draw("ade")


@pytest.mark.parametrize("fault", FAULTS)
def test_the_mask_stays_and_what_is_wrong_is_where_the_picture_differs(fault):
    changed = 0
    for index in range(12):
        meant = render(scene_of("ade", "val", 0, FIRST + index))
        image, labels, wrong = paint_fault("ade", index, fault)
        assert (labels == labels_of(meant, ADE)).all()
        differs = (image != meant.image).any(-1)
        if fault != "another class":  # which may share a colour with the one it replaces
            assert (wrong & ~differs).sum() <= 0.2 * wrong.sum()  # what is wrong looks otherwise, but for chance
        if not meant.visible():
            assert not wrong.any() and not differs.any()
            continue
        changed += 1
        thing = meant.instance == meant.visible()[-1]
        assert wrong[thing].any() and wrong.mean() < 0.5
        if fault == "another class":
            assert wrong[thing].all()
        if fault == "left out":
            assert wrong[thing].all() and not wrong[~thing].any()
        if fault == "elsewhere":
            assert wrong[~thing].any()  # where it is now, the mask says something else
    assert changed >= 10


def test_faults_are_functions_of_the_index():
    for fault in FAULTS:
        one, again = paint_fault("ade", 4, fault), paint_fault("ade", 4, fault)
        assert all((a == b).all() for a, b in zip(one, again, strict=True))
        images, labels, wrong = fault_set("ade", fault, 5)
        assert (images[4] == one[0]).all() and images.shape == (5, 64, 64, 3) and wrong.dtype == bool
    assert (fault_set("ade", FAULTS[0], 3)[0] != fault_set("ade", FAULTS[1], 3)[0]).any()


def test_precision_and_recall_by_hand():
    labels = np.array([[0, 0, 0, 1, 1, 255]], np.uint8)
    wrong = np.array([[True, True, False, False, True, True]])
    dropped = np.array([[True, False, True, False, True, True]])
    counts = outcome(dropped, wrong, labels, 3)
    assert counts.tolist() == [[3, 2, 2, 1], [2, 1, 1, 1], [0, 0, 0, 0]]
    found = rates(counts)
    assert found["precision"] == pytest.approx(100 * 2 / 3) and found["recall"] == pytest.approx(100 * 2 / 3)
    assert found["right pixels kept"] == pytest.approx(100 * 1 / 2)
    assert np.isnan(rates(counts[2])["precision"]) and rates(counts[1])["right pixels kept"] == 100
    with pytest.raises(ValueError, match="must have one shape"):
        outcome(dropped, wrong, labels[:, :3], 3)


class Knowing(torch.nn.Module):
    """A judge that reads the class off the first channel, and is unsure by the second."""

    def grid_logits(self, images):
        sure = images[:, 1].float() / 10
        return torch.nn.functional.one_hot(images[:, 0].long(), 3).permute(0, 3, 1, 2) * sure[:, None]


def test_the_filter_at_each_margin_is_the_filter():
    from fmseg.noise import filter_labels, loss_map

    rng = np.random.default_rng(0)
    images = rng.integers(0, 3, (4, 8, 8, 3)).astype(np.uint8)
    images[..., 1] = rng.integers(0, 60, (4, 8, 8))
    labels = rng.integers(0, 3, (4, 8, 8)).astype(np.uint8)
    labels[0, :2] = 255
    wrong, means, alphas = images[..., 0] != labels, np.array([0.4, 0.9, 0.0]), (0.5, 1.25, 3.0)
    found = by_margin(Knowing(), images, labels, wrong, means, alphas)
    target = torch.from_numpy(labels.astype(np.int64))
    loss = loss_map(Knowing().grid_logits(torch.from_numpy(images).permute(0, 3, 1, 2)), target)
    for counts, alpha in zip(found, alphas, strict=True):
        dropped = (filter_labels(loss, target, means, alpha=alpha).numpy() == 255) & (labels != 255)
        assert (counts == outcome(dropped, wrong, labels, 3)).all()
    assert found[0, :, 2].sum() > found[2, :, 2].sum() and (found[:, :, :2] == found[0, :, :2]).all()


def test_a_run_measures_every_fault_and_the_generated_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_ZOO", str(toy_zoo.make(tmp_path / "zoo")))
    hashes = {"weights": zoo.weights_hash("layout-ade"), "base": zoo.weights_hash("diffusion")}
    config = {
        "method": "segformer", "backbone": zoo_backbone("segformer"), "seed": 200, "draw": "ade", "images": 6,
        "validation": 4, "size": 64, "train": {"steps": 2, "batch_size": 2, "lr": 0.002}, "folds": 2, "pictures": 5,
        "alphas": [1.25, 2.0], "generator": {"model": "layout-ade", **hashes, "steps": 1, "guidance": 1.0},
    }  # fmt: skip
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / "one"))
    done = run(config)
    monkeypatch.setenv("FMSEG_PARTS", str(tmp_path / "other"))
    again = run(config)
    assert done["result"] == again["result"] and done["seconds"] > 0
    truth = done["result"]["truth"]
    assert list(truth) == [*FAULTS, "generated"]
    for name, kinds in truth.items():
        assert list(kinds) == ["training", "cross-fitted", filter_truth.ONE]
        counts = np.array([kinds[k] for k in kinds])
        assert counts.shape == (3, 2, 2, 4) and (counts[..., 0].sum(-1) == 5 * 64 * 64).all()
        assert (counts[..., 3] <= counts[..., 1]).all() and (counts[:, 1, :, 2] <= counts[:, 0, :, 2]).all()
        classes = np.array(done["result"]["by class"][name])
        assert (classes[:40].sum(0) == counts[0, 0, 0]).all() and (classes[40:].sum(0) == counts[0, 0, 1]).all()
    assert set(done["result"]["losses"]) == {"training loss", "validation loss", "miou"}


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="`fault` must be one of another class, left out, elsewhere; got 'blur'"):
        paint_fault("ade", 0, "blur")
    with pytest.raises(ValueError, match="`draw` must label every pixel"):
        paint_fault("voc", 0, FAULTS[0])
    with pytest.raises(ValueError, match="`count` must be >= 1"):
        fault_set("ade", FAULTS[0], 0)
    with pytest.raises(ValueError, match="lacks alphas"):
        run({key: 1 for key in filter_truth.KEYS if key != "alphas"})
