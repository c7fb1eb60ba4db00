"""Runs in which one mistake of the field is planted (:mod:`fmseg.field_bugs`), and the same runs without it.

What a run's record calls its code is everything this module reaches by imports.
"""

from collections.abc import Callable
from os import PathLike
from typing import Any

from fmseg import fmwiss, freemask, freemask_runs, incremental_runs, supervised
from fmseg.batches import Source
from fmseg.datasets import get_draw
from fmseg.evaluation import predict
from fmseg.field_bugs import (
    LEARNED_RIMS,
    InTrainMode,
    learn_rim,
    mean_of_pictures,
    miou_of,
    planted,
    supcon,
    with_rim,
    without_statistics,
)
from fmseg.segmenters import build
from fmseg.settings import check_config
from fmseg.training import TrainConfig, train

SUPCON, ANOTHER_DRAW = "SupCon", "another draw"
MISTAKES = (*LEARNED_RIMS, SUPCON, ANOTHER_DRAW)
BATCHES = (2, 8)  # pictures whose statistics are taken together; of one, DeepLabV3's pooled branch has none
_ELSEWHERE = 10_007  # added to the seed of a draw that nobody has fixed


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train with a mistake, or without (``mistake`` None).

    Args:
        config: of :func:`fmseg.supervised.run` with ``rim`` (pixels), of :func:`fmseg.incremental_runs.run`, or of
            :func:`fmseg.freemask_runs.run`; and ``mistake``: None, of the first "as background" or "as the last class",
            of the second "SupCon", of the third "another draw".
        checkpoint, checkpoint_every, progress, on_step: as in :func:`fmseg.training.train`.

    Returns:
        As the function of the configuration. Of the first without a mistake ``result`` also has ``measured``: {what:
        mIoU in percent} of the same model evaluated wrongly.

    Raises:
        ValueError: an unknown or missing key or value, or a mistake that belongs to another kind of run.
    """
    mistake = config.get("mistake")
    allowed, right = _kind(config)
    if mistake is not None and mistake not in allowed:
        raise ValueError(f"`mistake` of such a run must be None or one of {', '.join(allowed)}; got {mistake!r}")
    rest = {key: value for key, value in config.items() if key != "mistake"}
    how = {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every, "progress": progress, "on_step": on_step}
    if mistake == SUPCON:
        with planted(fmwiss, "dense_contrast", supcon):
            return right(rest, **how)
    if mistake == ANOTHER_DRAW:
        with planted(freemask, "plan", _drawn_elsewhere):
            return right(rest, **how)
    return right(rest, mistake, **how) if right is _segmenter else right(rest, **how)


def _kind(config):
    """(mistakes that such a run may have, what trains it)"""
    if "protocol" in config:
        return (SUPCON,), incremental_runs.run
    if "paradigm" in config:
        return (ANOTHER_DRAW,), freemask_runs.run
    return LEARNED_RIMS, _segmenter


_plan = freemask.plan


def _drawn_elsewhere(masks, num_classes, means, most, seed):
    return _plan(masks, num_classes, means, most, seed + _ELSEWHERE)


def _segmenter(config: dict[str, Any], mistake: str | None, **how: Any) -> dict[str, Any]:
    check_config(config, (*supervised.KEYS, "rim"))
    options = TrainConfig.from_dict({**config["train"], "seed": config["seed"]})
    classes = get_draw(config["draw"]).num_classes
    model = build(
        config["method"], num_classes=classes, image_size=config["size"], seed=config["seed"],
        backbone=config["backbone"],
    )  # fmt: skip
    real, held_out = supervised.sources(config)
    labels = with_rim(real.labels, config["rim"])
    if mistake is not None:
        labels = learn_rim(labels, mistake, classes)
    trained = train(model, Source(real.images, labels), options, validation=held_out, **how)
    return supervised.finished(
        trained, model, held_out, **({} if mistake else {"measured": _measured(model, held_out)})
    )


def _measured(model, held_out):
    """{way to evaluate that is wrong: mIoU in percent}"""
    images, labels, classes = held_out.images, held_out.labels, model.num_classes
    found = {f"statistics of {n}": miou_of(InTrainMode(model), images, labels, classes, n) for n in BATCHES}
    found["no statistics"] = miou_of(without_statistics(model), images, labels, classes)
    found["mean of pictures"] = mean_of_pictures(predict(model, images), labels, classes)
    return {name: round(value, 4) for name, value in found.items()}
