"""A class-incremental run from a configuration: base model, step, what is old, new and forgotten.

The base model is trained once and shared (:mod:`fmseg.incremental_base`); then one of the methods learns the step's
classes with the supervision that it may have. What a run's record calls its code is everything that this module
reaches by imports.
"""

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fmseg import experts, fmwiss, image_counts, mask_quality, own_clip, pixel_step, zoo
from fmseg.cam import CamNet, HardStep, SsNet, hard_labels
from fmseg.evaluation import predict
from fmseg.incremental_base import WEAK, base_model, fresh, prior_of_new
from fmseg.incremental_data import BASE, STEP, Data, load
from fmseg.memory import Memory
from fmseg.segmenters import Segmenter
from fmseg.settings import check_config, check_names
from fmseg.step_models import Step, grow
from fmseg.training import Source, TrainConfig, TrainResult, plain, train
from fmseg.vits import load_vit
from fmseg.wilson_step import WilsonStep

EXAMPLES = 6  # predictions on the first validation images that a record keeps
JOINT = "joint"
METHODS = (JOINT, *pixel_step.METHODS, *WEAK)
KEYS = (
    "method", "seed", "protocol", "images", "validation", "size", "segmenter", "backbone", "base", "train", "share",
    "options",
)  # fmt: skip
OPTIONAL = ("zoo", "prior")
_STUDENT, _HELPER, _QUALITY = 1_000_003, 2_000_003, 3_000_017  # offsets of a run's seed: one stream for each purpose

