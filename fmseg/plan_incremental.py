"""What a class-incremental run costs: its step timed on the run's own pictures, its share of the base models counted.

The counterpart of :func:`fmseg.plan.calibrate` for runs of :mod:`fmseg.incremental_runs`.
"""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from fmseg.incremental_base import fresh
from fmseg.incremental_data import BASE, load
from fmseg.incremental_runs import JOINT, METHODS, prepared
from fmseg.training import TrainConfig, train

TIMED_STEPS = 6
SHARED = 2 / (len(METHODS) - 1)  # base models a run: two, softmax and sigmoid, serve all methods of a setting and seed
_LEAST = {"steps": 1, "batch_size": 2}  # of what a method trains first, which is counted by its steps instead


def calibrate(config: dict[str, Any], clock: Callable[[], float]) -> tuple[float, float, Any]:
    """Time a run's steps and what comes before them.

    Args:
        config: of a run of :mod:`fmseg.incremental_runs`. clock: gives seconds.

    Returns:
        Seconds of one step; seconds of the preparation: pictures, experts or thresholds, a share of the base models,
        and a network that the method trains first; and the model that was timed.
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
    return _seconds_a_step(step, source, config["train"], config["seed"], clock), before, step


def _seconds_a_step(model, source, options: dict, seed: int, clock) -> float:
    how = TrainConfig.from_dict({**options, "seed": seed, "steps": TIMED_STEPS, "eval_every": None, "warmup_steps": 0})
    if hasattr(model, "warmup"):
        model.warmup = 0.0
    marks: list[float] = []
    train(model, source, how, progress=False, on_step=lambda step, loss: marks.append(clock()))
    return statistics.median(np.diff(marks))
