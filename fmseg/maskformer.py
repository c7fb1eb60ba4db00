"""MaskFormer (Cheng et al. 2021, arXiv 2107.06278), the segmenter of Grounded Diffusion's Protocol II, at its own size.

Architecture: mmsegmentation's config files. Recipe: ZegFormer's on VOC and COCO-Stuff, whose evaluation the paper
follows (github.com/dingjiansw101/ZegFormer 8cb9e8f, configs/pascal_voc/Base-VOC-20.yaml and
zegformer_R101_bs32_10k_vit16_voc.yaml; b1b211c, configs/coco-stuff/Base-COCOStuff-171.yaml). The paper names MaskFormer
and no backbone; R-101 is ours (dossier 5.17).
"""

import copy
import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmseg import paper_segmenters
from fmseg.inference import TestTime
from fmseg.paper_segmenters import Recipe
from fmseg.segmenters import MaskSegmenter, from_config, resize_scores
from fmseg.words import find

NAME = "maskformer"
FILES = {
    "r50": "maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py",
    "r101": "maskformer/maskformer_r101-d32_8xb2-160k_ade20k-512x512.py",
}
SIZES = (*FILES, "mini")
_URL = "https://download.pytorch.org/models/"  # what mmengine's "torchvision://resnet50" and so on stand for
WEIGHTS = {"r50": _URL + "resnet50-0676ba61.pth", "r101": _URL + "resnet101-63fe2227.pth"}
_DIVISOR = 32
# side of crops and short side in evaluation; smallest and largest short side in training, in tenths of it; optimiser
# steps; steps between evaluations
RECIPES = {"voc": (512, (5, 20), 10_000, 10_000), "coco": (640, (5, 15), 60_000, 5_000)}
_LONGEST = 4  # times the side


class MaskFormer(MaskSegmenter):
    """MaskFormer: masks by a convolutional pixel decoder, each with a class by a transformer's query.

    ``loss`` is mmsegmentation's: Hungarian matching, then class (1), focal mask (20) and dice (1) losses after every
    decoder layer, at full resolution. An ignored pixel belongs to no mask, so it is a *negative* of every mask, in
    matching and in loss: ZegFormer's and MaskFormer's targets leave label 255 out of the list of masks and nothing
    else. A picture without any label only teaches "no object".

    ``logits`` and ``log_probabilities`` as of :class:`fmseg.segmenters.MaskSegmenter`.

    Differs from mmsegmentation: the focal loss is mmdetection's written in torch on every device (on a GPU it would
    take a compiled operator that mmcv-lite lacks); equal values.
    """

    def _scores(self, images: Tensor, size: tuple[int, int] | None) -> Tensor:
        from fmseg._mmseg import SegDataSample

        shape = tuple(images.shape[-2:])  # mmdetection's head asks for it in inference, too; nothing is padded here
        about = SegDataSample(metainfo={"img_shape": shape, "batch_input_shape": shape})
        of_layers, masks = self.model.decode_head(self._features(images), [about] * len(images))
        mask = masks[-1] if size is None else resize_scores(masks[-1], size)
        classes = of_layers[-1].softmax(-1)[..., :-1]  # the last one is "no object"
        return torch.einsum("bqc,bqhw->bchw", classes, mask.sigmoid())


