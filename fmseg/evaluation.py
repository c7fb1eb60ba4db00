"""Predictions, their confusion with the truth, and the identity of weights. Knows torch and numpy only.

Of a model it asks ``logits(images) -> (B, C, H, W)`` for uint8 images (B, 3, H, W).
"""

import hashlib

import numpy as np
import torch
from torch import nn

from fmseg.metrics import Confusion


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Most probable class of every pixel.

    Args:
        model: has ``logits``; evaluated in eval mode, its mode restored.
        images: (N, H, W, 3) uint8 RGB.
        batch_size: images at a time, >= 1.

    Returns:
        (N, H, W) uint8 class ids.

    Raises:
        FloatingPointError: the scores are not finite.
    """
    if getattr(images, "ndim", 0) != 4 or images.shape[3] != 3:
        raise ValueError(f"`images` must be (N, H, W, 3), got {getattr(images, 'shape', type(images).__name__)}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    labels = np.empty(images.shape[:3], np.uint8)
    try:
        for start in range(0, len(images), batch_size):
            part = torch.from_numpy(np.array(images[start : start + batch_size])).permute(0, 3, 1, 2)
            scores = model.logits(part.contiguous().to(device))
            best, index = scores.max(1)  # twice as fast as argmax
            if not bool(torch.isfinite(best).all()):
                raise FloatingPointError(
                    f"the scores of images {start} to {start + len(part) - 1} are not finite: the weights have "
                    "diverged; train again with a smaller `lr` or with `grad_clip`"
                )
            labels[start : start + len(part)] = index.to(torch.uint8).cpu().numpy()
    finally:
        model.train(was_training)
    return labels


def evaluate(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    batch_size: int = 64,
    ignore_index: int = 255,
) -> Confusion:
    """Confusion of :func:`predict` with the truth.

    Args:
        model, images, batch_size: as in :func:`predict`.
        labels: (N, H, W) uint8, class ids in [0, C) or ``ignore_index``.
        num_classes: C.
        ignore_index: label of pixels that are not counted.

    Returns:
        :class:`fmseg.metrics.Confusion`; ``.compute()`` is the per-class IoU.
    """
    confusion = Confusion(num_classes, ignore_index)
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        confusion.update(predict(model, images[part], batch_size), labels[part])
    return confusion


def weights_hash(model: nn.Module) -> str:
    """sha256 (hex) over the state dict's names, dtypes, shapes and bytes in name order; equal bits, equal hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
