"""Cross-entropy at full resolution for scores that live on a coarse grid, without ever storing the full-size scores.

A segmenter scores a 16x16 grid; the papers take the loss after bilinear resizing to the image. Done in two steps with
48 classes at 64x64 this costs more than the mini networks themselves, because 48 full-size maps travel through memory
four times. Here each image is resized, normalised and differentiated while its maps still lie in the cache, and only
the gradient on the grid is kept: the same numbers three times faster (``benchmarks/segmenter_speed.py``).
Knows torch only.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache(maxsize=64)
def _axis_matrix(size_in: int, size_out: int) -> Tensor:
    """(size_out, size_in) float32: linear resizing of one axis as a matrix (torch's rule, align_corners=False)."""
    return F.interpolate(torch.eye(size_in)[None], (size_out,), mode="linear", align_corners=False)[0].T.contiguous()


def _matrices(grid: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    rows, columns = _axis_matrix(grid.shape[-2], height), _axis_matrix(grid.shape[-1], width)
    return rows.to(grid), columns.to(grid)


def resize_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of score maps; equal to ``F.interpolate(..., align_corners=False)`` up to rounding.

    Resizing is linear and separable, so it is two matrix products; on a CPU that is faster than the interpolation
    kernel. Differentiable.

    Args:
        scores: (..., h, w) float, any leading shape.
        size: (H, W), pixels.

    Returns:
        (..., H, W), dtype of ``scores``.
    """
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    rows, columns = _matrices(scores, *size)
    h, w = scores.shape[-2:]
    rows_first = scores.reshape(-1, h, w).transpose(0, 1).reshape(-1, w)  # (h * maps, w)
    resized = rows @ (rows_first @ columns.T).view(h, -1)  # (H, maps * W): two large products, no batched ones
    return resized.view(size[0], -1, size[1]).transpose(0, 1).reshape(*scores.shape[:-2], *size)


def check_labels(labels: Tensor, num_classes: int, ignore_index: int = 255) -> None:
    """Raise ValueError where ``labels`` holds an id that is neither in [0, num_classes) nor ``ignore_index``.

    Args:
        labels: integer tensor of any shape.
        num_classes: number of classes, >= 1.
        ignore_index: id of pixels without a label.
    """
    bad = (labels != ignore_index) & ((labels >= num_classes) | (labels < 0))
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        raise ValueError(
            f"`labels` must hold class ids in [0, {num_classes}) or {ignore_index} (ignored); "
            f"found {int(labels[tuple(at)])} at {at}. Build the model with more classes, or remap the labels"
        )


class _UpsampledCrossEntropy(torch.autograd.Function):
    """Forward computes the loss and the gradient on the grid in one sweep over the images; backward only scales it."""

    @staticmethod
    def forward(ctx, grid, labels, ignore_index):
        height, width = labels.shape[-2:]
        rows, columns = _matrices(grid, height, width)
        valid = labels != ignore_index
        count = valid.sum().clamp(min=1)
        target = torch.where(valid, labels, 0)[:, :, None]  # (B, H, 1, W)
        weight = valid[:, :, None].to(grid)
        _, classes, h, w = grid.shape
        by_row = grid.transpose(1, 2).contiguous()  # (B, h, C, w): both resizings become one large product each
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(by_row) if wants_gradient else None
        total = grid.new_zeros(())
        for i in range(len(grid)):
            z = (rows @ (by_row[i].view(-1, w) @ columns.T).view(h, -1)).view(height, classes, width)
            of_truth = z.gather(1, target[i])
            largest = z.amax(1, keepdim=True)
            z.sub_(largest).exp_()  # z of one image stays in the cache
            normaliser = z.sum(1, keepdim=True)
            total += ((normaliser.log() + largest - of_truth) * weight[i]).sum()
            if wants_gradient:
                z.mul_(weight[i] / normaliser).scatter_add_(1, target[i], -weight[i])
                back = rows.T @ z.view(height, -1)  # (h, C * W)
                torch.mm(back.view(-1, width), columns, out=gradient[i].view(-1, w))
        gradient = gradient.transpose(1, 2) if wants_gradient else None
        ctx.save_for_backward(gradient, count)
        return total / count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        gradient, count = ctx.saved_tensors
        return (None if gradient is None else gradient * (upstream / count)), None, None


def upsampled_cross_entropy(grid: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    r"""Mean cross-entropy over the valid pixels, after bilinear resizing of the scores to the labels' size.

    .. math:: L = \frac{1}{|V|} \sum_{p \in V} -\log \frac{\exp z_{y_p,p}}{\sum_c \exp z_{c,p}}, \quad
              z = \mathrm{resize}(\mathrm{grid}), \; V = \{p : y_p \ne \mathrm{ignore}\}

    (FreeMask dossier eq. 1, averaged.) Equal to ``F.cross_entropy(F.interpolate(...), ignore_index=...)`` up to
    rounding; where no pixel is valid the loss is 0 with gradient 0, not NaN. On a GPU the two-step form is used.

    Args:
        grid: (B, C, h, w) float, unnormalised scores.
        labels: (B, H, W) int64, class ids in [0, C) or ``ignore_index``; see :func:`check_labels`.
        ignore_index: id of pixels that do not count.

    Returns:
        () loss in nats, differentiable once.

    Raises:
        ValueError: shapes do not belong together.

    Differs from mmsegmentation's default, which divides by all pixels, ignored ones included
    (its ``avg_non_ignore=True`` is equal to this).
    """
    if grid.ndim != 4 or labels.ndim != 3 or grid.shape[0] != labels.shape[0]:
        raise ValueError(
            f"`grid` must be (B, C, h, w) and `labels` (B, H, W) with the same B; "
            f"got {tuple(grid.shape)} and {tuple(labels.shape)}"
        )
    if grid.device.type == "cpu":
        return _UpsampledCrossEntropy.apply(grid, labels, ignore_index)
    z = F.interpolate(grid, labels.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(z, labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)
