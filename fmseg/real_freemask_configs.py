"""Configurations of FreeMask's runs on ADE20K and COCO-Stuff: section ``freemask`` of the profile `paper`."""

from dataclasses import replace
from typing import Any

from fmseg import configs
from fmseg.settings import Settings

RECIPE = -1.0  # alpha: the section's


def run_config(
    settings: Settings, paradigm: str, draw: str, seed: int, method: str = "segformer", *, large: bool = True,
    long: bool = False, most: int | None = None, resample: bool = True, alpha: float | None = RECIPE,
) -> dict[str, Any]:  # fmt: skip
    """A run of :mod:`fmseg.real_freemask`.

    Args:
        settings: gives ``data``, ``sizes``, ``train``, ``crop``, ``pretrained`` (:func:`fmseg.configs.real`) and
            ``freemask``: ``sizes`` (of ablations and transfer), ``most``, ``alpha``, ``draw`` (root seed of the draw,
            one for all runs, so that they share pictures), ``generator`` and ``filter`` by draw, ``ready`` (by draw:
            folder of a set that somebody else has made, taken where all is as in the paper; or None).
        paradigm: "real", "synthetic", "joint" or "pretrain".
        draw: 'ade' or 'stuff'. seed, method: of the run.
        large: of the section's size, MiT-B4 and so on; else of ``sizes``.
        long: of "real": see as many pictures as runs with synthetic ones.
        most: N_max; default the draw's. resample: whether by hardness. alpha: the filter's margin, None without.
    """
    own = settings.get("freemask")
    if large:
        settings = replace(settings, values=settings.values | {"sizes": settings.get("sizes") | own["sizes"]})
    both = long or paradigm in ("synthetic", "joint")
    config = configs.real(settings, method, seed, draw, joint=both)
    config.pop("repeat")  # follows from the number of pictures
    config["paradigm"] = paradigm
    if paradigm == "real":
        return config
    if paradigm == "pretrain":
        config["finetune"] = config["train"]
    alpha = own["alpha"] if alpha == RECIPE else alpha
    most = own["most"][draw] if most is None else most
    ready = (own.get("ready") or {}).get(draw)
    if ready and resample and (most, alpha) == (own["most"][draw], own["alpha"]):
        return config | {"synthetic": {"ready": ready}}
    return config | {
        "synthetic": {"most": most, "resample": resample, "alpha": alpha, "draw": own["draw"]},
        "generator": own["generator"][draw],
        "filter": own["filter"][draw],
    }
