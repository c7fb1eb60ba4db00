"""How right are masks? Precision, recall and IoU of each class, counted over pixels: update, merge, compute.

What the paper could not measure: the world knows the truth of the step's pictures, so that the pseudo-labels of every
stage of FMWISS can be judged on the very pictures that they teach on.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from fmseg.experts import Experts
from fmseg.fmwiss import FmwissStep
from fmseg.localizer import present_only
from fmseg.step_models import read
from fmseg.wilson_step import WilsonStep

MEASURES = ("precision", "recall", "iou")
BATCH = 32


class MaskQuality:
    """Counts of right, found and true pixels of each class.

    Args:
        classes: C >= 1. Masks of different classes may overlap.
    """

    def __init__(self, classes: int):
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
            raise ValueError(f"`classes` must be an integer >= 1; got {classes!r}")
        self.right, self.found, self.true = (np.zeros(classes, np.int64) for _ in range(3))

    def update(self, masks: Tensor, truth: Tensor) -> "MaskQuality":
        """Add a batch: masks and truth (B, C, H, W) bool. Returns itself; ValueError where they do not fit."""
        expected = (len(self.right),)
        if masks.shape != truth.shape or masks.shape[1:2] != expected or {masks.dtype, truth.dtype} != {torch.bool}:
            raise ValueError(
                f"`masks` and `truth` must be (B, {expected[0]}, H, W) bool; got {tuple(masks.shape)} {masks.dtype} "
                f"and {tuple(truth.shape)} {truth.dtype}"
            )
        for count, here in ((self.right, masks & truth), (self.found, masks), (self.true, truth)):
            count += here.sum((0, 2, 3)).cpu().numpy()
        return self

    def merge(self, other: "MaskQuality") -> "MaskQuality":
        """Add what another shard has counted; returns itself. ValueError for another number of classes."""
        if len(other.right) != len(self.right):
            raise ValueError(f"`other` must count {len(self.right)} classes; got {len(other.right)}")
        for name in ("right", "found", "true"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def compute(self) -> dict[str, ndarray]:
        """(C,) precision, recall and iou as fractions; NaN where nothing was found, nothing is true, or neither."""
        union = self.found + self.true - self.right
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "precision": self.right / self.found, "recall": self.right / self.true, "iou": self.right / union,
            }  # fmt: skip

    def means(self) -> dict[str, float | None]:
        """Mean over the classes that occur in the truth; a class of which nothing was found has precision 0 there."""
        each, there = self.compute(), self.true > 0
        each["precision"] = np.nan_to_num(each["precision"])
        return {name: round(float(v[there].mean()), 6) if there.any() else None for name, v in each.items()}


def one_hot(labels: Tensor, ids: Sequence[int]) -> Tensor:
    """(B, H, W) labels -> (B, C, H, W) bool, one channel for each of ``ids``."""
    return labels[:, None] == torch.tensor(list(ids), device=labels.device).view(1, -1, 1, 1)


@torch.no_grad()
def stages(
    step: FmwissStep, experts: Experts, images: ndarray, tags: ndarray, truth: ndarray, seed: int
) -> dict[str, MaskQuality]:  # fmt: skip
    """The pseudo-labels of new classes after each stage of a trained step, against the truth at every pixel.

    Masks on the grid cover whole cells. Teacher and student: the best of all channels, absent classes left out.

    Args:
        step: after training; evaluated in eval mode, its mode restored.
        experts: asked with seeds (``use="union"``), whatever the step itself used.
        images: (N, H, W, 3) uint8, pictures of the step. tags: (N, C) bool.
        truth: (N, H, W) uint8: logits of the new classes, anything below these elsewhere.
        seed: of the drawn seeds.

    Returns:
        By stage: "clip", "seeds", "union", "teacher" (without one: not there), "student", and "grid": the truth
        itself, brought to the grid and back, which bounds what stands on the grid.
    """
    ids, was = range(step.old_classes, step.num_classes), step.training
    names = ("clip", "seeds", "union", *(("teacher",) if step.teacher is not None else ()), "student", "grid")
    found = {name: MaskQuality(len(ids)) for name in names}
    generator = torch.Generator().manual_seed(seed)
    step.eval()
    try:
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            shown = torch.from_numpy(np.ascontiguousarray(images[part])).permute(0, 3, 1, 2).contiguous()
            present, true = torch.from_numpy(tags[part]), one_hot(torch.from_numpy(truth[part]), ids)
            masks = experts.co_segment(shown, present, generator)
            reading = read(step.student, shown)
            by_name = {"clip": masks.clip, "seeds": masks.guided, "union": masks.mask}
            if step.teacher is not None:
                by_name["teacher"] = _best(step.teach(reading.encoder)[0], ids, present)
            by_name["student"] = _best(reading.grid, ids, present)
            size = reading.grid.shape[2:]
            by_name["grid"] = F.adaptive_avg_pool2d(true.float(), size) >= 0.5
            for name, cells in by_name.items():
                whole = F.interpolate(cells.float(), true.shape[2:], mode="nearest") > 0.5
                found[name].update(whole, true)
    finally:
        step.train(was)
    return found


@torch.no_grad()
def of_localizer(step: WilsonStep, images: ndarray, tags: ndarray, truth: ndarray) -> MaskQuality:
    """How right a trained step's localizer is: its best channel, classes that the image label lacks left out.

    Args:
        step: after training; evaluated in eval mode, its mode restored.
        images, tags, truth: as of :func:`stages`.
    """
    ids, was = range(step.old_classes, step.num_classes), step.training
    found = MaskQuality(len(ids))
    step.eval()
    try:
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            shown = torch.from_numpy(np.ascontiguousarray(images[part])).permute(0, 3, 1, 2).contiguous()
            true = one_hot(torch.from_numpy(truth[part]), ids)
            flags = F.pad(torch.from_numpy(tags[part]), (step.old_classes - 1, 0)).float()
            guess = step.localizer.guess(read(step.student, shown).encoder).softmax(1)
            cells = one_hot(present_only(guess, flags).argmax(1), ids)
            found.update(F.interpolate(cells.float(), true.shape[2:], mode="nearest") > 0.5, true)
    finally:
        step.train(was)
    return found


def _best(scores: Tensor, ids: range, present: Tensor) -> Tensor:
    return one_hot(scores.argmax(1), ids) & present[:, :, None, None]
