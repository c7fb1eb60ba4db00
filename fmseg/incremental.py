"""What FMWISS's plug-in teacher and its student learn in an incremental step (FMWISS eqs 6, 8 to 12; no public code).

The channels of a score map are classes in the order they were learned: background, the old ones, the new ones. The
teacher is a head on the student's encoder that is thrown away after training. It learns new classes from co-segmented
masks, old ones from the model before the step and from what was pasted, and hands both on to the student as soft
labels. Everything happens at the resolution of the scores, as in WILSON's code, on which the paper builds. The paper's
equations are recalled, not read: dossier sections 2.2 to 2.4; what they leave open is an argument here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = 255
ALPHA, BETA, DCL_WEIGHT = 0.5, 0.9, 0.1  # FMWISS: of the hard label, of the old model, lambda
BACKGROUND = 0
HARD_OVER = ("all", "background", "new")  # see `student_targets`


def binary_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    r"""Binary cross-entropy with soft labels, the form of FMWISS's eqs 6, 8 and 11.

    .. math:: -\frac{1}{|C||I|} \sum_{i \in I} \sum_{c \in C} q^c(i) \log p^c(i) + (1 - q^c(i)) \log(1 - p^c(i)),
              \quad p = \sigma(z)

    Args:
        logits: (B, C, h, w) float, z.
        targets: (B, C, h, w) in [0, 1], q; no gradient goes there.
        reduction: "mean" over classes and pixels, as printed; or "sum": over classes, then the mean over pixels, as
            WILSON's code has it where its paper prints a mean over pixels alone. |C| times the former, so what fits
            learning rates tuned with the one may not fit them with the other (dossier section 4, item 12).

    Returns:
        () nats; 0 connected to ``logits`` if there is no class.

    Raises:
        ValueError: shapes differ, targets out of [0, 1] or not a number, an unknown reduction.
    """
    _check_scores("logits", logits)
    if targets.shape != logits.shape:
        raise ValueError(
            f"`targets` must have the shape of `logits`, {tuple(logits.shape)}; got {tuple(targets.shape)}"
        )
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be 'mean' or 'sum'; got {reduction!r}")
    if not logits.numel():
        return logits.sum()
    targets = targets.detach().to(logits.dtype)
    low, high = float(targets.min()), float(targets.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"`targets` must be in [0, 1]; found {low:.3g} to {high:.3g}. Are these scores before sigmoid?"
        )
    loss = F.binary_cross_entropy_with_logits(logits, targets)
    return loss if reduction == "mean" else loss * logits.shape[1]


def old_targets(old_logits: Tensor, pasted: Tensor | None = None, refined: Tensor | None = None) -> Tensor:
    r"""What the teacher learns of old classes (the labels of FMWISS eqs 8 and 9).

    .. math:: y^c(i) = [\text{the pasted object is a } c] \text{ on pasted pixels}, \quad
              \sigma(f^{t-1}(x))^c(i) \text{ elsewhere}

    Args:
        old_logits: (B, O, h, w), the model before the step on the image with its paste; channel 0 is background.
        pasted: (B, h, w) int64, class ids in [0, O), 255 where nothing was pasted; None: nothing was.
        refined: (B, C, h, w) bool or in [0, 1], masks of the new classes. If given, background is at most
            :math:`1 - \max_c M^c`, in the manner of WILSON's minimum: the old model calls new objects background.

    Returns:
        (B, O, h, w) in [0, 1], without gradient.

    Raises:
        ValueError: shapes do not fit, or a pasted id is no old class.
    """
    _check_scores("old_logits", old_logits)
    place = (len(old_logits), *old_logits.shape[2:])
    targets = old_logits.detach().sigmoid()
    if refined is not None:
        if refined.ndim != 4 or _place(refined) != place:
            raise ValueError(
                f"`refined` must be (B, C, h, w) on the grid of `old_logits` {tuple(old_logits.shape)}; got "
                f"{tuple(refined.shape)}"
            )
        targets[:, BACKGROUND] = torch.minimum(targets[:, BACKGROUND], 1 - _most(refined, targets))
    if pasted is not None:
        if tuple(pasted.shape) != place or pasted.dtype != torch.int64:
            raise ValueError(f"`pasted` must be {place} int64; got {tuple(pasted.shape)} {pasted.dtype}")
        here = pasted != IGNORE
        found = pasted[here]
        known = old_logits.shape[1]
        if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < known:
            low, high = int(found.min()), int(found.max())
            raise ValueError(f"`pasted` must hold old classes in [0, {known}) or {IGNORE}; found {low} to {high}")
        truth = F.one_hot(pasted.masked_fill(~here, 0), known).movedim(-1, 1)
        targets = torch.where(here[:, None], truth.to(targets.dtype), targets)
    return targets


def student_targets(
    teacher_logits: Tensor,
    old_logits: Tensor,
    present: Tensor,
    *,
    alpha: float = ALPHA,
    beta: float = BETA,
    hard_over: str = "all",
    bkg_min: bool = False,
) -> Tensor:
    r"""What the student learns (FMWISS eq 10).

    .. math:: q^c = \alpha\,|T|^c_{hard} + (1-\alpha)\,\sigma(T)^c \;\; c \in C^t; \qquad
              q^c = \beta\,\sigma(f^{t-1})^c + (1-\beta)\,\sigma(T)^c \;\; c \in Y^{t-1}

    Args:
        teacher_logits: (B, O + C, h, w), T.
        old_logits: (B, O, h, w), :math:`f^{t-1}`; channel 0 is background.
        present: (B, C) bool, image-level labels; a new class that is not in the image is 0 everywhere. An image without
            any teaches that no new class is there.
        alpha: share of the hard label, in [0, 1].
        beta: share of the old model, in [0, 1].
        hard_over: which channels compete for the hard label: "all" of T, so that it is 0 where an old class or
            background wins; "background" and the new ones that are present, as in WILSON's code, where image-level
            labels of old classes are 0; or the "new" ones that are present, so that every pixel belongs to one of them.
        bkg_min: background is at most :math:`1 - \max_c q^c` over new classes, as WILSON's (eq 10 prints no minimum).

    Returns:
        (B, O + C, h, w) in [0, 1], without gradient.

    Raises:
        ValueError: shapes do not fit, a share out of [0, 1], an unknown ``hard_over``.
    """
    _check_scores("teacher_logits", teacher_logits)
    _check_scores("old_logits", old_logits)
    old, new = old_logits.shape[1], teacher_logits.shape[1] - old_logits.shape[1]
    if _place(teacher_logits) != _place(old_logits) or new < 1:
        raise ValueError(
            f"`teacher_logits` must be (B, O + C, h, w) with C >= 1 beside `old_logits` {tuple(old_logits.shape)}; got "
            f"{tuple(teacher_logits.shape)}"
        )
    if present.dtype != torch.bool or tuple(present.shape) != (len(old_logits), new):
        raise ValueError(
            f"`present` must be ({len(old_logits)}, {new}) bool; got {tuple(present.shape)} {present.dtype}"
        )
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1]; got {value}")
    if hard_over not in HARD_OVER:
        raise ValueError(f"`hard_over` must be one of {', '.join(HARD_OVER)}; got {hard_over!r}")
    teacher = teacher_logits.detach()
    there = present[:, :, None, None]
    rivals = teacher
    if hard_over != "all":
        known = teacher[:, : BACKGROUND + 1] if hard_over == "background" else teacher[:, :0]
        rivals = torch.cat([known, teacher[:, old:].masked_fill(~there, -torch.inf)], 1)
    hard = F.one_hot(rivals.argmax(1), rivals.shape[1]).movedim(-1, 1)[:, -new:].to(teacher.dtype)
    soft = teacher.sigmoid()
    of_new = (alpha * hard + (1 - alpha) * soft[:, old:]) * there
    of_old = beta * old_logits.detach().sigmoid() + (1 - beta) * soft[:, :old]
    if bkg_min:
        of_old[:, BACKGROUND] = torch.minimum(of_old[:, BACKGROUND], 1 - of_new.amax(1))
    return torch.cat([of_old, of_new], 1)


def dense_labels(refined: Tensor, old_logits: Tensor, pasted: Tensor | None = None) -> Tensor:
    """Which class a pixel counts for in the dense contrastive loss (open choice 10 of dossier section 4).

    New classes where exactly one mask is set; what was pasted; background where no mask is set and background is the
    old model's best guess; the rest does not count.

    Args:
        refined: (B, C, h, w) bool, masks of the new classes, nothing under what was pasted.
        old_logits: (B, O, h, w); the new classes count from O on.
        pasted: (B, h, w) int64, 255 where nothing was pasted; None: nothing was.

    Returns:
        (B, h, w) int64, in [0, O + C) or 255.

    Raises:
        ValueError: shapes do not fit.
    """
    if refined.dtype != torch.bool or refined.ndim != 4 or _place(refined) != _place(old_logits):
        raise ValueError(
            f"`refined` must be (B, C, h, w) bool on the grid of `old_logits` {tuple(old_logits.shape)}; got "
            f"{tuple(refined.shape)} {refined.dtype}"
        )
    active = refined.sum(1)
    labels = torch.full_like(active, IGNORE)
    labels[(active == 0) & (old_logits.argmax(1) == BACKGROUND)] = BACKGROUND
    if refined.shape[1]:
        labels = torch.where(active == 1, refined.int().argmax(1) + old_logits.shape[1], labels)
    return labels if pasted is None else torch.where(pasted != IGNORE, pasted, labels)


def grown(classifier: nn.Conv2d, added: int) -> nn.Conv2d:
    """A classifier with more classes: the old ones as they were, the new ones as torch begins a convolution.

    Equal to WILSON's list of one 1x1 convolution a step. MiB begins otherwise, see
    :func:`fmseg.distill.balanced_classifier`, which takes the old classifier, too.

    Args:
        classifier: 1x1, with or without bias.
        added: classes, >= 1.

    Returns:
        A new module; ``classifier`` is not changed.

    Raises:
        ValueError: not a 1x1 convolution, or ``added`` < 1.
    """
    if not isinstance(classifier, nn.Conv2d) or classifier.kernel_size != (1, 1) or classifier.groups != 1:
        raise ValueError(f"`classifier` must be a 1x1 convolution; got {classifier}")
    if added < 1:
        raise ValueError(f"`added` must be >= 1 classes; got {added}")
    before = classifier.out_channels
    bias = classifier.bias is not None
    new = nn.Conv2d(classifier.in_channels, before + added, 1, bias=bias).to(classifier.weight)
    with torch.no_grad():
        new.weight[:before] = classifier.weight
        if bias:
            new.bias[:before] = classifier.bias
    return new


def start_rare(classifier: nn.Conv2d, prior: float, *, known: int = 0, softmax: bool = False) -> None:
    r"""Set a classifier's biases, in place, so that before anything is learned its classes are rare.

    .. math:: b_c = \log\frac{\pi}{1-\pi}, \; b_0 = \log\frac{1-s}{s} \;\; \text{(sigmoid)}; \qquad
              b_c = \log \pi, \; b_0 = \log (1-s) \;\; \text{(softmax)}; \qquad s = (C-1)\,\pi

    A thing covers about a tenth of some pictures and nothing of the others. From biases of 0 a short training first
    teaches all weights to say no, and has then to undo it for each class; with the prior there from the start it is
    free to tell classes apart.

    Args:
        classifier: 1x1 convolution with a bias; its weights stay.
        prior: :math:`\pi` of every class but background, > 0, (C - 1) of them less than 1 together.
        known: channels that were learned before stay as they are; 0: all begin, and background gets the rest.
        softmax: whether the scores go through a softmax.

    Raises:
        ValueError: no bias, or a prior out of range.

    Source: the focal loss's initialisation (Lin et al. 2017, section 4.1, there 0.01), for each class its own yes or
    no. Differs from the official code: WILSON and its predecessors begin as torch begins a convolution.
    """
    if classifier.bias is None:
        raise ValueError("`classifier` must have a bias, which holds the prior")
    rest = 1 - (classifier.out_channels - 1) * prior
    if not 0 < prior < 1 or not rest > 0:
        raise ValueError(
            f"`prior` must be > 0 and leave something to the background beside {classifier.out_channels - 1} classes; "
            f"got {prior}"
        )
    values = torch.full_like(classifier.bias, prior)
    values[0] = rest
    values = values.log() if softmax else values.logit()
    with torch.no_grad():
        classifier.bias[known:] = values[known:]


def _most(refined: Tensor, like: Tensor) -> Tensor:
    return refined.to(like.dtype).amax(1) if refined.shape[1] else torch.zeros_like(like[:, 0])


def _place(x: Tensor) -> tuple[int, ...]:
    return (len(x), *x.shape[2:])


def _check_scores(name: str, scores: Tensor) -> None:
    if scores.ndim != 4 or not scores.is_floating_point():
        raise ValueError(f"`{name}` must be (B, C, h, w) float; got {tuple(scores.shape)} {scores.dtype}")
