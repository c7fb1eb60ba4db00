r"""Losses that keep old classes alive while new ones are learned: LwF, LwF-MC, ILT and MiB.

A step adds N classes to the K that a frozen old model f' knows, background (id 0) included; C = K + N. In the new
images only new classes are labelled: what the old model would call a chair is labelled background now. The four
methods answer this with distillation (LwF, ILT), with binary outputs (LwF-MC) or with a background that may hold other
classes (MiB). PLOP and SDR, which add to these, are in :mod:`fmseg.plop` and :mod:`fmseg.sdr`.

Official code: github.com/fcdl94/MiB (1c58983), utils/loss.py and train.py; CVPR2021_PLOP, SDR and WILSON carry copies.
The weights below are what ``--method`` sets in ``modify_command_options`` of argparser.py; MiB, CVPR2021_PLOP (4b4a060)
and SDR (8638296) agree on them. Every loss is averaged as those trainers do: over all pixels, those that count nothing
included, so halving the labelled pixels halves the loss.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg import _loss_checks as check

LWF_WEIGHT = 100.0  # of knowledge_distillation, beside plain cross-entropy
LWF_MC_WEIGHT = 10.0  # of the distillation in lwf_mc_loss
ILT_OUTPUT_WEIGHT, ILT_ENCODER_WEIGHT = 100.0, 100.0  # of the two terms in ilt_distillation
MIB_WEIGHT = 10.0  # of unbiased_distillation, beside unbiased_cross_entropy and balanced_classifier


def knowledge_distillation(
    logits: Tensor, old_logits: Tensor, *, alpha: float = 1.0, mask: Tensor | None = None
) -> Tensor:  # fmt: skip
    r"""Learning without Forgetting (Li and Hoiem 2017): the new model repeats the old model's opinion.

    .. math:: L = -\frac{1}{|I| K} \sum_{i \in I} w_i \sum_{c < K} q_c(i) \log p_c(i), \quad
              q = \mathrm{softmax}(\alpha f'), \; p = \mathrm{softmax}(f_{0..K-1})

    p knows the old classes only: new classes are cut off before the softmax.

    Args:
        logits: (B, C, H, W) float, f.
        old_logits: (B, K, H, W) float, f', K <= C. Gets no gradient.
        alpha: > 0, an inverse temperature on the old scores alone; above 1 they get harder. 1 in the released scripts.
        mask: (B, H, W) bool or float >= 0, w; all ones by default, as in the released scripts. A pixel of weight 0
            still counts in :math:`|I|`.

    Returns:
        () nats; 0 with gradient 0 where the mask is empty.

    Raises:
        TypeError, ValueError: shapes or class counts do not fit, alpha is out of range, a value is not finite.

    Source: utils/loss.py, ``KnowledgeDistillationLoss``.
    """
    check.old_and_new(logits, old_logits, 0)
    check.positive("alpha", alpha)
    log_p = logits[:, : old_logits.shape[1]].log_softmax(1)
    q = (alpha * old_logits.detach()).softmax(1)
    return _weighted_mean(-(q * log_p).mean(1), mask, logits)


def unbiased_distillation(
    logits: Tensor, old_logits: Tensor, *, alpha: float = 1.0, mask: Tensor | None = None
) -> Tensor:  # fmt: skip
    r"""MiB's distillation (Cermelli et al. 2020): the old background may be any new class by now.

    .. math:: L = -\frac{1}{|I| K} \sum_{i} w_i \sum_{c < K} q_c(i) \log \hat p_c(i), \quad
              \hat p_0 = p_0 + \sum_{c \ge K} p_c, \; \hat p_c = p_c, \; p = \mathrm{softmax}(f)

    Args:
        logits: (B, C, H, W) float, f.
        old_logits: (B, K, H, W) float, K < C; q is their softmax after multiplication by ``alpha``. Gets no gradient.
        alpha, mask: as in :func:`knowledge_distillation`.

    Returns:
        () nats; 0 with gradient 0 where the mask is empty.

    Raises:
        TypeError, ValueError: as :func:`knowledge_distillation`; also where there is no new class.

    Source: utils/loss.py, ``UnbiasedKnowledgeDistillationLoss``.
    """
    check.old_and_new(logits, old_logits, 1)
    check.positive("alpha", alpha)
    old = old_logits.shape[1]
    background = torch.cat([logits[:, :1], logits[:, old:]], 1).logsumexp(1, keepdim=True)
    log_p = torch.cat([background, logits[:, 1:old]], 1) - logits.logsumexp(1, keepdim=True)
    q = (alpha * old_logits.detach()).softmax(1)
    return _weighted_mean(-(q * log_p).mean(1), mask, logits)


def unbiased_cross_entropy(logits: Tensor, labels: Tensor, old_classes: int, *, ignore_index: int = 255) -> Tensor:
    r"""MiB's cross-entropy (Cermelli et al. 2020): "background" may be any class that was learned before.

    .. math:: L = -\frac{1}{|I|} \sum_{i: y_i \ne \mathrm{ignore}} \log \tilde p_{y_i}(i), \quad
              \tilde p_0 = \sum_{c < K} p_c, \; \tilde p_c = p_c \;(c \ge K), \; p = \mathrm{softmax}(f)

    Args:
        logits: (B, C, H, W) float, f.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``; old classes count as background.
        old_classes: K in [1, C), background included.
        ignore_index: label of pixels without loss; they count in :math:`|I|`.

    Returns:
        () nats; 0 with gradient 0 where all is ignored.

    Raises:
        TypeError, ValueError: shapes, labels or ``old_classes`` are out of range, a value is not finite.

    Source: utils/loss.py, ``UnbiasedCrossEntropy``, averaged as in train.py.
    """
    check.maps("logits", logits)
    check.labels_of(logits, labels, ignore_index)
    check.old_count(old_classes, logits.shape[1])
    known = logits[:, :old_classes].logsumexp(1, keepdim=True)
    log_p = torch.cat([known, logits[:, old_classes:]], 1) - logits.logsumexp(1, keepdim=True)
    counted = labels != ignore_index
    merged = torch.where(counted, (labels.long() - old_classes + 1).clamp(min=0), 0)
    picked = log_p.gather(1, merged[:, None])[:, 0]
    return -torch.where(counted, picked, 0).mean()


def binary_cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    r"""Every class by its own yes or no: the loss of LwF-MC, and of WILSON's step 0 (``--bce``).

    .. math:: L = \frac{1}{|I|} \sum_{i: y_i \ne \mathrm{ignore}} \sum_c \mathrm{BCE}(f_c(i), [y_i = c])

    Args:
        logits: (B, C, H, W) float, f.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``.
        ignore_index: label of pixels without loss; they count in :math:`|I|`.

    Returns:
        () nats, summed over classes; 0 with gradient 0 where all is ignored.

    Raises:
        TypeError, ValueError: shapes or labels are out of range, a value is not finite.

    Source: utils/loss.py, ``BCEWithLogitsLossWithIgnoreIndex`` with ``reduction="none"``, averaged as in train.py.
    """
    check.maps("logits", logits)
    check.labels_of(logits, labels, ignore_index)
    target, counted = _one_hot(labels, logits, ignore_index)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
    return torch.where(counted, loss, 0).mean()


def lwf_mc_loss(
    logits: Tensor, labels: Tensor, old_logits: Tensor, *, weight: float = LWF_MC_WEIGHT, ignore_index: int = 255
) -> Tensor:
    r"""LwF-MC, multi-class LwF (Rebuffi et al. 2017) as the incremental-segmentation papers run it.

    .. math:: L = L_{\mathrm{BCE}}(f, y)
              + \frac{\lambda}{|I|} \sum_i \sum_{c < K} \mathrm{BCE}(f_c(i), \sigma(f'_c(i)))

    with :func:`binary_cross_entropy` first. On old classes the two pull against each other wherever the label says
    background; :math:`\lambda` decides. The second term sees ignored pixels too.

    Args:
        logits: (B, C, H, W) float, f.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``.
        old_logits: (B, K, H, W) float, f', K <= C. Gets no gradient.
        weight: lambda, >= 0.

    Returns:
        () nats, summed over classes.

    Raises:
        TypeError, ValueError: shapes, labels or class counts do not fit, a value is not finite.

    Source: train.py with ``--method LWF-MC``, which is the branch ``icarl_combined``; the other one is
    :func:`icarl_loss`.
    """
    check.old_and_new(logits, old_logits, 0)
    check.positive("weight", weight, zero=True)
    old = logits[:, : old_logits.shape[1]]
    kept = F.binary_cross_entropy_with_logits(old, old_logits.detach().sigmoid(), reduction="none").sum(1).mean()
    return binary_cross_entropy(logits, labels, ignore_index=ignore_index) + weight * kept


def icarl_loss(
    logits: Tensor,
    labels: Tensor,
    old_logits: Tensor,
    *,
    background_from_labels: bool = False,
    ignored_is_negative: bool = False,
    ignore_index: int = 255,
) -> Tensor:
    r"""iCaRL's loss (Rebuffi et al. 2017): old classes learn from the old model, new ones from the labels.

    .. math:: L = \frac{1}{|I|} \sum_i \sum_c \mathrm{BCE}(f_c(i), t_c(i)), \quad
              t_c = \sigma(f'_c) \;(c < K), \; t_c = [y = c] \;(c \ge K)

    Unlike in :func:`lwf_mc_loss` no class has two teachers. No ``--method`` of the official code uses it; it takes
    ``--icarl --icarl_disjoint``.

    Args:
        logits: (B, C, H, W) float, f.
        labels: (B, H, W) integers in [0, C) or ``ignore_index``.
        old_logits: (B, K, H, W) float, f', K <= C. Gets no gradient.
        background_from_labels: the target of class 0 is the label's, not the old model's (``--icarl_bkg``).
        ignored_is_negative: ignored pixels teach that every class with a label target is absent, as officially.
        ignore_index: label of pixels that teach old classes only.

    Returns:
        () nats, summed over classes.

    Raises:
        TypeError, ValueError: shapes, labels or class counts do not fit, a value is not finite.

    Source: utils/loss.py, ``IcarlLoss``, which takes sigmoid scores of the old model.

    Differs from the official code: there ignored pixels are negatives of the new classes. Its training labels hold
    none (dataset/voc.py maps 255 to 0 in training), so no result rests on it.
    """
    check.old_and_new(logits, old_logits, 0)
    check.labels_of(logits, labels, ignore_index)
    old, first = old_logits.shape[1], int(background_from_labels)
    target, counted = _one_hot(labels, logits, ignore_index)
    target = torch.cat([target[:, :first], old_logits.detach().sigmoid()[:, first:], target[:, old:]], 1)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if not ignored_is_negative:
        taught = counted[:, None].expand_as(loss).clone()
        taught[:, first:old] = True
        loss = torch.where(taught, loss, 0)
    return loss.sum(1).mean()


def encoder_distillation(features: Tensor, old_features: Tensor) -> Tensor:
    r"""ILT's and WILSON's pull on the encoder: features must not move (Michieli and Zanuttigh 2019).

    .. math:: L = \frac{1}{B D h w} \lVert e(x) - e'(x) \rVert^2

    Args:
        features, old_features: (B, D, h, w) float, the encoder's last map (2048 channels in ResNet-101). The old
            one gets no gradient.

    Returns:
        () mean squared difference, >= 0.

    Raises:
        TypeError, ValueError: shapes differ, a value is not finite.

    Source: train.py, ``lde_loss``; weight 100 in ILT (``ILT_ENCODER_WEIGHT``), 1 in WILSON (``l_ENC``).
    """
    check.pair("features", features, "old_features", old_features, check.SAME_LAYER)
    return F.mse_loss(features, old_features.detach())


def ilt_distillation(
    logits: Tensor,
    old_logits: Tensor,
    features: Tensor,
    old_features: Tensor,
    *,
    output_weight: float = ILT_OUTPUT_WEIGHT,
    encoder_weight: float = ILT_ENCODER_WEIGHT,
    alpha: float = 1.0,
) -> Tensor:
    r"""ILT: both distillations, to be added to plain cross-entropy (Michieli and Zanuttigh 2019).

    .. math:: L = \lambda_o L_{\mathrm{LwF}} + \lambda_e L_{\mathrm{enc}}

    Args:
        logits, old_logits, alpha: see :func:`knowledge_distillation`.
        features, old_features: see :func:`encoder_distillation`.
        output_weight, encoder_weight: >= 0.

    Returns:
        () float.

    Raises:
        TypeError, ValueError: as the two parts.

    Source: train.py with ``--method ILT``, as MiB's authors re-implement it.
    """
    check.positive("output_weight", output_weight, zero=True)
    check.positive("encoder_weight", encoder_weight, zero=True)
    output = knowledge_distillation(logits, old_logits, alpha=alpha)
    return output_weight * output + encoder_weight * encoder_distillation(features, old_features)


def balanced_classifier(weight: Tensor, bias: Tensor, new_classes: int) -> tuple[Tensor, Tensor]:
    r"""MiB's start for new classes (Cermelli et al. 2020): they share the background's probability equally.

    .. math:: w_c = w_0, \quad b_c = b_0 - \log(N + 1), \qquad c \in \{0, K, ..., K + N - 1\}

    so :math:`p_0 + \sum_{c \ge K} p_c` of the new softmax is the old background, and every other class is unchanged.
    With sigmoid outputs nothing of the kind holds.

    Args:
        weight: (K, ...) float, the 1x1 convolution or linear layer of the old classifier, background first.
        bias: (K,) float.
        new_classes: N >= 1.

    Returns:
        (K + N, ...) weights and (K + N,) biases without gradient history; the arguments stay as they are.

    Raises:
        ValueError: shapes do not fit, N < 1, a value is not finite.

    Source: segmentation_module.py, ``init_new_classifier``, on in MiB and PLOP (``--init_balanced``). It changes the
    classifier in place.
    """
    if weight.ndim < 2 or bias.shape != weight.shape[:1] or not len(bias):
        raise ValueError(
            f"`weight` must be (K, D, ...) and `bias` (K,), K >= 1; got {tuple(weight.shape)} and {tuple(bias.shape)}."
        )
    if isinstance(new_classes, bool) or not isinstance(new_classes, int) or new_classes < 1:
        raise ValueError(f"`new_classes` must be an integer >= 1; got {new_classes!r}.")
    check.finite("weight", weight)
    check.finite("bias", bias)
    weight, bias = weight.detach(), bias.detach()
    shared = bias[:1] - math.log(new_classes + 1)
    news = weight[:1].expand(new_classes, *weight.shape[1:])
    return torch.cat([weight, news]), torch.cat([shared, bias[1:], shared.expand(new_classes)])


def _weighted_mean(loss: Tensor, mask: Tensor | None, logits: Tensor) -> Tensor:
    if mask is None:
        return loss.mean()
    check.weights_of("mask", mask, logits)
    return (loss * mask.to(loss.dtype)).mean()


def _one_hot(labels: Tensor, logits: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) of 0 and 1, all 0 where ignored, and (B, H, W) bool: where not ignored."""
    counted = labels != ignore_index
    target = torch.zeros_like(logits, requires_grad=False)
    target.scatter_(1, torch.where(counted, labels.long(), 0)[:, None], counted[:, None].to(logits.dtype))
    return target, counted
