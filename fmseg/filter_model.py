"""The segmenter that judges synthetic pictures: trained on the real training images once, shared by all runs.

FreeMask takes a SegFormer-B4 that was trained on the real images for this (dossier 2.2), and its mean loss by class on
these same images. Ours are cross-fitted means, too: every image judged by a model that did not learn from it.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

import fmseg
from fmseg.batches import Source
from fmseg.datasets import draw_set, get_draw
from fmseg.metrics import mean_iou
from fmseg.noise import ClassLoss, loss_map
from fmseg.provenance import canonical_hash, closure
from fmseg.records import lock
from fmseg.segmenters import Segmenter, build
from fmseg.settings import check_config
from fmseg.training import TrainConfig, train

KEYS = ("method", "backbone", "seed", "draw", "images", "validation", "size", "train")
FACTS, WEIGHTS = "facts.json", "model.safetensors"
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


def trained(config: dict[str, Any], home: Path, fold: tuple[int, int] | None = None) -> FilterModel:
    """The filter model of a configuration, trained now if it is not there.

    Args:
        config: ``method`` (not "mask2former", which has no scores on a grid that are logits), ``backbone``, ``seed``,
            ``draw``, ``images``, ``validation``, ``size``, ``train``: as in :func:`fmseg.supervised.run`.
        home: where such models are kept.
        fold: (k, n): learn from all training images but each n-th from the k-th on.

    Raises:
        ValueError: a key is missing, unknown or does not fit.
    """
    check_config(config, KEYS)
    if config["method"] == "mask2former":
        raise ValueError("`method` of a filter model must score pixels with logits, which 'mask2former' does not")
    identity = {"config": config, "fold": list(fold) if fold else None, "code": code()}
    folder = Path(home) / "filters" / canonical_hash(identity)
    with lock(folder.with_suffix(".lock"), f"filter model {folder.name}", wait=24 * 3600):
        if not (folder / FACTS).exists():  # written last, so its presence says that all is there
            _train(config, fold, folder, identity)
    return _read(config, folder)


def crossfitted(config: dict[str, Any], home: Path, folds: int) -> ClassLoss:
    """Losses by class on the training images, each judged by a model that did not learn from it.

    Args:
        config, home: as in :func:`trained`. folds: models, >= 2.

    Raises:
        ValueError: fewer than two folds, or fewer images than folds.
    """
    if folds < 2 or folds > config["images"]:
        raise ValueError(f"`folds` must be from 2 to the number of images, {config['images']}; got {folds}")
    whole = ClassLoss(get_draw(config["draw"]).num_classes)
    for k in range(folds):
        whole.merge(trained(config, home, (k, folds)).held_out)
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


@lru_cache(maxsize=1)
def code() -> str:
    """Hash of all that training a filter model rests on."""
    return canonical_hash(closure("fmseg.filter_model", Path(fmseg.__file__).resolve().parent.parent))


def _build(config: dict[str, Any]) -> Segmenter:
    classes = get_draw(config["draw"]).num_classes
    options = {"num_classes": classes, "image_size": config["size"], "seed": config["seed"]}
    return build(config["method"], **options, backbone=config["backbone"])


def _train(config: dict[str, Any], fold: tuple[int, int] | None, folder: Path, identity: dict) -> None:
    from safetensors.torch import save_file

    real = draw_set(config["draw"], "train", config["images"], seed=config["seed"], size=config["size"])
    held_out = draw_set(config["draw"], "val", config["validation"], size=config["size"])
    mine = np.arange(len(real))
    learn = mine if fold is None else mine[mine % fold[1] != fold[0]]
    model = _build(config)
    result = train(
        model, Source(real.images[learn], real.labels[learn]),
        TrainConfig.from_dict({**config["train"], "seed": config["seed"]}),
        validation=Source(held_out.images, held_out.labels, name="validation"),
        checkpoint=folder.with_suffix(".pt"), checkpoint_every=max(1, config["train"]["steps"] // 4), progress=False,
    )  # fmt: skip
    model.eval()
    sets = {
        "on_training": (real.images[learn], real.labels[learn]),
        "on_validation": (held_out.images, held_out.labels),
    }
    if fold is not None:
        rest = mine[mine % fold[1] == fold[0]]
        sets["held_out"] = (real.images[rest], real.labels[rest])
    facts = {"iou": [None if v != v else float(v) for v in result.iou], "seconds": result.seconds}
    for name, (images, labels) in sets.items():
        stats = class_losses(model, images, labels, model.num_classes)
        facts[name] = {"counts": stats.counts.tolist(), "sums": stats.sums.tolist()}
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    partial = folder / f"{FACTS}.part"
    partial.write_text(json.dumps(identity | facts, indent=1) + "\n")
    os.replace(partial, folder / FACTS)
    folder.with_suffix(".pt").unlink(missing_ok=True)


def _read(config: dict[str, Any], folder: Path) -> FilterModel:
    from safetensors.torch import load_file

    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    model = _build({**config, "backbone": "scratch"})  # all of its weights are in the file
    model.load_state_dict(load_file(folder / WEIGHTS))
    stats = {
        name: ClassLoss.from_state(facts[name]["counts"], facts[name]["sums"])
        for name in ("on_training", "on_validation", "held_out")
        if name in facts
    }
    iou = np.array([np.nan if v is None else v for v in facts["iou"]])
    return FilterModel(model.eval().requires_grad_(False), iou=iou, seconds=facts["seconds"], **stats)
