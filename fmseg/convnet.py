"""The mini CLIP's image trunk, registered with timm so that open_clip builds it by name from a model config.

A residual network (timm's ``ByobNet``) in MaskCLIP's ResNet role: stride 8 in training, so a 64-pixel picture gives an
8x8 grid; :func:`fmseg.dense_clip.dilated` trades the last stride for dilation at test time.
"""

from timm.models import register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

_LAYOUT = ByoModelCfg(
    blocks=(
        ByoBlockCfg(type="basic", d=1, c=64, s=2),
        ByoBlockCfg(type="basic", d=2, c=192, s=2),
    ),
    stem_chs=32,
    stem_type="3x3",
    stem_pool="",
)


@register_model
def fmseg_convnet(pretrained: bool = False, **options) -> ByobNet:
    """The trunk; ``pretrained`` weights do not exist, the zoo's are loaded with the whole CLIP."""
    if pretrained:
        raise ValueError("`fmseg_convnet` has no weights of its own; fmseg.clip.load_clip loads the zoo's whole CLIP")
    known = {key: value for key, value in options.items() if not key.startswith(("pretrained", "cache_dir"))}
    model = ByobNet(_LAYOUT, zero_init_last=False, **known)  # with it, nothing was learned from 50,000 pictures
    model.default_cfg = {"architecture": "fmseg_convnet", "input_size": (3, 64, 64), "pool_size": (8, 8)}
    return model
