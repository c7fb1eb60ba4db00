r"""PLOP: features pooled along rows and columns stay where they were, and the old model labels the background.

Douillard et al. 2021, "PLOP: Learning without Forgetting for Continual Semantic Segmentation", arXiv 2011.11390.
Official code: github.com/arthurdouillard/CVPR2021_PLOP (4b4a060), train.py. A step::

    medians = ClassMedians(old_classes, classes)             # once, over the step's training images
    for images, labels in loader:
        medians.update(old_model(images), labels)
    thresholds = medians.compute()
    pseudo = pseudo_labels(old_logits, labels, thresholds, classes)                              # every batch
    loss = pseudo_label_loss(logits, pseudo) + pod_loss(maps, old_maps, grid_logits, old_grid_logits)

The constants are the settings of ``--method PLOP`` (argparser.py), which scripts/voc/plop_*.sh use; it also turns on
:func:`fmseg.distill.balanced_classifier`. scripts/ade/plop_*.sh have 0.001 for the features, and for the scores
0.00001, 0.0001 or 0.001, by task and step.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg import _loss_checks as check

POD_WEIGHT = 0.01  # of every feature map
POD_LOGITS_WEIGHT = 0.0005  # of the scores
POD_SCALES = (1, 2, 4)  # regions along each side
MIN_THRESHOLD = 0.001  # no class is stricter than this; in units of `uncertainty`
BINS = 100  # of the histograms behind the medians


class PseudoLabels(NamedTuple):
    """``labels`` (B, H, W) int64 with the old model's on background; ``weight`` (B,): the share of it that is sure."""

    labels: Tensor
    weight: Tensor


def local_pod(maps: Tensor, scales: Sequence[int] = POD_SCALES) -> Tensor:
    r"""Local POD embedding: mean over rows and mean over columns, for the whole map and for its regions.

    .. math:: \Phi(x) = \big[\, \tfrac1{w_s} \sum_{u} x_{v,u} \;\Vert\; \tfrac1{h_s} \sum_{v} x_{v,u}
              \text{ in each of } s \times s \text{ regions, } s \in \text{scales} \,\big]

    A region is h // s high and w // s wide: where s does not divide a side, the last rows or columns are left out.

    Args:
        maps: (B, D, h, w) float.
        scales: numbers of regions along a side, each in [1, min(h, w)]; 1, 2 and 4 officially.

    Returns:
        (B, D * sum over s of s * s * (h // s + w // s)).

    Raises:
        TypeError, ValueError: ``maps`` are no maps, or a scale does not fit them.

    Differs from the official code (``_local_pod``): entries are in another order, which no distance sees; it takes
    the width for the height, so that maps that are not square lose rows or give empty regions.
    """
    check.maps("maps", maps)
    batch, _, height, width = maps.shape
    scales = tuple(scales)
    if not scales or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in scales):
        raise ValueError(f"`scales` must be integers >= 1, at least one; got {scales}.")
    if max(scales) > min(height, width):
        raise ValueError(
            f"`scales` must not exceed the sides of the maps, {height} x {width}; got {max(scales)}. "
            "Drop that scale, or take features of a smaller stride."
        )
    parts = []
    for s in scales:
        rows, columns = height // s, width // s
        regions = maps[..., : s * rows, : s * columns].unflatten(3, (s, columns)).unflatten(2, (s, rows))
        parts += [regions.mean(5).reshape(batch, -1), regions.mean(3).reshape(batch, -1)]
    return torch.cat(parts, 1)


def pod_loss(
    features: Sequence[Tensor],
    old_features: Sequence[Tensor],
    logits: Tensor,
    old_logits: Tensor,
    *,
    weight: float = POD_WEIGHT,
    logits_weight: float = POD_LOGITS_WEIGHT,
    scales: Sequence[int] = POD_SCALES,
) -> Tensor:
    r"""Local POD distillation of feature maps and scores, weighted: add it to the loss as it is.

    .. math:: L = \sqrt{\frac{C}{N}} \frac{1}{M + 1} \Big( \lambda \sum_{m=1}^{M} \overline{\lVert
              \Phi(x_m^2) - \Phi(x_m'^2) \rVert_2} + \lambda_z \overline{\lVert
              \Phi(\tilde z^2) - \Phi(z'^2) \rVert_2} \Big)

    squares element by element, bars over the batch; C classes, N of them new. :math:`\tilde z` are the scores of the
    new model with those of the new classes added to the background's.

    Args:
        features: M >= 0 tensors (B, D_m, h_m, w_m): in the official model the outputs of the encoder's four stages
            *before* their activation, and the head's output.
        old_features: the same of the old model. Get no gradient.
        logits: (B, C, h, w) scores on their own grid, not resized to the image.
        old_logits: (B, K, h, w), K < C. Get no gradient.
        weight, logits_weight: lambda and lambda_z, >= 0.
        scales: see :func:`local_pod`.

    Returns:
        () float; 0 with gradient 0 where nothing has moved.

    Raises:
        TypeError, ValueError: lists of different length, shapes or class counts that do not fit, a value is not finite.

    Source: ``features_distillation`` with ``collapse_channels="local"``, ``prepro="pow"`` and
    ``pod_options["switch"]["after"]`` of ``--method PLOP``.
    """
    if len(features) != len(old_features):
        raise ValueError(
            f"`old_features` must have one map for each of the {len(features)} `features`; got {len(old_features)}. "
            "Read both models at the same layers."
        )
    check.positive("weight", weight, zero=True)
    check.positive("logits_weight", logits_weight, zero=True)
    check.old_and_new(logits, old_logits, 1)
    for m, (new, old) in enumerate(zip(features, old_features, strict=True)):
        check.pair(f"features[{m}]", new, f"old_features[{m}]", old, check.SAME_LAYER)
    classes, old_classes = logits.shape[1], old_logits.shape[1]
    background = logits[:, :1] + logits[:, old_classes:].sum(1, keepdim=True)
    merged = torch.cat([background, logits[:, 1:old_classes]], 1)
    total = logits_weight * _moved(merged, old_logits, scales)
    for new, old in zip(features, old_features, strict=True):
        total = total + weight * _moved(new, old, scales)
    return math.sqrt(classes / (classes - old_classes)) * total / (len(features) + 1)


