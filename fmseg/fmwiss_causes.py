"""FMWISS's step with a suspected cause of its misses on new classes taken away, and what it then says where they are.

Two suspects: the marks, which co-segmentation makes (the intervention: the truth in their place); and the old model,
whose opinion of a new thing teacher and student repeat (the intervention: no old class may be likelier than the new
ones leave room for, as FMWISS's options bound the background alone). The runs are FMWISS's own
(:mod:`fmseg.incremental_runs`) in which that one thing is put in another's place; what a record calls its code is
everything that this module reaches by imports.
"""

from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from fmseg import fmwiss, incremental, incremental_runs
from fmseg.batches import Source
from fmseg.incremental_data import Data
from fmseg.mask_quality import BATCH, MaskQuality, one_hot
from fmseg.settings import check_config
from fmseg.step_models import read

EXPERTS, TRUTH = MARKS = ("co-segmentation", "truth")
BACKGROUND, OLD = BOUND = ("background", "all old classes")
KEYS = {"marks": MARKS, "bound": BOUND}
FATES = ("right", "another new class", "old class", "background")  # what a new thing's cells are called
_prepared, _quality = incremental_runs.prepared, incremental_runs._quality


def run(config: dict[str, Any], **how: Any) -> dict[str, Any]:
    """Train a step with what ``causes`` asks for, or as it is where a configuration has none.

    Args:
        config: of :func:`fmseg.incremental_runs.run`. With ``causes``: ``method`` "fmwiss", and ``causes``:
            {"marks": one of :data:`MARKS`, who marks the new classes; "bound": one of :data:`BOUND`, whose targets are
            at most what the new classes leave, the teacher's :math:`1 - \\max_c M^c` and the student's
            :math:`1 - \\max_c q^c`}.
        how: as of :func:`fmseg.incremental_runs.run`.

    Returns:
        As :func:`fmseg.incremental_runs.run`; with ``causes`` also ``said``, see :func:`said`.

    Raises:
        ValueError: an unknown or missing key, name or value, or another method.
    """
    if "causes" not in config:
        return incremental_runs.run(config, **how)
    wanted, rest = config["causes"], {key: value for key, value in config.items() if key != "causes"}
    check_config(wanted, tuple(KEYS))
    for key, allowed in KEYS.items():
        if wanted[key] not in allowed:
            raise ValueError(f"`causes.{key}` must be one of {', '.join(allowed)}; got {wanted[key]!r}")
    if config["method"] != "fmwiss":
        raise ValueError(f"`method` must be 'fmwiss', whose causes these are; got {config['method']!r}")
    found: dict[str, Any] = {}
    with ExitStack() as planted:
        planted.enter_context(patch.object(incremental_runs, "_quality", partial(_measured, found)))
        if wanted["marks"] == TRUTH:
            planted.enter_context(patch.object(incremental_runs, "prepared", _told))
            planted.enter_context(patch.object(fmwiss, "FmwissStep", ToldStep))
        if wanted["bound"] == OLD:
            planted.enter_context(patch.object(fmwiss, "old_targets", old_targets))
            planted.enter_context(patch.object(fmwiss, "student_targets", student_targets))
        done = incremental_runs.run(rest, **how)
    done["result"] |= found
    return done


def old_targets(old_logits: Tensor, pasted: Tensor | None = None, refined: Tensor | None = None) -> Tensor:
    """:func:`fmseg.incremental.old_targets` with every old class, not background alone, at most
    :math:`1 - \\max_c M^c`; pasted pixels have no mask and stay."""
    targets = incremental.old_targets(old_logits, pasted, refined)
    return targets if refined is None else _bounded(targets, refined.to(targets.dtype))


def student_targets(teacher_logits: Tensor, old_logits: Tensor, present: Tensor, **options: Any) -> Tensor:
    """:func:`fmseg.incremental.student_targets` with every old class at most :math:`1 - \\max_c q^c` over new ones."""
    targets = incremental.student_targets(teacher_logits, old_logits, present, **options)
    known = old_logits.shape[1]
    return torch.cat([_bounded(targets[:, :known], targets[:, known:]), targets[:, known:]], 1)


def _bounded(of_old: Tensor, of_new: Tensor) -> Tensor:
    return torch.minimum(of_old, 1 - of_new.amax(1, keepdim=True)) if of_new.shape[1] else of_old


