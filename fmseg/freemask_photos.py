"""FreeMask on photographs: the chain of :mod:`fmseg.freemask` on tiles, the result measured on whole pictures.

Generator, filter model and synthetic pictures are of tiles, which is what the mini U-Net can paint. The segmenter
learns from tiles, too, and is then shown every validation photograph whole, at the size that tiles were cut from.
"""

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np

from fmseg import freemask, freemask_runs, own_generator
from fmseg.freemask_data import PHOTOGRAPHS, photographs, real_set
from fmseg.inference import TestTime, evaluate_pictures
from fmseg.real_supervised import example_predictions
from fmseg.segmenters import build
from fmseg.settings import check_config
from fmseg.training import TrainConfig, plain, train

PARADIGMS = ("real", "synthetic", "joint")
KEYS = ("method", "backbone", "seed", *PHOTOGRAPHS, "paradigm", "train")
ENDS = 6  # of the order of masks a record keeps the easiest and the hardest
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def check(config: dict[str, Any]) -> None:
    """Refuse a configuration that has a key nobody reads, lacks one, or names another paradigm (ValueError)."""
    if config.get("paradigm") not in PARADIGMS:
        raise ValueError(f"`paradigm` must be one of {', '.join(PARADIGMS)}; got {config.get('paradigm')!r}")
    check_config(config, KEYS + (() if config["paradigm"] == "real" else freemask_runs.WITH_PICTURES))


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train one segmenter on tiles of photographs and what was painted for their masks.

    Args:
        config: ``method``, ``backbone``, ``seed``, ``train`` as in :func:`fmseg.supervised.run`; real images as in
            :func:`fmseg.freemask_data.real_set`; ``paradigm``: "real", "synthetic" or "joint"; but for "real" with
            ``synthetic``, ``generator`` and ``filter``, see :func:`fmseg.freemask.synthetic_set`.
        checkpoint, checkpoint_every, progress, on_step: as in :func:`fmseg.training.train`.

    Returns:
        As :func:`fmseg.supervised.run`, on whole photographs; ``result`` also has ``data`` (hash of the pictures'
        files); with synthetic pictures ``synthetic`` (as :func:`fmseg.freemask_runs.run`), with an own generator its
        ``generator`` (:func:`fmseg.own_generator.card`), and where they were judged ``judge`` (:func:`judged`).

    Raises:
        ValueError: an unknown or missing key, name or value. FileNotFoundError: the photographs are not there.
    """
    check(config)
    real, whole, how = real_set(config), photographs(config, "val"), TestTime(scale=tuple(config["scale"]))
    model = build(
        config["method"], num_classes=real.num_classes, image_size=config["size"], seed=config["seed"],
        backbone=config["backbone"],
    )  # fmt: skip
    options = TrainConfig.from_dict({**config["train"], "seed": config["seed"]})
    learn, facts = freemask_runs.sources(config)
    done = train(
        model, learn, options, validation=lambda model, part: evaluate_pictures(model, whole, how, part=part),
        checkpoint=checkpoint, checkpoint_every=checkpoint_every, progress=progress, on_step=on_step,
    )  # fmt: skip
    more = {"data": [real.fingerprint, whole.fingerprint()[:16]]}
    if facts:
        more["synthetic"] = facts
        if "own" in config["generator"]:
            more["generator"] = own_generator.card(config["generator"]["own"])
        if freemask.judged(config["synthetic"]):
            more["judge"] = judged(config, real)
    return done.as_run(model, example_predictions(model, whole, how), **more)


def judged(config: dict[str, Any], real) -> dict[str, Any]:
    """What the filter model says of the real masks.

    Args:
        config: a run's with synthetic pictures. real: its tiles.

    Returns:
        ``means`` ((C,) class-wise mean loss, nats, None for classes that no mask has), ``mean`` (over all pixels),
        ``hardness`` (of the masks, nats: :data:`QUANTILES`), ``easiest`` and ``hardest`` (names of tiles, from the end
        inwards).
    """
    model = freemask.judge(config)
    means = freemask.class_means(config)
    hard = np.array(freemask.hardness_of(real.labels, real.num_classes, means))
    order = [real.names[k] for k in np.argsort(hard, kind="stable")]
    there = np.where(model.on_training.counts > 0, means, np.nan)
    return {
        "means": plain(there),
        "mean": round(model.summary()["training loss"], 6),
        "hardness": plain(np.quantile(hard, QUANTILES)),
        "easiest": order[:ENDS],
        "hardest": order[::-1][:ENDS],
    }
