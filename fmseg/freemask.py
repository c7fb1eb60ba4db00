"""FreeMask's chain in miniature: class means, plan, pictures, filter; what comes out is the training set of a run.

The official chain generates and filters every picture of every mask and then copies those that re-sampling asks for.
Counts depend on real masks and class means alone, so here the plan comes first and only what it drew is filtered: the
same set, with less work. Everything is a function of the configuration; models and pictures are made once and shared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from fmseg import filter_model, freemask_data, own_generator, synthetic, zoo
from fmseg.datasets import IGNORE
from fmseg.freemask_data import real_set
from fmseg.generation import from_layouts, layout_to_image
from fmseg.label_format import LabelFormat
from fmseg.noise import filter_labels
from fmseg.resample import class_counts, hardness, manifest, pairs
from fmseg.settings import check_config

MEANS = ("training", "cross-fitted")
SYNTHETIC = ("most", "resample", "alpha", "means")
ZOO_GENERATOR = ("model", "weights", "base", "steps", "guidance")
OWN_GENERATOR = ("own", "steps", "guidance")


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """Pictures with masks to train on.

    Attributes:
        images: (M, H, W, 3) uint8 RGB.
        labels: (M, H, W) uint8 class ids, 255 where filtered.
        pairs: (M, 2) int64, (mask number, index) of each picture.
        kept: (C,) share of a class's pixels that are not filtered, NaN for classes that no mask has.
    """

    images: ndarray
    labels: ndarray
    pairs: ndarray
    kept: ndarray

    def facts(self) -> dict[str, Any]:
        """Plain values for a run's record."""
        return {
            "pictures": len(self.pairs),
            "kept": round(float((self.labels != IGNORE).mean()), 6),
            "kept by class": [None if v != v else round(float(v), 6) for v in self.kept],
        }


def shelf(config: dict[str, Any], real, most: int) -> synthetic.Shelf:
    """Where the pictures of a generator for real masks lie, see :mod:`fmseg.synthetic`.

    Args:
        config: a run's, with ``generator``: one of the zoo as {"model", "weights", "base", "steps", "guidance"}, hashes
            of its weights and of the text-to-image model it rests on; or {"own": a recipe of
            :mod:`fmseg.own_generator`, "steps", "guidance"}.
        real: whose masks, :func:`fmseg.freemask_data.real_set`. most: pictures a mask.
    """
    generator = dict(config["generator"])
    if "own" in generator:
        generator["own"] = own_generator.key(generator["own"])
    return synthetic.Shelf(
        {"generator": generator, "classes": list(freemask_data.words(real.classes))}, real.labels, most
    )


def painter(generator: dict[str, Any], classes: tuple[str, ...]) -> synthetic.Painter:
    """What paints masks: a layout model of the zoo, or one of the run's own, which is trained if it is not there.

    Raises:
        ValueError: a key is missing or unknown, or the zoo no longer has these weights.
    """
    own = "own" in generator
    check_config(generator, OWN_GENERATOR if own else ZOO_GENERATOR)
    options, classes = {key: generator[key] for key in ("steps", "guidance")}, freemask_data.words(classes)
    if own:
        pipe = own_generator.trained(generator["own"])
        return lambda masks, seeds: from_layouts(masks, classes, seeds, "own", pipe=pipe, **options)
    name = generator["model"]
    for key, model in (("weights", name), ("base", "diffusion")):
        if generator[key] != zoo.weights_hash(model):
            raise ValueError(
                f"generator: `{key}` must be {zoo.weights_hash(model)!r}, the zoo's {model}; got {generator[key]!r}. "
                "Weights that a record means are in the commit that made it"
            )
    pipe = layout_to_image(name)
    return lambda masks, seeds: from_layouts(masks, classes, seeds, name, pipe=pipe, **options)


def class_means(config: dict[str, Any]) -> ndarray:
    """(C,) mean loss of each class, nats, as ``config["synthetic"]["means"]`` says: on the filter model's own training
    images, as officially, or cross-fitted by ``config["filter"]["folds"]`` models. Absent classes: 0, as officially."""
    means = config["synthetic"]["means"]
    if means not in MEANS:
        raise ValueError(f"`means` must be one of {', '.join(MEANS)}; got {means!r}")
    if means == "cross-fitted":
        return filter_model.crossfitted(filter_config(config), config["filter"]["folds"]).compute()
    return judge(config).on_training.compute()


