"""One incremental step of WILSON: a localizer finds the new classes from image labels, the segmenter follows.

Cermelli et al. 2022; losses in :mod:`fmseg.wilson`, :mod:`fmseg.localizer`, :mod:`fmseg.pamr`, put together as
train.py of github.com/fcdl94/WILSON (41c7d5b) does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg import pamr
from fmseg.distill import encoder_distillation
from fmseg.localizer import balanced_cross_entropy, classification_loss, localization_loss, pseudo_masks
from fmseg.segmenters import Segmenter
from fmseg.step_models import Step, Warm, localizer_of, read
from fmseg.wilson import (
    ALPHA,
    ENCODER_WEIGHT,
    image_weights,
    segmentation_loss,
    segmentation_targets,
    soft_labels,
)


class WilsonStep(Warm, Step):
    """Student, old model and localizer of one step.

    Args:
        student: grown segmenter. old: the segmenter before the step.
        seed: of the localizer's weights.
        alpha: share of the hard pseudo-label, in [0, 1].
        encoder_weight: of l_ENC, >= 0.
        warmup: share of the steps in which only l_CLS, l_LOC and l_ENC are learned, in [0, 1); officially 5 of 40
            epochs.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self, student: Segmenter, old: Segmenter, *, seed: int, alpha: float = ALPHA,
        encoder_weight: float = ENCODER_WEIGHT, warmup: float = 0.125,
    ):  # fmt: skip
        super().__init__(student, old)
        if not 0 <= alpha <= 1 or not encoder_weight >= 0 or not 0 <= warmup < 1:
            raise ValueError(
                "`alpha` must be in [0, 1], `encoder_weight` >= 0, `warmup` in [0, 1); got "
                f"{alpha}, {encoder_weight}, {warmup}"
            )
        self.alpha, self.encoder_weight, self.warmup = alpha, encoder_weight, warmup
        self.localizer = localizer_of(student, self.num_classes, seed=seed)

    def loss(self, images: Tensor, labels: Tensor, tags: Tensor) -> Tensor:
        """All losses of a step, weights as released; ``labels`` are not looked at.

        Args:
            images: (B, 3, H, W) uint8, or float in 0..255.
            tags: (B, new classes) bool.

        Raises:
            TypeError, ValueError: shapes do not fit, or a map is not finite.
        """
        return sum(self.losses(images, tags).values())

    def losses(self, images: Tensor, tags: Tensor) -> dict[str, Tensor]:
        """Every loss by name: ``cls``, ``loc``, ``enc``; after the warm-up ``sss`` and ``seg``."""
        reading = read(self.student, images)
        with torch.no_grad():
            old = read(self.old, images)
        flags = F.pad(tags, (self.old_classes - 1, 0)).float()  # old classes are officially absent everywhere
        z = self.localizer(reading.encoder)
        parts = {"cls": classification_loss(z, tags.float()), "loc": localization_loss(z, old.grid)}
        parts["enc"] = self.encoder_weight * encoder_distillation(reading.encoder, old.encoder)
        if self.warm:
            return parts
        guess = self.localizer.guess(reading.encoder)
        small = F.interpolate(images.float(), guess.shape[2:], mode="bilinear", align_corners=True)
        refined = pamr.refine(small, guess.softmax(1))
        parts["sss"] = balanced_cross_entropy(z, pseudo_masks(refined, flags), flags)
        soft = soft_labels(guess, flags, alpha=self.alpha)
        targets, weights = segmentation_targets(soft, old.grid), image_weights(soft, flags, self.old_classes)
        parts["seg"] = segmentation_loss(reading.grid, targets, weights)
        return parts
