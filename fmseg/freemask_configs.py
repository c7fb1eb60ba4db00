"""Configurations of FreeMask's runs, from the section `freemask` of a profile, and what a list of them costs.

They are made here and not where runs are trained, so that a record rests on what trains it and on the values, not on
how the values came together.
"""

from collections.abc import Iterable
from typing import Any

from fmseg import configs, zoo
from fmseg.experiment import on_real_data
from fmseg.provenance import canonical_hash
from fmseg.settings import Settings

TRAINING, CROSSFITTED = "training", "cross-fitted"
# seconds of one thread of the machine that the budgets are for: a picture forward and backward with its share of
# validation (medians of records: SegFormer 0.0082, Mask2Former 0.0088, Segmenter 0.0097), a picture painted (12 steps,
# guidance), a training step of a layout model on 8 pictures
SECONDS = {"exposures": 0.0085, "pictures": 0.15, "generator steps": 0.25}


def lacking(settings: Settings) -> str | None:
    """Why this profile has no runs with synthetic pictures; None where it has."""
    if "freemask" not in settings.values:
        return f"profile {settings.profile} has no section `freemask`"
    if on_real_data(settings):
        return None
    needed = ["diffusion", "oracle", "clip", *(f"backbone-{m}" for m in ("segformer", "segmenter", "mask2former"))]
    needed += [f"{kind}-{draw}" for kind in ("layout", "weak") for draw in settings.get("freemask.most")]
    return zoo.lacking(*needed)


