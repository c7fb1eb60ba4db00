"""A class-incremental run on VOC and COCO from a configuration: the papers' sizes, or a mini model, alone or together.

The counterpart of :mod:`fmseg.incremental_runs` for pictures on disk: the same base models, steps and losses, on crops
of photographs, judged on whole validation sets as WILSON judges (central squares). Under ``torchrun`` all processes
share every batch, the memory's filling and the evaluation.

Differs from the official code: DeepLabV3 with ResNet-101 at stride 16 for COCO-to-VOC, too, where the papers have a
Wide-ResNet-38 at stride 8; the learning rate falls from the first step on, where WILSON's rests in its warm-up.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fmseg import abn, distributed, fmwiss, paper_segmenters, pixel_step, real_experts, real_steps, segmenters
from fmseg.incremental_base import base_model, family, prior_of_new, started
from fmseg.incremental_data import BASE, STEP
from fmseg.inference import TestTime, evaluate_pictures
from fmseg.memory import Memory
from fmseg.metrics import Confusion
from fmseg.photos import Photos
from fmseg.real_steps import Steps
from fmseg.real_supervised import example_predictions
from fmseg.segmenters import Segmenter
from fmseg.settings import check_config, check_names
from fmseg.step_models import Step, grow
from fmseg.training import TrainConfig, TrainResult, plain, train
from fmseg.wilson_step import WilsonStep

JOINT = "joint"
METHODS = (JOINT, *pixel_step.METHODS, "wilson", "fmwiss")
KEYS = (
    "method", "seed", "protocol", "sets", "size", "crop", "pipeline", "test", "base", "train", "share", "options",
)  # fmt: skip
OPTIONAL = ("pretrained", "experts", "prior")
SIZES = ("mini", abn.SIZE, *paper_segmenters.FILES["deeplabv3"])
# keys that a base model follows from
DECIDES = ("protocol", "sets", "size", "crop", "pipeline", "test", "seed", "base", "prior")
_STUDENT, _HELPER = 1_000_003, 2_000_003  # offsets of a run's seed, as in the mini world

_OF_STEP = tuple(fmwiss.Options.__dataclass_fields__)
_OF_MEMORY = ("capacity", "paste")
_OF_EXPERTS = ("old_rivals", "use", "rule", "threshold", "over", "seeds", "keep", "mass")
OPTIONS = {"fmwiss": (*_OF_STEP, *_OF_MEMORY, *_OF_EXPERTS), "wilson": ("alpha", "encoder_weight", "warmup")}


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train the base model or take it, then the step.

    Args:
        config: ``method`` (:data:`METHODS`; CAM and SS, whose hard labels are made beforehand for pictures in memory,
            are run in the mini world alone), ``seed``; ``protocol``, ``sets``, ``share``, ``pipeline``, ``crop``
            (:func:`fmseg.real_steps.load`); ``size`` of DeepLabV3 (:data:`SIZES`); ``test`` (fields of
            :class:`fmseg.inference.TestTime`); ``base`` (None for joint) and ``train``: fields of
            :class:`fmseg.train_config.TrainConfig` but ``seed``, and for ``base`` also ``family``; ``options``
            (:data:`OPTIONS`). Optional: ``pretrained`` (weights of backbone and experts; without it they are random),
            ``prior`` (:func:`fmseg.incremental.start_rare`) and, for FMWISS, ``experts``
            (:func:`fmseg.real_experts.of_config`).
        checkpoint, checkpoint_every, progress, on_step: as in :func:`fmseg.training.train`, of the step. Beside the
            checkpoint base models are kept in the folder ``bases``, and in ``presence`` which classes pictures hold.

    Returns:
        As :func:`fmseg.incremental_runs.run`, without ``masks``; ``result`` also has ``data`` (hashes of the mask
        files' names and sizes) and, for FMWISS, ``experts`` (hashes of their weights). Equal in every process.

    Raises:
        ValueError: an unknown or missing key, name or value. FileNotFoundError: data or weights are not there.
    """
    _check(config)
    place = Path(checkpoint) if checkpoint else None
    show = progress and distributed.world().first
    steps = real_steps.load(config, place and place.parent / "presence", progress=show)
    done = {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every, "progress": progress, "on_step": on_step}
    facts = {"data": [real_steps.identity(data)[:16] for data in (steps.base, steps.step)]}
    if config["method"] == JOINT:
        model, sources = fresh(config, len(steps.protocol.order)), steps.joint_sources()
        trained = _learn(model, sources, config, steps, **done)
        return _finished(trained, model, config, steps, facts | {"seen": [sum(map(len, sources))]})
    old, before = base_of(config, steps, place and place.parent / "bases", progress=progress)
    step, source, more = prepared(config, steps, old, progress=show)
    trained = _learn(step, source, config, steps, **done)
    facts |= more | {"base_iou": plain(before.iou), "seen": [len(steps.base), len(steps.step)]}
    return _finished(trained, step.student, config, steps, facts)


