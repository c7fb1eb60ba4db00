"""The four segmenters of the papers, from mmsegmentation's own classes, behind one small interface.

SegFormer, Segmenter and Mask2Former are FreeMask's, DeepLabV3 is FMWISS's. Configurations are data: mini ones in
:mod:`fmseg.segmenter_configs`, the papers' from mmsegmentation's files (:mod:`fmseg.paper_segmenters`); mmsegmentation
is imported when the first model is built. The training loop knows only ``loss``, ``logits`` and ``num_classes``.
"""

import copy
import math

import torch
from torch import Tensor, nn

from fmseg.pixel_loss import check_labels, resize_scores, upsampled_cross_entropy
from fmseg.segmenter_configs import CONFIGS

MEAN = (123.675, 116.28, 103.53)  # of ImageNet, RGB, 0..255, as in mmsegmentation's configs
STD = (58.395, 57.12, 57.375)
SCRATCH = "scratch"


class Segmenter(nn.Module):
    """A segmentor of mmsegmentation that scores every cell of a grid for every class.

    Attributes:
        model: the mmsegmentation segmentor (``.backbone``, ``.decode_head``).
        num_classes: C.
        ignore_index: label of pixels that do not count.
        mean, std: buffers, (1, 3, 1, 1), in 0..255; images are normalised inside.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, *, ignore_index: int = 255, divisor: int = 1, name: str = "segmenter",
        mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD,
    ):  # fmt: skip
        super().__init__()
        self.model, self.num_classes, self.ignore_index = model, num_classes, ignore_index
        self.divisor, self.name = divisor, name
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy at full resolution, averaged over the pixels that carry a label.

        Args:
            images: (B, 3, H, W) uint8, or float in 0..255, RGB; H and W multiples of ``divisor``.
            labels: (B, H, W) integer, class ids in [0, C) or ``ignore_index``.

        Returns:
            () nats; 0 with zero gradients where no pixel carries a label.

        Raises:
            ValueError, TypeError: shapes, dtype or a label out of range; names the value.

        Differs from mmsegmentation, whose heads by default divide by all pixels, ignored ones included
        (equal to ``avg_non_ignore=True`` there).
        """
        labels = self._checked(images, labels)
        grid = self.grid_logits(images)
        with torch.autocast(grid.device.type, enabled=False):  # the loss is float32 in mixed precision too
            return upsampled_cross_entropy(grid.float(), labels, ignore_index=self.ignore_index)

    def loss_weight(self, labels: Tensor) -> int:
        """What a share of a batch counts when the losses of shares are averaged: its labelled pixels."""
        return int((labels != self.ignore_index).sum())

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32: scores of every class at every pixel, bilinearly resized from the grid."""
        return resize_scores(self.grid_logits(images), tuple(images.shape[-2:]))

    def log_probabilities(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32: log of the class probabilities at every pixel; ``exp`` of it sums to 1 over C."""
        return self.logits(images).log_softmax(1)

    def grid_logits(self, images: Tensor) -> Tensor:
        """(B, C, h, w) float32: the scores on the model's own grid, before resizing."""
        return self.model.decode_head(self._features(images))

    def _features(self, images: Tensor):
        return self.model.extract_feat(self._normalised(images))

    def _normalised(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"`images` must be (B, 3, H, W), got {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"`images` must be uint8, or float in 0..255; got {images.dtype}")
        height, width = images.shape[-2:]
        if min(height, width) < self.divisor or height % self.divisor or width % self.divisor:
            raise ValueError(
                f"{self.name} takes images whose sides are multiples of {self.divisor} pixels, got {height}x{width}; "
                "resize or pad them"
            )
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)  # convolutions of this width run faster so

    def _checked(self, images: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point() or tuple(labels.shape) != (images.shape[0], *images.shape[2:]):
            raise ValueError(
                f"`labels` must be (B, H, W) integers for `images` {tuple(images.shape)}, "
                f"got {tuple(labels.shape)} {labels.dtype}"
            )
        check_labels(labels, self.num_classes, self.ignore_index)
        return labels.long()


class MaskSegmenter(Segmenter):
    """Mask2Former: a set of masks with a class each, instead of scores on a grid.

    ``loss`` is mmsegmentation's: Hungarian matching, then class, mask and dice losses after every decoder layer. An
    ignored pixel belongs to no mask, so it is a *negative* of every mask loss, as there (FreeMask dossier, section 4),
    unless the model was built with ``exclude_ignored``.
    An image without any label only teaches "no object", so an all-ignored batch has a finite loss that is not zero.
    Points are drawn from torch's global random state: seed it per step for repeatable runs, as ``fmseg.training`` does.

    ``logits`` is the semantic score map :math:`s_c = \\sum_q p_q(c) \\, \\sigma(m_q)`, non-negative, no logarithm:
    arg-max it, do not soft-max it; ``log_probabilities`` is :math:`\\log(s_c / \\sum_k s_k)`.
    """

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        from fmseg._mmseg import PixelData, SegDataSample

        samples = []
        for label in self._checked(images, labels):
            samples.append(SegDataSample(metainfo={"img_shape": tuple(label.shape)}))
            samples[-1].gt_sem_seg = PixelData(data=label[None])
        losses = self.model.decode_head.loss(self._features(images), samples, None)
        return sum(value for key, value in losses.items() if "loss" in key)

    def loss_weight(self, labels: Tensor) -> int:
        """Images: the mask losses are normalised by the number of masks, over all processes, inside mmdet."""
        return len(labels)

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32 >= 0: sum over queries of class probability times mask probability."""
        return self._scores(images, tuple(images.shape[-2:]))

    def log_probabilities(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32: log of the scores, normalised over the classes."""
        scores = self.logits(images).clamp(min=1e-12)
        return (scores / scores.sum(1, keepdim=True)).log()

    def grid_logits(self, images: Tensor) -> Tensor:
        """(B, C, h, w) float32: the score map at the masks' own resolution."""
        return self._scores(images, None)

    def _scores(self, images: Tensor, size: tuple[int, int] | None) -> Tensor:
        of_layers, masks = self.model.decode_head(self._features(images), None)
        mask = masks[-1] if size is None else resize_scores(masks[-1], size)
        classes = of_layers[-1].softmax(-1)[..., :-1]  # the last one is "no object"
        return torch.einsum("bqc,bqhw->bchw", classes, mask.sigmoid())


def build(
    name: str, size: str = "mini", *, num_classes: int, image_size: int = 64, seed: int = 0, ignore_index: int = 255,
    backbone: str = SCRATCH, exclude_ignored: bool = False,
) -> Segmenter:  # fmt: skip
    """A segmenter with fresh weights, or a fresh head on a pre-trained backbone.

    Args:
        name: "segformer", "segmenter", "mask2former" or "deeplabv3".
        size: which configuration of :data:`fmseg.segmenter_configs.CONFIGS`; for the papers' sizes see
            :func:`fmseg.paper_segmenters.build`.
        num_classes: C, >= 2.
        image_size: side of the training images, pixels; fixes the positional embeddings of Segmenter, which are
            resized for other sizes. The others take any multiple of their divisor.
        seed: of the initial weights; torch's global random state is left alone.
        ignore_index: label of pixels that do not count.
        backbone: "scratch", or "zoo:<hash>" for the zoo's, see :func:`zoo_backbone`.
        exclude_ignored: of "mask2former": leave ignored pixels out of its mask losses, where mmsegmentation takes them
            as negatives of every mask.

    Returns:
        A :class:`Segmenter` (:class:`MaskSegmenter` for Mask2Former) in training mode, float32, on the CPU.

    Raises:
        ValueError: unknown name or size, fewer than two classes, an image size that does not fit, a backbone that the
            zoo no longer has, ``exclude_ignored`` with another segmenter.
    """
    if name not in CONFIGS:
        raise ValueError(f"`name` must be one of {', '.join(CONFIGS)}; got {name!r}")
    if size not in CONFIGS[name]:
        raise ValueError(f"`size` of {name} must be one of {', '.join(CONFIGS[name])}; got {size!r}")
    options = {"num_classes": num_classes, "image_size": image_size, "seed": seed, "ignore_index": ignore_index}
    model = from_config(name, CONFIGS[name][size], **options)
    if backbone != SCRATCH:
        _take_backbone(model, name, backbone)
    if exclude_ignored:
        from fmseg import _mmseg

        _mmseg.exclude_ignored(model.model.decode_head)
    return model


def zoo_backbone(name: str) -> str:
    """What a run's configuration calls the zoo's backbone of a segmenter: "zoo:" and the hash of its weights."""
    from fmseg import zoo

    return f"zoo:{zoo.weights_hash(f'backbone-{name}')}"


def _take_backbone(model: Segmenter, name: str, backbone: str) -> None:
    from fmseg import zoo

    if backbone != zoo_backbone(name):
        raise ValueError(
            f"`backbone` must be {SCRATCH!r} or {zoo_backbone(name)!r}, the zoo's for {name}; got {backbone!r}. "
            "Weights that a record means are in the commit that made it"
        )
    model.model.backbone.load_state_dict(zoo.load_state(f"backbone-{name}", "backbone.safetensors"))


def from_config(
    name: str, config: dict, *, num_classes: int, image_size: int, seed: int = 0, ignore_index: int = 255
) -> Segmenter:
    """A segmenter from a model config of mmsegmentation with ``divisor`` and, if not ImageNet's, ``mean`` and ``std``.

    Args, Returns, Raises: as :func:`build`; ``config`` is not changed.
    """
    config = copy.deepcopy(config)
    divisor, mean, std = config.pop("divisor"), config.pop("mean", MEAN), config.pop("std", STD)
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2 (background counts), got {num_classes}")
    if image_size < divisor or image_size % divisor:
        raise ValueError(f"`image_size` of {name} must be a multiple of {divisor} pixels, got {image_size}")

    from fmseg import _mmseg

    _complete(config, num_classes, image_size, ignore_index)
    with _mmseg.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _mmseg.MODELS.build(_mmseg.ConfigDict(config))
        model.init_weights()
    _mmseg.without_attention_maps(model)
    kind = MaskSegmenter if isinstance(model.decode_head, _mmseg.Mask2FormerHead) else Segmenter
    return kind(model, num_classes, ignore_index=ignore_index, divisor=divisor, name=name, mean=mean, std=std)


def _complete(config: dict, num_classes: int, image_size: int, ignore_index: int) -> None:
    """Fill in, in place, what a configuration cannot know beforehand."""
    head, trunk = config["decode_head"], config["backbone"]
    head |= {"num_classes": num_classes, "ignore_index": ignore_index}
    if "loss_cls" in head:
        head["loss_cls"]["class_weight"] = [1.0] * num_classes + [0.1]  # "no object" weighs a tenth
    stride = math.prod(trunk["strides"]) if trunk["type"] == "ConvStem" else 1
    trunk = trunk.get("backbone", trunk)
    if trunk["type"] == "VisionTransformer":
        trunk["img_size"] = image_size // stride
