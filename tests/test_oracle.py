"""Instances out of probabilities, on maps made by hand."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from fmseg import zoo
from fmseg.datasets import get_draw
from fmseg.fitting import save_weights
from fmseg.oracle import Instance, best_mask, detect, instances, load_oracle, probabilities, to_tensor
from fmseg.segmenters import build


def maps(*rows, sure=0.9):
    """(3, H, W) probabilities: the class at each place is sure, the others share the rest."""
    labels = np.array([[int(c) for c in row] for row in rows])
    return np.where(np.arange(3)[:, None, None] == labels, sure, (1 - sure) / 2)


HAND = maps("1100", "1102", "0002", "1002", "1000")


def test_components_are_objects():
    found = instances(HAND, things=(1, 2), least_area=1)
    assert [(i.label, int(i.mask.sum())) for i in found] == [(1, 4), (1, 2), (2, 3)]
    assert all(i.score == pytest.approx(0.9) and i.mask.dtype == bool and i.mask.shape == (5, 4) for i in found)
    assert not (sum(i.mask.astype(int) for i in found) > 1).any()
    assert (sum(i.mask for i in found) == (HAND.argmax(0) > 0)).all()


def test_ground_has_no_instances_and_small_ones_are_dropped():
    assert {i.label for i in instances(HAND, range(0, 2), least_area=1)} == {0, 1}
    assert [(i.label, i.mask.sum()) for i in instances(HAND, (1, 2), least_area=3)] == [(1, 4), (2, 3)]
    assert instances(HAND, (1, 2)) == [] and instances(HAND, ()) == []
    big = maps(*["111", "111", "111", "111"])
    assert len(instances(big, (1,))) == 1 and instances(big[:, :, :2], (1,)) == [], "12 pixels are enough"


def test_corners_do_not_connect():
    assert len(instances(maps("10", "01"), (1,), least_area=1)) == 2


def test_the_score_is_the_mean_probability_and_the_best_comes_first():
    p = maps("1100", "0022", sure=0.6)
    p[:, 0, 0], p[:, 1, 2] = (0.0, 1.0, 0.0), (0.15, 0.05, 0.8)
    found = instances(p, (1, 2), least_area=1)
    assert [(i.label, i.score) for i in found] == [(1, pytest.approx(0.8)), (2, pytest.approx(0.7))]
    assert [i.label for i in instances(p[[0, 2, 1]], (1, 2), least_area=1)] == [2, 1], "whatever the ids are"


def test_the_best_mask_of_a_class():
    masks = [np.eye(2, dtype=bool), np.ones((2, 2), dtype=bool)]
    found = [Instance(3, 0.9, masks[0]), Instance(5, 0.8, masks[1]), Instance(3, 0.7, masks[1])]
    assert best_mask(found, 3) is masks[0] and best_mask(found, 5) is masks[1]
    assert best_mask(found, 4) is None and best_mask([], 3) is None


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"`probabilities` must be \(C, H, W\); got \(4, 4\)"):
        instances(np.zeros((4, 4)), (0,))
    with pytest.raises(ValueError, match=r"`things` must be class ids in \[0, 3\); got \[3, -1\]"):
        instances(HAND, (1, 3, -1))


class Stub(nn.Module):
    """Takes red for class 1 and green for class 2; notes how it was called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def log_probabilities(self, images):
        self.calls.append((len(images), self.training, torch.is_grad_enabled()))
        sure = images[:, :2].float() / 255 * 0.9 + 0.01
        return torch.cat([1 - sure.sum(1, keepdim=True), sure], 1).log()


def test_objects_of_pictures_by_a_segmenter():
    images = np.zeros((60, 8, 8, 3), dtype=np.uint8)
    images[0, :4, :4, 0] = 255
    images[55, 2:6, 1:7, 1] = 255
    model = Stub().train()
    found = detect(model, images, (1, 2))
    assert [k for k, objects in enumerate(found) if objects] == [0, 55]
    assert found[0][0].label == 1 and found[0][0].mask.sum() == 16 and found[0][0].score == pytest.approx(0.91)
    assert found[55][0].label == 2 and found[55][0].mask.sum() == 24
    assert model.calls == [(50, False, False), (10, False, False)] and model.training
    p = probabilities(model, images[:3], batch=2)
    assert p.shape == (3, 3, 8, 8) and p.dtype == np.float32 and np.allclose(p.sum(1), 1)
    assert to_tensor(images).shape == (60, 3, 8, 8) and to_tensor(images).dtype == torch.uint8


@pytest.mark.parametrize("name", ["oracle", "judge"])
def test_the_zoos_oracle_is_built_as_it_was_trained(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_ZOO", str(tmp_path))
    with pytest.raises(ValueError, match=f"the zoo has no model '{name}'"):
        load_oracle(name)
    classes = get_draw(name).classes
    model = build("segformer", num_classes=len(classes), seed=3)
    save_weights(tmp_path / name / "model.safetensors", model.state_dict())
    card = {"training": {"recipe": {"method": "segformer", "size": "mini"}},
            "files": {"model.safetensors": zoo.sha256(tmp_path / name / "model.safetensors")}}  # fmt: skip
    (tmp_path / name / "card.json").write_text(json.dumps(card))
    loaded, names = load_oracle(name)
    assert names == classes and not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    for key, value in model.state_dict().items():
        there = loaded.state_dict()[key]
        assert there.dtype == value.dtype and torch.allclose(there, value, rtol=1e-3, atol=1e-3), key
    assert probabilities(loaded, np.zeros((1, 64, 64, 3), dtype=np.uint8)).shape == (1, len(classes), 64, 64)
