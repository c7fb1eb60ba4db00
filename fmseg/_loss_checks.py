"""What the incremental losses ask of their arguments: a message names the argument, the need, what came, a way out.

Values are checked by their sum: one cheap pass, not finite as soon as a single value is not. Knows torch only.
"""

import torch
from torch import Tensor

from fmseg import pixel_loss

SAME_LAYER = "Are both models read at the same layer, on the same images?"


def maps(name: str, values: Tensor) -> None:
    """``values`` are (B, C, H, W) floats, finite, none of the sizes 0."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"`{name}` must be a tensor of floats; got {kind}. Convert it, or are these labels?")
    if values.ndim != 4 or 0 in values.shape:
        hint = "One image is x[None]." if values.ndim == 3 else "Is an axis missing, or the batch empty?"
        raise ValueError(f"`{name}` must be (B, C, H, W), no size 0; got {tuple(values.shape)}. {hint}")
    finite(name, values)


def finite(name: str, values: Tensor) -> None:
    """No NaN and no infinity in ``values``."""
    values = values.detach()
    if bool(torch.isfinite(values.sum())):
        return
    bad = ~torch.isfinite(values)
    if bool(bad.any()):  # else only the sum left the range of the dtype
        at = bad.nonzero()[0].tolist()
        raise ValueError(
            f"`{name}` must be finite; found {float(values[tuple(at)])} at {at}. Has training diverged? Lower the "
            "learning rate, or clip the gradients."
        )


def pair(name: str, new: Tensor, old_name: str, old: Tensor, hint: str) -> None:
    """Two maps of equal shape."""
    maps(name, new)
    maps(old_name, old)
    if new.shape != old.shape:
        raise ValueError(
            f"`{old_name}` must have the shape of `{name}`, {tuple(new.shape)}; got {tuple(old.shape)}. {hint}"
        )


def old_and_new(logits: Tensor, old_logits: Tensor, new_classes: int, name: str = "logits") -> None:
    """``logits`` (B, C, H, W) and ``old_logits`` (B, K, H, W) with C >= K + ``new_classes``."""
    maps(name, logits)
    maps("old_logits", old_logits)
    if logits.shape[:1] + logits.shape[2:] != old_logits.shape[:1] + old_logits.shape[2:]:
        raise ValueError(
            f"`old_logits` must have the batch and the grid of `{name}`, (B, H, W) = {_places(logits)}; got "
            f"{_places(old_logits)}. Resize both to the same grid, and give both models the same images."
        )
    classes, old = logits.shape[1], old_logits.shape[1]
    if classes < old + new_classes:
        more = f"more than the {old}" if new_classes else f"at least the {old}"
        raise ValueError(
            f"`{name}` must have {more} classes of `old_logits`; got {classes}. Are the arguments in the right order?"
        )


def labels_of(logits: Tensor, labels: Tensor, ignore_index: int, classes: int | None = None) -> None:
    """``labels`` are (B, H, W) integers on the grid of ``logits``, in [0, classes) or ``ignore_index``."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"`labels` must be a tensor of integer class ids; got {kind}. Use labels.long() if they are.")
    if tuple(labels.shape) != _places(logits):
        raise ValueError(
            f"`labels` must be (B, H, W) = {_places(logits)}, the grid of the scores; got {tuple(labels.shape)}. "
            "Resize the scores to the labels, see fmseg.pixel_loss.resize_scores."
        )
    pixel_loss.check_labels(labels, logits.shape[1] if classes is None else classes, ignore_index)


def coarse_labels_of(features: Tensor, labels: Tensor) -> None:
    """``labels`` are (B, H, W) integers with the batch of ``features``; any H and W, each at least 1."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"`labels` must be a tensor of integer class ids; got {kind}. Use labels.long() if they are.")
    if labels.ndim != 3 or len(labels) != len(features) or 0 in labels.shape:
        raise ValueError(
            f"`labels` must be (B, H, W) with B = {len(features)}, as in `features`; got {tuple(labels.shape)}. "
            "One image is labels[None]."
        )


def weights_of(name: str, weights: Tensor, logits: Tensor) -> None:
    """(B, H, W) bool or float >= 0 on the grid of ``logits``."""
    if not isinstance(weights, Tensor) or tuple(weights.shape) != _places(logits):
        got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(
            f"`{name}` must be (B, H, W) = {_places(logits)}; got {got}. One weight a pixel, no class axis."
        )
    if weights.dtype == torch.bool:
        return
    if not weights.is_floating_point():
        raise TypeError(
            f"`{name}` must be bool or float; got {weights.dtype}. Compare the labels: labels < old_classes."
        )
    finite(name, weights)
    if bool((weights < 0).any()):
        raise ValueError(f"`{name}` must be >= 0; found {float(weights.min())}. A negative weight would unlearn.")


def image_labels_of(logits: Tensor, image_labels: Tensor, count: int, what: str) -> None:
    """(B, count) of 0 and 1."""
    expected = (len(logits), count)
    if not isinstance(image_labels, Tensor) or tuple(image_labels.shape) != expected:
        got = tuple(image_labels.shape) if isinstance(image_labels, Tensor) else type(image_labels).__name__
        raise ValueError(f"`image_labels` must be (B, {what}) = {expected}; got {got}. The background has no column.")
    if image_labels.dtype != torch.bool and bool(((image_labels != 0) & (image_labels != 1)).any()):
        raise ValueError(
            "`image_labels` must hold 0 (absent) and 1 (present) only; found "
            f"{float(image_labels.min())} to {float(image_labels.max())}. Are these class ids? One column a class."
        )


def positive(name: str, value: float, *, zero: bool = False) -> None:
    """A finite number > 0, or >= 0 where ``zero``."""
    if not (value >= 0 if zero else value > 0) or value == float("inf"):
        raise ValueError(f"`{name}` must be a finite number {'>=' if zero else '>'} 0; got {value!r}.")


def share(name: str, value: float) -> None:
    """A number in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1]; got {value!r}.")


def old_count(old_classes: int, classes: int) -> None:
    """1 <= K < C."""
    if isinstance(old_classes, bool) or not isinstance(old_classes, int) or not 1 <= old_classes < classes:
        raise ValueError(
            f"`old_classes` must be an integer in [1, {classes}), background included; got {old_classes!r}. The scores "
            f"have {classes} classes, and at least one of them must be new."
        )


def _places(values: Tensor) -> tuple[int, ...]:
    return (len(values), *values.shape[2:])
