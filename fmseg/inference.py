"""Segmenting pictures of any size: resize, run whole or in overlapping windows, resize the scores back.

What mmsegmentation says in ``test_pipeline`` and ``test_cfg``, as one small configuration (:class:`TestTime`). Knows
torch and numpy, and of a model only ``logits(images) -> (B, C, H, W)``, ``num_classes`` and ``divisor``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmseg.metrics import Confusion


@dataclass(frozen=True)
class TestTime:
    """How pictures are shown to a model in evaluation.

    Args:
        scale: (long, short): the picture is resized, its aspect kept, to fit inside; None: as it is.
        window: side of square windows that overlap (mmsegmentation's "slide"), pixels; None: the whole picture.
        stride: pixels between windows.
        centre_crop: first resize the shorter side to this many pixels and keep the central square: WILSON's protocol,
            which evaluates only that square. Excludes ``scale``.

    Raises:
        ValueError: a value that is not a positive whole number, a stride without a window or larger than it.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name
    scale: tuple[int, int] | None = None
    window: int | None = None
    stride: int | None = None
    centre_crop: int | None = None

    def __post_init__(self):
        if self.scale is not None:
            object.__setattr__(self, "scale", tuple(self.scale))
            if len(self.scale) != 2:
                raise ValueError(f"`scale` must be (long side, short side), got {self.scale}")
        numbers = {"scale": self.scale or (), "window": (self.window,), "stride": (self.stride,)}
        numbers["centre_crop"] = (self.centre_crop,)
        for name, values in numbers.items():
            for value in values:
                if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                    raise ValueError(f"`{name}` must hold whole numbers >= 1, got {value!r}")
        if (self.window is None) != (self.stride is None) or (self.window and self.stride > self.window):
            raise ValueError(f"`window` ({self.window}) needs a `stride` ({self.stride}) of at most its size")
        if self.scale and self.centre_crop:
            raise ValueError("`scale` and `centre_crop` exclude each other")


@torch.no_grad()
def segment(model: nn.Module, image: np.ndarray, how: TestTime = TestTime()) -> np.ndarray:  # noqa: B008  frozen
    """Class ids of one picture.

    Args:
        model: evaluated in eval mode, its mode restored.
        image: (H, W, 3) uint8 RGB. With ``how.centre_crop`` the caller has cut it already (:func:`shown`).
        how: see :class:`TestTime`.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: not a picture. FloatingPointError: the scores are not finite.
    """
    if getattr(image, "ndim", 0) != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        got = f"{getattr(image, 'shape', type(image).__name__)} {getattr(image, 'dtype', '')}"
        raise ValueError(f"`image` must be (H, W, 3) uint8, got {got}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    try:
        x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device).float()
        if how.scale:
            x = _resize(x, fitted(image.shape[:2], how.scale)).clamp_(0, 255)
        scores = _in_windows(model, x, how) if how.window else _padded_logits(model, x)
        scores = _resize(scores, image.shape[:2])
    finally:
        model.train(was_training)
    best, index = scores.max(1)
    if not bool(torch.isfinite(best).all()):
        raise FloatingPointError("the scores are not finite: the weights have diverged")
    return index[0].to(torch.uint8).cpu().numpy()


def shown(image: np.ndarray, labels: np.ndarray, how: TestTime) -> tuple[np.ndarray, np.ndarray]:
    """Picture and truth as they enter the score: themselves, or the central square of ``how.centre_crop``."""
    if how.centre_crop is None:
        return image, labels
    from PIL import Image

    side = how.centre_crop
    height, width = labels.shape
    short = min(height, width)
    size = (int(side * width / short), int(side * height / short))
    image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    labels = np.array(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    top, left = round((size[1] - side) / 2), round((size[0] - side) / 2)
    return image[top : top + side, left : left + side], labels[top : top + side, left : left + side]


def evaluate_pictures(
    model: nn.Module, data, how: TestTime, *, table: np.ndarray | None = None, part: slice = slice(None),
    progress: bool = False,
) -> Confusion:  # fmt: skip
    """Confusion of a model over pictures of any sizes.

    Args:
        model: see :func:`segment`; ``model.num_classes`` classes.
        data: gives (image, labels) by index and has a length, as :class:`fmseg.on_disk.OnDisk`.
        how: see :class:`TestTime`.
        table: (256,) uint8, applied to the labels (a protocol's ``evaluation``); or None.
        part: which pictures, such as ``slice(rank, None, world)``; confusions of parts merge.
        progress: show a bar.
    """
    from tqdm import tqdm

    confusion = Confusion(model.num_classes)
    for index in tqdm(range(len(data))[part], disable=not progress, unit="image"):
        picture = data[index]
        image, labels = shown(picture.image, picture.labels, how)
        labels = labels if table is None else table[labels]
        confusion.update(segment(model, image, how)[None], labels[None])
    return confusion


def fitted(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """(H, W) with the aspect kept: as large as fits into the scale, long side to long side (mmcv's rescale_size)."""
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _padded_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Scores of a picture whose sides are padded to multiples of the model's divisor (edges repeated), cut back."""
    height, width = x.shape[-2:]
    divisor = getattr(model, "divisor", 1)
    below, right = -height % divisor, -width % divisor
    if below or right:
        x = F.pad(x, (0, right, 0, below), mode="replicate")
    return model.logits(x)[..., :height, :width]


def _in_windows(model: nn.Module, x: Tensor, how: TestTime) -> Tensor:
    """Mean of the scores of overlapping windows; the last in each direction is moved back inside."""
    height, width = x.shape[-2:]
    total = count = None
    for top in _starts(height, how):
        for left in _starts(width, how):
            here = (..., slice(top, top + how.window), slice(left, left + how.window))
            scores = _padded_logits(model, x[here])
            if total is None:
                total = scores.new_zeros(*scores.shape[:2], height, width)
                count = scores.new_zeros(1, 1, height, width)
            total[here] += scores
            count[here] += 1
    return total / count


def _starts(length: int, how: TestTime) -> Iterable[int]:
    steps = max(length - how.window + how.stride - 1, 0) // how.stride + 1
    return [max(min(k * how.stride, length - how.window), 0) for k in range(steps)]
