"""FreeMask's ways to learn from synthetic pictures: alone, jointly with real ones, or before them; and real ones alone.

What a run's record calls its code is everything this module reaches by imports. The paradigm "real" is
:func:`fmseg.supervised.run`, to the bit.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from fmseg import freemask, synthetic
from fmseg.batches import Source
from fmseg.datasets import draw_set, get_draw
from fmseg.freemask_data import real_set
from fmseg.measure_generation import clip_features, frechet, oracle_miou
from fmseg.paradigms import after, repeats
from fmseg.segmenters import build
from fmseg.settings import check_config
from fmseg.supervised import finished
from fmseg.training import TrainConfig, train

PARADIGMS = ("real", "synthetic", "joint", "pretrain")
KEYS = ("method", "backbone", "seed", "draw", "split", "images", "validation", "size", "paradigm", "train")
WITH_PICTURES = ("synthetic", "generator", "filter")


def check(config: dict[str, Any]) -> None:
    """Refuse a configuration that has a key nobody reads, lacks one, or names another paradigm (ValueError)."""
    if config.get("paradigm") not in PARADIGMS:
        raise ValueError(f"`paradigm` must be one of {', '.join(PARADIGMS)}; got {config.get('paradigm')!r}")
    needed = () if config["paradigm"] == "real" else WITH_PICTURES
    needed += ("finetune",) if config["paradigm"] == "pretrain" else ()
    optional = ("exclude_ignored",) + (("quality",) if needed else ())
    check_config(config, KEYS + needed, optional)
    if needed and get_draw(config["draw"]).split_by_seed:
        raise ValueError(
            f"`draw` must be one whose training split serves all seeds, because generator and filter model belong to "
            f"it: 'ade' or 'stuff'; got {config['draw']!r}"
        )
    if config["split"] != "train":
        raise ValueError(f"`split` must be 'train', whose masks are painted; got {config['split']!r}")


def sources(config: dict[str, Any]) -> tuple[list[Source], dict[str, Any]]:
    """What a run learns from (for "pretrain": first), and facts about it for the record."""
    real = real_set(config)
    if config["paradigm"] == "real":
        return [Source(real.images, real.labels)], {}
    made = freemask.synthetic_set(config)
    pictures, facts = Source(made.images, made.labels, name="synthetic"), made.facts()
    if config["paradigm"] != "joint":
        return [pictures], facts
    repeat = repeats(len(made.images), len(real))
    return [Source(real.images, real.labels, repeat=repeat), pictures], facts | {"repeat": repeat}


def quality(config: dict[str, Any]) -> dict[str, float]:
    """How good a generator's first picture of every mask is: the oracle's mIoU against the mask, on the real image of
    that mask, and the Fréchet distance to the real images in the zoo's CLIP's features.

    Args:
        config: a run's; ``quality`` says of how many masks.
    """
    real = real_set(config)
    count = min(config["quality"], len(real))
    shelf = freemask.shelf(config, real, config["synthetic"]["most"])
    images = synthetic.pictures(shelf, [(k, 0) for k in range(count)])
    return {
        "layout": round(oracle_miou(images, real.labels[:count]), 4),
        "real": round(oracle_miou(real.images[:count], real.labels[:count]), 4),
        "frechet": round(frechet(clip_features(real.images[:count]), clip_features(images)), 4),
    }


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train one segmenter.

    Args:
        config: as :func:`fmseg.supervised.run`, with ``paradigm``: "real", "synthetic", "joint" (real images repeated
            to as many as there are synthetic ones, one shuffle, no weights) or "pretrain" (synthetic by ``train``, then
            real by ``finetune``, an optimiser each); but for "real" with ``synthetic``, ``generator`` and ``filter``,
            see :func:`fmseg.freemask.synthetic_set`. Optional: ``exclude_ignored`` (of "mask2former"), ``quality``
            (:func:`quality` is measured, too).
        checkpoint, checkpoint_every, progress, on_step: as in :func:`fmseg.training.train`.

    Returns:
        As :func:`fmseg.supervised.run`; ``result`` also has ``synthetic`` (pictures, share of pixels kept, repeats) and
        ``generator`` where asked for.

    Raises:
        ValueError: an unknown or missing key, name or value; a zoo that has other weights.
    """
    check(config)
    seed, size = config["seed"], config["size"]
    options = TrainConfig.from_dict({**config["train"], "seed": seed})
    model = build(
        config["method"], num_classes=get_draw(config["draw"]).num_classes, image_size=size, seed=seed,
        backbone=config["backbone"], exclude_ignored=config.get("exclude_ignored", False),
    )  # fmt: skip
    validation = draw_set(config["draw"], "val", config["validation"], size=size)
    held_out = Source(validation.images, validation.labels, name="validation")
    learn, facts = sources(config)
    how = {"checkpoint_every": checkpoint_every, "progress": progress, "on_step": on_step}
    before, first = None, None
    if config["paradigm"] == "pretrain":
        first = None if checkpoint is None else Path(checkpoint).with_suffix(".first.pt")
        before = train(model, learn, options, validation=held_out, checkpoint=first, **how)
        real = real_set(config)
        learn, options = [Source(real.images, real.labels)], TrainConfig.from_dict({**config["finetune"], "seed": seed})
        facts |= {"miou before finetuning": round(100 * before.miou, 4)}
    done = train(model, learn, options, validation=held_out, checkpoint=checkpoint, **how)
    if before is not None:
        done = after(before, done)
        if first is not None:
            first.unlink(missing_ok=True)
    more = {"synthetic": facts} if facts else {}
    if "quality" in config:
        more["generator"] = quality(config)
    return finished(done, model, held_out, **more)