class ToldStep(fmwiss.FmwissStep):
    """FMWISS's step whose masks are the truth on the grid: a cell belongs to a class that covers at least half of it.

    Its experts are not asked while it learns; the labels of its source are the truth.
    """

    def loss(self, images: Tensor, labels: Tensor, tags: Tensor) -> Tensor:
        """As FMWISS's; ``labels`` (B, H, W) uint8 or int64: logits of the new classes, anything below elsewhere."""
        self._truth = one_hot(labels, range(self.old_classes, self.num_classes))
        return super().loss(images, labels, tags)

    def prepare(self, images: Tensor, tags: Tensor, generator: torch.Generator) -> tuple:
        """As FMWISS's, with the truth in the place of the experts' masks."""
        asked, self.experts = self.experts, SimpleNamespace(masks=self._masks)
        try:
            return super().prepare(images, tags, generator)
        finally:
            self.experts = asked

    def _masks(self, images: Tensor, present: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        return on_cells(self._truth, grid) & present[:, :, None, None]


def on_cells(truth: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, H, W) bool -> (B, C, h, w) bool: a cell belongs to a class that covers at least half of it."""
    return F.adaptive_avg_pool2d(truth.float(), grid) >= 0.5


def _told(config: dict[str, Any], data: Data, *rest: Any, **more: Any) -> tuple:
    """:func:`fmseg.incremental_runs.prepared` with a source that shows the truth."""
    step, source, facts = _prepared(config, data, *rest, **more)
    return step, Source(source.images, data.new_truth(), name="step, truth", tags=source.tags), facts


def _measured(found: dict[str, Any], step: fmwiss.FmwissStep, data: Data, config: dict[str, Any]) -> dict[str, dict]:
    source = data.weak_source()
    found["said"] = said(step, source.images, source.tags, data.new_truth())
    return _quality(step, data, config)


@torch.no_grad()
def said(step: fmwiss.FmwissStep, images: ndarray, tags: ndarray, truth: ndarray) -> dict[str, dict]:
    """What teacher and student say of the new things in the step's pictures after training.

    Args:
        step: after training; evaluated in eval mode, its mode restored.
        images: (N, H, W, 3) uint8. tags: (N, C) bool.
        truth: (N, H, W) uint8: logits of the new classes, anything below these elsewhere.

    Returns:
        {"teacher" (without one: not there), "student"}: each {"score": the mean probability that it gives the right
        class on cells that a new thing covers; "called": the share of these cells by what it calls them, see
        :data:`FATES`, absent new classes left out; "masks": precision, recall and iou of its best channel among
        background and the present new classes, so with old ones out of the contest}. Means over cells, and for
        "masks" over classes.
    """
    ids, was, tally = range(step.old_classes, step.num_classes), step.training, {}
    step.eval()
    try:
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            shown = torch.from_numpy(np.ascontiguousarray(images[part])).permute(0, 3, 1, 2).contiguous()
            present, true = torch.from_numpy(tags[part]), one_hot(torch.from_numpy(truth[part]), ids)
            reading = read(step.student, shown)
            by_name = {} if step.teacher is None else {"teacher": step.teach(reading.encoder)[0]}
            for name, scores in (by_name | {"student": reading.grid}).items():
                count = tally.setdefault(name, _Tally(len(ids), step.old_classes))
                count.add(scores, present, true)
    finally:
        step.train(was)
    return {name: count.result() for name, count in tally.items()}


class _Tally:
    def __init__(self, new: int, old: int):
        self.old, self.quality = old, MaskQuality(new)
        self.score, self.scored, self.fates = 0.0, 0, np.zeros(len(FATES), np.int64)

    def add(self, scores: Tensor, present: Tensor, true: Tensor) -> None:
        known, there = scores[:, : self.old], present[:, :, None, None]
        new = scores[:, self.old :].masked_fill(~there, -torch.inf)
        cells = on_cells(true, scores.shape[2:])
        self.score += float(scores[:, self.old :].double().sigmoid()[cells].sum())
        self.scored += int(cells.sum())
        called = torch.cat([known, new], 1).argmax(1)
        of_thing = cells.any(1)
        right = (one_hot(called, range(self.old, scores.shape[1])) & cells).any(1)
        for place, here in enumerate((right, (called >= self.old) & ~right, (called > 0) & (called < self.old),
                                      called == 0)):  # fmt: skip
            self.fates[place] += int((here & of_thing).sum())
        best = torch.cat([known[:, :1], new], 1).argmax(1)
        masks = one_hot(best, range(1, 1 + new.shape[1]))
        self.quality.update(F.interpolate(masks.float(), true.shape[2:], mode="nearest") > 0.5, true)

    def result(self) -> dict[str, Any]:
        cells = int(self.fates.sum())
        shares = (self.fates / cells).round(6).tolist() if cells else [None] * len(FATES)
        score = round(self.score / self.scored, 6) if self.scored else None
        return {"score": score, "called": dict(zip(FATES, shares, strict=True)), "masks": self.quality.means()}