class _InTorch(nn.Module):
    """mmdetection's focal loss, handed its targets one-hot, which keeps it off the compiled operator."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, scores: Tensor, classes: Tensor, **options: Any) -> Tensor:
        return self.loss(scores, (classes == 0).long()[:, None], **options)  # the one class there is has id 0


@lru_cache(maxsize=2)
def _file(size: str):
    from mmengine.config import Config

    folder = Path(importlib.util.find_spec("mmseg").submodule_search_locations[0]) / ".mim" / "configs"
    path = folder / FILES[size]
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: this mmsegmentation came without its config files. Install the wheel from PyPI "
            "(pip install -c constraints.txt mmsegmentation)"
        )
    return Config.fromfile(path)


def check(size: str) -> str:
    """The size; a ValueError that lists what there is if there is no such one."""
    if size not in SIZES:
        raise ValueError(f"`size` of maskformer must be one of {', '.join(SIZES)}; got {size!r}")
    return size


def model_config(size: str) -> dict[str, Any]:
    """The architecture, in the form of :mod:`fmseg.segmenter_configs`.

    Args:
        size: 'r50' or 'r101', mmsegmentation's own; 'mini': a ResNet-18 of 8 channels and two decoder layers, for
            trials.

    Raises:
        ValueError: no such size.
    """
    config = copy.deepcopy(_file("r50" if check(size) == "mini" else size).model.to_dict())
    about = config.pop("data_preprocessor")
    config["backbone"].pop("init_cfg", None)
    if size == "mini":
        _shrink(config)
    paper_segmenters._plain_norm(config)
    return config | {"divisor": _DIVISOR, "mean": about["mean"], "std": about["std"]}


def _shrink(config: dict[str, Any]) -> None:
    head, width = config["decode_head"], 32
    config["backbone"] |= {"depth": 18, "base_channels": 8, "norm_eval": False}
    head |= {"in_channels": [8, 16, 32, 64], "feat_channels": width, "out_channels": width, "num_queries": 24}
    head["pixel_decoder"]["norm_cfg"]["num_groups"] = 8
    head["positional_encoding"]["num_feats"] = width // 2
    head["transformer_decoder"]["num_layers"] = 2
    layer = head["transformer_decoder"]["layer_cfg"]
    for attention in ("self_attn_cfg", "cross_attn_cfg"):
        layer[attention] |= {"embed_dims": width, "num_heads": 4}
    layer["ffn_cfg"] |= {"embed_dims": width, "feedforward_channels": 2 * width}


def build(
    size: str, *, num_classes: int, image_size: int = 512, seed: int = 0, ignore_index: int = 255
) -> MaskFormer:
    """MaskFormer with random weights, in training mode, float32, on the CPU.

    Args:
        size: 'r50', 'r101' or 'mini'.
        num_classes, image_size, seed, ignore_index: as in :func:`fmseg.segmenters.build`; sides are multiples of 32.

    Raises:
        ValueError: no such size, fewer than two classes, an image size that does not fit.

    Differs from ZegFormer: scale and shift of the backbone's batch norms learn, as in mmsegmentation's file, where
    detectron2 keeps them; running statistics are kept in both.
    """
    config = model_config(size)
    options = {"num_classes": num_classes, "image_size": image_size, "seed": seed, "ignore_index": ignore_index}
    made = from_config(NAME, config, **options)
    made.model.decode_head.loss_mask = _InTorch(made.model.decode_head.loss_mask)
    return MaskFormer(
        made.model, num_classes, ignore_index=ignore_index, divisor=_DIVISOR, name=NAME, mean=config["mean"],
        std=config["std"],
    )  # fmt: skip


def weights_file(size: str) -> Path:
    """torchvision's ResNet of a size, in the folder that FMSEG_WEIGHTS names.

    Raises:
        ValueError: 'mini' has no pre-trained backbone. FileNotFoundError: the variable is not set, or the file is not
        there; says what to download.
    """
    if check(size) not in WEIGHTS:
        raise ValueError(f"maskformer of size {size!r} has no pre-trained backbone; give one of {', '.join(WEIGHTS)}")
    url = WEIGHTS[size]
    if "FMSEG_WEIGHTS" not in os.environ:
        raise FileNotFoundError(f"Set FMSEG_WEIGHTS to a folder with {Path(url).name}, from {url}")
    path = Path(os.environ["FMSEG_WEIGHTS"]) / Path(url).name
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}; download it from {url}")
    return path


def load_pretrained(model: MaskFormer, size: str) -> None:
    """Fill the backbone, in place, from :func:`weights_file`, as :func:`fmseg.paper_segmenters.load_pretrained`."""
    paper_segmenters.load_pretrained(model, weights_file(size))


def recipe(dataset: str, *, crop: int | None = None) -> Recipe:
    """How ZegFormer trains on a data set.

    Args:
        dataset: 'voc', or 'coco': the recipe of COCO-Stuff, whose pictures these are.
        crop: side of training images, pixels, if not the recipe's, for trials: what is measured in pixels shrinks.

    Returns:
        :class:`fmseg.paper_segmenters.Recipe`: batches of 32, AdamW, poly without warm-up, the backbone at a tenth of
        the rate, the whole gradient cut at norm 0.01.

    Raises:
        ValueError: another data set.

    Differs from the official code: small pictures are padded with the mean colour, there with grey (128).
    """
    side, tenths, steps, eval_every = RECIPES[tuple(RECIPES)[find(dataset, tuple(RECIPES), "dataset")]]
    train = {
        "steps": steps,
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "schedule": "poly",
        "poly_power": 0.9,
        "warmup_steps": 0,
        "grad_clip": 0.01,
        # train_net.py, build_optimizer: neither norms nor embeddings decay
        "keys": {"backbone": {"lr": 0.1, "decay": 1.0}, "query_embed": {"lr": 1.0, "decay": 0.0}},
        "norm_decay": 0.0,
        "eval_every": eval_every,
    }
    pipeline = [
        {
            "type": "RandomChoiceResize",
            "scales": [int(k * 0.1 * side) for k in range(tenths[0], tenths[1] + 1)],
            "resize_type": "ResizeShortestEdge",
            "max_size": _LONGEST * side,
        },
        {"type": "RandomCrop", "crop_size": (side, side), "cat_max_ratio": 1.0},  # 1: whatever it shows
        {"type": "PhotoMetricDistortion"},
        {"type": "RandomFlip", "prob": 0.5},
    ]
    whole = Recipe(
        train, pipeline, (side, side), TestTime(scale=(_LONGEST * side, side)), 1,
        "ZegFormer Base-VOC-20.yaml" if dataset == "voc" else "ZegFormer Base-COCOStuff-171.yaml",
    )  # fmt: skip
    return whole if crop is None else paper_segmenters._shrunk(whole, crop)
