"""Grounded Diffusion's pairs as FreeMask's synthetic images: pictures of the text-to-image model, masks of a head.

FreeMask paints masks that it has; Grounded Diffusion asks for a picture by words and reads the mask out of the model.
Neither paper trains on the other's pairs. Here the runs are FreeMask's own (:mod:`fmseg.freemask_runs`) with another
synthetic set. Where every pixel has a class, as on `ade`, the head's "none of the things" says too little: prompts name
a ground, and what is none of the things is given that name, right or wrong. FreeMask's noise filter may then drop what
the filter model does not believe.

What a run's record calls its code is everything this module reaches by imports.
"""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy import ndarray

from fmseg import freemask, freemask_runs, zero_shot_sets
from fmseg.datasets import IGNORE
from fmseg.freemask_data import real_set
from fmseg.labelmaps import pack
from fmseg.measure_generation import oracle_miou
from fmseg.settings import check_config
from fmseg.words import STUFF

PARADIGMS = ("real", "synthetic", "joint")
EXAMPLES = 6  # label maps of the last kind of pairs that a record keeps
KEYS = (*freemask_runs.KEYS, "pairs", "filter")
PAIRS = ("kinds", "classes", "head", "alpha", "quality")


def run(config: dict[str, Any], **how: Any) -> dict[str, Any]:
    """Train one segmenter on pairs, alone or beside real images, or on real images alone.

    Args:
        config: of :func:`fmseg.freemask_runs.run`, ``paradigm`` "real"; or "synthetic" or "joint" with ``pairs`` in
            place of ``synthetic`` and ``generator``: {"kinds": {kind: pictures}, "classes": names asked for, "head": of
            :mod:`fmseg.grounded_runs`, "alpha": the filter's margin or None for no filter, "quality": of how many
            pictures a kind the masks are compared with the oracle's}.
        how: ``checkpoint``, ``checkpoint_every``, ``progress``, ``on_step``: as in :func:`fmseg.training.train`.

    Returns:
        As :func:`fmseg.freemask_runs.run`; ``result["synthetic"]`` also has ``oracle``, the oracle's mIoU in percent
        against the labels that are left, and ``examples``, packed label maps of the first pairs of the last kind.

    Raises:
        ValueError: an unknown or missing key, name or value; a prompt without a ground.
    """
    if config.get("paradigm") not in PARADIGMS:
        raise ValueError(f"`paradigm` must be one of {', '.join(PARADIGMS)}; got {config.get('paradigm')!r}")
    if config["paradigm"] == "real":
        return freemask_runs.run(config, **how)
    check_config(config, KEYS)
    check_config(config["pairs"], PAIRS)
    rest = {key: value for key, value in config.items() if key != "pairs"}
    rest |= {"synthetic": config["pairs"], "generator": config["pairs"]["head"]}
    made = pairs_set(config)
    with patch.object(freemask, "synthetic_set", lambda _: made):
        done = freemask_runs.run(rest, **how)
    facts = done["result"]["synthetic"]
    facts["oracle"] = round(agreement(made, config["pairs"]["quality"]), 4)
    facts["examples"] = pack(made.labels[made.pairs[:, 0] == made.pairs[-1, 0]][:EXAMPLES])
    return done


def pairs_set(config: dict[str, Any]) -> freemask.SyntheticSet:
    """The pairs of a run in the ids of its draw, filtered where it asks for that.

    Args:
        config: as of :func:`run`.

    Returns:
        Pictures and labels; ``pairs`` are (number of the kind, index of the picture).

    Raises:
        ValueError: as :func:`in_draw`, or a number of pictures that is not made of whole parts.
    """
    wanted, real = config["pairs"], real_set(config)
    images, labels, pairs = [], [], []
    for number, (kind, count) in enumerate(wanted["kinds"].items()):
        made = zero_shot_sets.synthetic(kind, tuple(wanted["classes"]), count, wanted["head"], rich=True)
        images.append(made.images)
        labels.append(in_draw(made.labels, [a.prompt for a in made.asks], wanted["classes"], real.classes))
        pairs.append(np.stack([np.full(count, number), np.arange(count)], 1))
    images, labels, pairs = (np.concatenate(several) for several in (images, labels, pairs))
    before = np.bincount(labels.ravel(), minlength=256)[: real.num_classes]
    if wanted["alpha"] is not None:
        judge = freemask.judge(config)
        labels = freemask.filtered(judge.model, images, labels, judge.on_training.compute(), wanted["alpha"])
    after = np.bincount(labels.ravel(), minlength=256)[: real.num_classes]
    kept = np.divide(after, before, out=np.full(len(before), np.nan), where=before > 0)
    return freemask.SyntheticSet(images, labels, pairs, kept)


def in_draw(labels: ndarray, prompts: Sequence[str], classes: Sequence[str], drawn: Sequence[str]) -> ndarray:
    """Label maps of a head in the ids of a draw; what is none of the things becomes the ground of the prompt.

    Args:
        labels: (N, H, W) uint8 into ``classes``, ``len(classes)`` for what is none of them, 255 where nothing is known.
        prompts: N texts, each of which ends with "on" and a ground.
        classes: names that were asked for. drawn: the draw's, of which ``classes`` and the grounds are some.

    Returns:
        (N, H, W) uint8.

    Raises:
        ValueError: a class that the draw does not have, or a prompt that names no ground of it.
    """
    missing = [name for name in classes if name not in drawn]
    if missing:
        raise ValueError(f"`classes` must be among the draw's; it has no {missing[0]!r}")
    table = np.full(256, IGNORE, np.uint8)
    table[: len(classes)] = [drawn.index(name) for name in classes]
    made = table[labels]
    for place, prompt in enumerate(prompts):
        ground = prompt.rpartition(" on ")[2]
        if ground not in STUFF or ground not in drawn:
            raise ValueError(f"`prompts` must end with 'on' and a ground of the draw; got {prompt!r}")
        made[place][labels[place] == len(classes)] = drawn.index(ground)
    return made


def agreement(made: freemask.SyntheticSet, count: int) -> float:
    """The oracle's mIoU in percent on the first ``count`` pictures of each kind, against the labels of the set."""
    rows = np.flatnonzero(made.pairs[:, 1] < count)
    return oracle_miou(made.images[rows], made.labels[rows])