def real(
    settings: Settings, draw: str, seed: int, method: str = "segformer", *, exposures: int | None = None,
    augment: list[str] | None = None, images: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A run on real images alone.

    Args:
        settings: gives world, training options and ``freemask``.
        draw, seed, method: of the run.
        exposures: images seen; default ``freemask.exposures.real``.
        augment: other disturbances than the common ones.
        images: real images; default the draw's.
    """
    images = settings.get(f"world.train.{draw}") if images is None else images
    exposures = settings.get("freemask.exposures.real") if exposures is None else exposures
    config = configs.supervised(settings, method, seed, draw, images, exposures)
    if augment is not None:
        config["train"] = config["train"] | {"augment": list(augment)}
    return config | {"paradigm": "real"}


def with_pictures(
    settings: Settings, paradigm: str, draw: str, seed: int, method: str = "segformer", *, most: int | None = None,
    resample: bool = True, alpha: float | None = -1.0, means: str = TRAINING, paints: dict[str, Any] | None = None,
    images: int | None = None, exposures: int | None = None, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A run with synthetic pictures, by default filtered and re-sampled as the paper's.

    Args:
        settings, draw, seed, method, images: as :func:`real`.
        paradigm: "synthetic", "joint" or "pretrain".
        most: N_max; default the draw's. resample: whether by hardness. alpha: the filter's margin; None for no filter,
            -1 for ``freemask.alpha``. means: of :func:`fmseg.freemask.class_means`.
        paints: the generator; default :func:`layout`.
        exposures: images seen; default ``freemask.exposures.synthetic``. Pre-training has that of a real run.
        more: ``exclude_ignored``, ``quality``.
    """
    own = settings.get("freemask")
    config = real(settings, draw, seed, method, images=images)
    schedule = config["train"]
    if paradigm == "pretrain":
        config["finetune"] = schedule
    else:
        seen = own["exposures"]["synthetic"] if exposures is None else exposures
        config["train"] = real(settings, draw, seed, method, exposures=seen)["train"]
    return config | {
        "paradigm": paradigm,
        "synthetic": {
            "most": own["most"][draw] if most is None else most,
            "resample": resample,
            "alpha": own["alpha"] if alpha == -1.0 else alpha,
            "means": means,
        },
        "generator": layout(settings, draw) if paints is None else paints,
        "filter": judge(settings, draw),
        **more,
    }


def layout(settings: Settings, draw: str, kind: str = "layout") -> dict[str, Any]:
    """One of the zoo's generators: ``kind`` "layout", or "weak" for the one that plays OASIS."""
    name = f"{kind}-{draw}"
    hashes = {"weights": zoo.weights_hash(name), "base": zoo.weights_hash("diffusion")}
    return {"model": name, **hashes, **_sampling(settings)}


def own_layout(settings: Settings, draw: str, start: str = "zoo", images: int | None = None) -> dict[str, Any]:
    """A generator trained for the run: of fewer ``images``, or from ``start`` "scratch"; see
    :mod:`fmseg.own_generator`. As many passes over its pictures whatever their number."""
    own = dict(settings.get("freemask.own"))
    images = settings.get(f"world.train.{draw}") if images is None else images
    steps = max(1, own.pop("passes") * images // own["batch_size"])
    recipe = {
        "draw": draw, "images": images, "size": settings.get("world.size"), "start": start, "steps": steps,
        "base": zoo.weights_hash("diffusion"), "seed": settings.get("freemask.filter.seed"), **own,
    }  # fmt: skip
    return {"own": recipe, **_sampling(settings)}


def _sampling(settings: Settings) -> dict[str, Any]:
    return {key: settings.get(f"freemask.{key}") for key in ("steps", "guidance")}


def judge(settings: Settings, draw: str) -> dict[str, Any]:
    """The filter model of a draw: trained as the real runs are, at a seed that no run has; one for all seeds."""
    own = settings.get("freemask.filter")
    run = real(settings, draw, own["seed"], own["method"])
    train = {key: value for key, value in run["train"].items() if key != "eval_every"}
    return {**{key: run[key] for key in ("method", "backbone", "seed")}, "train": train, "folds": own["folds"]}


def truth(settings: Settings, seed: int) -> dict[str, Any]:
    """A measurement of :mod:`fmseg.filter_truth` on `ade`: a filter model of its own for every seed."""
    own, draw = settings.get("freemask.truth"), "ade"
    run = real(settings, draw, seed)
    keys = ("draw", "images", "validation", "size")
    model = judge(settings, draw) | {"seed": settings.get("freemask.filter.seed") + seed}
    alphas = [settings.get("freemask.alpha"), *settings.get("freemask.alphas")]
    return {key: run[key] for key in keys} | model | {
        "alphas": alphas, "pictures": own["pictures"], "generator": layout(settings, draw)
    }  # fmt: skip


def other_seeds(settings: Settings) -> list[int]:
    """The first seeds, of rows that no claim is judged on."""
    return settings.get("seeds")[: settings.get("freemask.other_seeds")]


def cost(runs: Iterable[dict[str, Any]]) -> dict[str, int]:
    """What runs need that is not there: images that segmenters see, filter models included, pictures painted, training
    steps of generators. What runs share counts once."""
    exposures, shelves, judges, trained, seen = 0, {}, {}, {}, set()
    for run in runs:
        key = canonical_hash(run)
        if key in seen:
            continue
        seen.add(key)
        for part in ("train", "finetune"):
            exposures += _exposures(run[part]) if part in run else 0
        if "synthetic" not in run:
            continue
        generator, wanted = run["generator"], run["synthetic"]
        shelf = canonical_hash([generator, run["draw"], run["images"]])
        shelves[shelf] = max(shelves.get(shelf, 0), run["images"] * wanted["most"])
        if "own" in generator:
            trained[canonical_hash(generator["own"])] = generator["own"]["steps"]
        if wanted["resample"] or wanted["alpha"] is not None:
            model = [run["filter"], run["draw"], run["images"]]
            judges[canonical_hash(model)] = _exposures(run["filter"]["train"])
            if wanted["means"] == CROSSFITTED:
                judges[canonical_hash([model, wanted["means"]])] = (
                    run["filter"]["folds"] * judges[canonical_hash(model)]
                )
    exposures += sum(judges.values())
    return {
        "runs": len(seen),
        "exposures": exposures,
        "pictures": sum(shelves.values()),
        "generator steps": sum(trained.values()),
    }


def core_hours(needed: dict[str, int]) -> float:
    """:func:`cost` in hours of one core, by :data:`SECONDS`."""
    return sum(seconds * needed[what] for what, seconds in SECONDS.items()) / 3600


def _exposures(train: dict[str, Any]) -> int:
    return train["steps"] * train["batch_size"]
