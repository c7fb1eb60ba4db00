"""mmsegmentation, imported once, quietly, and the two small parts that the mini segmenters add to it.

Importing this module takes seconds (it pulls mmcv, mmengine and mmdet in), so :mod:`fmseg.segmenters` does it late.
``mmseg.utils.register_all_modules`` is not called: it would also import data sets, hooks and metrics and set a global
default scope; the models register themselves when ``mmseg.models`` is imported.
"""

import logging
import warnings
from contextlib import contextmanager

import fmseg  # noqa: F401  the import shims come before mmseg
from fmseg._shims import without

with warnings.catch_warnings(), without("transformers"):  # mmdet's grounding models would take it in: two seconds
    warnings.simplefilter("ignore")
    import mmdet.models  # noqa: F401
    import mmseg.models  # noqa: F401
    from mmcv.cnn import ConvModule
    from mmcv.ops import point_sample
    from mmengine.config import ConfigDict
    from mmengine.logging import MMLogger
    from mmengine.model import BaseModule
    from mmengine.structures import PixelData
    from mmseg.models.backbones import ResNetV1c
    from mmseg.models.backbones.resnet import BasicBlock
    from mmseg.models.decode_heads import Mask2FormerHead
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import nn

with warnings.catch_warnings():  # mmdet's anchor grid triggers a warning that torch shows once a process: take it here
    warnings.simplefilter("ignore")
    torch.meshgrid(torch.zeros(1), torch.zeros(1))

__all__ = [
    "MODELS", "ConfigDict", "Mask2FormerHead", "PixelData", "SegDataSample", "exclude_ignored", "quiet",
    "without_attention_maps",
]  # fmt: skip


