"""What the grounding head learns from an oracle's instances, and a label map of its answers.

Grounded Diffusion, dossier 2.8 and section 5; official code: train.py in github.com/Lipurple/Grounded-Diffusion
(5680115). A training step on pictures that a frozen generator has just painted::

    masks, detected = oracle_targets(found, ids, (512, 512))
    if detected.any():                                        # else officially no step: Adam would move by momentum
        loss = grounding_loss(head(features, text, size=512), masks[None], detected[None])
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LEARNING_RATE, BATCH = 1e-5, 1  # Adam, no decay, no schedule (train.py)
UNION_SCORE = 0.8  # what counts as an object in IOSD's reproduction


def oracle_targets(
    found: Sequence, classes: Sequence[int], size: Sequence[int], *, rule: str = "best", least: float = 0.0
) -> tuple[Tensor, Tensor]:
    """An oracle's mask of each class that the prompt names.

    Args:
        found: instances in one picture with ``label``, ``score`` and ``mask`` (H, W) bool, as
            :class:`fmseg.oracle.Instance`, in any order.
        classes: O class ids.
        size: (H, W).
        rule: "best": the instance with the highest score alone, so that others of the class are background, as
            officially; "union": all instances.
        least: instances with a lower score are no instances. The official detector's own threshold is 0.05; for the
            union see :data:`UNION_SCORE`.

    Returns:
        masks (O, H, W) bool, and detected (O,) bool; the mask of a class that was not detected is empty.

    Raises:
        ValueError: unknown ``rule``, or a mask of another size.

    Differs from the official code: there the detector is handed RGB pictures as BGR, with red and blue swapped.
    """
    if rule not in ("best", "union"):
        raise ValueError(f"`rule` must be 'best' or 'union'; got {rule!r}")
    masks = torch.zeros(len(classes), *size, dtype=torch.bool)
    detected = torch.zeros(len(classes), dtype=torch.bool)
    for row, label in enumerate(classes):
        mine = sorted((i for i in found if i.label == label and i.score >= least), key=lambda i: -i.score)
        detected[row] = bool(mine)
        for instance in mine[: 1 if rule == "best" else None]:
            if tuple(instance.mask.shape) != tuple(size):
                raise ValueError(
                    f"masks of `found` must be of `size`, {tuple(size)}; got {tuple(instance.mask.shape)} for class "
                    f"{label}. Does the oracle see the same picture?"
                )
            masks[row] |= torch.as_tensor(instance.mask)
    return masks, detected


def grounding_loss(
    logits: Tensor,
    masks: Tensor,
    detected: Tensor | None = None,
    *,
    present: Tensor | None = None,
    undetected: str = "skip",
    average: str = "pictures",
) -> Tensor:
    r"""Binary cross-entropy of the masks (dossier 2.8).

    .. math:: L = -\frac1B \sum_{b} \sum_{i \in D_b} \frac1{HW} \sum_p m_{ip} \log \sigma(S_{ip})
              + (1 - m_{ip}) \log(1 - \sigma(S_{ip}))

    D: the classes that the oracle found in the picture.

    Args:
        logits: (B, O, H, W) float, S.
        masks: (B, O, H, W) bool, or float in [0, 1], m.
        detected: (B, O) bool; None: all.
        present: (B, O) bool, False for slots that stand for no class, as given to the head; they never count.
        undetected: "skip" such a class; or "zero": it has an empty mask, whatever ``masks`` say. The paper's Table 3
            compares the two ("training w.o. zero masks" is "skip") and prefers "skip".
        average: over "pictures", as officially: classes are added up, so pictures of two objects weigh twice; pictures
            without any detection count in B. Or over "objects": the mean over all classes that count.

    Returns:
        () nats, >= 0. Nothing counts: 0 with a gradient of 0.

    Raises:
        ValueError: shapes do not fit, an unknown option, masks out of range, or logits that count are not finite.

    Source: train.py, nn.BCEWithLogitsLoss. The paper may have more terms, but none is known.
    """
    if undetected not in ("skip", "zero"):
        raise ValueError(f"`undetected` must be 'skip' or 'zero'; got {undetected!r}")
    if average not in ("pictures", "objects"):
        raise ValueError(f"`average` must be 'pictures' or 'objects'; got {average!r}")
    if logits.ndim != 4 or not logits.is_floating_point() or masks.shape != logits.shape:
        raise ValueError(
            "`logits` and `masks` must both be (B, O, H, W), logits as floats; got "
            f"{tuple(logits.shape)} of {logits.dtype} and {tuple(masks.shape)}. Ask the head for the masks' `size`"
        )
    everything = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    detected = _flags("detected", detected, everything)
    counted = (detected if undetected == "skip" else everything) & _flags("present", present, everything)
    if not bool(counted.any()):
        return logits[:0].sum()  # connected, and 0 even where logits are not finite
    scores = logits[counted]
    targets = (masks[counted] * detected[counted][:, None, None]).to(scores.dtype)
    low, high = float(targets.min()), float(targets.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"`masks` must be bool or in [0, 1]; found {low:.3g} to {high:.3g}")
    each = F.binary_cross_entropy_with_logits(scores, targets, reduction="none").mean((1, 2))
    if not bool(torch.isfinite(each.detach()).all()):
        raise ValueError("`logits` must be finite. Has training diverged? Lower the learning rate")
    return each.sum() / len(logits) if average == "pictures" else each.mean()


def label_map(logits: Tensor, classes: Sequence[int], *, background: int = 0) -> Tensor:
    """One class a pixel, from independent masks: the highest logit if it is above 0, else background.

    Args:
        logits: (B, O, H, W) float.
        classes: O class ids, of the queries in their order.
        background: the id of pixels that no class claims.

    Returns:
        (B, H, W) int64. Of equal logits, the first class.

    Raises:
        ValueError: not as many classes as logits.

    The paper's rule is not published; this one is inferred (dossier 5, item 16).
    """
    if logits.ndim != 4 or logits.shape[1] != len(classes) or not len(classes):
        raise ValueError(
            f"`logits` must be (B, O, H, W) with O = {len(classes)}, the number of `classes`; got {tuple(logits.shape)}"
        )
    best, which = logits.max(1)
    return torch.where(best > 0, torch.tensor(list(classes), device=logits.device)[which], background)


def _flags(name: str, given: Tensor | None, everything: Tensor) -> Tensor:
    if given is None:
        return everything
    if given.dtype != torch.bool or given.shape != everything.shape:
        raise ValueError(
            f"`{name}` must be bool of (B, O) = {tuple(everything.shape)}; got {tuple(given.shape)} of {given.dtype}"
        )
    return given.to(everything.device)