def uncertainty(old_logits: Tensor, classes: int) -> Tensor:
    r"""How unsure the old model is of each pixel: its entropy, on the official code's scale.

    .. math:: u = - \frac{1}{K \log K \, \log C} \sum_{c < K} p_c \log (p_c + 10^{-8})

    at most :math:`1 / (K \log C)`, that is 0.02 for 16 of 21 classes. A normalised entropy would go up to 1;
    thresholds and bins belong to this scale.

    Args:
        old_logits: (B, K, H, W) float, K >= 2.
        classes: C > K, new ones included.

    Returns:
        (B, H, W) float without gradient.

    Raises:
        TypeError, ValueError: ``old_logits`` are no maps, or there are too few classes.

    Source: ``entropy``, which takes the mean over classes where the entropy is a sum, divided by ``max_value`` of
    ``find_median``, which is the logarithm of the number of classes *after* the step.
    """
    check.maps("old_logits", old_logits)
    old = old_logits.shape[1]
    if old < 2 or classes <= old:
        raise ValueError(
            f"`old_logits` must have at least 2 classes and fewer than `classes`; got {old} of {classes}. "
            "`classes` counts the new ones, too."
        )
    p = old_logits.detach().softmax(1)
    return -(p * (p + 1e-8).log()).mean(1) / (math.log(old + 1e-8) * math.log(classes))


