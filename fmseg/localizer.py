r"""WILSON's localizer: a head on the segmenter's encoder that learns from image labels where the new classes are.

Cermelli et al. 2022, "Incremental Learning in Semantic Segmentation from Image Labels", arXiv 2112.01882. Official
code: github.com/fcdl94/WILSON (41c7d5b). How the losses here fit together: :mod:`fmseg.wilson`. K old classes with
background, N new ones, C = K + N.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmseg import _loss_checks as check


class Localizer(nn.Module):
    """Where is what, learned from image labels: 3x3 convolution, norm, activation, the same again, 1x1 convolution.

    Args:
        channels: of the encoder's last map: 2048 for ResNet-101, 4096 for Wide-ResNet-38.
        classes: C >= 2, old and new ones and background.
        width: 256 officially.

    Raises:
        ValueError: an argument is out of range; in ``forward``, features of another form.

    Source: train.py, ``self.pseudolabeler``.

    Differs from the official code: in-place synchronised ABN is BatchNorm and leaky ReLU (0.01), the same in the
    forward pass as long as its scales are positive; statistics are those of one process.
    """

    def __init__(self, channels: int, classes: int, width: int = 256):
        super().__init__()
        for name, value, least in (("channels", channels, 1), ("classes", classes, 2), ("width", width, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be an integer >= {least}; got {value!r}.")
        self.channels = channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.01),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.01),
            nn.Conv2d(width, classes, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) features -> (B, C, h, w) scores z."""
        if features.ndim != 4 or features.shape[1] != self.channels:
            raise ValueError(f"`features` must be (B, {self.channels}, h, w); got {tuple(features.shape)}.")
        return self.layers(features)

    @torch.no_grad()
    def guess(self, features: Tensor) -> Tensor:
        """Scores in eval mode, for pseudo-labels: no gradient, running statistics; the mode is put back afterwards."""
        training = self.training
        self.eval()
        try:
            return self(features)
        finally:
            self.train(training)


def class_scores(scores: Tensor, *, epsilon: float = 1.0, gamma: float = 3.0, floor: float = 0.01) -> Tensor:
    r"""One score an image and class: normalised global weighted pooling and a focal term for the size.

    .. math:: \hat y_c = \frac{\sum_i m_{c,i} z_{c,i}}{\epsilon + \sum_i m_{c,i}}
              + (1 - \bar m_c)^\gamma \log(\lambda + \bar m_c), \quad m = \mathrm{softmax}_c(z)

    :math:`\bar m` is the mean of m over the pixels; the second term is near :math:`\log \lambda` for a class that
    has no pixels, and 0 for one that has all.

    Args:
        scores: (B, C, h, w) float, z.
        epsilon: >= 0, keeps the pooling of a class without pixels near 0.
        gamma: >= 0. floor: lambda, > 0.

    Returns:
        (B, C).

    Raises:
        TypeError, ValueError: ``scores`` are no maps or not finite, a parameter is out of range.

    Source: utils/wss_loss.py, ``ngwp_focal``, whose ``alpha`` is unused; from 1-stage-wseg (Araslanov and Roth 2020).
    """
    check.maps("scores", scores)
    check.positive("epsilon", epsilon, zero=True)
    check.positive("gamma", gamma, zero=True)
    check.positive("floor", floor)
    z = scores.flatten(2)
    m = z.softmax(1)
    size = m.mean(2)
    return (m * z).sum(2) / (epsilon + m.sum(2)) + (1 - size).clamp(min=0) ** gamma * (floor + size).log()


def classification_loss(scores: Tensor, image_labels: Tensor) -> Tensor:
    r"""l_CLS: is each new class in the image?

    .. math:: l_{CLS} = \frac{1}{B N} \sum_{b} \sum_{c \ge K} \mathrm{BCE}(\hat y_{b,c}, y_{b,c})

    Args:
        scores: (B, C, h, w) float, z.
        image_labels: (B, N), 1 = present, of the last N channels, N in [1, C - 1].

    Returns:
        () nats, with :func:`class_scores` for y-hat.

    Raises:
        TypeError, ValueError: shapes do not fit, labels are not 0 and 1, a value is not finite.

    Source: utils/wss_loss.py, ``bce_loss(mode="ngwp", reduction="mean")``.
    """
    pooled = class_scores(scores)
    count = image_labels.shape[-1] if isinstance(image_labels, Tensor) and image_labels.ndim == 2 else 1
    check.image_labels_of(scores, image_labels, min(max(count, 1), scores.shape[1] - 1), "new classes")
    return F.binary_cross_entropy_with_logits(pooled[:, -count:], image_labels.to(pooled))


def localization_loss(scores: Tensor, old_logits: Tensor) -> Tensor:
    r"""l_LOC: on old classes, background included, the localizer agrees with the old model.

    .. math:: l_{LOC} = \frac{1}{B K |I|} \sum_{b, c < K, i} \mathrm{BCE}(z_{c,i}, \sigma(f'_{c,i}))

    Args:
        scores: (B, C, h, w) float, z.
        old_logits: (B, K, h, w) float, f', K < C. Get no gradient.

    Returns:
        () nats.

    Raises:
        TypeError, ValueError: shapes or class counts do not fit, a value is not finite.

    Source: train.py, ``l_loc``.
    """
    check.old_and_new(scores, old_logits, 1, "scores")
    old = scores[:, : old_logits.shape[1]]
    return F.binary_cross_entropy_with_logits(old, old_logits.detach().sigmoid())


