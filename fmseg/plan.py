"""`python -m fmseg plan`: what will a stage cost on this machine, and which line starts it?

A few steps of every kind of run are timed here and now, by the trainer itself on images of the right size; the rest is
arithmetic. Nothing is downloaded or trained.
"""

import argparse
import contextlib
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fmseg import on_disk, plan_grounded, plan_real_freemask, plan_real_grounded
from fmseg.catalogue import EXPERIMENTS
from fmseg.cite import duration
from fmseg.experiment import Experiment, on_real_data
from fmseg.pipeline import made_by, stage_names
from fmseg.settings import Settings, load
from fmseg.train_table import waiting
from fmseg.words import find

TIMED_STEPS = 4  # after one that warms up; the median counts
# overheads on the two cores where README's times were taken; benchmarks/plan_accuracy.py checks the sum on yours
NOTEBOOK_SECONDS = 11.0  # a stage without training: DVC, interpreter, kernel, figures, page
WORKER_SECONDS = 6.0  # until a pool of fresh processes trains
EVALUATED = 8  # pictures timed in evaluation on the mini world; one on real data
MEASURED = 16  # pictures that a measurement of the zoo is timed on, and twice as many
DATA_GB = {"voc": 2.1, "coco": 20.0, "ade20k": 0.95, "coco-stuff": 20.0, "camvid": 0.2}  # unpacked, roughly
_NODE = 8  # GPUs of the node in the launch line


@dataclass(frozen=True)
class Cost:
    """What one run costs, measured on this machine.

    Attributes:
        step: seconds a training step of the whole batch. picture: seconds a picture in evaluation. prepare: seconds
        before the first step (drawing the world). memory, checkpoint: bytes. device: where it was measured.
        scaled: batch size it was measured at, if not the run's own. units: seconds of what runs share, a piece; see
        :mod:`fmseg.plan_grounded`.
    """

    step: float
    picture: float
    prepare: float
    memory: int
    checkpoint: int
    device: str
    scaled: int | None = None
    units: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """Of a stage: runs to train, seconds of one after another on one device, seconds in all, bytes."""

    runs: int
    serial: float
    total: float
    memory: int
    disk: int


def kind_of(config: dict) -> tuple:
    """Runs of one kind cost the same a step: same model, images and batch; or the same measurement of the zoo."""
    if plan_grounded.concerns(config):
        return plan_grounded.kind_of(config)
    if "zoo" in config and "protocol" not in config:
        return (config["method"],)
    train = config["train"]
    where = config.get("draw") or config.get("data") or config["protocol"]
    return (
        config["method"], config["size"], tuple(config.get("crop", ())), where, train.get("batch_size"),
        train.get("precision", "fp32"), "own_clip" in config.get("options", {}),
    )  # fmt: skip


def run_seconds(config: dict, cost: Cost, pictures: int) -> float:
    """Seconds of one run: preparation, steps, and an evaluation at every point of its curve.

    Args:
        config: has ``train.steps`` and ``train.eval_every``. cost: of its kind. pictures: in the validation set.
    """
    steps = config["train"]["steps"]
    points = math.ceil(steps / (config["train"].get("eval_every") or steps))
    return cost.prepare + steps * cost.step + points * pictures * cost.picture


def in_parallel(seconds: list[float], workers: int) -> float:
    """When the last run ends, if each of ``workers`` takes the next run of the list as soon as it is free."""
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}")
    busy = [0.0] * workers
    for value in seconds:
        first = busy.index(min(busy))
        busy[first] += value
    return max(busy)


