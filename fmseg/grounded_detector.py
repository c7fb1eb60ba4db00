"""The oracle at the paper's size: an instance segmenter of COCO from transformers, as this project's instances.

The paper's is mmdetection's Mask R-CNN with Swin-S, which needs compiled operators (:mod:`fmseg.mask_rcnn` has its
architecture); Mask2Former for instances on COCO
finds the same classes. Weights are read from a folder, or by a name such as
"facebook/mask2former-swin-small-coco-instance", which is downloaded if it is not in the hub's cache.
"""

from collections.abc import Callable

import torch
from numpy import ndarray

from fmseg import mask_rcnn
from fmseg.oracle import Instance

LEAST = 0.05  # score below which nothing is handed on, mmdetection's default


def load(source: str, *, device="cpu") -> tuple[Callable[[ndarray], list[Instance]], tuple[str, ...]]:
    """A detector and its class names.

    Args:
        source: a folder as ``save_pretrained`` writes it, or a hub's name.

    Returns:
        Picture (H, W, 3) uint8 RGB -> instances, best first, ``label`` a place in the names; the names.

    Raises:
        ValueError: the source cannot be read; says how to get it. RuntimeError: the paper's Mask R-CNN is asked for.
    """
    if "mask-rcnn" in source.lower().replace("_", "-"):
        raise RuntimeError(mask_rcnn.WHY_NOT)
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    try:
        processor = AutoImageProcessor.from_pretrained(source, use_fast=False)
        model = Mask2FormerForUniversalSegmentation.from_pretrained(source).eval().to(device)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} cannot be read as Mask2Former ({what}). Download it once where there is a network, with "
            f"Mask2FormerForUniversalSegmentation and AutoImageProcessor .from_pretrained({str(source)!r}), "
            ".save_pretrained(folder), and give the folder"
        ) from error
    return of_model(model, processor), class_names(model.config)


def class_names(config) -> tuple[str, ...]:
    """Names by label of a transformers configuration."""
    return tuple(config.id2label[k] for k in sorted(config.id2label))


def of_model(model, processor, least: float = LEAST) -> Callable[[ndarray], list[Instance]]:
    """A detector from a Mask2Former with its image processor.

    Args:
        model: in evaluation mode. processor: resizes and normalises for it. least: score.
    """

    @torch.no_grad()
    def detect(image: ndarray) -> list[Instance]:
        inputs = processor(images=image, return_tensors="pt").to(next(model.parameters()).device)
        found = processor.post_process_instance_segmentation(
            model(**inputs), threshold=least, target_sizes=[image.shape[:2]], return_binary_maps=True
        )[0]
        maps, about = found["segmentation"], found["segments_info"]
        if maps is None or not about:
            return []
        made = [Instance(one["label_id"], float(one["score"]), maps[one["id"]].cpu().numpy() > 0) for one in about]
        return sorted((i for i in made if i.mask.any()), key=lambda i: -i.score)

    return detect
