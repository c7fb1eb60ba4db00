"""The loop that trains the zoo, on a model of a few numbers."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from fmseg.fitting import Recipe, _groups, batch_indices, fit, save_weights


def test_the_learning_rate_by_hand():
    recipe = Recipe(steps=25, batch_size=1, lr=2.0, warmup=0.2)  # five steps up, twenty down
    assert [recipe.learning_rate(s) for s in range(5)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert recipe.learning_rate(5) == pytest.approx(2.0)
    assert recipe.learning_rate(15) == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert 0.02 < recipe.learning_rate(24) < 0.04 and recipe.learning_rate(25) == pytest.approx(0.02)
    assert Recipe(steps=10, batch_size=1, lr=1.0, warmup=0.0).learning_rate(0) == 1.0


def test_epochs_are_permutations_and_batches_go_over_their_border():
    recipe = Recipe(steps=9, batch_size=4, lr=1.0)
    batches = [batch_indices(10, recipe, s) for s in range(5)]  # two epochs of ten
    assert [len(b) for b in batches] == [4] * 5
    order = np.concatenate(batches)
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert not np.array_equal(order[:10], order[10:])
    assert not np.array_equal(batches[0], batch_indices(10, Recipe(9, 4, 1.0, seed=1), 0))
    whole = batch_indices(3, Recipe(steps=1, batch_size=8, lr=1.0), 0)  # a batch of more than two epochs
    assert sorted(whole[:3]) == sorted(whole[3:6]) == [0, 1, 2]


class Small(nn.Module):
    """Has what is easily lost: noise, buffers of both kinds, weights that do not learn."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        self.fixed = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def run(tmp_path, average=0.0, until=None, steps=10, lr=0.05, **options):
    """Train; ``until`` is the step at which the process is killed. Returns (facts or None, model)."""
    torch.manual_seed(0)
    model = Small()
    x = torch.linspace(-1, 1, 48).view(12, 4)
    recipe = Recipe(steps=steps, batch_size=4, lr=lr, average=average, weight_decay=0.1)

    def loss(step):
        if step == until:
            raise KeyboardInterrupt
        batch = x[batch_indices(12, recipe, step)]
        value = (model.layers(batch + 0.1 * torch.randn(batch.shape)) - batch.sum(1, keepdim=True)).square().mean()
        return value, {"half": value.item() / 2}

    settings = {"count": 12, "checkpoint": tmp_path / "a.pt", "identity": {"name": "a"}, "every": 3, "progress": False}
    try:
        return fit(model, recipe, loss, **settings | options), model
    except KeyboardInterrupt:
        return None, model


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("killed_at", [2, 7])
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path, average, killed_at):
    whole, expected = run(tmp_path / "whole", average)
    assert run(tmp_path, average, until=killed_at)[0] is None
    facts, found = run(tmp_path, average)
    for (key, one), other in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert facts["loss"] == whole["loss"] and [s for s, _ in facts["loss"]] == [3, 6, 9, 10]
    assert (facts["steps"], facts["exposures"]) == (10, 40) and facts["seconds"] >= 0 and not found.training


def test_a_finished_run_is_not_trained_again(tmp_path):
    _, expected = run(tmp_path, 0.9)
    facts, found = run(tmp_path, 0.9, until=0)
    assert facts is not None and torch.equal(found.layers[0].weight, expected.layers[0].weight)


def test_the_average_lies_between_the_weights_and_is_kept_at_the_end(tmp_path):
    _, last = run(tmp_path / "last", lr=0.01)
    _, mean = run(tmp_path / "mean", average=0.9, lr=0.01)
    torch.manual_seed(0)
    first = Small()
    a, b, c = (m.layers[0].weight for m in (first, mean, last))
    assert 0 < (b - a).norm() < (c - a).norm() and (c - b).norm() > 0
    assert mean.layers[1].num_batches_tracked == last.layers[1].num_batches_tracked == 10
    assert torch.equal(mean.fixed, torch.ones(2, 2)) and torch.equal(last.fixed, torch.ones(2, 2))


def test_the_log_has_a_line_for_each_checkpoint_and_each_step_is_told(tmp_path):
    told = []
    run(tmp_path, each=told.append)
    lines = [json.loads(line) for line in (tmp_path / "a.log").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 10] and told == [*range(1, 11)]
    assert all(line["half"] == pytest.approx(line["loss"] / 2) for line in lines)


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another run: lr \(0.05 there, 0.01 here\) differ"):
        run(tmp_path, lr=0.01)
    with pytest.raises(ValueError, match=r"name \('a' there, 'b' here\)"):
        run(tmp_path, identity={"name": "b"})
    with pytest.raises(ValueError, match="the training images differ"):
        run(tmp_path, count=13)


def test_a_loss_that_is_not_finite_says_where(tmp_path):
    def loss(step):
        return model.weight.sum() * (float("nan") if step == 2 else 1.0)

    model = nn.Linear(2, 1)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2; try a smaller `lr` than 0.5"):
        fit(model, Recipe(5, 1, 0.5), loss, count=1, checkpoint=tmp_path / "a.pt", identity={}, progress=False)
    assert torch.isfinite(model.weight).all()


def test_only_matrices_decay():
    decayed, others = _groups(Small(), 0.1)
    assert [p.shape for p in decayed["params"]] == [(8, 4), (1, 8)] and decayed["weight_decay"] == 0.1
    assert all(p.ndim == 1 for p in others["params"]) and len(others["params"]) == 4 and others["weight_decay"] == 0.0


def test_weights_are_written_in_half_precision_and_whole_numbers_as_they_are(tmp_path):
    from safetensors.torch import load_file

    big = torch.arange(12.0).view(3, 4).t()  # not contiguous
    state = {"a": big, "shared": big, "n": torch.tensor(70_001), "yes": torch.tensor([True, False])}
    save_weights(tmp_path / "deep/a.safetensors", state)
    found = load_file(tmp_path / "deep/a.safetensors")
    assert found["a"].dtype == found["shared"].dtype == torch.float16 and torch.equal(found["a"].float(), big)
    assert found["n"].dtype == torch.int64 and found["n"] == 70_001 and found["yes"].dtype == torch.bool
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.safetensors"]
