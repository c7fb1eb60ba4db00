"""Dense contrastive loss: pixels of one pseudo label close together in feature space, pixels of others apart.

Yu et al. 2023, "Foundation Model Drives Weakly Incremental Learning for Semantic Segmentation" (FMWISS), eq. 7, for
which no official code is published. A loss of the same algebra is ``PixelContrastLoss._contrastive`` of
github.com/tfzhou/ContrastiveSeg, lib/loss/loss_contrast.py; the docstrings say where this one differs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg.pixel_loss import check_labels

__all__ = ["POINTS", "TEMPERATURE", "contrast", "dense_contrast", "sample_points"]

POINTS = 10  # a class and mini-batch
TEMPERATURE = 0.1
_DIVERGED = "Has training diverged?"


def dense_contrast(
    features: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    points: int = POINTS,
    temperature: float = TEMPERATURE,
    normalise: bool = True,
    num_classes: int = 255,
    ignore_index: int = 255,
) -> Tensor:
    """:func:`contrast` between points drawn from feature maps: :func:`sample_points`, then eq. 7.

    Time and memory beyond ``features`` and their gradient grow with the points drawn, C * points, not with pixels; only
    the drawn points get a gradient.

    Args:
        features: (B, D, h, w) float; of half precision they are computed with in float32.
        labels: (B, h, w) int64, pseudo labels on the grid of ``features``: class ids in [0, num_classes) or
            ``ignore_index``.
        generator: of the draw. Draw again at each training step.
        points: drawn a class and mini-batch, >= 1.
        temperature: tau > 0.
        normalise: give each feature vector length 1 first.
        num_classes: ids at or above it are an error; 255 allows all that a mask of bytes can hold.
        ignore_index: label of pixels that are never drawn.

    Returns:
        () nats, >= 0; 0 with a gradient of 0 where no anchor has a positive.

    Raises:
        TypeError, ValueError: shapes, dtypes, ids, ``points`` or ``temperature`` do not fit, or a drawn feature is not
            finite (the others are not looked at).

    Differs from the official code (ContrastiveSeg's ``forward``): points are drawn at random, the same number a class
    and mini-batch, there half hard and half easy ones a class and image; labels are given on the grid, there resized.
    """
    if features.ndim != 4 or not features.is_floating_point():
        raise ValueError(f"`features` must be (B, D, h, w) floats; got {tuple(features.shape)} of {features.dtype}")
    _check_map(labels, num_classes, ignore_index)
    _check_temperature(temperature)
    expected = (len(features), *features.shape[2:])
    if labels.shape != expected:
        raise ValueError(
            f"`labels` must be (B, h, w) = {expected}, on the grid of `features`; got {tuple(labels.shape)}. Bring the "
            "masks to the grid first"
        )
    at = _drawn(labels, points, generator, ignore_index)
    size = labels.shape[1] * labels.shape[2]
    image, place = at // size, at % size
    drawn = features.flatten(2)[image, :, place]  # only the points are copied, never the maps
    bad = ~drawn.isfinite()
    if bool(bad.any()):
        point, channel = bad.nonzero()[0].tolist()
        where = [int(image[point]), channel, int(place[point]) // labels.shape[2], int(place[point]) % labels.shape[2]]
        raise ValueError(f"`features` must be finite; found {float(drawn[point, channel])} at {where}. {_DIVERGED}")
    return _loss(drawn, labels.flatten()[at], temperature, normalise)


def sample_points(
    labels: Tensor, points: int, generator: torch.Generator, *, num_classes: int = 255, ignore_index: int = 255
) -> Tensor:  # fmt: skip
    """Positions of ``points`` pixels of each class in a mini-batch, uniform over all its images, without replacement.

    A class with fewer pixels gives all it has: a pixel that is drawn twice would be its own positive.

    Args:
        labels: (B, h, w) int64, class ids in [0, num_classes) or ``ignore_index``.
        points: at most so many a class, >= 1.
        generator: of the draw, on any device; the only randomness.
        num_classes: ids at or above it are an error.
        ignore_index: label of pixels that are never drawn.

    Returns:
        (A,) int64 positions in ``labels.flatten()``, by ascending class, in random order within one;
        A <= points * classes in the batch.

    Raises:
        TypeError, ValueError: shape, dtype, ids or ``points`` do not fit.
    """
    _check_map(labels, num_classes, ignore_index)
    return _drawn(labels, points, generator, ignore_index)


def contrast(
    embeddings: Tensor,
    labels: Tensor,
    *,
    temperature: float = TEMPERATURE,
    normalise: bool = True,
    ignore_index: int = 255,
) -> Tensor:
    r"""Contrastive loss of points, FMWISS eq. 7, averaged over the anchors that have a positive.

    .. math:: L_i = -\frac{1}{|P_i|} \sum_{q^+ \in P_i} \log \frac{\exp(i \cdot q^+ / \tau)}
              {\exp(i \cdot q^+ / \tau) + \sum_{q^- \in N_i} \exp(i \cdot q^- / \tau)}

    P_i: the other points with the label of i; N_i: the points with another label. The denominator holds one positive
    at a time and no self-similarity. Computed as softplus(logsumexp of the negatives - positive), which neither
    overflows nor cancels. An anchor without positives does not count (as a negative it does); one without negatives
    costs 0. Memory: a few (A, A) matrices.

    Args:
        embeddings: (A, D) float.
        labels: (A,) int64 >= 0.
        temperature: tau > 0.
        normalise: give each embedding length 1 first; zero vectors stay.
        ignore_index: points with this label are left out.

    Returns:
        () nats, >= 0, float32 (float64 for float64); 0 with a gradient of 0 where no anchor counts.

    Raises:
        TypeError, ValueError: shapes, dtypes, ids or ``temperature`` do not fit, or embeddings are not finite.

    Differs from the official code (ContrastiveSeg): no factor temperature / base_temperature (there 0.1 / 0.07 by
    default), equal otherwise. There an anchor without positives makes the loss NaN, and so does a temperature of 0.005,
    because a row's exponentials are scaled by its largest, that of the anchor with itself, and vanish together.
    SupConLoss (Khosla et al. 2020; HobbitLong/SupContrast) is another loss: all positives are in each denominator, and
    anchors without any are averaged in as 0. With one positive an anchor the two agree.
    """
    _check_points(embeddings, labels, ignore_index)
    _check_temperature(temperature)
    counted = labels != ignore_index
    if not bool(counted.all()):
        embeddings, labels = embeddings[counted], labels[counted]
    return _loss(embeddings, labels, temperature, normalise)


def _loss(embeddings: Tensor, labels: Tensor, temperature: float, normalise: bool) -> Tensor:
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    if normalise:
        embeddings = F.normalize(embeddings, dim=1)
    with torch.autocast(embeddings.device.type, enabled=False):  # a rounded cosine is divided by tau
        similar = embeddings @ embeddings.T / temperature
    count = len(labels)
    same = labels[:, None] == labels[None]
    # the lowest finite number, not -inf: an anchor without negatives would turn its gradient into NaN
    negatives = torch.where(same, torch.finfo(similar.dtype).min, similar).logsumexp(1)
    anchor, other = (same ^ torch.eye(count, dtype=torch.bool, device=same.device)).nonzero(as_tuple=True)
    positives = similar.flatten().gather(0, anchor * count + other)
    each = F.softplus(negatives.gather(0, anchor) - positives, threshold=40)  # above 40 softplus(x) = x in doubles
    others = torch.bincount(anchor, minlength=count)  # |P|
    return (each / others.gather(0, anchor)).sum() / (others > 0).sum().clamp(min=1)


def _drawn(labels: Tensor, points: int, generator: torch.Generator, ignore_index: int) -> Tensor:
    if isinstance(points, bool) or not isinstance(points, int) or points < 1:
        raise ValueError(f"`points` must be an integer >= 1, the number a class; got {points!r}")
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"`generator` must be a torch.Generator; got {type(generator).__name__}")
    flat = labels.flatten()
    order = torch.randperm(len(flat), generator=generator, device=generator.device).to(flat.device)
    order = order[flat[order] != ignore_index]
    order = order[flat[order].argsort(stable=True)]  # by class, shuffled within one
    _, counts = flat[order].unique_consecutive(return_counts=True)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return order[torch.arange(len(order), device=flat.device) - first < points]


def _check_map(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(f"`labels` must be int64 class ids; got {labels.dtype}. labels.long() makes them so")
    if labels.ndim != 3:
        raise ValueError(f"`labels` must be (B, h, w); got {tuple(labels.shape)}")
    check_labels(labels, num_classes, ignore_index)


def _check_points(embeddings: Tensor, labels: Tensor, ignore_index: int) -> None:
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"`embeddings` must be (A, D) floats, one row a point; got {tuple(embeddings.shape)} of {embeddings.dtype}"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"`labels` must be int64 class ids; got {labels.dtype}. labels.long() makes them so")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"`labels` must be (A,) = ({len(embeddings)},), one id a row of `embeddings`; got {tuple(labels.shape)}"
        )
    bad = (labels < 0) & (labels != ignore_index)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise ValueError(f"`labels` must be >= 0 or {ignore_index} (ignored); found {int(labels[at])} at [{at}]")
    wrong = ~embeddings.isfinite()
    if bool(wrong.any()):
        at = wrong.nonzero()[0].tolist()
        raise ValueError(f"`embeddings` must be finite; found {float(embeddings[tuple(at)])} at {at}. {_DIVERGED}")


def _check_temperature(temperature: float) -> None:
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise ValueError(f"`temperature` must be a number > 0; got {temperature!r}. {TEMPERATURE} is usual")