def timed(work: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median seconds of a piece of work, after one that is not counted.

    Raises:
        ValueError: fewer than three repeats: their median says nothing.
    """
    if repeats < 3:
        raise ValueError(f"`repeats` must be at least 3, got {repeats}")
    work()
    spent = []
    for _ in range(repeats):
        before = clock()
        work()
        spent.append(clock() - before)
    return statistics.median(spent)


def calibrate(config: dict, clock: Callable[[], float] = time.perf_counter) -> Cost:
    """Time a run's steps, evaluation and preparation, with the run's own model and trainer on made images.

    On a CPU a paper-size model is timed at batch one and scaled by the batch size. A measurement of the zoo is timed on
    a few pictures and on twice as many.
    """
    if plan_grounded.concerns(config):
        _forget_peak_memory()
        found = plan_grounded.calibrate(config, clock, calibrate)
        return Cost(**{"memory": _peak_memory(), "checkpoint": 0, "device": "CPU"} | found)
    if "protocol" in config:
        return _calibrate_step(config, clock)
    if "zoo" in config:
        return _measurement(config, clock)
    from fmseg import paper_segmenters, segmenters
    from fmseg.batches import Source
    from fmseg.training import TrainConfig, train

    real = "data" in config
    options = TrainConfig.from_dict({**config["train"], "seed": config["seed"]})
    cuda = options.device != "cpu" and torch.cuda.is_available()
    batch = 1 if real and config["size"] != "mini" and not cuda else options.batch_size
    side = config["crop"][0] if real else config["size"]
    classes = _classes(config)
    make = paper_segmenters.build if real and config["size"] != "mini" else segmenters.build
    model = make(config["method"], config["size"] if real else "mini", num_classes=classes, image_size=side)
    rng = np.random.default_rng(0)
    source = Source(
        rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8),
        np.kron(rng.integers(0, classes, (batch, side // 16, side // 16)), np.ones((16, 16))).astype(np.uint8),
    )
    changes = {"steps": TIMED_STEPS + 1, "batch_size": batch, "eval_every": None, "workers": 0, "accumulate": 1,
               "augment": () if real else options.augment, "freeze_norm": batch == 1}  # fmt: skip
    torch.cuda.reset_peak_memory_stats() if cuda else _forget_peak_memory()
    marks = [clock()]
    train(
        model, source, TrainConfig.from_dict(options.to_dict() | changes), progress=False,
        on_step=lambda step, loss: marks.append(clock()),
    )  # fmt: skip
    step = statistics.median(b - a for a, b in zip(marks[1:], marks[2:], strict=False)) * options.batch_size / batch
    memory = torch.cuda.max_memory_allocated() if cuda else _peak_memory()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    checkpoint = parameters * (3 if options.optimizer == "adamw" else 2)
    return Cost(
        step, _picture_seconds(model, config, clock), _prepare_seconds(config, clock), memory, checkpoint,
        torch.cuda.get_device_name() if cuda else "CPU", None if batch == options.batch_size else batch,
    )  # fmt: skip


def _measurement(config: dict, clock: Callable[[], float]) -> Cost:
    """What a measurement of the zoo costs: loading its models, and a share of a picture a step."""
    from fmseg.zoo_measures import MEASURES

    measure, marks = MEASURES[config["method"]][1], []
    _forget_peak_memory()
    measure(config["seed"], MEASURED)  # imports and caches
    for count in (MEASURED, 2 * MEASURED):
        before = clock()
        measure(config["seed"], count)
        marks.append(clock() - before)
    picture = max(0.0, marks[1] - marks[0]) / MEASURED
    step = picture * config["images"] / config["train"]["steps"]
    return Cost(step, 0.0, max(0.0, marks[0] - MEASURED * picture), _peak_memory(), 0, "CPU")


def _calibrate_step(config: dict, clock) -> Cost:
    from fmseg import plan_incremental, plan_real_incremental

    _forget_peak_memory()
    if "sets" in config:
        made = plan_real_incremental.calibrate(config, clock)
        memory = made.memory or _peak_memory()
        picture = _picture_seconds(made.model, config, clock)
        return Cost(made.step, picture, made.prepare, memory, made.checkpoint, made.device, made.scaled)
    step, prepare, model = plan_incremental.calibrate(config, clock)
    memory, parameters = _peak_memory(), sum(p.numel() * p.element_size() for p in model.parameters())
    return Cost(step, _picture_seconds(model, config, clock), prepare, memory, 3 * parameters, "CPU", None)


def _forget_peak_memory() -> None:
    """Let the process's peak start anew from what it holds now, so that each kind of run has its own (Linux alone)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Bytes that the process has held at once since :func:`_forget_peak_memory`; elsewhere than on Linux, ever."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _classes(config: dict) -> int:
    from fmseg.datasets import get_draw

    if "draw" in config:
        return get_draw(config["draw"]).num_classes
    return {"voc": 21, "coco": 81, "ade20k": 150, "coco-stuff": 171, "camvid": 11}[config["data"]]


def _picture_seconds(model, config: dict, clock) -> float:
    from fmseg.evaluation import predict
    from fmseg.inference import TestTime, segment

    if "test" not in config:
        images = np.zeros((EVALUATED, config["size"], config["size"], 3), np.uint8)
        return timed(lambda: predict(model, images), 3, clock) / EVALUATED
    how = TestTime(**config["test"])
    short = min(how.scale) if how.scale else config["crop"][0]
    image = np.zeros((short, short * 4 // 3, 3), np.uint8)  # the usual shape of a photograph
    return timed(lambda: segment(model, image, how), 3, clock)


def _prepare_seconds(config: dict, clock) -> float:
    from fmseg.datasets import draw_set

    if "data" in config:
        return 0.0
    each = timed(lambda: draw_set(config["draw"], "train", 10, size=config["size"]), 3, clock) / 10
    return each * (config["images"] + config["validation"])


def validation_pictures(config: dict) -> int:
    """How many pictures a run is evaluated on; counted on disk where the data are at hand."""
    if plan_grounded.concerns(config):
        return config.get("validation", 0)  # of heads, test pictures are part of the preparation
    if "sets" in config:
        name, how = next(iter(config["sets"].items()))  # a step's own data set is looked at once, at the end
        split = how["validation"]
    elif "data" in config:
        name, split = config["data"], config["validation"]
    else:
        return config.get("validation", 0)  # a measurement of the zoo has none
    try:
        return len(on_disk.open_set(name, on_disk.root_of(name), split))
    except OSError:
        return {"voc": 1449, "coco": 5000, "ade20k": 2000, "coco-stuff": 5000, "camvid": 101}[name]


def predict(
    experiment: Experiment, settings: Settings, costs: dict[tuple, Cost], workers: int, devices: int = 1,
    from_scratch: bool = False,
) -> Prediction:  # fmt: skip
    """Time and space of a table's runs that have no valid record, and of the one that is trained live.

    Args:
        experiment, settings: which. costs: by :func:`kind_of`.
        workers: runs at a time (mini world). devices: GPUs that share each run (real data); perfect sharing assumed.
        from_scratch: as if there were no records.
    """
    configs = experiment.configs(settings)
    missing = configs if from_scratch else waiting(experiment, settings)
    trained, real = list(missing), on_real_data(settings)
    recorded = [c for c in configs if c not in missing]
    if recorded and _trains_live(experiment, settings):
        trained.append(min(recorded, key=lambda c: c["train"]["steps"]))
    each = [run_seconds(c, costs[kind_of(c)], validation_pictures(c)) for c in trained]
    batches = [each[: len(missing)], each[len(missing) :]]
    common = plan_grounded.shared_seconds((c, costs[kind_of(c)].units) for c in trained if plan_grounded.concerns(c))
    if real:
        total = sum(each) / devices
    else:  # workers make what they share part by part, side by side
        total = NOTEBOOK_SECONDS + sum(WORKER_SECONDS + in_parallel(b, workers) for b in batches if b)
        total += common / workers
    used = [costs[kind_of(c)] for c in trained]
    at_once = 1 if real else min(workers, max(1, len(missing)))
    memory = max((c.memory for c in used), default=0) * at_once
    disk = max((c.checkpoint for c in used), default=0) * at_once + 100_000 * len(configs)
    return Prediction(len(missing), sum(each) + common, total, memory, disk)


def _trains_live(experiment: Experiment, settings: Settings) -> bool:
    """Whether its stage trains a recorded run again, to compare."""
    return not on_real_data(settings) and experiment.photos is None


def launch_line(experiment: Experiment, settings: Settings, gpus: int, nodes: int) -> str:
    """What to type to train a table's runs."""
    if experiment.photos:
        return "make realdata"
    if not on_real_data(settings):
        return f"make repro  (or python -m fmseg.repro {experiment.stage})"
    job = f"-m fmseg train {experiment.id} --profile {settings.profile}"
    if gpus * nodes == 1:
        return f"python {job}"
    if nodes == 1:
        return f"torchrun --standalone --nproc-per-node {gpus} {job}"
    where = "--rdzv-backend c10d --rdzv-endpoint FIRST_NODE:29500"
    return f"torchrun --nnodes {nodes} --nproc-per-node {gpus} {where} {job}  (on every node)"


def report(experiment: Experiment, settings: Settings, costs: dict[tuple, Cost], workers: int) -> str:
    """A stage's plan in words."""
    made = predict(experiment, settings, costs, workers)
    runs = len(experiment.configs(settings))
    live = ", one more live" if made.runs < runs and _trains_live(experiment, settings) else ""
    lines = [f"{experiment.stage} / {experiment.id}: {made.runs} of {runs} runs to train{live}"]
    for kind, cost in costs.items():
        note = f", timed at batch {cost.scaled} and scaled" if cost.scaled else ""
        if len(kind) == 1:
            lines.append(f"  {kind[0]}: {cost.prepare:.3g} s and {cost.step:.3g} s a step, {_size(cost.memory)}")
            continue
        lines.append(
            f"  {kind[0]} {kind[1]} on {kind[3]}, batch {kind[4]}: {cost.step:.3g} s a step, {cost.picture:.3g} s a "
            f"picture in evaluation, {_size(cost.memory)} ({cost.device}{note})"
        )
    if on_real_data(settings):
        for nodes, gpus in ((1, 1), (1, _NODE), (2, _NODE)):
            made = predict(experiment, settings, costs, workers, devices=nodes * gpus)
            what = "1 such device" if nodes * gpus == 1 else f"{nodes * gpus} such devices, sharing perfectly"
            lines.append(f"  {what}: {duration(made.total)}\n    {launch_line(experiment, settings, gpus, nodes)}")
        sets = {name for c in experiment.configs(settings) for name in c.get("sets", [c.get("data")])}
        data = sum(DATA_GB[name] for name in sets) * 10**9
        lines.append(f"  disk: {_size(data)} of data, {_size(made.disk)} of checkpoints and records")
        if any("generator" in c for c in experiment.configs(settings)):
            lines += plan_real_freemask.lines(experiment.id, experiment.configs(settings), time.perf_counter)
    else:
        lines.append(
            f"  {duration(made.total)} with {workers} processes, {_size(made.memory)} of memory, {_size(made.disk)} on "
            f"disk\n    {launch_line(experiment, settings, 1, 1)}"
        )
        whole = predict(experiment, settings, costs, workers, from_scratch=True)
        lines.append(f"  without any record: {duration(whole.total)}")
    return "\n".join(lines)


def _size(count: float) -> str:
    return f"{count / 10**9:.1f} GB" if count >= 10**8 else f"{count / 10**6:.1f} MB"


def plan(settings: Settings, stages: list[str], workers: int | None = None, progress: bool = True) -> str:
    """Plans of stages, all if none is named.

    Raises:
        ValueError: a stage that there is not.
    """
    names, parts = sorted(stage_names(settings.root) + stage_names(settings.root, photos=True)), []
    for stage in stages:
        find(stage, tuple(names), "stage")
    for stage in stages or names:
        heads = [id for id in made_by(stage) if id.startswith("grounded-")] if on_real_data(settings) else []
        made = [EXPERIMENTS[id] for id in made_by(stage) if id not in heads and EXPERIMENTS[id].configs(settings)]
        if heads:
            parts.append(plan_real_grounded.report(stage, heads, settings, progress))
        elif not made:
            parts.append(f"{stage}: no training; about {duration(NOTEBOOK_SECONDS)}")
        for experiment in made:
            if progress:
                print(f"timing {experiment.id} ...", file=sys.stderr)
            costs = {}
            for config in experiment.configs(settings):
                if kind_of(config) not in costs:
                    costs[kind_of(config)] = calibrate(config)
            parts.append(report(experiment, settings, costs, workers or os.cpu_count() or 1))
    return "\n".join(parts)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fmseg plan", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help="names of notebooks; default all")
    parser.add_argument("--profile", help="default: the one in params.yaml")
    parser.add_argument("--workers", type=int, help="processes at a time; default as many as cores")
    given = parser.parse_args(words)
    try:
        settings = load(given.profile)
        if not on_real_data(settings):
            torch.set_num_threads(1)  # as the workers of a pool
        print(plan(settings, [Path(s).stem for s in given.stages], given.workers))
    except (ValueError, OSError) as error:
        print(f"fmseg: {error}", file=sys.stderr)
        return 1
    return 0
