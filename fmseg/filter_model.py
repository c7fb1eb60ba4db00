"""The segmenter that judges synthetic pictures: trained on the real training images once, shared by all runs.

FreeMask takes a SegFormer-B4 that was trained on the real images for this (dossier 2.2), and its mean loss by class on
these same images. Ours are cross-fitted means, too: every image judged by a model that did not learn from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fmseg import freemask_data, parts
from fmseg.batches import Source
from fmseg.metrics import mean_iou
from fmseg.noise import ClassLoss, loss_map
from fmseg.segmenters import SCRATCH, Segmenter, build
from fmseg.settings import check_config
from fmseg.training import TrainConfig, train

KEYS = ("method", "backbone", "seed", "train")  # and those of the real images, fmseg.freemask_data.keys
STATS, WEIGHTS = ("on_training", "on_validation", "held_out"), "model/"
BATCH = 50


@dataclass(frozen=True, eq=False)
class FilterModel:
    """A trained filter model.

    Attributes:
        model: in evaluation mode.
        on_training, on_validation: its losses by class on the pictures it learned from and on the validation set.
        iou: (C,) on the validation set, in [0, 1], NaN for absent classes.
        seconds: of its training.
        held_out: its losses on the training pictures that it did not see, where it is one of several folds.
    """

    model: Segmenter
    on_training: ClassLoss
    on_validation: ClassLoss
    iou: ndarray
    seconds: float
    held_out: ClassLoss | None = None

    def summary(self) -> dict[str, float]:
        """Mean loss by pixel in nats on training and validation pictures, mIoU in percent."""
        losses = {"training loss": self.on_training, "validation loss": self.on_validation}
        means = {name: float(s.sums.sum() / s.counts.sum()) for name, s in losses.items()}
        return means | {"miou": 100 * mean_iou(self.iou)}


def trained(config: dict[str, Any], fold: tuple[int, int] | None = None) -> FilterModel:
    """The filter model of a configuration, trained now if it is not there (a shared part, :mod:`fmseg.parts`).

    Args:
        config: ``method`` (not "mask2former", which has no scores on a grid that are logits), ``backbone``, ``seed``,
            ``train``: as in :func:`fmseg.supervised.run`; real images as in :func:`fmseg.freemask_data.real_set`.
        fold: (k, n): learn from all training images but each n-th from the k-th on.

    Raises:
        ValueError: a key is missing, unknown or does not fit.
    """
    check_config(config, KEYS + freemask_data.keys(config))
    if config["method"] == "mask2former":
        raise ValueError("`method` of a filter model must score pixels with logits, which 'mask2former' does not")
    key = {"config": config, "fold": list(fold) if fold else None, "content": freemask_data.content(config)}
    folder = parts.folder("filters", key, "fmseg.filter_model")
    (found,) = parts.obtain(folder, [0], lambda _: _train(config, fold, folder / "training.pt"))
    stats = {n: ClassLoss.from_state(found[f"{n}/counts"], found[f"{n}/sums"]) for n in STATS if f"{n}/counts" in found}
    model = _build({**config, "backbone": SCRATCH}, stats["on_training"].num_classes)  # all of its weights are there
    weights = {k.removeprefix(WEIGHTS): torch.from_numpy(v) for k, v in found.items() if k.startswith(WEIGHTS)}
    model.load_state_dict(weights)
    return FilterModel(
        model.eval().requires_grad_(False), iou=found["iou"], seconds=float(found["seconds"]), **stats
    )  # fmt: skip


def crossfitted(config: dict[str, Any], folds: int) -> ClassLoss:
    """Losses by class on the training images, each judged by a model that did not learn from it.

    Args:
        config: as in :func:`trained`. folds: models, >= 2.

    Raises:
        ValueError: fewer than two folds, or fewer images than folds.
    """
    real = freemask_data.real_set(config)
    if folds < 2 or folds > len(real):
        raise ValueError(f"`folds` must be from 2 to the number of images, {len(real)}; got {folds}")
    whole = ClassLoss(real.num_classes)
    for k in range(folds):
        whole.merge(trained(config, (k, folds)).held_out)
    return whole


@torch.no_grad()
def losses(model: Segmenter, images: ndarray, labels: ndarray) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Loss of every pixel, in pieces: which pictures, their losses (b, H, W) in nats, their labels (b, H, W) int64.

    Args:
        model: in evaluation mode. images: (N, H, W, 3) uint8. labels: (N, H, W) uint8 ids, 255 where there is none.
    """
    for start in range(0, len(images), BATCH):
        part = slice(start, min(start + BATCH, len(images)))
        target = torch.from_numpy(labels[part].astype(np.int64))
        x = torch.from_numpy(np.ascontiguousarray(images[part])).permute(0, 3, 1, 2)
        yield part, loss_map(model.grid_logits(x), target), target


def class_losses(model: Segmenter, images: ndarray, labels: ndarray, num_classes: int) -> ClassLoss:
    """:class:`fmseg.noise.ClassLoss` of a model on labelled pictures; see :func:`losses`."""
    stats = ClassLoss(num_classes)
    for _, loss, target in losses(model, images, labels):
        stats.update(loss, target)
    return stats


def _build(config: dict[str, Any], num_classes: int) -> Segmenter:
    options = {"num_classes": num_classes, "image_size": config["size"], "seed": config["seed"]}
    return build(config["method"], **options, backbone=config["backbone"])


def _train(config: dict[str, Any], fold: tuple[int, int] | None, checkpoint: Path) -> parts.Arrays:
    real, held_out = (freemask_data.real_set(config, part) for part in ("train", "val"))
    mine = np.arange(len(real))
    learn = mine if fold is None else mine[mine % fold[1] != fold[0]]
    model = _build(config, real.num_classes)
    result = train(
        model, Source(real.images[learn], real.labels[learn]),
        TrainConfig.from_dict({**config["train"], "seed": config["seed"]}),
        validation=Source(held_out.images, held_out.labels, name="validation"),
        checkpoint=checkpoint, checkpoint_every=max(1, config["train"]["steps"] // 4), progress=False,
    )  # fmt: skip
    model.eval()
    sets = {
        "on_training": (real.images[learn], real.labels[learn]),
        "on_validation": (held_out.images, held_out.labels),
    }
    if fold is not None:
        rest = mine[mine % fold[1] == fold[0]]
        sets["held_out"] = (real.images[rest], real.labels[rest])
    made = {"iou": result.iou, "seconds": np.array(result.seconds)}
    for name, (images, labels) in sets.items():
        stats = class_losses(model, images, labels, model.num_classes)
        made |= {f"{name}/counts": stats.counts, f"{name}/sums": stats.sums}
    made |= {f"{WEIGHTS}{name}": value.numpy() for name, value in model.state_dict().items()}
    checkpoint.unlink(missing_ok=True)
    return made
