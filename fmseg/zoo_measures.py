"""What is measured of the zoo, and one measurement as a run; :mod:`fmseg.zoo_table` makes the table of them.

Each row of it is a phenomenon that a paper exploits; the target says how good is good enough, and was written down
before anything was trained. Apart from the table, so that a record rests on what was measured and not on how tables are
made and claims judged.
"""

import math
from collections.abc import Callable
from os import PathLike
from typing import Any

from fmseg import measure_generation as generation
from fmseg import measure_perception as perception
from fmseg import zoo
from fmseg.provenance import canonical_hash
from fmseg.settings import check_config

KEYS = ("method", "seed", "images", "zoo", "train")
Measure = Callable[[int, int], dict[str, float]]

Line = tuple[str, str, tuple[float, float] | None]  # the row's label, the value's name, the target: least and largest

# method -> models it rests on, measurement, rows
MEASURES: dict[str, tuple[tuple[str, ...], Measure, list[Line]]] = {
    **{
        f"clip-recall-{draw}": (
            ("clip",),
            lambda seed, count, draw=draw: perception.clip_recall(seed, draw, count),
            [(f"CLIP recall on {draw}", "all", None if draw == "web" else (80, 100)),
             (f"CLIP recall on {draw} one thing", "single", None)],
        )
        for draw in ("voc", "coco", "web")
    },
    "clip-dense": (
        ("clip", "oracle"),
        lambda seed, count: perception.clip_dense(seed, "voc", count),
        [("CLIP maps 8x8", "8x8", None), ("CLIP maps 16x16 dilated", "16x16 dilated", None),
         ("CLIP maps 16x16 enlarged", "16x16 enlarged", None), ("constant maps", "constant", None),
         ("best CLIP maps by constant maps", "best by constant", (250, 1000)),
         ("oracle with the same knowledge", "oracle", None), ("ceiling of an 8x8 grid", "ceiling 8x8", None),
         ("ceiling of a 16x16 grid", "ceiling 16x16", None)],
    ),
    **{
        f"attention-{name}": (
            (name,),
            lambda seed, count, name=name: perception.attention_iou(seed, name, count),
            [(f"{name} attention IoU", "attention", (45, 100)),
             (f"{name} distance to the seed alone IoU", "distance alone", None)],
        )
        for name in ("dino", "mim")
    },
    **{
        f"probe-{name}": (
            (name,),
            lambda seed, count, name=name: perception.mask_probe(seed, name, count),
            [(f"{name} mask tells the pattern", "pattern", (0, 35)), (f"{name} mask tells the shape", "shape", None)],
        )
        for name in ("dino", "mim")
    },
    "probe-truth": (
        (),
        lambda seed, count: perception.mask_probe(seed, perception.TRUTH, count),
        [("true mask tells the pattern", "pattern", None), ("true mask tells the shape", "shape", None),
         ("always the most frequent pattern", "pattern, most frequent", None),
         ("always the most frequent shape", "shape, most frequent", None)],
    ),
    **{
        f"error-{name}-{draw}": (
            (name,),
            lambda seed, count, name=name, draw=draw: perception.oracle_error(seed, name, draw, count),
            [(f"{name} mIoU on real pictures of {draw}", "mIoU", None)],
        )
        for name, draw in (("oracle", "oracle"), ("oracle", "voc"), ("oracle", "ade"), ("judge", "judge"))
    },
    "prompted-singles": (
        ("diffusion", "oracle", "judge"),
        generation.prompted_singles,
        [("one prompted found by the oracle", "found by the oracle", (70, 100)),
         ("one prompted found by the judge", "found by the judge", None),
         ("one prompted word that no mask taught found by the judge", "one new word, found by the judge", None),
         ("two prompted words that no mask taught found by the judge", "both words new, found by the judge", None)],
    ),
    "prompted-pairs": (
        ("diffusion", "oracle"),
        generation.prompted_pairs,
        [("two prompted both found", "both found", (45, 100)),
         ("two prompted at least one found", "at least one found", None)],
    ),
    "real-singles": (
        ("oracle", "judge"),
        generation.real_singles,
        [("one real thing found by the oracle", "single, oracle", None),
         ("two real things both found by the oracle", "pair, oracle", None),
         ("one real thing found by the judge", "single, judge", None)],
    ),
    "reconstruction": (
        ("diffusion", "oracle"),
        lambda seed, count: generation.reconstruction(seed, "ade", count),
        [("oracle mIoU before the autoencoder", "before", None), ("oracle mIoU after the autoencoder", "after", None),
         ("share kept by the autoencoder", "kept", (90, 110))],
    ),
    **{
        f"{kind}-{draw}": (
            ("diffusion", "oracle", "clip", f"{kind}-{draw}"),
            lambda seed, count, name=f"{kind}-{draw}": generation.layouts(seed, name, count),
            [(f"{kind} {draw} share of the real mIoU", "share", (50, 90) if kind == "layout" else None),
             (f"{kind} {draw} Fréchet distance", "Fréchet distance", None)],
        )
        for draw in ("ade", "stuff") for kind in ("layout", "weak")
    },
}  # fmt: skip


def run(config: dict[str, Any], *, checkpoint: str | PathLike | None = None, **_: Any) -> dict[str, Any]:
    """One measurement at one seed, in the shape of a training run.

    Args:
        config: ``method`` (a key of :data:`MEASURES`), ``seed``, ``images`` (how many pictures), ``zoo`` ({model: hash
            of its weights}), ``train`` ({"steps": how many pictures}, what it costs).
        checkpoint: not used; a measurement takes seconds to a minute.

    Returns:
        As :func:`fmseg.supervised.run`: ``result`` with ``values`` (by name; None where none of the pictures was of
        that kind), ``miou`` (the first that is a number) and ``weights`` (a hash over all).

    Raises:
        ValueError: an unknown key or method, or weights that are not the configuration's.
    """
    import time

    check_config(config, KEYS)
    if config["method"] not in MEASURES:
        raise ValueError(f"`method` must be one of {', '.join(MEASURES)}; got {config['method']!r}")
    models, measure, _ = MEASURES[config["method"]]
    if config["zoo"] != {name: zoo.weights_hash(name) for name in models}:
        raise ValueError(f"`zoo` of {config['method']} does not hold the hashes of the shipped {', '.join(models)}")
    started = time.perf_counter()
    measured = measure(config["seed"], config["images"])
    values = {key: round(float(v), 4) if math.isfinite(v) else None for key, v in measured.items()}
    first = next(value for value in values.values() if value is not None)
    result = {"values": values, "miou": first, "weights": canonical_hash(values)}
    return {"result": result, "curve": [], "seconds": time.perf_counter() - started}