def fresh(config: dict[str, Any], num_classes: int) -> Segmenter:
    """The run's DeepLabV3 before any training; its backbone's weights as the configuration says, its head's drawn."""
    size, options = config["size"], {"num_classes": num_classes, "image_size": config["crop"][0]}
    options["seed"] = config["seed"]
    pretrained = config.get("pretrained", False)
    if size == "mini":
        return started(segmenters.build("deeplabv3", size, **options), config)
    if size == abn.SIZE:
        model = abn.build(**options)
        if pretrained:
            abn.load(model, abn.weights_file())
    else:
        model = paper_segmenters.build("deeplabv3", size, **options)
        if pretrained:
            paper_segmenters.load_pretrained(model, paper_segmenters.weights_file("deeplabv3", size))
    model.model.decode_head.in_index = -1  # its last input, also where a teacher is given the last map alone
    return started(model, config)


def base_of(
    config: dict[str, Any], steps: Steps, folder: Path | None = None, *, progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> tuple[Segmenter, TrainResult]:  # fmt: skip
    """The base model of a run: see :func:`fmseg.incremental_base.base_model`."""
    keys = {"pretrained": config.get("pretrained", False), **config}
    return base_model(
        keys, steps.base_source(), _judge(config, steps, BASE), len(steps.protocol.known(BASE)), folder,
        progress=progress, on_step=on_step, begin=fresh, decides=(*DECIDES, "pretrained"), module=__name__,
    )  # fmt: skip


def prepared(
    config: dict[str, Any], steps: Steps, old: Segmenter, *, progress: bool = False
) -> tuple[Step, Photos, dict[str, Any]]:  # fmt: skip
    """A step ready to train: the model, the pictures with the labels that it may see, and facts for the record."""
    method, options, seed = config["method"], config["options"], config["seed"]
    balanced, prior = method in pixel_step.BALANCED, prior_of_new(config)
    student = grow(old, len(steps.new_names()), seed=seed + _STUDENT, balanced=balanced, prior=prior)
    if method in pixel_step.METHODS:
        source = steps.pixel_source()
        return pixel_step.begun(method, student, old, source, steps.base_source), source, {}
    if method == "wilson":
        return WilsonStep(student, old, seed=seed + _HELPER, **options), steps.weak_source(), {}
    memory, experts = memory_of(config, steps, progress=progress), experts_of(config, steps)
    step = fmwiss.FmwissStep(
        student, old, experts, memory, fmwiss.Options(**{k: v for k, v in options.items() if k in _OF_STEP}),
        seed=seed + _HELPER, paste_probability=options.get("paste", 1.0), prior=prior,
    )  # fmt: skip
    counts = None if memory is None else [len(archive) for archive in memory.archives.values()]
    return step, steps.weak_source(), {"memory": counts, "experts": real_experts.identity(experts)}


def experts_of(config: dict[str, Any], steps: Steps):
    """The foundation models of a run, asked for its new classes as its options say."""
    options = {k: v for k, v in config["options"].items() if k in _OF_EXPERTS}
    return real_experts.of_config(
        config["experts"], steps.new_names(), steps.old_names(), pretrained=config.get("pretrained", False),
        seed=config["seed"] + _HELPER, **options,
    )  # fmt: skip


def memory_of(config: dict[str, Any], steps: Steps, *, progress: bool = False) -> Memory | None:
    """The archives of old classes, filled from the base step's pictures; None with ``capacity`` 0.

    Objects are connected components, cut out at the pictures' own resolution. Each process looks at its share of the
    pictures; the draw does not depend on who looks.
    """
    from tqdm import tqdm

    capacity = config["options"].get("capacity")
    if capacity == 0:
        return None
    known = [k for k in steps.protocol.new(BASE) if k]
    memory = Memory(known, **({} if capacity is None else {"capacity": capacity}), seed=config["seed"])
    table, world = steps.protocol.pixel_labels(BASE, steps.base.classes), distributed.world()
    for index in tqdm(range(world.rank, len(steps.base), world.size), disable=not progress, unit="picture"):
        picture = steps.base[index]
        memory.update(picture.image[None], table[picture.labels][None], [index])
    if world.size > 1:
        found: list[Any] = [None] * world.size
        torch.distributed.all_gather_object(found, memory)
        for other in found:
            memory.merge(other)
    return memory


class _Judge:
    """Validation as the training loop wants it: a function of the model and of which pictures to take."""

    def __init__(self, how: TestTime, data, table: np.ndarray):
        self.how, self.data, self.table = how, data, table

    def __call__(self, model: nn.Module, part: slice) -> Confusion:
        # steps and base learners hold the segmenter that is judged
        model = getattr(model, "student", getattr(model, "segmenter", model))
        return evaluate_pictures(model, self.data, self.how, table=self.table, part=part)

    def iou(self, model: Segmenter) -> np.ndarray:
        """(C,) over all pictures, counted by all processes."""
        world = distributed.world()
        counts = self(model, slice(world.rank, None, world.size)).matrix
        return Confusion.from_matrix(distributed.add_counts(counts, next(model.parameters()).device)).compute()


def _judge(config: dict[str, Any], steps: Steps, step: int, name: str | None = None) -> _Judge:
    return _Judge(TestTime(**config["test"]), *steps.truth(step, name))


def _learn(model: nn.Module, source, config: dict[str, Any], steps: Steps, **options) -> TrainResult:
    how = TrainConfig.from_dict({**config["train"], "seed": config["seed"]})
    return train(model, source, how, validation=_judge(config, steps, STEP), **options)


def _finished(done: TrainResult, model: Segmenter, config: dict, steps: Steps, more: dict[str, Any]) -> dict[str, Any]:
    first, *others = steps.held_out
    for name in others:
        more["other_iou"] = plain(_judge(config, steps, STEP, name).iou(model))
    examples = example_predictions(model, steps.held_out[first], TestTime(**config["test"]))
    return done.as_run(model, examples, **more)


def _check(config: dict[str, Any]) -> None:
    check_config(config, KEYS, OPTIONAL)
    method = config["method"]
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}")
    if config["size"] not in SIZES:
        raise ValueError(f"`size` must be one of {', '.join(SIZES)}; got {config['size']!r}")
    check_names(config["options"], OPTIONS.get(method, ()), f"option of {method}")
    if (method == "fmwiss") != ("experts" in config):
        raise ValueError(f"{method}: fmwiss needs `experts`, no other method takes them")
    if (method == JOINT) != (config["base"] is None):
        raise ValueError(f"{method}: `base` must be None for joint training, and is needed by all others")
    if method != JOINT and config["base"].get("family") != family(method):
        raise ValueError(f"`base.family` of {method} must be {family(method)!r}; got {config['base'].get('family')!r}")