@torch.no_grad()
def pseudo_masks(
    masks: Tensor, image_labels: Tensor, *, top: float = 0.6, background: float = 0.7, low: float = 0.2
) -> Tensor:  # fmt: skip
    r"""Hard masks of what is clear: a pixel belongs to the classes near their best, to none if these are several.

    .. math:: M_{c,i} = [\, m_{c,i} > \max(t_c \max_k m_{c,k}, \; \mathrm{low}) \,], \quad
              M_{\cdot,i} \leftarrow 0 \text{ where } \sum_c M_{c,i} > 1

    with t = ``background`` for class 0, ``top`` for the others; classes that are not in the image are set to 0 first.

    Args:
        masks: (B, C, h, w) float in [0, 1]: softmax scores after :func:`fmseg.pamr.refine`.
        image_labels: (B, C - 1), 1 = present.
        top, background, low: in [0, 1].

    Returns:
        (B, C, h, w) of 0 and 1, at most one 1 a pixel, dtype of ``masks``; no gradient.

    Raises:
        TypeError, ValueError: shapes do not fit, labels are not 0 and 1, a value is not finite or out of range.

    Source: wss/single_stage.py, ``pseudo_gtmask``, with the values of train.py.
    """
    check.maps("masks", masks)
    check.image_labels_of(masks, image_labels, masks.shape[1] - 1, "C - 1")
    for name, value in (("top", top), ("background", background), ("low", low)):
        check.share(name, value)
    masks = present_only(masks, image_labels)
    shares = torch.full_like(masks[:1, :, :1, :1], top)
    shares[:, 0] = background
    clear = masks > (shares * masks.amax((2, 3), keepdim=True)).clamp(min=low)
    return (clear & (clear.sum(1, keepdim=True) == 1)).to(masks.dtype)


def balanced_cross_entropy(scores: Tensor, pseudo: Tensor, image_labels: Tensor) -> Tensor:
    r"""l_SSS: the localizer learns from its own refined masks; rare classes weigh more.

    .. math:: l_{SSS} = -\frac1B \sum_b [\, n_b = 1 + \textstyle\sum_c y_{b,c} \,] \; \frac{1}{|I|}
              \sum_{i: M_i \ne 0} \Big(1 - \frac{1 + |M_{c_i}|}{1 + |M|}\Big) \log m_{c_i,i}

    :math:`c_i` is the class of pixel i, :math:`|M_c|` its pixels in the image, :math:`|M|` all that have a class,
    :math:`n_b` the number of classes with pixels: an image counts only if all its classes and background have some.

    Args:
        scores: (B, C, h, w) float, m is their softmax; resized to the masks (bilinear, ``align_corners=True``) if these
            are of another size.
        pseudo: (B, C, H, W) of 0 and 1, at most one 1 a pixel, of :func:`pseudo_masks`.
        image_labels: (B, C - 1), 1 = present.

    Returns:
        () nats; images that do not count stay in B, and pixels without a class in :math:`|I|`. 0 with gradient 0 where
        no pixel has a class.

    Raises:
        TypeError, ValueError: shapes do not fit, masks or labels are not 0 and 1 or overlap, a value is not finite.

    Source: wss/single_stage.py, ``balanced_mask_loss_ce``.
    """
    check.maps("scores", scores)
    check.maps("pseudo", pseudo)
    if pseudo.shape[:2] != scores.shape[:2]:
        raise ValueError(f"`pseudo` must be {(*scores.shape[:2], 'H', 'W')}; got {tuple(pseudo.shape)}.")
    if bool(((pseudo != 0) & (pseudo != 1)).any()) or bool((pseudo.sum(1) > 1).any()):
        raise ValueError("`pseudo` must hold 0 and 1, at most one 1 a pixel. Soft masks go through pseudo_masks first.")
    check.image_labels_of(scores, image_labels, scores.shape[1] - 1, "C - 1")
    if scores.shape[2:] != pseudo.shape[2:]:
        scores = F.interpolate(scores, pseudo.shape[2:], mode="bilinear", align_corners=True)
    pseudo = pseudo.detach()
    pixels = pseudo.sum((2, 3))  # (B, C)
    total = pixels.sum(1, keepdim=True)
    rarity = (total - pixels) / (1 + total)
    loss = -(pseudo * scores.log_softmax(1) * rarity[:, :, None, None]).sum(1).mean((1, 2))
    complete = (pixels > 0).sum(1) == image_labels.sum(1) + 1
    return (complete.to(loss.dtype) * loss).mean()


def present_only(masks: Tensor, image_labels: Tensor) -> Tensor:
    """Masks of absent classes set to 0; background stays."""
    return torch.cat([masks[:, :1], masks[:, 1:] * image_labels.to(masks.dtype)[:, :, None, None]], 1)
