"""Configurations of runs, from the parameters of a profile.

They are made here and not where runs are trained, so that a run's record rests on what trains it and on the values,
not on how the values came together.
"""

from typing import Any

from fmseg.settings import Settings


def supervised(
    settings: Settings, method: str, seed: int, draw: str, images: int, exposures: int, split: str = "train"
) -> dict[str, Any]:
    """A run of :mod:`fmseg.supervised`.

    Args:
        settings: gives ``world.size``, ``world.val``, ``train`` (options common to all), ``lr.<method>``.
        method: a segmenter's name.
        seed: see :func:`fmseg.supervised.run`.
        draw, images, split: the training set.
        exposures: images seen in all; steps = exposures // batch size.

    Raises:
        ValueError: a parameter is missing, or there are fewer exposures than a batch holds.
    """
    common = dict(settings.get("train"))
    steps = exposures // common["batch_size"]
    if steps < 1:
        raise ValueError(f"`exposures` ({exposures}) must be at least one batch ({common['batch_size']})")
    points = common.pop("points")
    warmup = round(common.pop("warmup") * steps)
    train = {**common, "steps": steps, "lr": settings.get(f"lr.{method}"), "warmup_steps": warmup}
    train["eval_every"] = max(1, steps // points)
    return {
        "method": method,
        "seed": seed,
        "draw": draw,
        "split": split,
        "images": images,
        "validation": settings.get("world.val"),
        "size": settings.get("world.size"),
        "train": train,
    }
