"""Two processes give what one gives on the whole batch; so do the parts of an accumulated batch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_training import Tiny, world
from torch import nn
from toys import ROOT

from fmseg import distributed, segmenters
from fmseg.training import Source, TrainConfig, evaluate, train, weights_hash

WORKER = """
import json, sys, torch
sys.path.insert(0, "tests")
torch.set_num_threads(1)
from fmseg.distributed import joined, world
from test_distributed import make, sources, CONFIGS, validation
from fmseg.training import train
kind, folder = sys.argv[1:3]
with joined("cpu"):
    model = make(kind)
    result = train(model, sources(kind), CONFIGS[kind], validation=validation(kind), progress=False,
                   checkpoint=f"{folder}/{kind}.pt")
    if world().first:
        torch.save({"model": model.state_dict(), "losses": result.losses, "iou": result.iou.tolist()},
                   f"{folder}/{kind}-two.pt")
"""


class Group(Tiny):
    """Tiny with group norm, and no drop-out: nothing in it depends on how a batch is shared."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def logits(self, images):
        return self.head(torch.relu(self.norm(self.conv(images.float() / 255))) + self.pos_embed)


class Batch(Group):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)


def make(kind):
    if kind == "mask2former":
        return segmenters.build("mask2former", num_classes=5, seed=1)
    return {"group": Group, "frozen": Batch, "batch": Batch, "accumulated": Group}[kind]()


def sources(kind):
    if kind == "mask2former":
        rng = np.random.default_rng(0)
        labels = np.kron(rng.integers(0, 5, (6, 4, 4)), np.ones((16, 16))).astype(np.uint8)
        return Source(rng.integers(0, 256, (6, 64, 64, 3)).astype(np.uint8), labels)
    made = world(count=12)
    labels = made.labels.copy()
    labels[::3, :5] = 255  # so that shares have different numbers of labelled pixels
    return Source(made.images, labels)


def validation(kind):
    made = sources(kind)
    if kind == "group":  # also by a function of model and part
        return lambda model, part: evaluate(model, made.images[part], made.labels[part], model.num_classes)
    return made


COMMON = {"steps": 6, "batch_size": 4, "lr": 0.02, "augment": ("flip", "crop", "color"), "seed": 3, "grad_clip": 1.0}
CONFIGS = {
    "group": TrainConfig(**COMMON),
    "frozen": TrainConfig(**COMMON, freeze_norm=True),
    "batch": TrainConfig(**COMMON),
    "accumulated": TrainConfig(**COMMON, accumulate=2),
    "mask2former": TrainConfig(steps=2, batch_size=2, lr=1e-3, seed=1),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Start ``torchrun`` with two processes; gives what rank 0 saved."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "worker.py"
    script.write_text(WORKER)

    def run(kind):
        out = folder / f"{kind}-two.pt"
        if not out.exists():
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            subprocess.run([*command, str(script), kind, str(folder)], cwd=ROOT, env=env, check=True, timeout=300)
        return torch.load(out, weights_only=True)

    return run


def one(kind):
    model = make(kind)
    result = train(model, sources(kind), CONFIGS[kind], validation=validation(kind), progress=False)
    return model, result


def furthest(model, there):
    return max(float((v - there["model"][k]).abs().max()) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kind", ["group", "frozen", "accumulated"])
def test_two_processes_train_the_same_weights_as_one(two, kind):
    model, result = one(kind)
    there = two(kind)
    assert furthest(model, there) < 1e-5
    assert np.allclose(result.losses, there["losses"], atol=1e-5)
    assert np.allclose(result.iou, there["iou"], equal_nan=True)


def test_with_ordinary_batch_norm_they_differ_and_say_so(two):
    model, _ = one("batch")
    assert furthest(model, two("batch")) > 1e-4
    assert "batch norm sees its own share only" in train.__doc__


def test_mask2formers_losses_are_normalised_over_the_processes(two):
    """Its matching points differ by share, so the losses agree only roughly; without normalising they would double."""
    _, result = one("mask2former")
    ratio = np.array(result.losses) / np.array(two("mask2former")["losses"])
    assert np.all(np.abs(ratio - 1) < 0.15)


def test_accumulated_parts_are_the_batch():
    whole, parts = one("group")[0], one("accumulated")[0]
    assert furthest(whole, {"model": parts.state_dict()}) < 1e-5
    again = one("accumulated")[0]
    assert weights_hash(again) == weights_hash(parts)


def test_loader_processes_change_nothing():
    weights = []
    for workers in (0, 2):
        model = Tiny()
        config = TrainConfig(**COMMON, workers=workers)
        train(model, world(), config, progress=False)
        weights.append(weights_hash(model))
    assert weights[0] == weights[1]


def test_mixed_precision_learns_nearly_the_same():
    exact, mixed = Group(), Group()
    losses = [
        train(m, world(), TrainConfig(**COMMON, precision=p), progress=False).losses
        for m, p in ((exact, "fp32"), (mixed, "bf16"))
    ]
    assert np.allclose(losses[0], losses[1], rtol=0.05) and losses[0] != losses[1]
    assert {p.dtype for p in mixed.parameters()} == {torch.float32}


def test_frozen_norms_keep_their_statistics():
    model = Tiny()
    before = model.norm.running_mean.clone()
    train(model, world(), TrainConfig(**COMMON, freeze_norm=True), progress=False)
    assert torch.equal(model.norm.running_mean, before) and model.training


def test_what_cannot_be_shared_or_joined_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"`batch_size` \(4\) must be a multiple of 3: 1 processes, 3 parts each"):
        train(Tiny(), world(), TrainConfig(steps=1, batch_size=4, accumulate=3), progress=False)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="`precision` 'fp16' needs a GPU"):
            train(Tiny(), world(), TrainConfig(steps=1, precision="fp16"), progress=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="RANK is set but .*MASTER_ADDR.* are not; start with torchrun"):
        with distributed.joined("cpu"):
            pass


def test_alone_everything_is_a_no_op():
    alone = distributed.world()
    assert (alone.rank, alone.size, alone.first) == (0, 1, True)
    assert distributed.sum_over_all(3.5, torch.device("cpu")) == 3.5
    counts = np.eye(2, dtype=np.int64)
    assert distributed.add_counts(counts, torch.device("cpu")) is counts
    distributed.wait_for_all()
