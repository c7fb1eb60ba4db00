"""What a class-incremental run on VOC or COCO costs: its step timed on made pictures, its base models counted.

The counterpart of :mod:`fmseg.plan_incremental` for runs of :mod:`fmseg.real_incremental`. Neither data nor weights are
needed: pictures are noise, weights are random.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmseg import names
from fmseg.incremental_data import BASE, STEP
from fmseg.on_disk import OnDisk
from fmseg.protocols import Incremental, get
from fmseg.real_incremental import JOINT, METHODS, fresh, prepared
from fmseg.real_steps import Steps
from fmseg.training import TrainConfig, train

TIMED_STEPS = 3  # after one that warms up; a step at paper size takes seconds on a CPU
SHARED = 2 / (len(METHODS) - 1)  # base models a run: two, softmax and sigmoid, serve all methods of a setting and seed
_PHOTO = (375, 500)  # VOC's usual size


@dataclass(frozen=True)
class Timing:
    """Seconds of a ``step`` of the whole batch and of what comes before (``prepare``), the student as ``model``, bytes
    of a ``checkpoint`` and of GPU ``memory`` (None on a CPU), ``device``, and the batch it was ``scaled`` from."""

    step: float
    prepare: float
    model: torch.nn.Module
    checkpoint: int
    memory: int | None
    device: str
    scaled: int | None


def calibrate(config: dict[str, Any], clock: Callable[[], float]) -> Timing:
    """Time a run's steps; on a CPU at batch one, scaled by the batch size.

    Runs that differ by protocol alone cost the same a step, so each method is timed once.

    Args:
        config: of a run of :mod:`fmseg.real_incremental`. clock: gives seconds.
    """
    cuda = config["train"].get("device", "cpu") != "cpu" and torch.cuda.is_available()
    whole = config["train"].get("batch_size", TrainConfig(steps=1).batch_size)
    batch = whole if cuda or config["size"] == "mini" else 1
    decides = {key: config[key] for key in ("method", "size", "crop", "options")}
    plain, step, model, memory = _timed(json.dumps(decides, sort_keys=True), _Hidden(config, clock), batch, cuda)
    scale, prepare = whole / batch, 0.0
    if config["method"] != JOINT:
        prepare = plain * scale * SHARED * config["base"]["steps"]
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return Timing(
        step * scale, prepare, getattr(model, "student", model), 3 * parameters, memory,
        torch.cuda.get_device_name() if cuda else "CPU", None if batch == whole else batch,
    )  # fmt: skip


class _Hidden:
    """Arguments that a cache must not look at: all are equal."""

    def __init__(self, config: dict[str, Any], clock: Callable[[], float]):
        self.config, self.clock = config, clock

    def __eq__(self, other):
        return isinstance(other, _Hidden)

    def __hash__(self):
        return 0


@lru_cache(maxsize=1)  # tables list a method's runs one after another; more models would fill the memory
def _timed(decides: str, hidden: _Hidden, batch: int, cuda: bool) -> tuple[float, float, torch.nn.Module, int | None]:
    """Seconds of a step of plain training, seconds of the method's, the model, GPU memory."""
    config, clock = untrained(hidden.config), hidden.clock
    protocol, joint = get(config["protocol"]), config["method"] == JOINT
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(prefix="fmseg-plan-") as folder:
        steps = made(config, Path(folder), 2 * batch)
        old = fresh(config, len(protocol.order if joint else protocol.known(BASE)))
        plain = _seconds_a_step(old, steps.base_source(), config, batch, clock)
        step, model = plain, old
        if not joint:
            model, source, _ = prepared(config, steps, old.eval())
            if hasattr(model, "warmup"):
                model.warmup = 0.0
            step = _seconds_a_step(model, source, config, batch, clock)
    return plain, step, model, torch.cuda.max_memory_allocated() if cuda else None


def untrained(config: dict[str, Any]) -> dict[str, Any]:
    """The run with random weights; its CLIP reads six sentences a class, not 85, which take minutes once on a CPU."""
    experts = {"experts": {**config["experts"], "templates": "plain"}} if "experts" in config else {}
    return {**config, "pretrained": False, **experts}


def made(config: dict[str, Any], folder: Path, count: int) -> Steps:
    """A run's steps on pictures of noise, every one with classes of its step.

    Args:
        config: of the run. folder: where files go. count: pictures a step.
    """
    protocol = get(config["protocol"])
    parts = [_written(protocol, step, folder / str(step), count) for step in (BASE, STEP)]
    tags = np.zeros((count, len(protocol.new(STEP))), bool)
    tags[np.arange(count), np.arange(count) % tags.shape[1]] = True
    held_out = {part.name: part for part in reversed(parts)}
    held_out = {name: held_out[name] for name in dict.fromkeys(protocol.datasets)}
    return Steps(protocol, *parts, tags, held_out, config["pipeline"], tuple(config["crop"]))


def _written(protocol: Incremental, step: int, folder: Path, count: int) -> OnDisk:
    from PIL import Image

    folder.mkdir(parents=True)
    name = protocol.datasets[step]
    classes = {"voc": names.VOC, "coco": names.COCO}[name]
    told = replace(protocol, weak=False).pixel_labels(step, classes)
    ids = np.flatnonzero(told[: len(classes)])
    rng, images, masks = np.random.default_rng(step), [], []
    for k in range(count):
        images.append(folder / f"{k}.jpg")
        masks.append(folder / f"{k}.png")
        Image.fromarray(rng.integers(0, 256, (*_PHOTO, 3), dtype=np.uint8)).save(images[-1])
        labels = np.zeros(_PHOTO, np.uint8)
        labels[100:300, 100:400] = ids[k % len(ids)]
        Image.fromarray(labels).save(masks[-1])
    table = np.full(256, 255, np.int16)
    table[: len(classes)] = np.arange(len(classes))
    return OnDisk(name, classes, tuple(images), tuple(masks), table)


def _seconds_a_step(model, source, config: dict[str, Any], batch: int, clock: Callable[[], float]) -> float:
    changes = {"seed": config["seed"], "steps": TIMED_STEPS + 1, "batch_size": batch, "eval_every": None,
               "warmup_steps": 0, "workers": 0, "accumulate": 1, "freeze_norm": batch == 1}  # fmt: skip
    marks: list[float] = []
    train(
        model, source, TrainConfig.from_dict(config["train"] | changes), progress=False,
        on_step=lambda step, loss: marks.append(clock()),
    )  # fmt: skip
    return statistics.median(np.diff(marks))
