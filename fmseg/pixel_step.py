"""One incremental step with pixel labels: fine-tuning, LwF, LwF-MC, ILT, MiB, PLOP, SDR, on the one trainer.

The losses are those of :mod:`fmseg.distill`, :mod:`fmseg.plop` and :mod:`fmseg.sdr`, at full resolution with scores
resized to the labels and with the weights that ``--method`` sets, as in the official training scripts. Differs from the
official code: PLOP's maps are the stages' outputs after their activation; SDR's means of old classes are counted once
over the base step's pictures with the trained base model, there along its training.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from fmseg import distill, plop, sdr
from fmseg.batches import Source
from fmseg.pixel_loss import resize_scores
from fmseg.segmenters import Segmenter
from fmseg.step_models import Reading, Step, read

METHODS = ("ft", "lwf", "lwf-mc", "ilt", "mib", "plop", "sdr")
BALANCED = ("mib", "plop", "sdr")  # whose new classes begin as MiB's
BATCH = 32


class PixelStep(Step):
    """Student and old model of one step.

    Args:
        method: one of :data:`METHODS`.
        student: grown segmenter, balanced for :data:`BALANCED`. old: the segmenter before the step.
        thresholds: PLOP's, of :func:`plop_thresholds`.
        prototypes: SDR's, of :func:`base_prototypes`; they go on with the step's pictures and are part of a checkpoint.

    Raises:
        ValueError: an unknown method, or one that lacks what it needs.
    """

    def __init__(
        self, method: str, student: Segmenter, old: Segmenter, *, thresholds: Tensor | None = None,
        prototypes: sdr.Prototypes | None = None,
    ):  # fmt: skip
        super().__init__(student, old)
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}")
        if (method == "plop") != (thresholds is not None) or (method == "sdr") != (prototypes is not None):
            raise ValueError(f"{method}: plop needs `thresholds`, sdr needs `prototypes`, no other method takes them")
        self.method = method
        if thresholds is not None:
            self.register_buffer("thresholds", thresholds)
        if prototypes is not None:
            started = prototypes.grow(self.num_classes)
            self.register_buffer("sums", started.sums)
            self.register_buffer("counts", started.counts)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The method's loss.

        Args:
            images: (B, 3, H, W) uint8, or float in 0..255.
            labels: (B, H, W) int64, new classes; the old ones' pixels are labelled background.

        Raises:
            TypeError, ValueError: shapes or labels do not fit, or a map is not finite.
        """
        stages = self.method == "plop"
        new = read(self.student, images, stages=stages)
        logits = resize_scores(new.grid, tuple(labels.shape[1:]))
        if self.method == "ft":
            return F.cross_entropy(logits, labels, ignore_index=255)
        with torch.no_grad():
            old = read(self.old, images, stages=stages)
            old_logits = resize_scores(old.grid, tuple(labels.shape[1:]))
        if self.method == "lwf-mc":
            return distill.lwf_mc_loss(logits, labels, old_logits)
        if self.method == "plop":
            pseudo = plop.pseudo_labels(old_logits, labels, self.thresholds, self.num_classes)
            kept = plop.pod_loss(
                (*new.stages, new.embedding), (*old.stages, old.embedding), new.grid, old.grid
            )  # fmt: skip
            return plop.pseudo_label_loss(logits, pseudo) + kept
        if self.method in ("lwf", "ilt"):
            loss = F.cross_entropy(logits, labels, ignore_index=255)
            if self.method == "ilt":
                return loss + distill.ilt_distillation(logits, old_logits, new.encoder, old.encoder)
            return loss + distill.LWF_WEIGHT * distill.knowledge_distillation(logits, old_logits)
        loss = distill.unbiased_cross_entropy(logits, labels, self.old_classes)
        weight = sdr.KD_WEIGHT if self.method == "sdr" else distill.MIB_WEIGHT
        loss = loss + weight * distill.unbiased_distillation(logits, old_logits)
        return loss + self._sdr(new, labels, old_logits) if self.method == "sdr" else loss

    def _sdr(self, new: Reading, labels: Tensor, old_logits: Tensor) -> Tensor:
        means = sdr.Prototypes.from_state(self.sums, self.counts)
        means.update(new.encoder, labels, background=False)
        self.sums.copy_(means.sums)
        self.counts.copy_(means.counts)
        prototypes = means.compute().to(new.encoder.device)
        loss = sdr.MATCHING_WEIGHT * sdr.prototype_matching(new.encoder, labels, old_logits, prototypes)
        loss = loss + sdr.ATTRACTION_WEIGHT * sdr.attraction(new.encoder, labels, prototypes)
        loss = loss + sdr.REPULSION_WEIGHT * sdr.repulsion(new.encoder, labels)
        return loss + sdr.SPARSITY_WEIGHT * sdr.sparsification(new.encoder, labels)


def begun(
    method: str, student: Segmenter, old: Segmenter, source: Source, base_source: Callable[[], Source]
) -> PixelStep:  # fmt: skip
    """A step with what its method counts beforehand: PLOP's thresholds, SDR's prototypes.

    Args:
        method, student, old: as of :class:`PixelStep`.
        source: the step's pictures with pixel labels. base_source: makes those of the base step, where they are needed.
    """
    extra = {}
    if method == "plop":
        extra["thresholds"] = plop_thresholds(old, source, student.num_classes)
    if method == "sdr":
        extra["prototypes"] = base_prototypes(old, base_source())
    return PixelStep(method, student, old, **extra)


@torch.no_grad()
def plop_thresholds(old: Segmenter, source: Source, classes: int) -> Tensor:
    """(K,) PLOP's median uncertainties of an old model on the step's pictures, for ``classes`` after the step.

    True medians: the official code's (:meth:`fmseg.plop.ClassMedians.compute`) may be infinite or no number.
    """
    medians = plop.ClassMedians(old.num_classes, classes)
    for images, labels in _passes(old, source):
        medians.update(old.logits(images), labels)
    return medians.compute(official=False)


@torch.no_grad()
def base_prototypes(old: Segmenter, source: Source) -> sdr.Prototypes:
    """SDR's means of the old classes' features, over the pictures of the base step; background does not count."""
    channels = old.model.decode_head.in_channels
    means = sdr.Prototypes(old.num_classes, channels)
    for images, labels in _passes(old, source):
        means.update(read(old, images).encoder, labels, background=False)
    return means


def _passes(model: Segmenter, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
    """Every picture once, the model in eval mode meanwhile."""
    was, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        for start in range(0, len(source), BATCH):
            images, labels = _taken(source, np.arange(start, min(start + BATCH, len(source))))
            yield images.to(device), labels.to(device)
    finally:
        model.train(was)


def _taken(source: Source, index: ndarray) -> tuple[Tensor, Tensor]:
    images, labels = source.take(index, np.zeros(len(index), np.int64))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long()
