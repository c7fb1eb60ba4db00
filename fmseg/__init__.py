"""fmseg: three papers that make segmentation models out of foundation models, in full, on a laptop.

Import this package before open_clip, timm, torchvision or mmseg.models: it clears their import obstacles
(see ``fmseg._shims``). It imports nothing heavy itself; take what you need from its modules, for example
``from fmseg.metrics import Confusion``.
"""

from fmseg import _shims

_shims.install()

__version__ = "0.1.0"
