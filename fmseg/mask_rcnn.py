"""The paper's own oracle, mmdetection's Mask R-CNN with Swin-S on COCO: its architecture, without memory for weights.

Grounded Diffusion lets it say where the painted things are (dossier 2.7). It is built here on torch's meta device
alone, from the config file that mmdetection ships: running it takes compiled operators (non-maximum suppression,
RoIAlign) that mmcv-lite lacks. The oracle that runs is :mod:`fmseg.grounded_detector`'s Mask2Former.
"""

import importlib.util
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from fmseg import names

FILE = "swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py"
CLASSES = names.COCO[1:]  # by label
WHY_NOT = (
    "Mask R-CNN cannot run here: it is built on torch's meta device, without weights, and its operators nms and "
    "roi_align are compiled parts of mmcv that mmcv-lite lacks. Use Mask2Former for instances on COCO instead, which "
    "finds the same classes: fmseg.grounded_detector.load('facebook/mask2former-swin-small-coco-instance'), or "
    "--detector with that name. For the paper's own, install mmcv built for your torch and use mmdet.apis"
)


def build() -> nn.Module:
    """Mask R-CNN with Swin-S for the 80 classes of COCO, all parameters on the meta device.

    Returns:
        mmdetection's detector; calling it raises a RuntimeError that says what is missing and what to use instead.

    Raises:
        FileNotFoundError: mmdetection came without its config files.
    """
    from fmseg import _mmseg  # isort: skip  makes mmdet importable
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    path = Path(importlib.util.find_spec("mmdet").submodule_search_locations[0]) / ".mim" / "configs" / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: this mmdetection came without its config files. Install the wheel from PyPI "
            "(pip install -c constraints.txt mmdet)"
        )
    config = Config.fromfile(path).model.to_dict()
    config["backbone"].pop("init_cfg")  # an address of weights
    linspace = torch.linspace  # Swin reads its stochastic depths from one: numbers, not weights

    def of_numbers(*args, **options):
        return linspace(*args, **{"device": "cpu"} | options)

    with (
        DefaultScope.overwrite_default_scope("mmdet"), _mmseg.quiet(), torch.device("meta"),
        mock.patch.object(torch, "linspace", of_numbers),
    ):  # fmt: skip
        model = MODELS.build(_mmseg.ConfigDict(config))
    model.register_forward_pre_hook(_refuse, with_kwargs=True)
    return model.eval()


def _refuse(module, args, options):
    raise RuntimeError(WHY_NOT)
