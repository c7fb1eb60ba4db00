"""Configurations of class-incremental runs on VOC and COCO, by WILSON's recipe: section ``incremental`` of `paper`."""

from typing import Any

from fmseg import paper_segmenters
from fmseg.incremental_base import family
from fmseg.protocols import get
from fmseg.settings import Settings

# training pictures of base and step, counted from WILSON's split files (dossier 3.2); they fix the lengths of
# trainings, which are given in epochs. COCO: pictures without any pixel of a class of VOC's
PICTURES = {
    "voc/15-5/disjoint": (8437, 2145),
    "voc/15-5/overlap": (9568, 2145),
    "voc/10-10/disjoint": (3706, 6876),
    "voc/10-10/overlap": (6139, 6876),
    "coco-to-voc": (23274, 10582),
}
ALL_OF_VOC = 10_582
HEAD_FACTOR = 10.0  # of the rate in the step: head and classifier (WILSON's lr_head), teacher or localizer (lr_pseudo)
FRESH = ("decode_head", "teacher", "localizer")  # parts of parameters' names that learn at this rate


def run_config(
    settings: Settings, method: str, seed: int, protocol: str, *, share: float = 1.0, **changes: Any
) -> dict[str, Any]:  # fmt: skip
    """A run of :mod:`fmseg.real_incremental`.

    Args:
        settings: gives ``data`` (splits), ``train`` (what replaces the recipe's options), ``crop`` (None: the
            recipe's), ``pretrained``, and ``incremental``: ``size``, ``experts``, and options of methods.
        method: one of :data:`fmseg.real_incremental.METHODS`.
        seed: of base model, weights, order, memory.
        protocol: a key of :data:`PICTURES`.
        share: of the step's pictures, in (0, 1].
        changes: to the method's options in ``incremental.<method>``; a value of None takes the option away.

    Raises:
        ValueError: an unknown protocol, or a parameter that is missing.
    """
    if protocol not in PICTURES:
        raise ValueError(f"`protocol` must be one of {', '.join(PICTURES)}; got {protocol!r}")
    values, joint = settings.get("incremental"), method == "joint"
    options = {k: v for k, v in {**values.get(method, {}), **changes}.items() if v is not None}
    first, then = PICTURES[protocol]
    then = max(1, round(share * then))
    if joint:
        first = first + then if "coco" in protocol else ALL_OF_VOC
    base, step = _recipe(settings, first, 0), _recipe(settings, then, 1)
    keys = {part: {"lr": HEAD_FACTOR, "decay": 1.0} for part in FRESH}
    config = {
        "method": method,
        "seed": seed,
        "protocol": protocol,
        "sets": {
            name: {key: settings.get(f"data.{name}")[key] for key in ("split", "validation")}
            for name in dict.fromkeys(get(protocol).datasets)
        },
        "size": values["size"],
        "crop": list(base.crop),
        "pipeline": base.pipeline,
        "test": vars(base.test),
        "base": None if joint else base.train | settings.get("train") | {"family": family(method)},
        "train": (base.train if joint else step.train | {"keys": keys}) | settings.get("train"),
        "share": share,
        "options": options,
        "pretrained": settings.get("pretrained"),
    }
    return config | ({"experts": values["experts"]} if method == "fmwiss" else {})


def _recipe(settings: Settings, images: int, step: int) -> paper_segmenters.Recipe:
    return paper_segmenters.recipe(
        "deeplabv3", "r101", "voc", images=images, step=step, crop=settings.get("crop")
    )  # fmt: skip
