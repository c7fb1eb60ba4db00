"""Configurations of Grounded Diffusion's heads at the paper's size: section ``grounded_real`` of `paper`."""

from typing import Any

from fmseg import protocols
from fmseg.protocols import ZeroShot
from fmseg.settings import Settings

SPLITS = (1, 2, 3)
DRAWS = ("voc", "coco")


def split_of(draw: str, number: int) -> ZeroShot:
    """Split 1, 2 or 3 of VOC (15 seen, 5 unseen) or COCO (65 and 15)."""
    return protocols.get(f"{draw}/grounded-{number}")


def head(settings: Settings, seed: int, draw: str, seen: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """A head of :mod:`fmseg.real_grounded`, scored on the painted test pictures of its data set.

    Args:
        settings: gives the section ``grounded_real``.
        seed, draw, seen: see :func:`fmseg.real_grounded.run`. changes: keys of the configuration that differ.
    """
    values = settings.get("grounded_real")
    made = {
        "method": "head",
        "seed": seed,
        "draw": draw,
        "seen": list(seen),
        "step": values["step"],
        "sampling": dict(values["sampling"]),
        "oracle": dict(values["oracle"]),
        "pictures": {"from": "painted", **values["pictures"]},
        "test": {**values["test"][draw], "groups": [list(split_of(draw, k).unseen) for k in SPLITS]},
        "zoo": dict(values["models"]),
        "undetected": "skip",
        "train": dict(values["train"]),
    }
    return made | changes


def daam(settings: Settings, draw: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """DAAM on the same test pictures; it learns nothing, so one run serves all seeds."""
    made = head(settings, 0, draw, seen) | {"method": "daam", "train": {"steps": 0}}
    return {key: value for key, value in made.items() if key != "undetected"}


def table_1(settings: Settings) -> list[dict]:
    """Every data set and split: DAAM once, a head at every seed of the headline."""
    made = []
    for draw in DRAWS:
        for number in SPLITS:
            seen = split_of(draw, number).seen
            made += [daam(settings, draw, seen), *(head(settings, s, draw, seen) for s in _seeds(settings, "headline"))]
    return made


def table_3(settings: Settings) -> list[dict]:
    """Split 1 of VOC with and without zero masks."""
    seen = split_of("voc", 1).seen
    return [
        head(settings, s, "voc", seen, undetected=u) for u in ("zero", "skip") for s in _seeds(settings, "headline")
    ]


def table_4(settings: Settings) -> list[dict]:
    """COCO with ever more seen classes: the first ones of split 1, whose own order the paper does not tell."""
    split = split_of("coco", 1)
    return [
        head(settings, seed, "coco", protocols.first_seen(split, count).seen)
        for count in settings.get("grounded.seen_classes")
        for seed in _seeds(settings, "others")
    ]


def timesteps(settings: Settings) -> list[dict]:
    """Split 1 of VOC, features of ever noisier steps."""
    seen = split_of("voc", 1).seen
    return [
        head(settings, seed, "voc", seen, step=step)
        for step in settings.get("grounded.timesteps")
        for seed in _seeds(settings, "others")
    ]


def _seeds(settings: Settings, kind: str) -> range:
    return range(settings.get(f"grounded_real.seeds.{kind}"))
