"""Import obstacles of the library set in use, each met where it arises and nowhere else.

1. The published torchvision wheel is linked against CUDA. Beside a CPU build of torch its C++ extension cannot be
   loaded, and ``import torchvision`` dies in ``_meta_registrations`` with ``operator torchvision::nms does not exist``
   (timm and open_clip import torchvision). We declare the two missing operator *schemas*, only where the extension
   cannot load; transforms and models then work, the compiled operators still raise torchvision's own error.
2. mmcv-lite ships ``mmcv.ops`` but not the compiled ``mmcv._ext`` that it imports, so ``import mmseg.models`` fails.
   A stand-in lets the import through; *calling* a compiled operator raises with its name.
3. mmengine checkpoints hold a HistoryBuffer, which ``torch.load(weights_only=True)`` refuses: see
   :func:`allow_mmengine_checkpoints` (called by whoever loads such a file; it means trusting the file).

`install()` only hangs two finders into ``sys.meta_path``; it imports nothing, so ``import fmseg`` stays light.
"""

import importlib.machinery
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

_libraries = []  # keeps torch.library.Library objects alive: their schemas vanish with them


def _find(name):
    return importlib.machinery.PathFinder.find_spec(name, sys.path)


def declare_missing_torchvision_schemas() -> bool:
    """Declare ``torchvision::nms`` and ``::qnms`` if torchvision's extension cannot load; True if it acted."""
    if _libraries:
        return True
    spec = _find("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    folder = spec.submodule_search_locations[0]
    extensions = [f for f in os.listdir(folder) if f.startswith("_C") and f.endswith((".so", ".pyd", ".dylib"))]
    import torch

    if not extensions or torch.version.cuda is not None or getattr(torch.version, "hip", None):
        return False
    try:
        torch.ops.load_library(os.path.join(folder, extensions[0]))
        return False
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
    return True


class _TorchvisionFinder:
    """Acts at the first import of torchvision, costs nothing before that."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_missing_torchvision_schemas()
        return None


class _CompiledOperators(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise RuntimeError(
                f"mmcv operator `{name}` needs the compiled mmcv, but mmcv-lite is installed; "
                "install mmcv built for your torch, or use a model without this operator"
            )

        return missing


class _MmcvExtFinder:
    def find_spec(self, name, path=None, target=None):
        if name != "mmcv._ext" or path is None:
            return None
        if importlib.machinery.PathFinder.find_spec(name, path) is not None:
            return None  # the real one is there
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        return _CompiledOperators(spec.name)

    def exec_module(self, module):
        pass


def install() -> None:
    """Hang the finders into the import system once."""
    present = {type(finder).__name__ for finder in sys.meta_path}
    if "torchvision" not in sys.modules and "_TorchvisionFinder" not in present:
        sys.meta_path.insert(0, _TorchvisionFinder())
    if "_MmcvExtFinder" not in present:
        sys.meta_path.append(_MmcvExtFinder())


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Inside, importing these modules fails as if they were not installed; what is loaded already stays loaded.

    For optional parts of other packages that nothing here uses but whose import costs a second or more.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read what mmengine's runner puts into its own checkpoints."""
    import numpy as np
    import torch
    from mmengine.logging.history_buffer import HistoryBuffer

    allowed = [HistoryBuffer, np.ndarray, np.dtype, getattr]
    allowed += [np._core.multiarray._reconstruct, np._core.multiarray.scalar]
    allowed += [getattr(np.dtypes, f"{kind}DType") for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")]
    torch.serialization.add_safe_globals(allowed)
