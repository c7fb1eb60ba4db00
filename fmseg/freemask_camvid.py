"""FreeMask on real photographs: CamVid's training masks painted anew, filtered, and learned from beside the real ones.

No table of the paper: its data sets do not fit a laptop. The generators are trained for this table on CamVid's own
masks, one from the zoo's text-to-image U-Net and one from scratch, and are not shipped; records hold their cards. The
video's frames are alike and a generator of 64x64 pixels is a weak one, so "no gain" is an answer that the table can
give.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from fmseg import configs, names, zoo
from fmseg.freemask_layout import Entry, Layout, miou
from fmseg.segmenters import zoo_backbone
from fmseg.settings import Settings

METHOD, DATA, MEAN = "segformer", "camvid", "mIoU"
ROWS = (MEAN, *names.CAMVID)
COLUMNS = {  # column -> what sets its runs apart
    "real": {"paradigm": "real"},
    "real as long": {"paradigm": "real", "long": True},
    "synthetic": {"paradigm": "synthetic"},
    "joint as painted": {"paradigm": "joint", "clean": False},
    "joint": {"paradigm": "joint"},
    "joint with a generator from scratch": {"paradigm": "joint", "start": "scratch"},
}
KEPT, LOSS = "pixels kept", "mean loss"  # of the runs in column `joint`


def lacking(settings: Settings) -> str | None:
    """Why this profile has no runs; None where it has."""
    if "freemask_camvid" not in settings.values:
        return f"profile {settings.profile} has no section `freemask_camvid`"
    return zoo.lacking("diffusion", f"backbone-{METHOD}")


def run_config(
    settings: Settings, seed: int, paradigm: str, *, long: bool = False, clean: bool = True, start: str = "zoo"
) -> dict[str, Any]:
    """A run of :mod:`fmseg.freemask_photos`.

    Args:
        settings: gives ``freemask_camvid``, ``world.size`` (of the tiles) and ``train``.
        seed, paradigm: of the run.
        long: see as many images as runs with synthetic pictures do.
        clean: with filter and re-sampling.
        start: of the generator, see :func:`fmseg.own_generator.trained`.
    """
    own = settings.get("freemask_camvid")
    exposures = own["exposures"]["synthetic" if long or paradigm != "real" else "real"]
    photographs = {"data": DATA, **{key: own[key] for key in ("scale", "images", "validation")}}
    photographs["size"] = settings.get("world.size")
    backbone = zoo_backbone(METHOD)
    run = {"method": METHOD, "backbone": backbone, "seed": seed, **photographs, "paradigm": paradigm}
    run["train"] = _schedule(settings, exposures)
    if paradigm == "real":
        return run
    judge = {k: v for k, v in _schedule(settings, own["exposures"]["real"]).items() if k != "eval_every"}
    once = own["filter"]["seed"]  # generator and filter model serve all seeds
    learned = {key: value for key, value in photographs.items() if key != "validation"}
    recipe = {**learned, "start": start, "base": zoo.weights_hash("diffusion"), "seed": once, **own["own"]}
    alpha = own["alpha"] if clean else None
    return run | {
        "synthetic": {"most": own["most"], "resample": clean, "alpha": alpha, "means": "training"},
        "generator": {"own": recipe, "steps": own["steps"], "guidance": own["guidance"]},
        "filter": {"method": METHOD, "backbone": backbone, "seed": once, "train": judge},
    }


def _schedule(settings: Settings, exposures: int) -> dict[str, Any]:
    """Options of training: the mini world's, but for what ``freemask_camvid`` says."""
    own = settings.get("freemask_camvid")
    like = configs.supervised(settings, METHOD, 0, "ade", 1, exposures)["train"]
    return like | {"lr": own["lr"], "augment": own["augment"], "eval_every": max(1, like["steps"] // own["points"])}


def _rows(settings: Settings) -> dict[str, dict[str, Entry]]:
    return {label: _row(label) for label in ROWS}


def _row(label: str) -> dict[str, Entry]:
    makers = {column: _maker(**what) for column, what in COLUMNS.items()}
    cells = {column: Entry(make, value=lambda result: iou_of(result, label)) for column, make in makers.items()}
    cells[KEPT] = Entry(makers["joint"], value=lambda result: kept_of(result, label))
    cells[LOSS] = Entry(makers["joint"], value=lambda result: loss_of(result, label))
    return cells


def _maker(**what: Any) -> Callable[[Settings, int], dict[str, Any]]:
    return lambda settings, seed: run_config(settings, seed, **what)


def iou_of(result: dict[str, Any], label: str) -> float | None:
    """Percent; None for a class that no validation photograph shows."""
    return miou(result) if label == MEAN else _percent(result["iou"][names.CAMVID.index(label)])


def kept_of(result: dict[str, Any], label: str) -> float | None:
    """Share of a class's pixels, or of all, that the filter leaves, in percent."""
    facts = result["synthetic"]
    return _percent(facts["kept"] if label == MEAN else facts["kept by class"][names.CAMVID.index(label)])


def loss_of(result: dict[str, Any], label: str) -> float | None:
    """Mean loss of a class, or of all pixels, on the real tiles that the filter model learned from, nats times 100."""
    judge = result["judge"]
    return _percent(judge["mean"] if label == MEAN else judge["means"][names.CAMVID.index(label)])


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def painted(config: dict[str, Any], tiles: Sequence[str]) -> tuple[ndarray, ndarray] | None:
    """The first painted picture of some tiles, and what the filter leaves of their masks.

    Args:
        config: of a run with synthetic pictures. tiles: names, as in a record's ``easiest``.

    Returns:
        (n, H, W, 3) uint8 pictures and (n, H, W) uint8 labels, 255 where filtered; None where the photographs or the
        run's pictures are not on this machine: to paint them takes the training of a generator.

    Raises:
        ValueError: there is no tile of that name.
    """
    from fmseg import freemask, freemask_data, synthetic  # not with the table, which needs no torch

    try:
        real = freemask_data.real_set(config)
    except FileNotFoundError:
        return None
    if lost := set(tiles) - set(real.names):
        raise ValueError(f"`tiles` must name tiles of {config['data']}'s training photographs; got {sorted(lost)}")
    shelf = freemask.shelf(config, real, config["synthetic"]["most"])
    if shelf.missing():
        return None
    at = np.array([real.names.index(name) for name in tiles])
    images, alpha = synthetic.pictures(shelf, [(k, 0) for k in at]), config["synthetic"]["alpha"]
    if alpha is None:
        return images, real.labels[at]
    means = freemask.class_means(config)
    return images, freemask.filtered(freemask.judge(config).model, images, real.labels[at], means, alpha)


LAYOUT = Layout(
    "freemask-camvid", "Synthetic images beside photographs: CamVid",
    "CamVid validation set, 11 classes; no counterpart in the paper", "", (*COLUMNS, KEPT, LOSS), _rows,
    "SegFormer at mini size on the zoo's backbone; it learns from squares of the photographs, made smaller, and is "
    "measured on whole ones of that size. Generators are trained on CamVid's training masks, from the zoo's "
    "text-to-image U-Net or from scratch; they and the filter model serve all seeds. Runs with synthetic pictures, and "
    "*real as long*, see twice as many images as *real*. *pixels kept* and *mean loss* are of the column *joint*: what "
    "the filter leaves, and the filter model's loss on the real squares, from which it learned, as in the paper.",
    "26_real_photographs", "% IoU; % of the pixels; nats times 100", module="fmseg.freemask_photos", photos=DATA,
    lacking=lacking,
)  # fmt: skip
EXPERIMENT = LAYOUT.experiment()