@contextmanager
def quiet():
    """No warnings and no mmengine log lines inside (``init_weights`` prints one for every parameter)."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@MODELS.register_module(force=True)
class ConvStem(BaseModule):
    """A backbone behind a few strided convolutions (Xiao et al. 2021, "Early convolutions help transformers").

    Args:
        channels: output channels of each convolution.
        strides: its stride; 3x3 kernels, BN and ReLU.
        backbone: config of any mmsegmentation backbone, with ``in_channels`` equal to the last of ``channels``.
    """

    def __init__(self, channels, strides, backbone, init_cfg=None):
        super().__init__(init_cfg or [dict(type="Kaiming", layer="Conv2d")])
        widths = [3, *channels]
        self.stem = nn.Sequential(
            *(
                ConvModule(widths[i], widths[i + 1], 3, stride=s, padding=1, norm_cfg=dict(type="BN"))
                for i, s in enumerate(strides)
            )
        )
        self.trunk = MODELS.build(backbone)

    def init_weights(self):
        trunk, self.trunk = self.trunk, nn.Identity()
        super().init_weights()
        self.trunk = trunk
        self.trunk.init_weights()

    def forward(self, x):
        return self.trunk(self.stem(x))


@MODELS.register_module(force=True)
class ShallowResNetV1c(ResNetV1c):
    """ResNet-V1c with one basic block a stage (mmsegmentation's smallest, ResNet-18, has two)."""

    arch_settings = {10: (BasicBlock, (1, 1, 1, 1)), **ResNetV1c.arch_settings}


@MODELS.register_module(force=True)
class BatchedMask2FormerHead(Mask2FormerHead):
    """mmsegmentation's Mask2Former head with the matching done for all images of a batch at once.

    The stock head builds the cost matrix image by image, which took half of a mini model's step. Same costs, same
    random points in the same order, so the same loss for the same seed up to rounding (a test compares the two).
    """

    @torch.no_grad()
    def get_targets(self, cls_scores_list, mask_preds_list, batch_gt_instances, batch_img_metas):
        scores, masks = torch.stack(cls_scores_list), torch.stack(mask_preds_list)
        most = max(1, *(len(truth.labels) for truth in batch_gt_instances))
        true_ids = scores.new_zeros((len(scores), most), dtype=torch.long)
        true_masks = masks.new_zeros((len(scores), most, *batch_gt_instances[0].masks.shape[-2:]))
        for i, truth in enumerate(batch_gt_instances):
            true_ids[i, : len(truth.labels)] = truth.labels
            true_masks[i, : len(truth.labels)] = truth.masks
        cost = self._matching_cost(scores, masks, true_ids, true_masks).float().cpu().numpy()

        labels = torch.full_like(scores[..., 0], self.num_classes, dtype=torch.long)
        mask_weights = torch.zeros_like(scores[..., 0])
        mask_targets = []
        for i, truth in enumerate(batch_gt_instances):
            queries, truths = linear_sum_assignment(cost[i, :, : len(truth.labels)])
            queries, truths = torch.as_tensor(queries), torch.as_tensor(truths)
            labels[i, queries] = truth.labels[truths]
            mask_weights[i, queries] = 1.0
            mask_targets.append(truth.masks[truths])
        label_weights = torch.ones_like(mask_weights)
        num_masks = sum(max(1, len(target)) for target in mask_targets)  # an image without labels counts as one
        return list(labels), list(label_weights), mask_targets, list(mask_weights), num_masks

    def _matching_cost(self, scores, masks, true_ids, true_masks):
        """(B, queries, truths): weighted sum of class, binary cross-entropy and dice costs at random points."""
        weight = {type(c).__name__: c.weight for c in self.assigner.match_costs}
        eps = next(c.eps for c in self.assigner.match_costs if type(c).__name__ == "DiceCost")
        points = torch.rand((len(scores), self.num_points, 2), device=scores.device)
        guess, truth = point_sample(masks, points), point_sample(true_masks, points).transpose(1, 2)
        guess, truth = self._counted(guess, truth)
        of_class = -scores.softmax(-1).gather(2, true_ids[:, None].expand(-1, scores.shape[1], -1))
        of_pixels = (F.softplus(guess).sum(-1, keepdim=True) - guess @ truth) / self.num_points
        guess = guess.sigmoid()
        sizes = guess.sum(-1, keepdim=True) + truth.sum(1, keepdim=True)
        of_overlap = 1 - (2 * (guess @ truth) + eps) / (sizes + eps)
        return (
            weight["ClassificationCost"] * of_class
            + weight["CrossEntropyLossCost"] * of_pixels
            + weight["DiceCost"] * of_overlap
        )

    def _counted(self, guess, truth):
        """Scores (B, queries, points) and truth (B, points, truths) that the matching compares: here all points."""
        return guess, truth


class LabelledMask2FormerHead(BatchedMask2FormerHead):
    """The same, but ignored pixels enter neither the matching nor the mask losses; there they are negatives.

    An ignored pixel's truth is NaN, and so is that of every point that is interpolated from one; such points get a
    score and a truth that cost nothing and teach nothing. Sums are divided by all points, as they are without.
    """

    def _seg_data_to_instance_data(self, batch_data_samples):
        instances, metas = super()._seg_data_to_instance_data(batch_data_samples)
        for sample, truth in zip(batch_data_samples, instances, strict=True):
            ignored = sample.gt_sem_seg.data[0] == self.ignore_index
            truth.masks = truth.masks.float().masked_fill(ignored, float("nan"))
        return instances, metas

    def _counted(self, guess, truth):
        known = ~truth.isnan().any(2)[:, None]  # (B, 1, points); all masks of a picture ignore the same pixels
        return torch.where(known, guess, _SURELY_NOT), truth.nan_to_num(0.0)


class _OnKnownPoints(nn.Module):
    """A loss of mask scores at points that leaves out those whose truth is NaN."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, scores, truth, **kwargs):
        return self.loss(torch.where(truth.isnan(), _SURELY_NOT, scores), truth.nan_to_num(0.0), **kwargs)


def exclude_ignored(head: nn.Module) -> None:
    """Turn a fresh :class:`BatchedMask2FormerHead` into a :class:`LabelledMask2FormerHead`, in place."""
    if type(head) is not BatchedMask2FormerHead:
        raise ValueError(f"`exclude_ignored` is an option of the mini Mask2Former; this head is {type(head).__name__}")
    head.__class__ = LabelledMask2FormerHead
    head.loss_mask, head.loss_dice = _OnKnownPoints(head.loss_mask), _OnKnownPoints(head.loss_dice)


_SURELY_NOT = torch.tensor(-1e4)  # a score whose sigmoid is 0 in float32


class _AttentionWithoutMaps(nn.MultiheadAttention):
    def forward(self, *args, need_weights=True, **kwargs):
        return super().forward(*args, need_weights=False, **kwargs)


def without_attention_maps(model: nn.Module) -> None:
    """Let torch take its fused attention: mmcv asks for the averaged attention map and throws it away."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = _AttentionWithoutMaps
