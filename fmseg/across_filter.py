r"""FreeMask's noise filter on FMWISS's pseudo-labels: a judge, its class means, and cells that lose their label.

FreeMask's judge has learned from real images with masks of every class. In an incremental step there is no mask of a
new class, so the judge is FMWISS itself after a first run of the same step, and its class means are taken on the very
pseudo-labels that it learned from: what a class's marked cells cost on the mean over the step's pictures. The criterion
is FreeMask's, for each new class by itself, since FMWISS's outputs are a yes or no each::

    loss = -log sigma(z_c)  where class c is marked;  dropped: loss > alpha * mean_c

A dropped cell has no label of that class; a cell that has lost all of its marks has no label at all. The student then
learns there from the teacher, as everywhere.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from fmseg import fmwiss
from fmseg.contrast import dense_contrast
from fmseg.datasets import IGNORE
from fmseg.experts import Experts
from fmseg.incremental import binary_loss, dense_labels, old_targets
from fmseg.mask_quality import BATCH, MaskQuality, one_hot
from fmseg.noise import ClassLoss, filter_labels
from fmseg.segmenters import Segmenter
from fmseg.step_models import Reading

HOW = ("by loss", "at random")
_CERTAIN = -100.0  # a score whose sigmoid is 0 in float32
Drop = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # pictures, masks, generator -> masks of what is dropped


class FilteredStep(fmwiss.FmwissStep):
    """FMWISS's step whose teacher does not learn from what is dropped.

    Args:
        drop: (B, 3, H, W) pictures before anything was pasted, (B, C, h, w) bool masks and the step's generator ->
            (B, C, h, w) bool, what of the masks is dropped.
        rest: as of :class:`fmseg.fmwiss.FmwissStep`.

    Raises:
        ValueError: a step without a teacher, whose student would learn from the masks themselves.
    """

    def __init__(self, *given: Any, drop: Drop, **rest: Any):
        super().__init__(*given, **rest)
        if self.teacher is None:
            raise ValueError("`options` must have a teacher: the filter is on what it learns from; got teacher=False")
        self._drop = drop

    def prepare(self, images: Tensor, tags: Tensor, generator: torch.Generator) -> tuple:
        """As FMWISS's; the masks are what is left."""
        pasted, cells, masks = super().prepare(images, tags, generator)
        self._dropped = self._drop(images, masks, generator) & masks
        return pasted, cells, masks & ~self._dropped

    def _teach(
        self, parts: dict[str, Tensor], reading: Reading, old: Tensor, cells: Tensor | None, masks: Tensor,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        if not self._dropped.any():
            return super()._teach(parts, reading, old, cells, masks, generator)
        options, known, dropped = self.options, self.old_classes, self._dropped
        bare = dropped.any(1, keepdim=True) & ~masks.any(1, keepdim=True)
        apart = not options.teacher_gradient or (self.warm and options.freeze_encoder)
        scores, embedding = self.teach(reading.encoder.detach() if apart else reading.encoder)
        of_old = old_targets(old, cells, masks if options.bkg_min else None)
        silent = dropped | bare
        parts["new"] = binary_loss(*without(scores[:, known:], masks.float(), silent), options.teacher_reduction)
        parts["old"] = binary_loss(*without(scores[:, :known], of_old, bare), options.teacher_reduction)
        if options.dcl_weight:
            labels = dense_labels(masks, old, cells).masked_fill(bare[:, 0], IGNORE)
            near = dense_contrast(embedding, labels, generator, points=options.points, temperature=options.temperature)
            parts["dcl"] = options.dcl_weight * near
        return scores


def without(scores: Tensor, targets: Tensor, silent: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and targets (B, C, h, w) whose cross-entropy is 0, without a gradient, where ``silent`` (B, C or 1, h, w);
    the mean is still over all cells, so that the others weigh what they weighed."""
    return scores.masked_fill(silent, _CERTAIN), targets.masked_fill(silent, 0.0)


@torch.no_grad()
def losses(judge: Segmenter, images: Tensor, classes: int) -> Tensor:
    """(B, C, h, w) nats: what it would cost the judge to say yes to each of the last C classes at each cell."""
    return F.softplus(-judge.grid_logits(images)[:, -classes:])


def by_loss(judge: Segmenter, means: ndarray, alpha: float) -> Drop:
    """The filter: drops what costs the judge more than ``alpha`` times the mean of its class.

    Args:
        judge: a segmenter in evaluation mode whose last classes are the new ones. means: (C,) nats. alpha: >= 0.
    """

    def drop(images: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
        return dropped_by(losses(judge, images, len(means)), masks, means, alpha)

    return drop


def dropped_by(loss: Tensor, masks: Tensor, means: ndarray, alpha: float) -> Tensor:
    """(B, C, h, w) bool: the cells of the masks whose loss is above ``alpha`` times their class's mean.

    Args:
        loss: (B, C, h, w) nats. masks: (B, C, h, w) bool. means: (C,). alpha: >= 0.
    """
    ids = torch.arange(len(means)).view(1, -1, 1, 1).expand_as(masks)
    left = filter_labels(loss[masks], ids[masks], means, alpha=alpha)
    out = torch.zeros_like(masks)
    out[masks] = left == IGNORE
    return out


def at_random(shares: ndarray) -> Drop:
    """The control: drops a share of each class's cells whatever they cost. ``shares``: (C,) in [0, 1]."""
    rates = torch.as_tensor(shares, dtype=torch.float32).view(1, -1, 1, 1)

    def drop(images: Tensor, masks: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(masks.shape, generator=generator) < rates

    return drop


@torch.no_grad()
def means_of(judge: Segmenter, experts: Experts, images: ndarray, tags: ndarray, seed: int) -> ndarray:
    """(C,) mean loss of each new class on the pseudo-labels of the step's pictures, nats.

    Args:
        judge: in evaluation mode. experts: who mark. images: (N, H, W, 3) uint8. tags: (N, C) bool.
        seed: of the drawn seeds.
    """
    stats = ClassLoss(tags.shape[1])
    for shown, masks, _ in _marked(judge, experts, images, tags, seed):
        ids = torch.arange(tags.shape[1]).view(1, -1, 1, 1).expand_as(masks)
        stats.update(losses(judge, shown, tags.shape[1])[masks], ids[masks])
    return stats.compute()


@torch.no_grad()
def measured(
    judge: Segmenter, experts: Experts, drop: Drop, images: ndarray, tags: ndarray, truth: ndarray, ids: range,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """What the filter drops of the pseudo-labels of the step's pictures, which the papers could not measure.

    Args:
        judge, experts, images, tags, seed: as of :func:`means_of`. drop: the filter.
        truth: (N, H, W) uint8 with the new classes' logits ``ids``.

    Returns:
        ``masks`` ({"before", "after": precision, recall and iou as fractions}), ``shares`` (C: dropped of each class's
        cells), ``wrong`` (share of the dropped pixels that were wrong), ``found`` (share of the wrong pixels that were
        dropped); None where there is nothing to take a share of.
    """
    quality = {name: MaskQuality(len(ids)) for name in ("before", "after")}
    cells, gone = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    counts, generator = np.zeros(3, np.int64), torch.Generator().manual_seed(seed + 1)
    for shown, masks, part in _marked(judge, experts, images, tags, seed):
        true = one_hot(torch.from_numpy(truth[part]), ids)
        out = drop(shown, masks, generator) & masks
        cells += masks.sum((0, 2, 3)).numpy()
        gone += out.sum((0, 2, 3)).numpy()
        before, dropped = (F.interpolate(m.float(), true.shape[2:], mode="nearest") > 0.5 for m in (masks, out))
        quality["before"].update(before, true)
        quality["after"].update(before & ~dropped, true)
        counts += [int(m.sum()) for m in (dropped & ~true, dropped, before & ~true)]
    shares = np.divide(gone, cells, out=np.zeros(len(ids)), where=cells > 0)
    return {
        "masks": {name: q.means() for name, q in quality.items()},
        "shares": [round(float(s), 6) for s in shares],
        "wrong": _share(counts[0], counts[1]),
        "found": _share(counts[0], counts[2]),
    }


def _share(part: int, whole: int) -> float | None:
    return round(float(part / whole), 6) if whole else None


def _marked(judge: Segmenter, experts: Experts, images: ndarray, tags: ndarray, seed: int):
    """Batches of pictures (b, 3, H, W), their pseudo-labels on the judge's grid, and which they are."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        shown = torch.from_numpy(np.ascontiguousarray(images[part])).permute(0, 3, 1, 2).contiguous()
        grid = tuple(judge.grid_logits(shown[:1]).shape[-2:])
        yield shown, experts.masks(shown, torch.from_numpy(tags[part]), grid, generator), part


def made_by(
    how: str, judge: Segmenter, experts: Experts, images: ndarray, tags: ndarray, alpha: float, seed: int
) -> tuple[Drop, ndarray]:  # fmt: skip
    """A filter and the class means that it rests on.

    Args:
        how: one of :data:`HOW`; "at random" drops as large a share of each class as the filter does.
        judge, experts, images, tags, seed: as of :func:`means_of`. alpha: the margin.

    Raises:
        ValueError: another word.
    """
    if how not in HOW:
        raise ValueError(f"`drop` must be one of {', '.join(HOW)}; got {how!r}")
    means = means_of(judge, experts, images, tags, seed)
    drop = by_loss(judge, means, alpha)
    if how == HOW[0]:
        return drop, means
    nothing = np.full((len(images), *images.shape[1:3]), 0, np.uint8)
    found = measured(judge, experts, drop, images, tags, nothing, range(1, 1 + tags.shape[1]), seed)
    return at_random(np.array(found["shares"])), means
