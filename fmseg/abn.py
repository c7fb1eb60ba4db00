r"""WILSON's segmenter without in-place ABN: its ResNet-101 with plain batch norm and leaky ReLU, and its weights.

In-place activated batch norm (Rota Bulò et al. 2018) computes

.. math:: y = \phi\Big( (|\gamma| + \epsilon) \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta \Big), \quad
          \phi(z) = \max(z, 0.01 z) \text{ or } z

in the memory of x. Plain batch norm with the scale :math:`|\gamma| + \epsilon` and a leaky ReLU behind it are the same
function, with more memory. Official code: github.com/fcdl94/WILSON (c3a2b89), models/resnet.py, modules/residual.py,
segmentation_module.py ``get_body``; github.com/mapillary/inplace_abn (01d23bf), src/inplace_abn_cpu.cpp.
"""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmseg import paper_segmenters
from fmseg.segmenters import Segmenter, from_config

SIZE = "r101-abn"  # in configurations, beside the sizes of fmseg.paper_segmenters
FILE = "resnet101_iabn_sync.pth.tar"
ORIGIN = (
    f"WILSON's ResNet-101 is {FILE}, linked from github.com/mapillary/inplace_abn and kept as release v1.0 of "
    "github.com/arthurdouillard/CVPR2021_PLOP; download it once and give its path"
)
SLOPE, EPSILON = 0.01, 1e-5


def model_config(depth: int = 101, **trunk: Any) -> dict[str, Any]:
    """The architecture in the form of :func:`fmseg.paper_segmenters.model_config`; :func:`leaky` is still to follow.

    Against mmsegmentation's DeepLabV3: one 7x7 convolution at the start instead of three 3x3, every block of the last
    stage dilated by 2, no drop-out before the classifier.

    Args:
        depth: 50, 101 or 152. trunk: changes to the backbone.

    Differs from the official code: the head is mmsegmentation's ASPP, whose five branches are normed one by one before
    they are joined; there the joint map is normed, and the image-level branch is added after the projection.
    """
    config = paper_segmenters.model_config("deeplabv3", "r101")
    config["backbone"] |= {"type": "ResNet", "depth": depth, "contract_dilation": False} | trunk
    config["decode_head"]["dropout_ratio"] = 0.0
    return config


def build(*, num_classes: int, image_size: int = 512, seed: int = 0, ignore_index: int = 255) -> Segmenter:
    """WILSON's DeepLabV3 with random weights; arguments as of :func:`fmseg.segmenters.build`."""
    options = {"num_classes": num_classes, "image_size": image_size, "seed": seed, "ignore_index": ignore_index}
    return leaky(from_config("deeplabv3", model_config(), **options))


def leaky(model: nn.Module) -> nn.Module:
    """The model with every ReLU replaced, in place, by a leaky one of slope 0.01."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(SLOPE, inplace=True))
    return model


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official backbone's weights under the names of mmsegmentation's ResNet, scales as plain batch norm has them.

    Args:
        state: ``mod1.conv1.weight``, ``mod2.block1.convs.bn1.weight`` and so on, with or without ``module.`` before; a
            classifier is left out.

    Returns:
        ``conv1.weight``, ``layer1.0.bn1.weight`` and so on.

    Raises:
        ValueError: a name that is none of the official ones.
    """
    made = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if name.startswith("classifier.") or name.endswith("num_batches_tracked"):
            continue
        made[_renamed(name)] = value.abs() + EPSILON if _is_scale(name) else value
    return made


def load(model: Segmenter, path: str | os.PathLike) -> None:
    """Fill the backbone of :func:`build`'s segmenter from the official file.

    Raises:
        FileNotFoundError: no such file; says where it comes from. ValueError: not weights of this backbone: names what
        is missing, left over or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. {ORIGIN}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = dict(state.get("state_dict", state))
    except (RuntimeError, AttributeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no file of weights ({what}). {ORIGIN}") from error
    state, trunk = converted(state), model.model.backbone
    mine = {key: value for key, value in trunk.state_dict().items() if not key.endswith("num_batches_tracked")}
    shapes = [k for k in mine.keys() & state.keys() if mine[k].shape != state[k].shape]
    wrong = shapes or mine.keys() - state.keys() or state.keys() - mine.keys()
    if wrong:
        how = "has another shape" if shapes else "is missing" if mine.keys() - state.keys() else "is left over"
        raise ValueError(f"{path} does not hold {model.name}'s backbone: {sorted(wrong)[0]} {how} ({len(wrong)} such)")
    trunk.load_state_dict(state, strict=False)


def weights_file() -> Path:
    """The official file in the folder that FMSEG_WEIGHTS names; FileNotFoundError where it is not."""
    if "FMSEG_WEIGHTS" not in os.environ:
        raise FileNotFoundError(f"Set FMSEG_WEIGHTS to a folder with {FILE}. {ORIGIN}")
    path = Path(os.environ["FMSEG_WEIGHTS"]) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. {ORIGIN}")
    return path


def _is_scale(name: str) -> bool:
    return name.endswith(".weight") and name.split(".")[-2] in ("bn1", "bn2", "bn3", "proj_bn")


def _renamed(name: str) -> str:
    """mod1.bn1.bias -> bn1.bias; mod3.block2.convs.conv1.weight -> layer2.1.conv1.weight; proj_* -> downsample.*"""
    parts = name.split(".")
    if parts[0] == "mod1" and len(parts) == 3 and parts[1] in ("conv1", "bn1"):
        return ".".join(parts[1:])
    stage, block = parts[0].removeprefix("mod"), parts[1].removeprefix("block") if len(parts) > 2 else ""
    if stage in ("2", "3", "4", "5") and block.isdigit():
        place = f"layer{int(stage) - 1}.{int(block) - 1}"
        if parts[2] == "convs" and len(parts) == 5:
            return f"{place}.{parts[3]}.{parts[4]}"
        if parts[2] in ("proj_conv", "proj_bn") and len(parts) == 4:
            return f"{place}.downsample.{('proj_conv', 'proj_bn').index(parts[2])}.{parts[3]}"
    raise ValueError(f"{name!r} is no weight of WILSON's ResNet, such as mod2.block1.convs.conv1.weight. {ORIGIN}")
