r"""One incremental step of FMWISS: foundation models mark the new classes, a teacher learns them, the student follows.

Yu et al. 2023, section 3; eqs 1 to 12 are :mod:`fmseg.coseg`, :mod:`fmseg.contrast`, :mod:`fmseg.memory` and
:mod:`fmseg.incremental`. In every step of training::

    M = experts(images, image labels)                       # before anything is pasted: they would find that, too
    images, pasted = paste(images, memory);  M = 0 under what was pasted
    teacher: L_BCE1 (new classes from M, old ones from the old model and the paste) + lambda L_DCL
    student: L_BCE2 on the mixture of teacher and old model, once the warm-up is over

Everything happens on the grid of the scores. No official code exists; what the paper leaves open is an option.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmseg.contrast import POINTS, TEMPERATURE, dense_contrast
from fmseg.distill import encoder_distillation
from fmseg.experts import Experts
from fmseg.incremental import (
    ALPHA,
    BETA,
    DCL_WEIGHT,
    HARD_OVER,
    binary_loss,
    dense_labels,
    old_targets,
    start_rare,
    student_targets,
)
from fmseg.localizer import Localizer
from fmseg.memory import Memory, erase, on_grid, paste
from fmseg.segmenters import Segmenter
from fmseg.step_models import Head, Reading, Step, Warm, generator_of_step, localizer_of, read

HEADS = ("aspp", "localizer")
STARTS = ("fresh", "old")


@dataclass(frozen=True)
class Options:
    """What can be chosen in a step; numbers in brackets are items of the dossier's section 4.

    Args:
        alpha, beta: shares of the hard label and of the old model in the student's targets, in [0, 1].
        dcl_weight: lambda >= 0; 0: the teacher learns by BCE alone.
        temperature, points: tau > 0, and points a class, of the dense contrastive loss.
        teacher: False: the student learns from the masks directly.
        head: the teacher's form [8]: "aspp" (the paper's), or "localizer", WILSON's three convolutions.
        teacher_start: the weights that an "aspp" teacher begins with [8]: "fresh", as WILSON's localizer has, or "old":
            those of the old model's head.
        teacher_gradient: whether the teacher's losses reach the encoder [9].
        encoder_weight: of WILSON's encoder distillation, >= 0 [9].
        warmup: share of the steps in which only the teacher learns, in [0, 1); the paper: 5 of 40 epochs.
        freeze_encoder: in the warm-up the teacher's losses do not reach the encoder [9].
        bkg_min: the teacher's background is at most 1 - max_c M^c [11].
        student_bkg_min: the same for the student's, which eq 10 does not print [11].
        hard_over: which channels compete for the hard label [13].
        reduction: "mean" or "sum" over classes of the student's loss [12].
        teacher_reduction: the same of the teacher's.

    Raises:
        ValueError: a value is out of range.
    """

    alpha: float = ALPHA
    beta: float = BETA
    dcl_weight: float = DCL_WEIGHT
    temperature: float = TEMPERATURE
    points: int = POINTS
    teacher: bool = True
    head: str = "aspp"
    teacher_start: str = "fresh"
    teacher_gradient: bool = True
    encoder_weight: float = 0.0
    warmup: float = 0.125
    freeze_encoder: bool = False
    bkg_min: bool = True
    student_bkg_min: bool = False
    hard_over: str = "all"
    reduction: str = "mean"
    teacher_reduction: str = "mean"

    def __post_init__(self):
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1]; got {getattr(self, name)}")
        for name in ("dcl_weight", "encoder_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be >= 0; got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"`warmup` must be in [0, 1), a share of the steps; got {self.warmup}")
        known = {"head": HEADS, "reduction": ("mean", "sum"), "teacher_reduction": ("mean", "sum")}
        for name, allowed in (known | {"hard_over": HARD_OVER, "teacher_start": STARTS}).items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if self.teacher_start == "old" and self.head != "aspp":
            raise ValueError(f"`teacher_start` 'old' needs the head 'aspp', which the old model has; got {self.head!r}")


class FmwissStep(Warm, Step):
    """Student, old model and teacher of one step.

    Args:
        student: grown segmenter. old: the segmenter before the step.
        experts: made for the new classes, in the order of the student's channels.
        memory: instances of old classes; None: nothing is pasted.
        options: see :class:`Options`.
        seed: of the teacher's weights.
        paste_probability: of pasting into an image, in [0, 1].
        prior: the teacher's classes begin with this probability; None: as torch begins a convolution.
    """

    def __init__(
        self, student: Segmenter, old: Segmenter, experts: Experts, memory: Memory | None, options: Options, *,
        seed: int, paste_probability: float = 1.0, prior: float | None = None,
    ):  # fmt: skip
        super().__init__(student, old)
        new = self.num_classes - self.old_classes
        if len(experts.text) != new:
            raise ValueError(f"`experts` must know the {new} new classes; they know {len(experts.text)}")
        self.experts, self.memory, self.options = experts, memory, options
        self.warmup, self.paste_probability = options.warmup, paste_probability
        self.teacher = _teacher(self.old, self.num_classes, options, seed, prior) if options.teacher else None

    def loss(self, images: Tensor, labels: Tensor, tags: Tensor) -> Tensor:
        """The sum of :meth:`losses`.

        Args:
            images: (B, 3, H, W) uint8, or float in 0..255.
            labels: are not looked at.
            tags: (B, new classes) bool, image-level labels; an image without any teaches that no new class is there.

        Raises:
            ValueError: tags do not fit, or a map is not finite.
        """
        return sum(self.losses(images, tags, generator_of_step()).values())

    def losses(self, images: Tensor, tags: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Every loss of one step by name, weighted: ``encoder``, ``new``, ``old``, ``dcl``, ``student``.

        All draws come from ``generator``. What is switched off, or resting in the warm-up, is not there.
        """
        options = self.options
        pasted, cells, masks = self.prepare(images, tags, generator)
        reading = read(self.student, pasted)
        with torch.no_grad():
            old = read(self.old, pasted)
        parts: dict[str, Tensor] = {}
        if options.encoder_weight:
            parts["encoder"] = options.encoder_weight * encoder_distillation(reading.encoder, old.encoder)
        if self.teacher is None:
            targets = torch.cat([old_targets(old.grid, cells, masks if options.bkg_min else None), masks.float()], 1)
        else:
            scores = self._teach(parts, reading, old.grid, cells, masks, generator)
            targets = student_targets(
                scores, old.grid, tags, alpha=options.alpha, beta=options.beta, hard_over=options.hard_over,
                bkg_min=options.student_bkg_min,
            )  # fmt: skip
        if self.teacher is None or not self.warm:
            parts["student"] = binary_loss(reading.grid, targets, options.reduction)
        return parts

    def prepare(
        self, images: Tensor, tags: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
        """What a step learns from: the experts look first, then an old object is pasted into each image.

        Returns:
            images with their pastes; (B, h, w) int64, the pasted classes on the grid (255: none), or None without a
            memory; (B, C, h, w) bool, masks of the new classes with nothing under what was pasted.
        """
        with torch.no_grad():
            grid = self._grid(images)
            masks = self.experts.masks(images, tags, grid, generator)
            if self.memory is None:
                return images, None, masks
            pasted = paste(images, self.memory, probability=self.paste_probability, generator=generator)
            cells = on_grid(pasted.labels, grid)
            return pasted.images, cells, erase(masks, cells)

    def teach(self, encoder: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's scores (B, K + C, h, w) and embedding (B, E, h, w) of an encoder map."""
        if isinstance(self.teacher, Localizer):
            embedding = self.teacher.layers[:-1](encoder)
            return self.teacher.layers[-1](embedding), embedding
        return self.teacher(encoder)

    def _teach(
        self, parts: dict[str, Tensor], reading: Reading, old: Tensor, cells: Tensor | None, masks: Tensor,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """The teacher's scores; its losses join ``parts``."""
        options, known = self.options, self.old_classes
        apart = not options.teacher_gradient or (self.warm and options.freeze_encoder)
        scores, embedding = self.teach(reading.encoder.detach() if apart else reading.encoder)
        of_old = old_targets(old, cells, masks if options.bkg_min else None)
        parts["new"] = binary_loss(scores[:, known:], masks.float(), options.teacher_reduction)
        parts["old"] = binary_loss(scores[:, :known], of_old, options.teacher_reduction)
        if options.dcl_weight:
            near = dense_contrast(
                embedding, dense_labels(masks, old, cells), generator, points=options.points,
                temperature=options.temperature,
            )  # fmt: skip
            parts["dcl"] = options.dcl_weight * near
        return scores

    def _grid(self, images: Tensor) -> tuple[int, int]:
        """(h, w) of the scores of such images; learned once, by looking."""
        key = tuple(images.shape[-2:])
        if getattr(self, "_known_grid", (None,))[0] != key:
            self._known_grid = (key, tuple(self.old.grid_logits(images[:1]).shape[-2:]))
        return self._known_grid[1]


def _teacher(old: Segmenter, classes: int, options: Options, seed: int, prior: float | None) -> nn.Module:
    if options.head == "aspp":
        made = Head(old, classes, seed=seed, prior=prior, copied=options.teacher_start == "old")
        return made.requires_grad_(True)  # the old model's own weights rest
    made = localizer_of(old, classes, seed=seed)
    if prior is not None:
        start_rare(made.layers[-1], prior)
    return made
