"""An incremental step with other marks of the new classes than FMWISS's: a grounding head's, or filtered ones.

The runs are FMWISS's own (:mod:`fmseg.incremental_runs`), in which one thing is put in another's place. What a run's
record calls its code is everything this module reaches by imports.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

from fmseg import across_experts, across_filter, fmwiss, incremental_runs, parts
from fmseg.datasets import IGNORE
from fmseg.experts import Experts
from fmseg.incremental_base import fresh
from fmseg.incremental_data import STEP, Data
from fmseg.labelmaps import pack
from fmseg.segmenters import Segmenter
from fmseg.settings import check_config

CO_SEGMENTATION, FILTERED, HEAD = BY = ("co-segmentation", "filtered co-segmentation", "grounding head")
KEYS = {CO_SEGMENTATION: ("by",), FILTERED: ("by", "drop", "alpha"), HEAD: ("by", "learns", "head")}
EXAMPLES = 6  # of the step's pictures, whose marks a record keeps
GRID = across_experts.GRID
_SEEDS = 4_000_037  # offset of a run's seed, for the drawn seeds on which class means are taken and examples shown
_SECONDS = "seconds of the run"
_begin = incremental_runs.prepared


def run(config: dict[str, Any], **how: Any) -> dict[str, Any]:
    """Train FMWISS's step with the marks that ``masks`` asks for.

    Args:
        config: of :func:`fmseg.incremental_runs.run`, ``method`` "fmwiss", with ``masks``: {"by": "co-segmentation"}:
            FMWISS as it is; {"by": "filtered co-segmentation", "drop": one of :data:`fmseg.across_filter.HOW`,
            "alpha": the margin}; or {"by": "grounding head", "learns", "head"}: see
            :func:`fmseg.across_experts.answers`.
        how: ``checkpoint``, ``checkpoint_every``, ``progress``, ``on_step``: as in :func:`fmseg.training.train`.

    Returns:
        As :func:`fmseg.incremental_runs.run`, ``seconds`` with those that the marks took, the judge's training included
        whoever trained it; ``result`` also has ``marks`` (packed, see :func:`shown`), and of the filtered ``filter``
        (:func:`fmseg.across_filter.measured`, with ``means``).

    Raises:
        ValueError: an unknown or missing key, name or value, or another method.
    """
    wanted = config.get("masks") or {}
    if wanted.get("by") not in BY:
        raise ValueError(f"`masks` must say `by` whom, one of {', '.join(BY)}; got {wanted.get('by')!r}")
    check_config(wanted, KEYS[wanted["by"]])
    if config["method"] != "fmwiss":
        raise ValueError(f"`method` must be 'fmwiss', whose marks these are; got {config['method']!r}")
    rest = {key: value for key, value in config.items() if key != "masks"}
    spent: list[float] = []
    with patch.object(incremental_runs, "prepared", partial(_prepared, wanted, spent)):
        done = incremental_runs.run(rest, **how)
    if wanted["by"] == CO_SEGMENTATION:  # its student is the judge of the filtered runs
        parts.obtain(_folder(rest), [0], lambda _: _arrays(done))
    done["seconds"] += sum(spent)
    return done


def _prepared(
    wanted: dict[str, Any], spent: list[float], config: dict[str, Any], data: Data, old: Segmenter,
    place: Path | None = None, **more: Any,
):  # fmt: skip
    """:func:`fmseg.incremental_runs.prepared` with other marks; ``spent`` gets the seconds that they took."""
    started, source, seed = time.perf_counter(), data.weak_source(), config["seed"] + _SEEDS
    if wanted["by"] == HEAD:
        experts = across_experts.of_head(config | {"masks": wanted}, data)
    else:
        experts = incremental_runs.experts_of(config, data, place)
    drop, facts = None, {}
    if wanted["by"] == FILTERED:
        judge, seconds = judge_of(config, data, place)
        spent.append(seconds)  # also where somebody else has trained it
        started = time.perf_counter()
        drop, means = across_filter.made_by(
            wanted["drop"], judge, experts, source.images, source.tags, wanted["alpha"], seed
        )  # fmt: skip
        ids = data.protocol.new(STEP)
        found = across_filter.measured(
            judge, experts, drop, source.images, source.tags, data.new_truth(), range(ids.start, ids.stop), seed
        )  # fmt: skip
        facts["filter"] = found | {"means": [round(float(m), 6) for m in means]}
    facts["marks"] = pack(shown(experts, drop, source.images[:EXAMPLES], source.tags[:EXAMPLES], seed))
    spent.append(time.perf_counter() - started)
    made = partial(across_filter.FilteredStep, drop=drop) if drop else fmwiss.FmwissStep
    asked = patch.object(incremental_runs, "experts_of", lambda *_, **__: experts)
    with asked, patch.object(fmwiss, "FmwissStep", made):
        step, source, more_facts = _begin(config, data, old, place, **more)
    return step, source, more_facts | facts


def shown(
    experts: Experts, drop: across_filter.Drop | None, images: np.ndarray, tags: np.ndarray, seed: int
) -> np.ndarray:  # fmt: skip
    """(N, H, W) uint8 for people: the number of the new class from 1 on, 0 for none, 255 for what is dropped.

    Args:
        experts: who mark. drop: the filter, or None. images: (N, H, W, 3) uint8. tags: (N, C) bool.
        seed: of the drawn seeds.

    Where marks overlap the last class is shown.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()
    masks = experts.masks(pictures, torch.from_numpy(tags), (GRID, GRID), generator)
    numbers = torch.arange(1, masks.shape[1] + 1).view(1, -1, 1, 1)
    labels = (masks * numbers).amax(1)
    if drop is not None:
        gone = drop(pictures, masks, generator) & masks
        labels[gone.any(1) & ~(masks & ~gone).any(1)] = IGNORE
    whole = F.interpolate(labels[:, None].float(), images.shape[1:3], mode="nearest")[:, 0]
    return whole.numpy().astype(np.uint8)


def judge_of(config: dict[str, Any], data: Data, place: Path | None = None) -> tuple[Segmenter, float]:
    """FMWISS's student after a first run of the same step, in evaluation mode, and the seconds that this run took; a
    shared part, trained if missing.

    Args:
        config: of :func:`fmseg.incremental_runs.run`. data: its pictures.
        place: the run's checkpoint; the base model is kept beside it, for the run itself.
    """

    def make(number: int) -> parts.Arrays:
        first = None if place is None else Path(place).with_name(f"{Path(place).stem}-judge.pt")
        with patch.object(incremental_runs, "prepared", _begin):  # the run that asks has planted another
            done = incremental_runs.run(config, checkpoint=first)
        if first is not None:
            first.unlink(missing_ok=True)
        return _arrays(done)

    (found,) = parts.obtain(_folder(config), [0], make)
    seconds, model = float(found.pop(_SECONDS)), fresh(config, len(data.protocol.known(STEP)))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in found.items()})
    return model.eval().requires_grad_(False), seconds


def _folder(config: dict[str, Any]) -> Path:
    return parts.folder("judges", config, "fmseg.across_step")


def _arrays(done: dict[str, Any]) -> parts.Arrays:
    weights = {name: value.detach().cpu().numpy() for name, value in done["model"].state_dict().items()}
    return weights | {_SECONDS: np.array(done["seconds"])}
