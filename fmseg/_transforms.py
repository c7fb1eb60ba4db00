"""One transform that mmsegmentation lacks: the crop by area and aspect that WILSON, and so FMWISS, trains with."""

import math

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from PIL import Image

_TRIES = 10


@TRANSFORMS.register_module(force=True)
class RandomResizedCrop(BaseTransform):
    """A random window of random area and aspect, resized to a square; torchvision's, for image and mask.

    Source: WILSON dataset/transform.py, RandomResizedCrop(512, (0.5, 2)). A window of more than the whole area never
    fits; where none does in ten tries, the largest central one of an allowed aspect is taken.

    Args:
        size: side of the result, pixels.
        scale: range of the window's area as a share of the image's.
        ratio: range of width / height, drawn log-uniformly.
    """

    def __init__(self, size: int, scale=(0.5, 2.0), ratio=(3 / 4, 4 / 3)):
        self.size, self.scale, self.ratio = size, tuple(scale), tuple(ratio)

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height, width."""
        for _ in range(_TRIES):
            area = height * width * np.random.uniform(*self.scale)
            ratio = math.exp(np.random.uniform(*np.log(self.ratio)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return np.random.randint(height - h + 1), np.random.randint(width - w + 1), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - h) // 2, (width - w) // 2, h, w

    def transform(self, results: dict) -> dict:
        top, left, h, w = self.window(*results["img"].shape[:2])
        for key in ["img", *results.get("seg_fields", [])]:
            how = Image.Resampling.BILINEAR if key == "img" else Image.Resampling.NEAREST
            part = np.ascontiguousarray(results[key][top : top + h, left : left + w])
            results[key] = np.asarray(Image.fromarray(part).resize((self.size, self.size), how))
        results["img_shape"] = (self.size, self.size)
        return results