def judge(config: dict[str, Any]) -> filter_model.FilterModel:
    """The filter model of a run."""
    return filter_model.trained(filter_config(config))


def judged(wanted: dict[str, Any]) -> bool:
    """Whether a run's ``synthetic`` asks for a filter model at all: for re-sampling, or to filter."""
    return wanted["resample"] or wanted["alpha"] is not None


def filter_config(config: dict[str, Any]) -> dict[str, Any]:
    """The filter model of a run, see :func:`fmseg.filter_model.trained`: it learns from the run's real images."""
    own = {key: value for key, value in config["filter"].items() if key != "folds"}
    return {key: config[key] for key in freemask_data.keys(config)} | own


def plan(masks: ndarray, num_classes: int, means: ndarray | None, most: int, seed: int) -> ndarray:
    """Which pictures a run takes.

    Args:
        masks: (N, H, W) uint8 real masks, 255 where there is no label.
        num_classes: C.
        means: (C,) class means for hardness-aware re-sampling; None: all pictures of all masks.
        most: N_max. seed: of the draw, the run's.

    Returns:
        (M, 2) int64, (mask number, index), by mask.
    """
    if means is None:
        return np.stack(np.meshgrid(np.arange(len(masks)), np.arange(most), indexing="ij"), -1).reshape(-1, 2)
    hard = {f"{k:06d}": value for k, value in enumerate(hardness_of(masks, num_classes, means))}
    return np.array([(int(name), index) for name, index in pairs(manifest(hard, most, seed))], dtype=np.int64)


def hardness_of(masks: ndarray, num_classes: int, means: ndarray) -> list[float]:
    """Hardness of each mask (equation 4), nats; arguments as :func:`plan`."""
    ids = LabelFormat(num_classes)
    return [float(hardness(class_counts(mask, ids, side=None), means)) for mask in masks]


def filtered(model, images: ndarray, labels: ndarray, means: ndarray, alpha: float) -> ndarray:
    """(M, H, W) uint8: labels without what the filter drops, in the order of the pictures.

    Args:
        model: the filter model. images: (M, H, W, 3) uint8. labels: (M, H, W) uint8.
        means: (C,) class means. alpha: the margin, >= 0.
    """
    out = labels.copy()
    for part, loss, target in filter_model.losses(model, images, labels):
        out[part] = filter_labels(loss, target, means, alpha=alpha).numpy()
    return out


def synthetic_set(config: dict[str, Any], paint: Callable[..., synthetic.Painter] = painter) -> SyntheticSet:
    """The synthetic pictures of a run, with their masks.

    Args:
        config: a run's, with ``synthetic``: {"most": N_max, "resample": whether by hardness, "alpha": the filter's
            margin or None for no filter, "means": see :func:`class_means`}; ``generator``, ``filter``.
        paint: makes the painter from generator and classes.

    Raises:
        ValueError: a key is missing or unknown, or a value does not fit.
    """
    wanted, real = config["synthetic"], real_set(config)
    check_config(wanted, SYNTHETIC)
    means = class_means(config) if judged(wanted) else None
    chosen = plan(
        real.labels, real.num_classes, means if wanted["resample"] else None, wanted["most"], config["seed"]
    )  # fmt: skip
    mine = shelf(config, real, wanted["most"])
    if mine.missing():
        synthetic.fill(mine, paint(config["generator"], real.classes))
    images, labels = synthetic.pictures(mine, chosen), real.labels[chosen[:, 0]]
    before = np.bincount(labels.ravel(), minlength=256)[: real.num_classes]
    if wanted["alpha"] is not None:
        labels = filtered(judge(config).model, images, labels, means, wanted["alpha"])
    after = np.bincount(labels.ravel(), minlength=256)[: real.num_classes]
    kept = np.divide(after, before, out=np.full(len(before), np.nan), where=before > 0)
    return SyntheticSet(images, labels, chosen, kept)
