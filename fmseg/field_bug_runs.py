"""Runs in which one mistake of the field is planted (:mod:`fmseg.field_bugs`), and the same runs without it.

What a run's record calls its code is everything this module reaches by imports.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from fmseg import fmwiss, freemask, freemask_runs, incremental_runs, supervised
from fmseg.datasets import get_draw
from fmseg.evaluation import predict
from fmseg.field_bugs import (
    LEARNED_RIMS,
    InTrainMode,
    learn_rim,
    mean_of_pictures,
    miou_of,
    supcon,
    with_rim,
    without_statistics,
)
from fmseg.settings import check_config

SUPCON, ANOTHER_DRAW = "SupCon", "another draw"
BATCHES = (2, 8)  # pictures whose statistics are taken together; of one, DeepLabV3's pooled branch has none
_ELSEWHERE = 10_007  # added to the seed of a draw that nobody has fixed


def run(config: dict[str, Any], **how: Any) -> dict[str, Any]:
    """Train with a mistake, or without (``mistake`` None).

    Args:
        config: of :func:`fmseg.supervised.run` with ``rim`` (pixels), of :func:`fmseg.incremental_runs.run`, or of
            :func:`fmseg.freemask_runs.run`; and ``mistake``: None, of the first "as background" or "as the last class",
            of the second "SupCon", of the third "another draw".
        how: ``checkpoint``, ``checkpoint_every``, ``progress``, ``on_step``: as in :func:`fmseg.training.train`.

    Returns:
        As the function of the configuration. Of the first without a mistake ``result`` also has ``measured``: {what:
        mIoU in percent} of the same model evaluated wrongly.

    Raises:
        ValueError: an unknown or missing key or value, or a mistake that belongs to another kind of run.
    """
    mistake = config.get("mistake")
    rest = {key: value for key, value in config.items() if key != "mistake"}
    if "protocol" in config:
        _belongs(mistake, SUPCON)
        with patch.object(fmwiss, "dense_contrast", supcon) if mistake else nullcontext():
            return incremental_runs.run(rest, **how)
    if "paradigm" in config:
        _belongs(mistake, ANOTHER_DRAW)
        with patch.object(freemask, "plan", _drawn_elsewhere) if mistake else nullcontext():
            return freemask_runs.run(rest, **how)
    _belongs(mistake, *LEARNED_RIMS)
    return _segmenter(rest, mistake, how)


def _belongs(mistake: str | None, *allowed: str) -> None:
    if mistake is not None and mistake not in allowed:
        raise ValueError(f"`mistake` of such a run must be None or one of {', '.join(allowed)}; got {mistake!r}")


_plan = freemask.plan


def _drawn_elsewhere(masks, num_classes, means, most, seed):
    return _plan(masks, num_classes, means, most, seed + _ELSEWHERE)


def _segmenter(config: dict[str, Any], mistake: str | None, how: dict[str, Any]) -> dict[str, Any]:
    check_config(config, (*supervised.KEYS, "rim"))
    rest = {key: value for key, value in config.items() if key != "rim"}
    real, held_out = supervised.sources(rest)
    labels = with_rim(real.labels, config["rim"])
    if mistake:
        labels = learn_rim(labels, mistake, get_draw(config["draw"]).num_classes)
    with patch.object(supervised, "sources", lambda _: (replace(real, labels=labels), held_out)):
        done = supervised.run(rest, **how)
    if not mistake:
        done["result"]["measured"] = _measured(done["model"], held_out)
    return done


def _measured(model, held_out):
    """{way to evaluate that is wrong: mIoU in percent}"""
    images, labels, classes = held_out.images, held_out.labels, model.num_classes
    found = {f"statistics of {n}": miou_of(InTrainMode(model), images, labels, classes, n) for n in BATCHES}
    found["no statistics"] = miou_of(without_statistics(model), images, labels, classes)
    found["mean of pictures"] = mean_of_pictures(predict(model, images), labels, classes)
    return {name: round(value, 4) for name, value in found.items()}
