"""A supervised run from a configuration: draw the world, build a segmenter, train, evaluate.

What a run's record calls its code is everything this module reaches by imports, and nothing else.
"""

from collections.abc import Callable
from os import PathLike
from typing import Any

from torch import nn

from fmseg import image_counts
from fmseg.batches import Source
from fmseg.datasets import draw_set, get_draw
from fmseg.evaluation import predict
from fmseg.segmenters import build
from fmseg.settings import check_config
from fmseg.training import TrainConfig, TrainResult, train

EXAMPLES = 6  # predictions on the first validation images that a record keeps, for figures
KEYS = ("method", "backbone", "seed", "draw", "split", "images", "validation", "size", "train")


def sources(config: dict[str, Any]) -> tuple[Source, Source]:
    """Training and validation data of a run; drawn anew, since drawing costs less than keeping files in step."""
    seed, size = config["seed"], config["size"]
    real = draw_set(config["draw"], config["split"], config["images"], seed=seed, size=size)
    held_out = draw_set(config["draw"], "val", config["validation"], size=size)
    return Source(real.images, real.labels), Source(held_out.images, held_out.labels, name="validation")


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train one segmenter on real images of a draw.

    Args:
        config: ``method`` (a segmenter's name), ``backbone`` ("scratch", or "zoo:<hash>", see
            :func:`fmseg.segmenters.build`), ``seed`` (training split where the draw has one a seed, initial weights,
            order of data), ``draw``, ``split`` ('train' or 'large'), ``images`` and ``validation`` (numbers of images),
            ``size`` (pixels), ``train`` (fields of :class:`fmseg.training.TrainConfig` but ``seed``).
        checkpoint, checkpoint_every, progress, on_step: as in :func:`fmseg.training.train`.

    Returns:
        ``result`` (per-class ``iou`` as fractions with None for classes absent from the validation set, ``miou`` in
        percent, ``weights`` hash, ``examples``: packed predictions on the first six validation images, ``images``: what
        each validation image adds to ``iou``, see :mod:`fmseg.image_counts`), ``curve`` ([step, mIoU in percent]),
        ``seconds``; and the trained ``model``.

    Raises:
        ValueError: an unknown or missing key, name or value, or a backbone that is not the shipped one.
    """
    check_config(config, KEYS)
    options = TrainConfig.from_dict({**config["train"], "seed": config["seed"]})
    classes = get_draw(config["draw"]).num_classes
    model = build(
        config["method"], num_classes=classes, image_size=config["size"], seed=config["seed"],
        backbone=config["backbone"],
    )  # fmt: skip
    real, held_out = sources(config)
    trained = train(
        model, real, options, validation=held_out, checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        progress=progress, on_step=on_step,
    )  # fmt: skip
    return finished(trained, model, held_out)


def finished(trained: TrainResult, model: nn.Module, validation: Source, **more: Any) -> dict[str, Any]:
    """What :func:`run` returns. ``more``: further measured values, JSON only."""
    labels = predict(model, validation.images)
    counts = image_counts.count(labels, validation.labels, model.num_classes)
    return trained.as_run(model, labels[:EXAMPLES], images=image_counts.pack(counts), **more)