class ClassMedians:
    """Median uncertainty of the pixels that the old model gives to each class, from histograms.

    ``update`` with batches, ``merge`` other shards, ``compute`` thresholds; ``counts`` ((K, bins) int64) is the state.
    Only pixels labelled background count. Bins are equal parts of [0, 1], of which :func:`uncertainty` reaches the
    lowest :math:`1 / (K log C)` only: two or three of a hundred in the VOC tasks.

    Args:
        old_classes: K >= 2, background included.
        classes: C > K.
        bins: >= 1.

    Raises:
        ValueError: an argument is out of range.

    Source: ``Trainer.find_median`` with ``mode="entropy"``.
    """

    def __init__(self, old_classes: int, classes: int, bins: int = BINS):
        for name, value, least in (("old_classes", old_classes, 2), ("classes", classes, 3), ("bins", bins, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be an integer >= {least}; got {value!r}.")
        check.old_count(old_classes, classes)
        self.old_classes, self.classes, self.bins = old_classes, classes, bins
        self.counts = torch.zeros(old_classes, bins, dtype=torch.int64)

    def update(self, old_logits: Tensor, labels: Tensor) -> "ClassMedians":
        """Add a batch: (B, K, H, W) scores, (B, H, W) labels in [0, C) or 255. Returns itself. Raises as elsewhere."""
        check.maps("old_logits", old_logits)
        if old_logits.shape[1] != self.old_classes:
            raise ValueError(f"`old_logits` must have {self.old_classes} classes; got {old_logits.shape[1]}.")
        unsure = uncertainty(old_logits, self.classes)
        check.labels_of(old_logits, labels, 255, self.classes)
        background = labels == 0
        place = (unsure[background] * self.bins).long().clamp(max=self.bins - 1)
        flat = old_logits.argmax(1)[background] * self.bins + place
        self.counts += torch.bincount(flat, minlength=self.counts.numel()).view_as(self.counts).cpu()
        return self

    def merge(self, other: "ClassMedians") -> "ClassMedians":
        """Add what another shard has counted; returns itself. Raises ValueError where it counts something else."""
        mine, its = ((m.old_classes, m.classes, m.bins) for m in (self, other))
        if mine != its:
            raise ValueError(f"`other` must have (old_classes, classes, bins) = {mine}; got {its}.")
        self.counts += other.counts
        return self

    def compute(self, *, least: float = MIN_THRESHOLD, official: bool = True) -> Tensor:
        """(K,) float32 thresholds: the median of each class, but no less than ``least``; that for an unseen class.

        Args:
            least: >= 0.
            official: find the median's bin as the official code does, which adds up the *positions* of the bins that
                it has passed where it should add up their counts. Right only if half of a class's pixels lie in the
                first bin; beyond it the threshold may come out infinite (every pixel is sure) or NaN (none is).
        """
        check.positive("least", least, zero=True)
        find = _official_median if official else _median
        medians = [find(row) for row in self.counts.numpy()]
        # NaN stays: max() keeps its first argument unless the second is greater
        return torch.tensor([max(median, least) for median in medians], dtype=torch.float32)


def pseudo_labels(
    old_logits: Tensor, labels: Tensor, thresholds: Tensor, classes: int, *, ignore_index: int = 255
) -> PseudoLabels:  # fmt: skip
    r"""Give background the old model's label where that is sure, ignore it where not.

    .. math:: \tilde y_i = \begin{cases} y_i & y_i \ge K \\ c_i = \arg\max_c f'_c(i) & y_i < K, u_i < \tau_{c_i} \\
              \text{ignore} & \text{else} \end{cases}, \qquad
              \nu = \frac{|\{i: y_i < K, u_i < \tau_{c_i}\}|}{|\{i: y_i < K\}| + 10^{-6}} \text{ in each image}

    An image without a sure background pixel has weight 0, even one that is all of new classes.

    Args:
        old_logits: (B, K, H, W) float, on the grid of the labels.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``.
        thresholds: (K,) tau, of :meth:`ClassMedians.compute`; NaN lets nothing pass, infinity everything.
        classes: C > K.
        ignore_index: stays as it is, and marks what is unsure.

    Returns:
        :class:`PseudoLabels`; no gradient.

    Raises:
        TypeError, ValueError: shapes or labels do not fit.

    Source: ``Trainer.train``, the branch ``pseudo_labeling == "entropy"`` with ``classif_adaptive_factor``.
    """
    unsure = uncertainty(old_logits, classes)
    check.labels_of(old_logits, labels, ignore_index, classes)
    if not isinstance(thresholds, Tensor) or tuple(thresholds.shape) != (old_logits.shape[1],):
        got = tuple(thresholds.shape) if isinstance(thresholds, Tensor) else type(thresholds).__name__
        raise ValueError(f"`thresholds` must be ({old_logits.shape[1]},), one an old class; got {got}.")
    guess = old_logits.argmax(1)
    background = (labels < old_logits.shape[1]) & (labels != ignore_index)
    sure = background & (unsure < thresholds.to(unsure)[guess])
    filled = torch.where(sure, guess, torch.where(background, ignore_index, labels.long()))
    return PseudoLabels(filled, sure.sum((1, 2)) / (background.sum((1, 2)) + 1e-6))


def pseudo_label_loss(logits: Tensor, pseudo: PseudoLabels, *, ignore_index: int = 255) -> Tensor:
    r"""Cross-entropy with pseudo-labels, each image weighted by how much of its background is sure.

    .. math:: L = -\frac{1}{|I|} \sum_b \nu_b \sum_{i \in I_b, \tilde y_i \ne \mathrm{ignore}} \log p_{\tilde y_i}(i)

    Args:
        logits: (B, C, H, W) float.
        pseudo: of :func:`pseudo_labels`.
        ignore_index: label of pixels without loss; they count in :math:`|I|`.

    Returns:
        () nats; 0 with gradient 0 where no pixel has a label, or all weights are 0.

    Raises:
        TypeError, ValueError: shapes or labels do not fit, a value is not finite.

    Source: ``Trainer.train``; plain cross-entropy, not MiB's.
    """
    check.maps("logits", logits)
    check.labels_of(logits, pseudo.labels, ignore_index)
    if pseudo.weight.shape != logits.shape[:1]:
        raise ValueError(f"`pseudo.weight` must be ({len(logits)},); got {tuple(pseudo.weight.shape)}.")
    loss = F.cross_entropy(logits, pseudo.labels, ignore_index=ignore_index, reduction="none")
    return (pseudo.weight.to(loss)[:, None, None] * loss).mean()


def _moved(new: Tensor, old: Tensor, scales: Sequence[int]) -> Tensor:
    """Distance of the embeddings of squared maps, mean over the batch."""
    difference = local_pod(new**2, scales) - local_pod(old.detach() ** 2, scales)
    return torch.linalg.vector_norm(difference, dim=1).mean()


def _median(counts: np.ndarray) -> float:
    """Where half of the counts are passed, linear inside the bin; 0 without counts."""
    half, passed = counts.sum() / 2, np.concatenate([[0], counts.cumsum()])
    if half == 0:
        return 0.0
    k = int(np.argmax(passed[1:] >= half))
    return float((k + (half - passed[k]) / counts[k]) / len(counts))


def _official_median(counts: np.ndarray) -> float:
    bins, half, passed = len(counts), counts.sum() / 2, 0.0
    if half == 0:
        return 0.0
    for k in range(bins):
        inside = float(counts[int(k / bins * bins)])  # not always k: 29 / 100 * 100 is below 29
        if passed <= half <= passed + inside:
            break
        passed += k / bins * bins
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(k / bins + np.float64(half - passed) / np.float64(inside) / bins)
