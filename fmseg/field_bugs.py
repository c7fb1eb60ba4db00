"""Mistakes of the field, to be planted on purpose: each a small function that does the wrong thing; and whose it is.

None of them raises an error where it was made; each moves a score. :mod:`fmseg.field_bug_runs` measures by how much.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from fmseg.contrast import POINTS, TEMPERATURE, sample_points
from fmseg.datasets import IGNORE
from fmseg.evaluation import predict
from fmseg.metrics import Confusion, mean_iou

LEARNED_RIMS = ("as background", "as the last class")
_NORMS = nn.modules.batchnorm._BatchNorm


def with_rim(labels: ndarray, width: int = 1) -> ndarray:
    """Masks with a rim around every object that has no label, as VOC's have: right data, so far.

    Args:
        labels: (N, H, W) uint8 class ids. width: pixels on either side of an outline, >= 0.

    Returns:
        The same with 255 where another id lies within ``width`` pixels up, down, left or right.
    """
    rim = np.zeros(labels.shape, bool)
    for axis in (1, 2):
        for by in range(1, width + 1):
            ahead = [slice(None)] * 3
            behind = [slice(None)] * 3
            ahead[axis], behind[axis] = slice(by, None), slice(None, -by)
            other = labels[tuple(ahead)] != labels[tuple(behind)]
            rim[tuple(ahead)] |= other
            rim[tuple(behind)] |= other
    return np.where(rim, np.uint8(IGNORE), labels)


def learn_rim(labels: ndarray, how: str, num_classes: int) -> ndarray:
    """Masks whose ignored pixels have become a class.

    "as background": ids were moved up by one in bytes, 255 + 1 = 0. "as the last class": ids were moved down by one, so
    that the loss met 254, which it does not ignore; the error that followed was silenced by clamping.

    Args:
        labels: (N, H, W) uint8 class ids or 255. how: one of :data:`LEARNED_RIMS`. num_classes: C.

    Raises:
        ValueError: an unknown ``how``.
    """
    if how not in LEARNED_RIMS:
        raise ValueError(f"`how` must be one of {', '.join(LEARNED_RIMS)}; got {how!r}")
    wrong = 0 if how == "as background" else num_classes - 1
    return np.where(labels == IGNORE, np.uint8(wrong), labels)


class InTrainMode(nn.Module):
    """A model whose batch norms use the statistics of the pictures at hand, as without ``.eval()``.

    The official ``test.py`` of Grounded Diffusion never calls it. Dropout rests, so that nothing else differs. The
    model stays as it is, its running statistics included.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = copy.deepcopy(model).eval()

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) of (B, 3, H, W) uint8; they depend on the whole batch."""
        for module in self.model.modules():
            if isinstance(module, _NORMS):
                module.train()
        return self.model.logits(images)


def without_statistics(model: nn.Module) -> nn.Module:
    """A copy as it comes back from a checkpoint that holds parameters alone: running statistics are a fresh model's.

    What was measured before saving cannot be had again after loading (arthurdouillard/CVPR2021_PLOP, issue 3, reports
    such a gap, whatever its cause there).
    """
    made = copy.deepcopy(model)
    for module in made.modules():
        if isinstance(module, _NORMS):
            module.reset_running_stats()
    return made


def miou_of(model: nn.Module, images: ndarray, labels: ndarray, num_classes: int, batch_size: int = 64) -> float:
    """mIoU in percent from counts over all pictures, the right way; the model sees ``batch_size`` at a time."""
    counts = Confusion(num_classes)
    counts.update(predict(model, images, batch_size), labels)
    return 100 * mean_iou(counts.compute())


def mean_of_pictures(pred: ndarray, labels: ndarray, num_classes: int) -> float:
    """Mean over pictures of each picture's own mIoU, in percent: another number under the same name.

    A class counts in a picture where it is in the truth; a rare class weighs as little as it is rare.
    """
    found = []
    for guess, truth in zip(pred, labels, strict=True):
        counts = Confusion(num_classes)
        counts.update(guess[None], truth[None])
        found.append(mean_iou(counts.compute()))
    return 100 * float(np.mean(found))


def supcon(
    features: Tensor, labels: Tensor, generator: torch.Generator, *, points: int = POINTS,
    temperature: float = TEMPERATURE,
) -> Tensor:  # fmt: skip
    r"""SupConLoss (Khosla et al. 2020) in place of the dense contrastive loss: the same points, another denominator.

    .. math:: L_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{\exp(i \cdot p / \tau)}
              {\sum_{a \neq i} \exp(i \cdot a / \tau)}

    All positives share one softmax, so the loss ends at the logarithm of their number and not at 0, and on the way a
    positive that is nearer than the others is pushed back; anchors without a positive count as 0 in the mean, as in
    github.com/HobbitLong/SupContrast, losses.py.

    Args: as of :func:`fmseg.contrast.dense_contrast`, normalised.
    """
    at = sample_points(labels, points, generator)
    size = labels.shape[1] * labels.shape[2]
    drawn = F.normalize(features.flatten(2)[at // size, :, at % size].float(), dim=1)
    ids = labels.flatten()[at]
    if len(at) < 2:
        return drawn.sum() * 0
    alone = torch.eye(len(at), dtype=torch.bool, device=ids.device)
    similar = (drawn @ drawn.T / temperature).masked_fill(alone, torch.finfo(drawn.dtype).min)
    chances = similar - similar.logsumexp(1, keepdim=True)
    positive = (ids[:, None] == ids[None]) & ~alone
    each = -torch.where(positive, chances, 0.0).sum(1) / positive.sum(1).clamp(min=1)
    return each.mean()
