"""Configurations of runs, from the parameters of a profile.

They are made here and not where runs are trained, so that a run's record rests on what trains it and on the values,
not on how the values came together.
"""

from typing import Any

from fmseg.segmenters import SCRATCH, zoo_backbone
from fmseg.settings import Settings

ZOO = "zoo"
BACKBONES = (ZOO, SCRATCH)


def supervised(
    settings: Settings, method: str, seed: int, draw: str, images: int, exposures: int, split: str = "train",
    backbone: str = ZOO,
) -> dict[str, Any]:  # fmt: skip
    """A run of :mod:`fmseg.supervised`; of :mod:`fmseg.real_supervised` where the profile has ``data``.

    Args:
        settings: gives ``world.size``, ``world.val``, ``train`` (options common to all), ``lr.<method>``, from scratch
            ``lr_scratch.<method>``; or, on real data, what :func:`real` needs, and then ``images``, ``exposures``,
            ``split`` and ``backbone`` are the recipe's.
        method: a segmenter's name.
        seed: see :func:`fmseg.supervised.run`.
        draw, images, split: the training set.
        exposures: images seen in all; steps = exposures // batch size.
        backbone: "zoo" (the shipped one; it learns at ``train.backbone_lr`` of the rate) or "scratch" (one rate).

    Raises:
        ValueError: a parameter is missing, there are fewer exposures than a batch holds, or the zoo has no such
            backbone (:func:`fmseg.zoo.lacking` asks before).
    """
    if backbone not in BACKBONES:
        raise ValueError(f"`backbone` must be one of {', '.join(BACKBONES)}; got {backbone!r}")
    if "data" in settings.values:
        return real(settings, method, seed, draw)
    common = dict(settings.get("train"))
    steps = exposures // common["batch_size"]
    if steps < 1:
        raise ValueError(f"`exposures` ({exposures}) must be at least one batch ({common['batch_size']})")
    points = common.pop("points")
    warmup = round(common.pop("warmup") * steps)
    if backbone == SCRATCH:
        common.pop("backbone_lr", None)  # a fresh backbone learns as fast as its head
    rate = settings.get(f"lr_scratch.{method}" if backbone == SCRATCH else f"lr.{method}")
    train = {**common, "steps": steps, "lr": rate, "warmup_steps": warmup}
    train["eval_every"] = max(1, steps // points)
    return {
        "method": method,
        "backbone": SCRATCH if backbone == SCRATCH else zoo_backbone(method),
        "seed": seed,
        "draw": draw,
        "split": split,
        "images": images,
        "validation": settings.get("world.val"),
        "size": settings.get("world.size"),
        "train": train,
    }


def real(settings: Settings, method: str, seed: int, draw: str, **changes: Any) -> dict[str, Any]:
    """A run of :mod:`fmseg.real_supervised` by the papers' recipe.

    Args:
        settings: gives ``sizes.<method>``, ``data.<draw>`` (``data``, ``split``, ``validation``), ``train`` (what
            replaces the recipe's options), ``crop`` (None: the recipe's), ``pretrained`` (whether backbones are).
        method, seed: a segmenter's name; the run's seed.
        draw: which data set plays that draw's part: 'voc', 'coco', 'ade' or 'stuff'.
        changes: to :func:`fmseg.paper_segmenters.recipe`: ``joint``, ``step``.
    """
    from fmseg import paper_segmenters

    size, where = settings.get(f"sizes.{method}"), settings.get(f"data.{draw}")
    recipe = paper_segmenters.recipe(
        method, size, where["data"], images=where.get("images"), crop=settings.get("crop"), **changes
    )
    return {
        "method": method,
        "size": size,
        "seed": seed,
        "data": where["data"],
        "split": where["split"],
        "validation": where["validation"],
        "crop": list(recipe.crop),
        "pipeline": recipe.pipeline,
        "test": vars(recipe.test) | {"scale": list(recipe.test.scale) if recipe.test.scale else None},
        "repeat": recipe.real_repeat,
        "pretrained": settings.get("pretrained"),
        "train": recipe.train | settings.get("train"),
    }
