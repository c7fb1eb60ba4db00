"""What runs of Grounded Diffusion cost: pictures and steps are timed, what runs share counts once.

The counterpart of :func:`fmseg.plan.calibrate` for runs of :mod:`fmseg.grounded_runs` and :mod:`fmseg.zero_shot`. Most
of their time goes into pictures, which are painted once for all runs of a table (:mod:`fmseg.parts`), so a run's own
cost does not hold them: :func:`shared` says what a run rests on, :func:`shared_seconds` adds it up over runs.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from fmseg.grounded_pictures import KINDS, PART
from fmseg.zero_shot import CLIP_DENSE

Units = Mapping[str, float]  # seconds: paint, look, read a picture, answer for one; step of a head
TIMED_STEPS = 6  # after one that warms up
EVALUATED = 8  # pictures that CLIP is timed on
IMAGINED = 5  # steps that the ZS3-style row is timed on


def concerns(config: Mapping) -> bool:
    """Whether a run is of Grounded Diffusion: a head or DAAM, or a segmenter of Protocol II."""
    return isinstance(config.get("pictures"), Mapping) or ("split" in config and "/grounded-" in str(config["split"]))


def kind_of(config: Mapping) -> tuple:
    """Runs of one kind cost the same a step and as much before it; see :func:`fmseg.plan.kind_of`."""
    if "pictures" not in config:
        sets, what = config.get("sets", ()), (config.get("segmenter", CLIP_DENSE), "generator" in config)
        return (config["method"], config["size"], what, config["draw"], config["train"].get("batch_size"), len(sets))
    pictures = (config["pictures"]["from"], config["step"] == 1, json.dumps(config["test"], sort_keys=True))
    batch = config["train"].get("batch_size", 0)
    return (config["method"], f"from {pictures[0]}", pictures[1:], config["draw"], batch)


# -- what is shared ------------------------------------------------------------------------------------------------


def shared(config: Mapping) -> dict[tuple, dict[str, int]]:
    """What a run rests on and other runs, too: name -> how often each of the units it takes.

    Features of other steps than 1 are not kept, so they are not among it; see :func:`own`.
    """
    if "pictures" not in config:
        head = config.get("head")
        if not head:
            return {}
        made = shared(head) | {("head", json.dumps(head, sort_keys=True)): {"step": head["train"]["steps"]}}
        for what in config["sets"]:
            count = _whole(what["count"])
            made["set", config["draw"], what["kind"], what.get("rich", False)] = {
                "paint": count, "read": count, "answer": count
            }  # fmt: skip
        return made
    reads = ("paint", "look", "read") if config["step"] == 1 else ("paint", "look")
    return {name: dict.fromkeys(reads, count) for name, count in _sets(config).items()}


def own(config: Mapping, units: Units) -> float:
    """Seconds of a head's or DAAM's run that are not steps and not shared: answers, features that are not kept; as if
    the oracle found everything in every picture, of which no more is known before."""
    tested = sum(count for name, count in _sets(config).items() if "test" in name or "val" in name)
    taught = sum(_sets(config).values()) - tested
    read = 0 if config["step"] == 1 else (tested + (taught if config["method"] == "head" else 0)) * units["read"]
    return read + (tested * units["answer"] if config["method"] == "head" else 0.0)


def shared_seconds(runs: Iterable[tuple[Mapping, Units]]) -> float:
    """Seconds of everything that runs share, each thing once, as large as the run that needs most of it.

    Args:
        runs: configuration and units of each.
    """
    most: dict[tuple, float] = {}
    for config, units in runs:
        for name, counts in shared(config).items():
            seconds = sum(times * units[unit] for unit, times in counts.items())
            most[name] = max(most.get(name, 0.0), seconds)
    return sum(most.values())


def _whole(count: int) -> int:
    return -(-count // PART) * PART


def _sets(config: Mapping) -> dict[tuple, int]:
    """Sets of pictures that a head's or DAAM's run paints or inverts: name -> pictures."""
    what, test, draw = config["pictures"], config["test"], config["draw"]
    made = {("test", draw, kind): test[kind] for kind in ("one", "two") if test.get(kind)}
    if test.get("unseen"):
        made |= {("test", draw, "two", tuple(group)): test["unseen"] for group in test["groups"]}
    if test.get("novel"):
        made["test", "novel"] = test["novel"]
    if test.get("real"):
        made["val", draw] = test["real"]
    if config["method"] == "head" and what["from"] == "painted":
        of = draw if what["of"] == "draw" else tuple(config["seen"])
        made |= {("train", of, kind): what[kind] for kind in KINDS if what.get(kind)}
    elif config["method"] == "head":
        made["train", draw, "inverted", config["seed"]] = what["images"]
    return {name: _whole(count) for name, count in made.items()}


# -- timing --------------------------------------------------------------------------------------------------------


def calibrate(config: Mapping, clock: Callable[[], float], of_segmenter: Callable[..., Any]) -> dict[str, Any]:
    """Time what a run is made of, with the zoo's models, on :data:`fmseg.grounded_pictures.PART` pictures.

    Args:
        config: of the run. clock: gives seconds.
        of_segmenter: (run of :mod:`fmseg.supervised`, clock) -> its cost, :func:`fmseg.plan.calibrate`.

    Returns:
        Fields of :class:`fmseg.plan.Cost`: ``units``, ``step``, ``picture``, ``prepare`` (without what is shared), and
        what else a segmenter's cost has.
    """
    if "pictures" in config:
        units = dict(_timed(json.dumps(_decides(config), sort_keys=True), _Hidden(config, clock)))
        return {"units": units, "step": units["step"], "picture": 0.0, "prepare": own(config, units)}
    if "segmenter" not in config:
        return {"step": 0.0, "picture": clip_picture(config, clock), "prepare": 0.0}
    found = vars(of_segmenter(segmenter_run(config), clock))
    imagining = _imagining(config, clock) if config.get("generator") else 0.0
    units = calibrate(config["head"], clock, of_segmenter)["units"] if config.get("head") else {}
    return {**found, "prepare": found["prepare"] + imagining, "units": units}


def _decides(config: Mapping) -> dict:
    train = {"batch_size": config["train"].get("batch_size"), "method": config["method"]}
    return {key: config.get(key) for key in ("sampling", "oracle", "head")} | train


class _Hidden:
    """Arguments that a cache must not look at: all are equal."""

    def __init__(self, config: Mapping, clock: Callable[[], float]):
        self.config, self.clock = config, clock

    def __eq__(self, other):
        return isinstance(other, _Hidden)

    def __hash__(self):
        return 0


@lru_cache(maxsize=8)
def _timed(decides: str, hidden: _Hidden) -> tuple[tuple[str, float], ...]:
    from fmseg import grounded_pictures, grounded_sets, grounded_train
    from fmseg.generation import text_to_image
    from fmseg.grounded_runs import draw_things
    from fmseg.train_config import TrainConfig

    config, clock = hidden.config, hidden.clock
    classes, options = draw_things(config["draw"]), config["oracle"] | {"name": "oracle"}
    how = {"steps": config["sampling"]["steps"], "guidance": config["sampling"]["train"]}
    with _parts_apart():
        for stream in ("plan, warm", "plan"):  # models are loaded, then timed
            marks = [clock()]
            pictures = grounded_pictures.painted("two", classes, stream, PART, **how)
            marks.append(clock())
            grounded_sets.seen_by("oracle", pictures)
            marks.append(clock())
            grounded_pictures.features(pictures, 1)
            marks.append(clock())
        units = dict(zip(("paint", "look", "read"), np.diff(marks) / PART, strict=True)) | {"answer": 0.0, "step": 0.0}
        if config["method"] != "head":
            return tuple(units.items())
        data = grounded_sets.triplets(pictures, classes, 1, options)
    head = grounded_train.build(text_to_image().unet.config, config["head"], config["seed"])
    changes = {"steps": TIMED_STEPS + 1, "warmup_steps": 0, "seed": config["seed"]}
    marks = []
    grounded_train.train(
        head, data, TrainConfig.from_dict(config["train"] | changes), undetected="zero",
        on_step=lambda step, loss: marks.append(clock()),
    )  # fmt: skip
    units["step"] = statistics.median(np.diff(marks))
    begun = clock()
    grounded_train.answers(head, data)
    return tuple((units | {"answer": (clock() - begun) / PART}).items())


@contextmanager
def _parts_apart():
    """A folder of its own for parts, so that nothing is taken from others' and nothing is left behind."""
    before = os.environ.get("FMSEG_PARTS")
    with tempfile.TemporaryDirectory(prefix="fmseg-plan-") as folder:
        os.environ["FMSEG_PARTS"] = folder
        try:
            yield
        finally:
            os.environ.pop("FMSEG_PARTS") if before is None else os.environ.__setitem__("FMSEG_PARTS", before)


