"""A supervised run on a real data set from a configuration: the papers' recipes at the papers' size, or a mini model.

The counterpart of :mod:`fmseg.supervised` for pictures on disk; alone or under ``torchrun``.
"""

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
import torch

from fmseg import distributed, on_disk, paper_segmenters, segmenters
from fmseg.inference import TestTime, evaluate_pictures, segment
from fmseg.photos import Photos
from fmseg.segmenters import Segmenter
from fmseg.settings import check_names
from fmseg.training import TrainConfig, train

EXAMPLES, SIDE = 6, 128  # predictions that a record keeps: on the first pictures, resized to this many pixels a side
KEYS = ("method", "size", "seed", "data", "split", "validation", "crop", "pipeline", "test", "train")
OPTIONAL = ("pretrained", "backbone", "repeat", "images")


def open_data(config: dict[str, Any]) -> tuple[on_disk.OnDisk, on_disk.OnDisk]:
    """Training and validation pictures of a run, from where this machine keeps them (:func:`fmseg.on_disk.root_of`)."""
    root = on_disk.root_of(config["data"])
    real, held_out = (on_disk.open_set(config["data"], root, config[key]) for key in ("split", "validation"))
    return real.subset(range(min(len(real), config["images"]))) if config.get("images") else real, held_out


def model_of(config: dict[str, Any], num_classes: int) -> Segmenter:
    """The segmenter of a run, its backbone pre-trained where the configuration says so."""
    name, size = config["method"], config["size"]
    options = {"num_classes": num_classes, "image_size": config["crop"][0], "seed": config["seed"]}
    if "backbone" in config and size != "mini":
        raise ValueError(f"`backbone` is of mini segmenters, and this one has size {size!r}; see `pretrained`")
    if size == "mini":
        model = segmenters.build(name, size, **options, backbone=config.get("backbone", segmenters.SCRATCH))
    else:
        model = paper_segmenters.build(name, size, **options)
    if config.get("pretrained"):
        paper_segmenters.load_pretrained(model, paper_segmenters.weights_file(name, size))
    return model


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train one segmenter on a data set on disk and evaluate it on whole pictures.

    Args:
        config: ``method``, ``size`` (a segmenter's, :func:`fmseg.segmenters.build`), ``seed``; ``data``, ``split``,
            ``validation`` (a data set and two of its splits); ``crop``, ``pipeline`` (:class:`fmseg.photos.Photos`),
            ``test`` (fields of :class:`fmseg.inference.TestTime`), ``train`` (fields of
            :class:`fmseg.train_config.TrainConfig` but ``seed``). Optional: ``pretrained`` (take the backbone's
            weights from FMSEG_WEIGHTS), ``backbone`` (of a mini segmenter, :func:`fmseg.segmenters.build`), ``repeat``,
            ``images`` (only that many of the first training pictures).
        checkpoint, checkpoint_every, progress, on_step: as in :func:`fmseg.training.train`.

    Returns:
        As :func:`fmseg.supervised.run`; ``result`` also has ``data``, a hash of the pictures. Equal in every process.

    Raises:
        ValueError: an unknown or missing key, name or value. FileNotFoundError: data or weights are not there.
    """
    check_names(config, KEYS + OPTIONAL, "key of a run's configuration")
    missing = [key for key in KEYS if key not in config]
    if missing:
        raise ValueError(f"a run's configuration lacks {', '.join(missing)}; it needs {', '.join(KEYS)}")
    options = TrainConfig.from_dict({**config["train"], "seed": config["seed"]})
    how = TestTime(**config["test"])
    real, held_out = open_data(config)
    model = model_of(config, real.num_classes)
    source = Photos(real, config["pipeline"], tuple(config["crop"]), repeat=config.get("repeat", 1))

    def validation(model, part):
        return evaluate_pictures(model, held_out, how, part=part, progress=progress and distributed.world().first)

    trained = train(
        model, source, options, validation=validation, checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        progress=progress, on_step=on_step,
    )  # fmt: skip
    data = [real.fingerprint()[:16], held_out.fingerprint()[:16]]
    return trained.as_run(model, example_predictions(model, held_out, how), data=data)


def examples(data: on_disk.OnDisk) -> tuple[np.ndarray, np.ndarray]:
    """The first pictures and their truth, squeezed to one size: (n, 128, 128, 3) and (n, 128, 128) uint8."""
    pictures = [data[i] for i in range(min(EXAMPLES, len(data)))]
    return np.stack([_small(p.image) for p in pictures]), np.stack([_small(p.labels) for p in pictures])


def example_predictions(model: torch.nn.Module, data: on_disk.OnDisk, how: TestTime) -> np.ndarray:
    """(n, 128, 128) uint8: what a model sees in the first pictures, squeezed as :func:`examples` does."""
    return np.stack([_small(segment(model, data.image(i), how)) for i in range(min(EXAMPLES, len(data)))])


def _small(array: np.ndarray) -> np.ndarray:
    from PIL import Image

    how = Image.Resampling.BILINEAR if array.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(array).resize((SIDE, SIDE), how))
