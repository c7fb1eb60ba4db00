"""Configurations of the runs across the papers, from the section `across` of a profile and those of the papers' own."""

from typing import Any

from fmseg import freemask_configs, grounded_configs, protocols, zoo
from fmseg.across_experts import LEARNS
from fmseg.across_filter import HOW
from fmseg.across_step import CO_SEGMENTATION, FILTERED, HEAD
from fmseg.experiment import on_real_data
from fmseg.fmwiss import Options
from fmseg.incremental_configs import run_config
from fmseg.settings import Settings

DRAW = "ade"
SETTING = "15-5 overlap"  # its old and new classes are the seen and unseen ones of Grounded Diffusion's first split
_OF_EXPERTS = ("capacity", "paste")  # beside a step's own options, what is left where nobody co-segments
MINI_ALONE = "its runs are those of the mini world"


def lacking(settings: Settings) -> str | None:
    """Why this profile has no such runs; None where it has."""
    if on_real_data(settings) or "across" not in settings.values:
        return MINI_ALONE
    models = ("clip", "mim", "diffusion", "oracle", "backbone-deeplabv3", "backbone-segformer")
    return zoo.lacking(*models)


def real(settings: Settings, seed: int) -> dict[str, Any]:
    """FreeMask's run on real images alone, which is also the cheapest of its table: the one that is trained live."""
    return freemask_configs.real(settings, DRAW, seed)


def pairs(settings: Settings, paradigm: str, seed: int, alpha: float | None) -> dict[str, Any]:
    """A run of :mod:`fmseg.across_pairs`: SegFormer on `ade`, as long as FreeMask's runs with synthetic images.

    One head labels the pairs of all seeds, as one generator and one filter model serve all of FreeMask's: that of split
    1 of `coco`, which has seen masks of 32 of the 40 things.

    Args:
        paradigm: "synthetic" or "joint". alpha: the filter's margin, None for no filter.
    """
    own, split = settings.get("across"), grounded_configs.split_of("coco", 1)
    config = freemask_configs.real(
        settings, DRAW, seed, exposures=settings.get("freemask.exposures.synthetic")
    )  # fmt: skip
    return config | {
        "paradigm": paradigm,
        "filter": freemask_configs.judge(settings, DRAW),
        "pairs": {
            "kinds": dict(own["pairs"]),
            "classes": list(split.classes),
            "head": grounded_configs.head(settings, own["head"], "coco", split.seen),
            "alpha": alpha,
            "quality": own["quality"],
        },
    }


def marked(settings: Settings, seed: int) -> dict[str, Any]:
    """FMWISS as it is, in :data:`SETTING`: a run of :mod:`fmseg.across_step`."""
    return run_config(settings, "fmwiss", seed, SETTING) | {"masks": {"by": CO_SEGMENTATION}}


def filtered(settings: Settings, seed: int, drop: str = HOW[0]) -> dict[str, Any]:
    """FMWISS with FreeMask's filter on its pseudo-labels, at FreeMask's margin; ``drop`` "at random": the control."""
    return marked(settings, seed) | {
        "masks": {"by": FILTERED, "drop": drop, "alpha": settings.get("freemask.alpha")}
    }  # fmt: skip


def headed(settings: Settings, seed: int, learns: str = LEARNS[0]) -> dict[str, Any]:
    """FMWISS with a grounding head in the place of co-segmentation; the head is that of Protocol II at the same seed.

    Args:
        learns: one of :data:`fmseg.across_experts.LEARNS`, what the head has learned from.
    """
    split, config = grounded_configs.split_of("voc", 1), run_config(settings, "fmwiss", seed, SETTING)
    kept = (*Options.__dataclass_fields__, *_OF_EXPERTS)
    options = {name: value for name, value in config["options"].items() if name in kept}
    head = grounded_configs.head(settings, seed, "voc", split.seen)
    asked = {"options": options, "zoo": grounded_configs.weights("diffusion", "oracle")}
    return config | asked | {"masks": {"by": HEAD, "learns": learns, "head": head}}


def same_classes() -> bool:
    """Whether the old and new classes of :data:`SETTING` are the seen and unseen ones of the head."""
    step, split = protocols.get("mini/15-5/overlap"), grounded_configs.split_of("voc", 1)
    return step.order[1:] == split.classes and len(split.unseen) == step.sizes[1]
