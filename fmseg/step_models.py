"""An incremental step's models: reading a segmenter at several depths, growing its classifier, a fresh head beside it.

What teachers, localizers and distillation losses look at is inside a segmenter: its encoder's last map, the head's map
before the classifier, the scores on the grid. This module knows where these are in mmsegmentation's segmentors; the
methods (:mod:`fmseg.fmwiss`, :mod:`fmseg.wilson_step`, :mod:`fmseg.pixel_step`, :mod:`fmseg.cam`) do not.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmseg.distill import balanced_classifier
from fmseg.incremental import grown, start_rare
from fmseg.localizer import Localizer
from fmseg.segmenters import Segmenter


class Reading(NamedTuple):
    """A segmenter's maps of a batch, in the order in which they are made.

    ``stages``: outputs of the encoder's stages, empty unless asked for; ``encoder`` (B, D, h, w): its last map, after
    the activation; ``embedding`` (B, E, h, w): the head's map before the classifier; ``grid`` (B, C, h, w): scores.
    """

    stages: tuple[Tensor, ...]
    encoder: Tensor
    embedding: Tensor
    grid: Tensor


def read(segmenter: Segmenter, images: Tensor, *, stages: bool = False) -> Reading:
    """Look into a segmenter; ``grid`` is what its ``grid_logits`` gives, with the same gradients.

    Args:
        segmenter: DeepLabV3 of any size: a residual encoder, and a head with a classifier on one map.
        images: (B, 3, H, W) uint8, or float in 0..255.
        stages: also the outputs of the encoder's stages.

    Raises:
        TypeError: the segmenter's head is of another kind.
    """
    trunk, head = segmenter.model.backbone, _head(segmenter)
    caught: list[Tensor] = []
    names = trunk.res_layers if stages else []
    hooks = [getattr(trunk, n).register_forward_hook(lambda module, given, made: caught.append(made)) for n in names]
    try:
        features = segmenter._features(images)
    finally:
        for hook in hooks:
            hook.remove()
    embedding = head._forward_feature(features)
    return Reading(tuple(caught), features[-1], embedding, head.cls_seg(embedding))


def grow(
    segmenter: Segmenter, added: int, *, seed: int, balanced: bool = False, prior: float | None = None
) -> Segmenter:  # fmt: skip
    """A copy of a segmenter that scores more classes; nothing that it knew has changed.

    Args:
        segmenter: is not changed.
        added: classes, >= 1.
        seed: of the new classes' weights; torch's global random state is left alone.
        balanced: they begin as MiB's do (:func:`fmseg.distill.balanced_classifier`); without, as a fresh convolution.
        prior: of sigmoid outputs: the new classes begin with this probability (:func:`fmseg.incremental.start_rare`).

    Raises:
        ValueError: both ``balanced`` and ``prior``, which exclude each other.
        TypeError: the segmenter's head is of another kind.
    """
    if balanced and prior is not None:
        raise ValueError("`balanced` and `prior` exclude each other: both say how new classes begin")
    made = copy.deepcopy(segmenter)
    head = _head(made)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = grown(head.conv_seg, added)
    if balanced:
        weight, bias = balanced_classifier(head.conv_seg.weight, head.conv_seg.bias, added)
        with torch.no_grad():
            classifier.weight.copy_(weight)
            classifier.bias.copy_(bias)
    if prior is not None:
        start_rare(classifier, prior, known=segmenter.num_classes)
    head.conv_seg = classifier
    head.num_classes = head.out_channels = made.num_classes = classifier.out_channels
    return made


def begin_rare(segmenter: Segmenter, prior: float, *, softmax: bool) -> None:
    """Set the biases of a fresh segmenter's classifier by a prior, in place: :func:`fmseg.incremental.start_rare`."""
    start_rare(_head(segmenter).conv_seg, prior, softmax=softmax)


class Head(nn.Module):
    """A head like a segmenter's own, beside it: FMWISS's plug-in teacher is one (figure 2: ASPP).

    Args:
        segmenter: whose head is copied in form.
        num_classes: of the new one; at least the segmenter's with ``copied``.
        seed: of its weights.
        prior: every fresh class but background begins with this probability; None: as a fresh convolution does.
        copied: begin with the segmenter's weights, and fresh ones for what it does not know; False: all are fresh.
    """

    def __init__(
        self, segmenter: Segmenter, num_classes: int, *, seed: int, prior: float | None = None, copied: bool = False
    ):  # fmt: skip
        super().__init__()
        self.layers = copy.deepcopy(_head(segmenter))
        old, known = self.layers.conv_seg, segmenter.num_classes if copied else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if not copied:
                self.layers.conv_seg = nn.Conv2d(old.in_channels, num_classes, 1)
                for module in self.layers.modules():
                    if hasattr(module, "reset_parameters"):
                        module.reset_parameters()
            elif num_classes > known:
                self.layers.conv_seg = grown(old, num_classes - known)
        if prior is not None:
            start_rare(self.layers.conv_seg, prior, known=known)
        self.layers.num_classes = self.layers.out_channels = num_classes

    def forward(self, encoder: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder map (B, D, h, w) -> scores (B, C, h, w) and the embedding before them (B, E, h, w)."""
        embedding = self.layers._forward_feature([encoder])
        return self.layers.cls_seg(embedding), embedding


def localizer_of(segmenter: Segmenter, classes: int, *, seed: int) -> Localizer:
    """WILSON's localizer for a segmenter's encoder, as wide as its head (256 at the papers' sizes), fresh weights."""
    head = _head(segmenter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Localizer(head.in_channels, classes, head.channels)


class Step(nn.Module):
    """What the training loop sees of an incremental step; methods add ``loss``.

    Attributes:
        student: the segmenter that learns, with a channel for every class up to this step.
        old: the model before the step, frozen: no gradients, never in training mode.
        old_classes, num_classes: K and C.
    """

    partial = True  # some parameters rest in some steps

    def __init__(self, student: Segmenter, old: Segmenter):
        super().__init__()
        if student.num_classes <= old.num_classes:
            raise ValueError(
                f"`student` must know more classes than `old`, {old.num_classes}; got {student.num_classes}. See grow"
            )
        self.student, self.old = student, copy.deepcopy(old).eval().requires_grad_(False)
        self.old_classes, self.num_classes = old.num_classes, student.num_classes

    def train(self, mode: bool = True):
        super().train(mode)
        self.old.eval()
        return self

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W): the student's scores at every pixel."""
        return self.student.logits(images)

    def loss_weight(self, labels: Tensor) -> int:
        """What a share of a batch counts: its images, for most of the losses are averaged over these."""
        return len(labels)


class Warm:
    """The share of the steps in which only the teacher or localizer learns; mixed into a :class:`Step`.

    ``warm`` is True before step round(share * steps), as :func:`fmseg.training.train` counts them.
    """

    warmup: float = 0.0
    warm: bool = False

    def at_step(self, step: int, steps: int) -> None:
        self.warm = step < round(self.warmup * steps)


def generator_of_step() -> torch.Generator:
    """A generator from torch's global random state, which the training loop seeds for every step."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


def _head(segmenter: Segmenter) -> nn.Module:
    head = segmenter.model.decode_head
    if not hasattr(head, "conv_seg") or not hasattr(head, "_forward_feature"):
        raise TypeError(f"`segmenter` must be DeepLabV3, whose head has one classifier; got {segmenter.name}")
    return head
