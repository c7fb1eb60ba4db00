"""CAM and SS rows: a network of its own finds the new classes from image labels, then the segmenter learns its masks.

In WILSON's table 1 (its section 4.2) weakly supervised methods make hard pseudo-labels offline on the step's pictures,
and the segmenter learns these with WILSON's eq. 8. CAM: class activation maps (Zhou et al. 2016). SS: single-stage
self-supervision (Araslanov and Roth 2020), which is WILSON's localizer without an old model: pooled scores, masks
refined by :mod:`fmseg.pamr`, a loss on what is clear. Both networks stand on the encoder that the base model began
with.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from fmseg import pamr
from fmseg.localizer import balanced_cross_entropy, classification_loss, present_only, pseudo_masks
from fmseg.segmenters import Segmenter
from fmseg.step_models import Step, Warm, localizer_of, read
from fmseg.wilson import segmentation_loss, segmentation_targets

BACKGROUND_AT = 0.3  # of an image's class map, whose largest value is 1: what is lower everywhere is background
BATCH = 64


class CamNet(nn.Module):
    """Encoder and one linear layer: which new classes are in the image? Its maps before pooling say where.

    Args:
        segmenter: whose encoder it stands on; taken over, not copied.
        classes: N, the new ones.
        seed: of the linear layer.
        threshold: see :data:`BACKGROUND_AT`, in [0, 1].
    """

    partial = True

    def __init__(self, segmenter: Segmenter, classes: int, *, seed: int, threshold: float = BACKGROUND_AT):
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` must be in [0, 1]; got {threshold}")
        self.segmenter, self.threshold, self.num_classes = segmenter, threshold, classes + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.classify = nn.Conv2d(segmenter.model.decode_head.in_channels, classes, 1, bias=False)

    def loss(self, images: Tensor, labels: Tensor, tags: Tensor) -> Tensor:
        """() nats: binary cross-entropy of the pooled maps with the image labels (B, N); ``labels`` are not read."""
        return F.binary_cross_entropy_with_logits(self.maps(images).mean((2, 3)), tags.float())

    def loss_weight(self, labels: Tensor) -> int:
        return len(labels)

    def maps(self, images: Tensor) -> Tensor:
        """(B, N, h, w) class activation maps, before any normalisation."""
        return self.classify(read(self.segmenter, images).encoder)

    def scores(self, images: Tensor, tags: Tensor) -> Tensor:
        """(B, 1 + N, h, w) in [0, 1]: background's threshold, and maps of the present classes, each at most 1."""
        maps = self.maps(images).relu() * tags[:, :, None, None]
        maps = maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-5)
        return torch.cat([torch.full_like(maps[:, :1], self.threshold), maps], 1)


class SsNet(Warm, nn.Module):
    """Encoder and localizer over background and the new classes, learning from image labels and from itself.

    Args:
        segmenter, classes, seed: as :class:`CamNet`.
        warmup: share of the steps before it learns from its own masks, in [0, 1); there 5 of 20 epochs.
    """

    partial = True

    def __init__(self, segmenter: Segmenter, classes: int, *, seed: int, warmup: float = 0.25):
        super().__init__()
        self.segmenter, self.warmup, self.num_classes = segmenter, warmup, classes + 1
        self.localizer = localizer_of(segmenter, classes + 1, seed=seed)

    def loss(self, images: Tensor, labels: Tensor, tags: Tensor) -> Tensor:
        """() nats: classification of the pooled scores, and after the warm-up the loss on refined masks."""
        features, flags = read(self.segmenter, images).encoder, tags.float()
        z = self.localizer(features)
        loss = classification_loss(z, flags)
        if self.warm:
            return loss
        small = F.interpolate(images.float(), z.shape[2:], mode="bilinear", align_corners=True)
        refined = pamr.refine(small, self.localizer.guess(features).softmax(1))
        return loss + balanced_cross_entropy(z, pseudo_masks(refined, flags), flags)

    def loss_weight(self, labels: Tensor) -> int:
        return len(labels)

    def scores(self, images: Tensor, tags: Tensor) -> Tensor:
        """(B, 1 + N, h, w) in [0, 1]: probabilities of background and of the classes that are present."""
        guess = self.localizer.guess(read(self.segmenter, images).encoder).softmax(1)
        return present_only(guess, tags.float())


@torch.no_grad()
def hard_labels(net: CamNet | SsNet, images: ndarray, tags: ndarray, old_classes: int) -> ndarray:
    """Offline pseudo-labels: the best of a picture's classes and background at every pixel.

    Args:
        net: trained; evaluated in eval mode, its mode restored.
        images: (N, H, W, 3) uint8.
        tags: (N, new classes) bool.
        old_classes: K; new class c gets id K + c, background 0.

    Returns:
        (N, H, W) uint8.

    Raises:
        FloatingPointError: the scores are not finite.
    """
    was, device = net.training, next(net.parameters()).device
    net.eval()
    found = np.empty(images.shape[:3], np.uint8)
    try:
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            shown = torch.from_numpy(np.ascontiguousarray(images[part])).permute(0, 3, 1, 2).to(device)
            scores = net.scores(shown, torch.from_numpy(tags[part]).to(device))
            scores = F.interpolate(scores, images.shape[1:3], mode="bilinear", align_corners=False)
            if not bool(torch.isfinite(scores).all()):
                raise FloatingPointError(f"{type(net).__name__}: scores are not finite; lower its learning rate")
            best = scores.argmax(1)
            found[part] = torch.where(best > 0, best + old_classes - 1, 0).byte().cpu().numpy()
    finally:
        net.train(was)
    return found


class HardStep(Step):
    """The segmenter's step on hard pseudo-labels of the new classes: WILSON's eq. 8."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """() nats.

        Args:
            images: (B, 3, H, W) uint8, or float in 0..255.
            labels: (B, H, W) int64 of :func:`hard_labels`; 255 where augmentation left nothing, which counts as
                background.

        Raises:
            ValueError: a label is an old class, or a map is not finite.
        """
        if bool(((labels > 0) & (labels < self.old_classes)).any()):
            raise ValueError(f"`labels` must be 0 or new classes >= {self.old_classes}: pseudo-labels know no others")
        grid = self.student.grid_logits(images)
        with torch.no_grad():
            old = self.old.grid_logits(images)
            cells = F.interpolate(labels[:, None].double(), grid.shape[2:], mode="nearest")[:, 0].long()
            soft = F.one_hot(torch.where(cells == 255, 0, cells), self.num_classes).movedim(-1, 1).to(grid.dtype)
        return segmentation_loss(grid, segmentation_targets(soft, old))
