"""What a class-incremental run costs: its step timed on the run's own pictures, its share of the base models counted.

The counterpart of :func:`fmseg.plan.calibrate` for runs of :mod:`fmseg.incremental_runs`.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fmseg.batches import Source
from fmseg.incremental_base import fresh
from fmseg.incremental_data import BASE, load
from fmseg.incremental_runs import JOINT, METHODS, prepared
from fmseg.step_models import Step
from fmseg.training import TrainConfig, train

TIMED_STEPS = 6
LOOKED = 16  # pictures that experts look at before FMWISS's steps are timed, which then learn from these alone
SHARED = 2 / (len(METHODS) - 1)  # base models a run: two, softmax and sigmoid, serve all methods of a setting and seed
_LEAST = {"steps": 1, "batch_size": 2}  # of what a method trains first, which is counted by its steps instead


def calibrate(config: dict[str, Any], clock: Callable[[], float]) -> tuple[float, float, Any]:
    """Time a run's steps and what comes before them.

    Args:
        config: of a run of :mod:`fmseg.incremental_runs`. clock: gives seconds.

    Returns:
        Seconds of one step; seconds of the preparation: pictures, experts or thresholds, a share of the base models, a
        network that the method trains first, and what experts say of each picture, which they do once for either way
        round; and the model that was timed.
    """
    started = clock()
    data, joint = load(config), config["method"] == JOINT
    options = dict(config["options"])
    first = next((options[name] for name in ("first", "own_clip") if name in options), None)
    options |= {name: _LEAST for name in ("first", "own_clip") if name in options}
    old = fresh(config, len(data.protocol.order if joint else data.protocol.known(BASE))).eval()
    plain = _seconds_a_step(old, data.base_source(), config["train"], config["seed"], clock)
    if joint:
        return plain, clock() - started, old
    begun = clock()
    step, source, _ = prepared({**config, "options": options}, data, old)
    before = begun - started + clock() - begun
    before += plain * (SHARED * config["base"]["steps"] + (first["steps"] if first else 0))
    looks, source = _looked(step, source, clock)
    return _seconds_a_step(step, source, config["train"], config["seed"], clock), before + looks, step


def _looked(step: Step, source: Source, clock: Callable[[], float]) -> tuple[float, Source]:
    """Seconds in which a step's experts see all pictures both ways round; and the few that they have seen now."""
    if getattr(getattr(step, "experts", None), "looks", None) is None:
        return 0.0, source
    few = replace(source, images=source.images[:LOOKED], labels=source.labels[:LOOKED], tags=source.tags[:LOOKED])
    shown, tags = torch.from_numpy(few.images).permute(0, 3, 1, 2), torch.from_numpy(few.tags)
    begun = clock()
    for pictures in (shown, shown.flip(3)):
        step.experts.co_segment(pictures, tags, torch.Generator().manual_seed(0))
    return (clock() - begun) * len(source) / len(few), few


def _seconds_a_step(model, source, options: dict, seed: int, clock) -> float:
    how = TrainConfig.from_dict({**options, "seed": seed, "steps": TIMED_STEPS, "eval_every": None, "warmup_steps": 0})
    if hasattr(model, "warmup"):
        model.warmup = 0.0
    marks: list[float] = []
    train(model, source, how, progress=False, on_step=lambda step, loss: marks.append(clock()))
    return statistics.median(np.diff(marks))
