"""Configurations of Grounded Diffusion's Protocol II at the paper's size: ``grounded_real.zero_shot`` of `paper`."""

from typing import Any

from fmseg import maskformer, protocols, real_grounded_configs
from fmseg.settings import Settings

SPLITS = {"voc": "voc/zs3", "coco": "coco/grounded-1"}  # on VOC a split of its own, ZS3's (dossier 4)
CLIP_DENSE = "clip-dense"
SETS = {  # by method: kinds of pairs, rich prompts, photographs of seen classes
    "seen-only": ((), False, True),
    "model-a": (("one",), False, False),
    "model-b": (("two",), False, False),
    "model-c": (("one", "two"), False, False),
    "model-d": (("one", "two"), False, True),
    "model-e": (("one", "two"), True, True),
}


def table_2(settings: Settings) -> list[dict]:
    """Both data sets: the synthetic rows, photographs alone, CLIP without training. MaskFormer has no classifier for
    which features could be generated, so there is no ZS3-style row."""
    seeds = range(settings.get("grounded_real.seeds.others"))
    return [
        run_config(settings, method, seed, draw)
        for draw in SPLITS
        for method in (*SETS, CLIP_DENSE)
        for seed in (seeds if method != CLIP_DENSE else (0,))
    ]


def run_config(settings: Settings, method: str, seed: int, draw: str) -> dict[str, Any]:
    """A run of :mod:`fmseg.real_zero_shot`.

    Args:
        settings: gives ``grounded_real``, ``data``, ``crop``, ``pretrained`` and what replaces the recipe's ``train``.
        method: a key of :data:`SETS`, or 'clip-dense'. seed: of head, pairs and segmenter. draw: 'voc' or 'coco'.
    """
    values, data = settings.get("grounded_real.zero_shot"), settings.get(f"data.{draw}")
    recipe, split = maskformer.recipe(draw, crop=settings.get("crop")), protocols.get(SPLITS[draw])
    made: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "draw": draw,
        "split": SPLITS[draw],
        "size": values["size"],
        "data": {"train": data["split"], "validation": data["validation"]},
        "test": {key: value for key, value in vars(recipe.test).items() if value is not None},
        "validation": values["validation"],
        "pretrained": settings.get("pretrained"),
    }
    if method == CLIP_DENSE:
        return made | {"clip": dict(settings.get("incremental.experts.clip")), "train": {"steps": 0}}
    kinds, rich, real = SETS[method]
    made |= {
        "crop": list(recipe.crop), "pipeline": recipe.pipeline, "train": recipe.train | settings.get("train"),
        "real": real,
    }  # fmt: skip
    if kinds:
        count = values["pictures"][draw] // len(kinds)
        made["sets"] = [{"kind": kind, "count": count, "rich": rich} for kind in kinds]
        made["head"] = real_grounded_configs.head(settings, seed, draw, split.seen)
    return made
