"""Configurations of class-incremental runs, from the parameters of a profile: section ``incremental`` of params.yaml.

They are made here and not where runs are trained, so that a run's record rests on what trains it and on the values,
not on how the values came together.
"""

from typing import Any

from fmseg import real_incremental_configs, zoo
from fmseg.experiment import on_real_data
from fmseg.incremental_base import family
from fmseg.incremental_data import draws_of
from fmseg.incremental_runs import JOINT
from fmseg.protocols import get
from fmseg.segmenters import SCRATCH, zoo_backbone
from fmseg.settings import Settings

SEGMENTER = "deeplabv3"
SETTINGS = {  # as tables call them -> protocol
    "15-5 disjoint": "mini/15-5/disjoint",
    "15-5 overlap": "mini/15-5/overlap",
    "10-10 disjoint": "mini/10-10/disjoint",
    "10-10 overlap": "mini/10-10/overlap",
    "COCO-to-VOC": "mini/coco-to-voc",
}
HEADLINE = ("ft", "mib", "plop", "wilson", "fmwiss")
ABLATED = "10-10 overlap"  # the setting of all ablations
_JOINT_SETTING = "15-5 overlap"  # all four VOC settings have the same pictures and labels in the end


def protocol_of(setting: str, real: bool = False) -> str:
    """The protocol of a setting: the mini world's, or that of the papers' data sets."""
    name = SETTINGS[setting]
    if not real:
        return name
    name = name.removeprefix("mini/")
    return name if "coco" in name else f"voc/{name}"


def run_config(
    settings: Settings, method: str, seed: int, setting: str, *, share: float = 1.0, order: int = 0,
    rare: bool = True, length: int = 1, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """A run of :mod:`fmseg.incremental_runs`; of :mod:`fmseg.real_incremental` where the profile has ``data``.

    Args:
        settings: gives ``world``, ``train`` (options common to all runs) and ``incremental``; or, on real data, what
            :func:`fmseg.real_incremental_configs.run_config` needs, and then ``order`` must be 0.
        method: one of :data:`fmseg.incremental_runs.METHODS`.
        seed: of the training pictures, base model, weights, order.
        setting: a key of :data:`SETTINGS`.
        share: of the step's pictures, in (0, 1].
        order: 0 the world's own order of classes, 1 to 3 further ones (VOC settings alone).
        length: how many times as long as usual the step takes, on the same pictures.
        rare: classes begin as rare as ``incremental.prior`` says, if it does; False: as torch begins a convolution.
        changes: to the method's options in ``incremental.<method>``; a value of None takes the option away.

    Raises:
        ValueError: an unknown setting, a parameter that is missing, a model that the zoo lacks.
    """
    if setting not in SETTINGS:
        raise ValueError(f"`setting` must be one of {', '.join(SETTINGS)}; got {setting!r}")
    if on_real_data(settings):
        if order:
            raise ValueError(f"`order` must be 0 on real data, whose classes have one order; got {order}")
        if length != 1:
            raise ValueError(f"`length` must be 1 on real data, where epochs are WILSON's; got {length}")
        name = protocol_of(_JOINT_SETTING if method == JOINT and "COCO" not in setting else setting, real=True)
        return real_incremental_configs.run_config(settings, method, seed, name, share=share, **changes)
    protocol = protocol_of(setting) + (f"/order-{order}" if order else "")
    if method == JOINT and "coco" not in protocol and not order:
        protocol = protocol_of(_JOINT_SETTING)
    values = settings.get("incremental")
    options = {k: v for k, v in {**values.get(method, {}), **changes}.items() if v is not None}
    if method in ("cam", "ss"):
        options["first"] = _training(settings, "first", values["exposures"]["first"])
    if "own_clip" in options:
        options["own_clip"] = _training(settings, "own_clip", values["exposures"]["own_clip"])
    seen = values["exposures"]
    exposures = length * seen["step"] + (seen["base"] if method == JOINT else 0)
    base = _training(settings, "base", seen["base"]) | {"family": family(method)}
    config = {
        "method": method,
        "seed": seed,
        "protocol": protocol,
        "images": {name: values["images"][name] for name in dict.fromkeys(draws_of(get(protocol)))},
        "validation": settings.get("world.val"),
        "size": settings.get("world.size"),
        "segmenter": SEGMENTER,
        "backbone": zoo_backbone(SEGMENTER) if values["backbone"] == "zoo" else SCRATCH,
        "base": None if method == JOINT else base,
        "train": _training(settings, "base" if method == JOINT else "step", exposures),
        "share": share,
        "options": options,
    }
    if rare and values.get("prior") is not None:
        config["prior"] = values["prior"]
    return config | ({"zoo": _asked(options)} if method == "fmwiss" else {})


def seeds(settings: Settings, method: str) -> list[int]:
    """The seeds of a method's rows: those of the headline are judged by claims, others show their place."""
    count = settings.get("incremental.seeds.headline" if method in HEADLINE else "incremental.seeds.others")
    return settings.get("seeds")[:count]


def ablation_seeds(settings: Settings, judged: bool = False) -> list[int]:
    """The seeds of a row of the ablations; ``judged``: a claim reads it."""
    return settings.get("seeds")[: settings.get(f"incremental.seeds.{'judged' if judged else 'ablations'}")]


def _training(settings: Settings, part: str, exposures: int) -> dict[str, Any]:
    """Options of a training: the profile's common ones, the part's own rate; warm-up and curve by its steps."""
    values, common = settings.get("incremental"), dict(settings.get("train"))
    steps, points = exposures // common["batch_size"], values["points"]
    if steps < 1:
        raise ValueError(f"`incremental.exposures` ({exposures}) must be at least one batch ({common['batch_size']})")
    common.pop("points")
    warmup = round(common.pop("warmup") * steps)
    made = {**common, "steps": steps, "lr": values["lr"][part], "warmup_steps": warmup}
    if part == "own_clip":
        return made
    made["backbone_lr"] = values["backbone_lr"] if values["backbone"] == "zoo" else 1.0
    return made if part == "first" else made | {"eval_every": max(1, steps // points)}


def _asked(options: dict[str, Any]) -> dict[str, str]:
    """{model: hash} of what the experts of a run are."""
    models = [] if "own_clip" in options else ["clip"]
    return {name: zoo.weights_hash(name) for name in (*models, options["vit"])}