def segmenter_run(config: Mapping) -> dict[str, Any]:
    """The run of :mod:`fmseg.supervised` that costs as much a step as a segmenter of Protocol II."""
    same = ("seed", "draw", "images", "validation", "size")
    return {"method": config["segmenter"]} | {key: config[key] for key in same} | {"train": dict(config["train"])}


def clip_picture(config: Mapping, clock: Callable[[], float]) -> float:
    """Seconds that CLIP's dense maps take a picture."""
    from fmseg import protocols, zoo
    from fmseg.clip import load_clip, text_embeddings
    from fmseg.measure_perception import dense_scores

    clip = load_clip(zoo.folder("clip"))
    text = text_embeddings(clip, protocols.get(config["split"]).classes)
    images = np.zeros((EVALUATED, config["size"], config["size"], 3), np.uint8)
    dense_scores(clip, images, text, by=2)
    begun = clock()
    dense_scores(clip, images, text, by=2)
    return (clock() - begun) / EVALUATED


def _imagining(config: Mapping, clock: Callable[[], float]) -> float:
    """Seconds of the ZS3-style row's generator and second training of its classifier."""
    from fmseg import protocols, zero_shot
    from fmseg.segmenters import build

    split, few = protocols.get(config["split"]), config | {"images": EVALUATED, "sets": (), "real": True}
    sources = zero_shot.training_sources(few, split)
    model = build(config["segmenter"], num_classes=len(split.classes) + 1, image_size=config["size"], seed=0).eval()
    begun = clock()
    zero_shot.imagine(model, sources, split, {"steps": IMAGINED, "classifier_steps": IMAGINED}, 0)
    of_two = (clock() - begun) / IMAGINED
    return of_two * max(config["generator"]["steps"], config["generator"]["classifier_steps"])
