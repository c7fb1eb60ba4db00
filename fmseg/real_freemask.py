"""FreeMask's runs on ADE20K and COCO-Stuff from a configuration: the papers' recipes on real and synthetic pictures.

The counterpart of :mod:`fmseg.freemask_runs` for pictures on disk. One process paints what is missing before it trains;
several (``torchrun``) want it all painted beforehand, by ``python -m fmseg paint``, because none of them may wait for
hours in the middle of a run.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from fmseg import distributed, freemask_folders, on_disk, real_supervised
from fmseg.inference import TestTime, evaluate_pictures
from fmseg.on_disk import OnDisk
from fmseg.paradigms import after, repeats
from fmseg.photos import Photos
from fmseg.real_freemask_chain import Chain, Made
from fmseg.settings import check_config
from fmseg.training import TrainConfig, train

PARADIGMS = ("real", "synthetic", "joint", "pretrain")
KEYS = (*real_supervised.KEYS, "paradigm")
OPTIONAL = ("pretrained", "backbone", "images")
READY = ("ready",)


def check(config: dict[str, Any]) -> None:
    """Refuse a configuration that has a key nobody reads, lacks one, or names another paradigm (ValueError)."""
    if config.get("paradigm") not in PARADIGMS:
        raise ValueError(f"`paradigm` must be one of {', '.join(PARADIGMS)}; got {config.get('paradigm')!r}")
    needed = () if config["paradigm"] == "real" else ("synthetic",)
    if needed and set(config.get("synthetic", ())) != set(READY):
        needed += ("generator", "filter")
    needed += ("finetune",) if config["paradigm"] == "pretrain" else ()
    check_config(config, KEYS + needed, OPTIONAL)


def synthetic(config: dict[str, Any], real: OnDisk) -> Made:
    """The synthetic pictures of a run, painted now where they are missing.

    Args:
        config: a run's. ``synthetic`` is what :class:`fmseg.real_freemask_chain.Chain` takes, or {"ready": a folder in
            FreeMask's layout beside the data sets, in FMSEG_DATA}: a set that somebody else has made.
        real: the real training pictures.

    Raises:
        RuntimeError: several processes, and not all is painted. As the chain and :func:`fmseg.freemask_folders.read`.
    """
    if "ready" in config["synthetic"]:
        found = freemask_folders.read(on_disk.root_of(config["data"]).parent / config["synthetic"]["ready"], real)
        return Made(found, {"pictures": len(found), "sha256": found.fingerprint()[:16]})
    chain = Chain(config)
    if distributed.world().size > 1 and (missing := chain.missing()):
        raise RuntimeError(
            f"{missing} of {chain.shards()} shards of synthetic pictures are missing; `python -m fmseg paint` makes "
            "them, in as many processes as you like, then start this again"
        )
    return chain.perform()


def sources(config: dict[str, Any], real: OnDisk) -> tuple[list[Photos], dict[str, Any]]:
    """What a run learns from (for "pretrain": first), and facts about it for the record."""
    options = config["pipeline"], tuple(config["crop"])
    if config["paradigm"] == "real":
        return [Photos(real, *options)], {}
    made = synthetic(config, real)
    pictures = Photos(made.data, *options, name="synthetic")
    if config["paradigm"] != "joint":
        return [pictures], made.facts
    repeat = repeats(len(made.data), len(real))
    return [Photos(real, *options, repeat=repeat), pictures], made.facts | {"repeat": repeat}


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
        config: as :func:`fmseg.real_supervised.run`, with ``paradigm``: "real", "synthetic", "joint" (real pictures
            repeated to as many as there are synthetic ones, one shuffle, no weights) or "pretrain" (synthetic by
            ``train``, then real by ``finetune``, an optimiser each); but for "real" with ``synthetic``, ``generator``
            and ``filter``, see :func:`synthetic`.
        checkpoint, checkpoint_every, progress, on_step: as in :func:`fmseg.training.train`.

    Returns:
        As :func:`fmseg.real_supervised.run`; ``result`` also has ``synthetic`` (pictures, share of pixels kept,
        repeats). Equal in every process.

    Raises:
        ValueError: an unknown or missing key, name or value. FileNotFoundError: data or weights are not there.
        RuntimeError: see :func:`synthetic`.
    """
    check(config)
    how = TestTime(**config["test"])
    real, held_out = real_supervised.open_data(config)
    model = real_supervised.model_of(config, real.num_classes)
    learn, facts = sources(config, real)

    def validation(model, part):
        return evaluate_pictures(model, held_out, how, part=part, progress=progress and distributed.world().first)

    def trained(learn, schedule, place):
        options = TrainConfig.from_dict({**schedule, "seed": config["seed"]})
        return train(
            model, learn, options, validation=validation, checkpoint=place, checkpoint_every=checkpoint_every,
            progress=progress, on_step=on_step,
        )  # fmt: skip

    before, first = None, None
    if config["paradigm"] == "pretrain":
        first = None if checkpoint is None else Path(checkpoint).with_suffix(".first.pt")
        before = trained(learn, config["train"], first)
        learn = [Photos(real, config["pipeline"], tuple(config["crop"]))]
        facts = facts | {"miou before finetuning": round(100 * before.miou, 4)}
    done = trained(learn, config["finetune" if before else "train"], checkpoint)
    if before is not None:
        done = after(before, done)
        if first is not None and distributed.world().first:
            first.unlink(missing_ok=True)
    more = {"synthetic": facts} if facts else {}
    data = [real.fingerprint()[:16], held_out.fingerprint()[:16]]
    return done.as_run(model, real_supervised.example_predictions(model, held_out, how), data=data, **more)