# what `options` may hold: FMWISS's own, the memory's, and what its experts are asked
_OF_STEP = tuple(fmwiss.Options.__dataclass_fields__)
_OF_MEMORY = ("capacity", "paste")
_OF_EXPERTS = (
    "vit", "grounds", "old_rivals", "use", "rule", "threshold", "over", "seeds", "keep", "mass", "own_clip",
)  # fmt: skip
OPTIONS = {
    "fmwiss": (*_OF_STEP, *_OF_MEMORY, *_OF_EXPERTS),
    "wilson": ("alpha", "encoder_weight", "warmup"),
    "cam": ("threshold", "first"),
    "ss": ("warmup", "first"),
}


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
        config: ``method`` (:data:`METHODS`), ``seed``; ``protocol``, ``images``, ``validation``, ``size``, ``share``
            (:func:`fmseg.incremental_data.load`); ``segmenter`` and ``backbone`` (:func:`fmseg.segmenters.build`);
            ``base`` (None for joint) and ``train``: fields of :class:`fmseg.training.TrainConfig` but ``seed``, and for
            ``base`` also ``family``; ``options`` (:data:`OPTIONS`). Optional: ``zoo``: {model: hash} that the experts
            must be; ``prior``: how rare classes are at first (:func:`fmseg.incremental.start_rare`).
        checkpoint, checkpoint_every, progress, on_step: as in :func:`fmseg.training.train`, of the step. Base models
            are kept beside the checkpoint, in the folder ``bases``.

    Returns:
        As :func:`fmseg.supervised.run`; ``iou`` by logit of the protocol. ``result`` also has ``images`` (what each
        validation image adds to ``iou``: :mod:`fmseg.image_counts`), ``base_iou`` (the base model's), ``seen``
        (pictures of base and step), for COCO-to-VOC ``other_iou`` and ``other_images`` (of the step's own validation
        set), for FMWISS ``memory`` (instances a class), and for all that mark the new classes themselves ``masks``
        ({stage or method: precision, recall, iou}).

    Raises:
        ValueError: an unknown or missing key, name or value, or another zoo than the configuration's.
    """
    check_config(config, KEYS, OPTIONAL)
    method = config["method"]
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}")
    check_names(config["options"], OPTIONS.get(method, ()), f"option of {method}")
    for name, wanted in config.get("zoo", {}).items():
        if zoo.weights_hash(name) != wanted:
            raise ValueError(
                f"zoo model {name!r} is {zoo.weights_hash(name)}, the configuration means {wanted}; the weights that a "
                "record means are in the commit that made it"
            )
    data = load(config)
    place = Path(checkpoint) if checkpoint else None
    train_options = {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every, "progress": progress}
    if method == JOINT:
        model, sources = fresh(config, len(data.protocol.order)), data.joint_sources()
        done = _learn(model, sources, config, data, **train_options, on_step=on_step)
        return _finished(done, model, data, {"seen": [sum(map(len, sources))]})
    old, before = base_of(config, data, place and place.parent / "bases", progress=progress)
    step, source, more = prepared(config, data, old, place, progress=progress)
    done = _learn(step, source, config, data, **train_options, on_step=on_step)
    if isinstance(step, fmwiss.FmwissStep):
        more["masks"] = _quality(step, data, config)
    if isinstance(step, WilsonStep):
        weak = data.weak_source()
        more["masks"] = {method: mask_quality.of_localizer(step, weak.images, weak.tags, data.new_truth()).means()}
    more |= {"base_iou": plain(before.iou), "seen": [len(data.base), len(data.step)]}
    for left in _leftovers(place):
        left.unlink(missing_ok=True)
    return _finished(done, step.student, data, more)


def base_of(
    config: dict[str, Any], data: Data, folder: Path | None = None, *, progress: bool = False
) -> tuple[Segmenter, TrainResult]:
    """The base model of a run: see :func:`fmseg.incremental_base.base_model`."""
    known = len(data.protocol.known(BASE))
    return base_model(config, data.base_source(), data.validation(BASE), known, folder, progress=progress)


def prepared(
    config: dict[str, Any], data: Data, old: Segmenter, place: Path | None = None, *, progress: bool = False
) -> tuple[Step, Source, dict[str, Any]]:
    """A step ready to train: the model, the pictures with the labels that it may see, and facts for the record.

    Args:
        config, data: of the run. old: its base model.
        place: the run's checkpoint; what must be trained first (CAM's and SS's own network) is kept beside it.
    """
    method, options, seed = config["method"], dict(config["options"]), config["seed"]
    added = len(data.protocol.new(STEP))
    balanced, prior = method in pixel_step.BALANCED, prior_of_new(config)
    student = grow(old, added, seed=seed + _STUDENT, balanced=balanced, prior=prior)
    if method in pixel_step.METHODS:
        source = data.pixel_source()
        return pixel_step.begun(method, student, old, source, data.base_source), source, {}
    source = data.weak_source()
    if method == "wilson":
        return WilsonStep(student, old, seed=seed + _HELPER, **options), source, {}
    if method == "fmwiss":
        memory = memory_of(config, data)
        kept = {k: v for k, v in options.items() if k in _OF_STEP}
        step = fmwiss.FmwissStep(
            student, old, experts_of(config, data, place, progress=progress), memory, fmwiss.Options(**kept),
            seed=seed + _HELPER, paste_probability=options.get("paste", 1.0), prior=prior,
        )  # fmt: skip
        counts = None if memory is None else [len(archive) for archive in memory.archives.values()]
        return step, source, {"memory": counts}
    first = {**config["train"], **options.pop("first", {})}
    net = {"cam": CamNet, "ss": SsNet}[method](fresh(config, old.num_classes), added, seed=seed + _HELPER, **options)
    _first(net, source, first, seed, place, progress)
    labels = hard_labels(net, source.images, source.tags, old.num_classes)
    facts = {"masks": {method: _against_truth(labels, data)}}
    return HardStep(student, old), Source(source.images, labels, name=f"{method}'s labels"), facts


def memory_of(config: dict[str, Any], data: Data) -> Memory | None:
    """The archives of old classes, filled from the base step's pictures; None with ``capacity`` 0."""
    capacity = config["options"].get("capacity")
    if capacity == 0:
        return None
    known = [k for k in data.protocol.new(BASE) if k]
    memory = Memory(known, **({} if capacity is None else {"capacity": capacity}), seed=config["seed"])
    source = data.base_source()
    memory.update(source.images, source.labels, range(len(source)), data.base.instances)
    return memory


def experts_of(
    config: dict[str, Any], data: Data, place: Path | None = None, *, progress: bool = False, **changes: Any
) -> experts.Experts:
    """The zoo's experts for a run's new classes, asked as its options say; ``changes`` to these."""
    options = {k: v for k, v in config["options"].items() if k in _OF_EXPERTS} | changes
    taught = options.pop("own_clip", None)
    clip = None
    if taught:
        clip = own_clip.train_clip(data, taught, config["seed"] + _HELPER, _beside(place, "clip"), progress=progress)
    return experts.of_zoo(data.new_names(), data.old_names(), clip=clip, **options)


def _learn(model: nn.Module, source, config: dict[str, Any], data: Data, **options) -> TrainResult:
    how = TrainConfig.from_dict({**config["train"], "seed": config["seed"]})
    return train(model, source, how, validation=data.validation(STEP), **options)


def _first(net: nn.Module, source: Source, options: dict, seed: int, place: Path | None, progress: bool) -> None:
    """Train a weak method's own network, or read it where a killed run had finished it."""
    how = TrainConfig.from_dict({**options, "seed": seed, "eval_every": None})
    kept = _beside(place, "first")
    train(net, source, how, checkpoint=kept, checkpoint_every=kept and max(1, how.steps // 4), progress=progress)


def _beside(place: Path | None, what: str) -> Path | None:
    return place and place.with_name(f"{place.stem}-{what}.pt")


def _leftovers(place: Path | None) -> list[Path]:
    return [_beside(place, what) for what in ("first", "clip")] if place else []


def _quality(step: fmwiss.FmwissStep, data: Data, config: dict[str, Any]) -> dict[str, dict]:
    source, asked = data.weak_source(), step.experts
    if asked.options.get("use", "union") != "union":
        vit = asked.vit or load_vit(zoo.folder(config["options"].get("vit", "mim")))
        asked = replace(asked, vit=vit, options={**asked.options, "use": "union"}, looks={})
    found = mask_quality.stages(
        step, asked, source.images, source.tags, data.new_truth(), config["seed"] + _QUALITY
    )  # fmt: skip
    return {name: quality.means() for name, quality in found.items()}


def _against_truth(labels: np.ndarray, data: Data) -> dict:
    ids = data.protocol.new(STEP)
    quality = mask_quality.MaskQuality(len(ids))
    pair = (torch.from_numpy(a) for a in (labels, data.new_truth()))
    return quality.update(*(mask_quality.one_hot(a, ids) for a in pair)).means()


def _finished(done: TrainResult, model: Segmenter, data: Data, more: dict[str, Any]) -> dict[str, Any]:
    scored, examples = [], None
    for name in data.held_out:
        held_out = data.validation(STEP, name)
        labels = predict(model, held_out.images)
        scored.append(image_counts.count(labels, held_out.labels, model.num_classes))
        examples = labels[:EXAMPLES] if examples is None else examples
    more["images"] = image_counts.pack(scored[0])
    for other in scored[1:]:
        more |= {"other_iou": plain(image_counts.iou(other)), "other_images": image_counts.pack(other)}
    return done.as_run(model, examples, **more)
