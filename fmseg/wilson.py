r"""WILSON: new classes from image-level labels. A localizer learns where they are and tells the segmenter.

Cermelli et al. 2022, "Incremental Learning in Semantic Segmentation from Image Labels", arXiv 2112.01882. Official
code: github.com/fcdl94/WILSON (41c7d5b). K old classes with background, N new ones, C = K + N; everything happens on
the segmenter's grid (stride 16 or 8), nothing is resized to the image. With :mod:`fmseg.localizer`, from epoch
``PSEUDO_EPOCH`` on a step is::

    z = localizer(features)                                        # features of the segmenter's encoder, not detached
    guess = localizer.guess(features)                              # the same in eval mode, no gradient
    loss = classification_loss(z, image_labels[:, K - 1 :]) + localization_loss(z, old_logits)
    loss = loss + ENCODER_WEIGHT * encoder_distillation(features, old_features)
    refined = pamr.refine(small_images, guess.softmax(1))
    loss = loss + balanced_cross_entropy(z, pseudo_masks(refined, image_labels), image_labels)
    q = soft_labels(guess, image_labels)
    targets, weights = segmentation_targets(q, old_logits), image_weights(q, image_labels, K)
    loss = loss + segmentation_loss(logits, targets, weights)

and before it without the last five lines. All weights are 1 (run.sh: ``--loss_de 1``; argparser.py: ``--l_seg 1``);
l_ENC is :func:`fmseg.distill.encoder_distillation`. ``image_labels`` are (B, C - 1) flags of the classes 1 to C - 1;
officially those of old classes are 0 in every image (LabelSelection in dataset/dataset.py), so the localizer's
pseudo-labels never hold an old class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg import _loss_checks as check
from fmseg.localizer import present_only

ALPHA, ALPHA_COCO = 0.5, 0.9  # run.sh; coco.sh and README, although the paper has 0.5 for both
ENCODER_WEIGHT = 1.0  # run.sh, coco.sh
PSEUDO_EPOCH = 5  # argparser.py, --pseudo_ep


@torch.no_grad()
def soft_labels(scores: Tensor, image_labels: Tensor, *, alpha: float = ALPHA) -> Tensor:
    r"""Pseudo-labels of the localizer, partly hard (eq. 5).

    .. math:: q = \alpha\, [\, \tilde m_c = \max_k \tilde m_k \,] + (1 - \alpha)\, \tilde m, \quad
              \tilde m_0 = m_0, \; \tilde m_c = y_c m_c, \; m = \mathrm{softmax}(z)

    Classes that are not in the image are out before the maximum is taken; what is left need not sum to 1.

    Args:
        scores: (B, C, h, w) float, z, of :meth:`fmseg.localizer.Localizer.guess`.
        image_labels: (B, C - 1), 1 = present.
        alpha: in [0, 1]; 0 soft, 1 hard.

    Returns:
        (B, C, h, w) in [0, 1]; no gradient.

    Raises:
        TypeError, ValueError: shapes do not fit, labels are not 0 and 1, alpha is out of range, a value not finite.

    Source: train.py, ``pseudo_gt_seg_lx``, with ``binarize`` of utils/wss_loss.py: ties are all 1.
    """
    check.maps("scores", scores)
    check.image_labels_of(scores, image_labels, scores.shape[1] - 1, "C - 1")
    check.share("alpha", alpha)
    m = present_only(scores.softmax(1), image_labels)
    hard = (m >= m.amax(1, keepdim=True)).to(m.dtype)
    return alpha * hard + (1 - alpha) * m


@torch.no_grad()
def segmentation_targets(soft: Tensor, old_logits: Tensor, *, background_share: float | None = None) -> Tensor:
    r"""What the segmenter learns: old classes from the old model, new ones from the localizer, background from both.

    .. math:: \hat q_0 = \min(\sigma(f'_0), q_0), \quad \hat q_c = \sigma(f'_c) \;(0 < c < K), \quad
              \hat q_c = q_c \;(c \ge K)

    Args:
        soft: (B, C, h, w) in [0, 1], q, of :func:`soft_labels`.
        old_logits: (B, K, h, w) float, f', K < C.
        background_share: None for the minimum, as released; a number s in [0, 1] for
            :math:`(1 - s) \sigma(f'_0) + s q_0` (``--icarl_bkg``, whose default -1 is the minimum).

    Returns:
        (B, C, h, w) in [0, 1]; no gradient.

    Raises:
        TypeError, ValueError: shapes or class counts do not fit, a value is not finite or out of range.

    Source: train.py, ``target``.
    """
    check.old_and_new(soft, old_logits, 1, "soft")
    _check_shares("soft", soft)
    old = old_logits.sigmoid()
    if background_share is None:
        background = torch.minimum(old[:, :1], soft[:, :1])
    else:
        check.share("background_share", background_share)
        background = (1 - background_share) * old[:, :1] + background_share * soft[:, :1]
    return torch.cat([background, old[:, 1:], soft[:, old.shape[1] :]], 1)


def image_weights(soft: Tensor, image_labels: Tensor, old_classes: int) -> Tensor:
    """1 for images whose pseudo-labels hold exactly the new classes that the image has, else 0.

    With alpha below 1 every present class has some weight everywhere, so all images count; with alpha = 1 a class
    may have won no pixel.

    Args:
        soft: (B, C, h, w), of :func:`soft_labels`.
        image_labels: (B, C - 1), 1 = present.
        old_classes: K in [1, C).

    Returns:
        (B,), dtype of ``soft``.

    Raises:
        TypeError, ValueError: shapes do not fit, labels are not 0 and 1, ``old_classes`` is out of range.

    Source: train.py, ``batch_weight``.
    """
    check.maps("soft", soft)
    check.image_labels_of(soft, image_labels, soft.shape[1] - 1, "C - 1")
    check.old_count(old_classes, soft.shape[1])
    found = soft[:, old_classes:].sum((2, 3)) > 0
    return (found == image_labels[:, old_classes - 1 :].bool()).all(1).to(soft.dtype)


def segmentation_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, *, normalise: bool = False
) -> Tensor:  # fmt: skip
    r"""l_SEG: binary cross-entropy of the segmenter with soft targets (eq. 8).

    .. math:: l_{SEG} = \frac{1}{10^{-5} + \sum_b w_b} \sum_b w_b \frac{1}{|I|} \sum_{i, c}
              \mathrm{BCE}(f_{c,i}, \hat q_{c,i})

    a sum over classes and a mean over pixels: C times as large as a mean over both.

    Args:
        logits: (B, C, h, w) float, f, on their own grid, not resized to the image.
        targets: (B, C, h, w) in [0, 1], of :func:`segmentation_targets`. Get no gradient.
        weights: (B,) >= 0, of :func:`image_weights`; all 1 by default.
        normalise: mean over classes, too, as in FMWISS's loss (its eq. 11, as recalled).

    Returns:
        () nats; 0 with gradient 0 where all weights are 0.

    Raises:
        TypeError, ValueError: shapes do not fit, targets or weights are out of range, a value is not finite.

    Source: train.py, ``l_seg``.
    """
    check.pair("logits", logits, "targets", targets, "Resize neither: both live on the segmenter's grid.")
    _check_shares("targets", targets)
    loss = F.binary_cross_entropy_with_logits(logits, targets.detach(), reduction="none")
    loss = (loss.mean(1) if normalise else loss.sum(1)).mean((1, 2))
    if weights is None:
        weights = torch.ones_like(loss, requires_grad=False)
    elif weights.shape != loss.shape or bool((weights < 0).any()):
        raise ValueError(f"`weights` must be ({len(loss)},), one an image, >= 0; got {weights.tolist()}.")
    check.finite("weights", weights)
    weights = weights.detach().to(loss.dtype)
    return (weights * loss).sum() / (weights.sum() + 1e-5)


def _check_shares(name: str, values: Tensor) -> None:
    low, high = (float(v) for v in values.detach().aminmax())
    if low < 0 or high > 1 + 1e-5:  # sums of shares may round up
        raise ValueError(
            f"`{name}` must be in [0, 1]; found {low:.3g} to {high:.3g}. Scores? Take a sigmoid or softmax."
        )
