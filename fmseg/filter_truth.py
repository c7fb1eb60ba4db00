"""Does the noise filter drop what is wrong? Asked where the truth is known, which the paper could not do.

Twice: on scenes of the world into which a fault is painted while the mask stays, so that wrong pixels are known by
construction; and on a generator's pictures, where the zoo's oracle, of other data than the filter model, says what each
pixel shows. A filter is a detector of wrong pixels: precision is the share of dropped pixels that are wrong, recall the
share of wrong pixels that are dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
from numpy import ndarray

from fmseg import filter_model, freemask, synthetic
from fmseg.batches import derive_seed
from fmseg.datasets import IGNORE, get_draw, labels_of, scene_of
from fmseg.evaluation import predict, weights_hash
from fmseg.freemask_data import WORLD, real_set
from fmseg.labelmaps import pack
from fmseg.metrics import mean_iou
from fmseg.oracle import load_oracle
from fmseg.settings import check_config
from fmseg.training import plain
from fmseg.words import STUFF
from fmseg.world import Scene, render

FAULTS = ("another class", "left out", "elsewhere")
COUNTS = ("pixels", "wrong", "dropped", "dropped and wrong")
FIRST = 20_000  # index in the split `val` from which fault scenes are taken: nothing was trained or measured there
FAR = 24.0  # world units that a thing is moved by, at least where there is room
ONE = "one threshold"  # the filter without classes: the mean loss of all pixels
EXAMPLES = 6
KEYS = (*filter_model.KEYS, *WORLD, "folds", "pictures", "alphas")


def paint_fault(draw: str, index: int, fault: str, *, size: int = 64) -> tuple[ndarray, ndarray, ndarray]:
    """A picture of the world whose mask is wrong in a known place.

    Args:
        draw: 'ade' or another whose every pixel has a class.
        index: >= 0; which scene of the split `val`, from :data:`FIRST` on.
        fault: "another class" (a thing of the scene is painted as another one), "left out", "elsewhere" (painted at
            another place). The thing is the topmost of which enough can be seen.
        size: pixels a side.

    Returns:
        image (H, W, 3) uint8; labels (H, W) uint8, the mask as it was; wrong (H, W) bool, where the picture shows
        another class than the mask says, by construction: also where a moved thing now hides the ground.

    Raises:
        ValueError: an unknown fault or draw.
    """
    if fault not in FAULTS:
        raise ValueError(f"`fault` must be one of {', '.join(FAULTS)}; got {fault!r}")
    view = get_draw(draw)
    if view.has_background:
        raise ValueError(f"`draw` must label every pixel, as 'ade' and 'stuff' do; got {draw!r}")
    scene = scene_of(view, "val", 0, FIRST + index)
    meant = render(scene, size)
    labels = labels_of(meant, view)
    things = meant.visible()
    if not things:  # nothing that could be wrong
        return meant.image, labels, np.zeros(labels.shape, bool)
    rng = np.random.default_rng(derive_seed(view.number, FIRST + index, FAULTS.index(fault)))
    shown = render(_with_fault(scene, things[-1] - 1, fault, view.statistics.things, rng), size)
    return shown.image, labels, labels_of(shown, view) != labels


def _with_fault(scene: Scene, number: int, fault: str, names: Sequence[str], rng) -> Scene:
    thing = scene.things[number]
    if fault == "another class":
        others = [name for name in names if name != thing.name]
        changed = (replace(thing, name=others[int(rng.integers(len(others)))]),)
    elif fault == "left out":
        changed = ()
    else:
        tried = rng.uniform(thing.radius * 0.8, 64 - thing.radius * 0.8, (8, 2))
        away = np.hypot(*(tried - np.array(thing.centre)).T)
        far = np.flatnonzero(away >= FAR)
        x, y = tried[far[0] if len(far) else away.argmax()]
        changed = (replace(thing, centre=(float(x), float(y))),)
    return replace(scene, things=scene.things[:number] + changed + scene.things[number + 1 :])


def fault_set(draw: str, fault: str, count: int, *, size: int = 64) -> tuple[ndarray, ndarray, ndarray]:
    """``count`` pictures of :func:`paint_fault`, stacked: images, labels, wrong."""
    if count < 1:
        raise ValueError(f"`count` must be >= 1; got {count}")
    made = [paint_fault(draw, index, fault, size=size) for index in range(count)]
    return tuple(np.stack(part) for part in zip(*made, strict=True))


def outcome(dropped: ndarray, wrong: ndarray, labels: ndarray, num_classes: int) -> ndarray:
    """(C, 4) int64 by the mask's class: pixels, wrong ones, dropped ones, dropped ones that are wrong.

    Args:
        dropped, wrong: bool of one shape. labels: uint8 of that shape; ignored pixels count nowhere.
        num_classes: C.

    Raises:
        ValueError: shapes differ.
    """
    if not dropped.shape == wrong.shape == labels.shape:
        shapes = (dropped.shape, wrong.shape, labels.shape)
        raise ValueError(f"`dropped`, `wrong` and `labels` must have one shape; got {shapes}")
    counted = [np.ones_like(wrong), wrong, dropped, dropped & wrong]
    there = labels != IGNORE
    return np.stack([np.bincount(labels[there & which], minlength=num_classes) for which in counted], 1)


def rates(counts: ndarray) -> dict[str, float]:
    """Precision, recall and the share of right pixels that are kept, in percent, from rows of :func:`outcome`.

    Returns:
        {"precision", "recall", "right pixels kept"}; NaN where the denominator is 0.
    """
    pixels, wrong, dropped, both = (float(v) for v in np.asarray(counts).reshape(-1, 4).sum(0))

    def percent(part, whole):
        return 100 * part / whole if whole else float("nan")

    right_kept = (pixels - wrong) - (dropped - both)
    return {
        "precision": percent(both, dropped),
        "recall": percent(both, wrong),
        "right pixels kept": percent(right_kept, pixels - wrong),
    }


def by_margin(
    model, images: ndarray, labels: ndarray, wrong: ndarray, means: ndarray, alphas: Sequence[float]
) -> ndarray:  # fmt: skip
    """(A, C, 4): :func:`outcome` of the filter at each margin.

    Args:
        model: the filter model. images, labels, wrong: of :func:`fault_set`.
        means: (C,) class means, nats. alphas: A margins.
    """
    found = np.zeros((len(alphas), len(means), 4), np.int64)
    limits = np.append(np.asarray(means, np.float64), np.inf)
    for part, loss, target in filter_model.losses(model, images, labels):
        limit = limits[np.where(target.numpy() == IGNORE, len(means), target.numpy())]
        for a, alpha in enumerate(alphas):  # compared as the filter does, in the precision of the loss
            dropped = loss.numpy() > (alpha * limit).astype(np.float32)
            found[a] += outcome(dropped, wrong[part], labels[part], len(means))
    return found


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    paint: Callable = freemask.painter,
    oracle: Callable = load_oracle,
) -> dict[str, Any]:
    """Measure one filter model; what trains is that model, and its folds.

    Args:
        config: a filter model's (see :func:`fmseg.filter_model.trained`) with ``folds``, ``alphas`` (margins),
            ``pictures`` (scenes a fault, and generated pictures); optional ``generator`` (see
            :func:`fmseg.freemask.shelf`) for the oracle's word.
        checkpoint, checkpoint_every: not used; the models keep their own.
        paint, oracle: as :func:`fmseg.freemask.painter` and :func:`fmseg.oracle.load_oracle`.

    Returns:
        ``result``: ``iou``, ``miou``, ``weights``, ``examples`` of the filter model, its ``losses``, its class
        ``means`` (training, cross-fitted), ``truth``: {pictures: {means: [at each margin (2, 4) counts of things and
        stuff]}}, and ``by class`` ({pictures: (C, 4) counts at the first margin and the training means}).
    """
    check_config(config, KEYS, ("generator",))
    judge = {key: config[key] for key in (*filter_model.KEYS, *WORLD)}
    found, crossed = filter_model.trained(judge), filter_model.crossfitted(judge, config["folds"])
    stats = found.on_training
    overall = np.full(stats.num_classes, stats.sums.sum() / stats.counts.sum())
    means = {"training": stats.compute(), "cross-fitted": crossed.compute(), ONE: overall}
    sets = {fault: fault_set(config["draw"], fault, config["pictures"], size=config["size"]) for fault in FAULTS}
    if "generator" in config:
        sets["generated"] = _generated(config, paint, oracle)
    truth, by_class = {}, {}
    things = stats.num_classes - len(STUFF)
    for name, (images, labels, wrong) in sets.items():
        truth[name] = {}
        for kind, values in means.items():
            counts = by_margin(found.model, images, labels, wrong, values, config["alphas"])
            groups = np.stack([counts[:, :things].sum(1), counts[:, things:].sum(1)], 1)
            truth[name][kind] = groups.tolist()
            if kind == "training":
                by_class[name] = counts[0].tolist()
    result = {
        "iou": plain(found.iou),
        "miou": round(100 * mean_iou(found.iou), 4),
        "weights": weights_hash(found.model)[:16],
        "examples": pack(predict(found.model, sets[FAULTS[0]][0][:EXAMPLES])),
        "losses": {name: round(value, 6) for name, value in found.summary().items()},
        "means": {kind: [round(float(v), 6) for v in means[kind]] for kind in ("training", "cross-fitted")},
        "truth": truth,
        "by class": by_class,
    }
    return {"result": result, "curve": [[config["train"]["steps"], result["miou"]]], "seconds": found.seconds}


def _generated(config, paint, oracle) -> tuple[ndarray, ndarray, ndarray]:
    """The first picture of each mask, its mask, and where the oracle sees another class."""
    real = real_set(config)
    count = min(config["pictures"], len(real))
    shelf = freemask.shelf(config, real, 1)
    if shelf.missing():
        synthetic.fill(shelf, paint(config["generator"], real.classes))
    images, labels = synthetic.pictures(shelf, [(k, 0) for k in range(count)]), real.labels[:count]
    model, known = oracle()
    ids = np.array([known.index(name) for name in real.classes], np.uint8)
    return images, labels, predict(model, images) != ids[labels]
