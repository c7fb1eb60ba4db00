"""Grid ceilings: the mIoU that the truth itself keeps after a coarse grid, as rows for tables. No training."""

from functools import lru_cache

from numpy import ndarray

from fmseg.tables import cell

GRIDS = (8, 16, 32)  # cells a side at 64 pixels: 8, 4 and 2 pixels a cell
ONCE = "val"  # the key of a value that no seed enters: it belongs to the fixed validation set


@lru_cache(maxsize=64)
def ceiling(draw: str, validation: int, size: int, cells: int) -> tuple[float, ...]:
    """Per-class IoU in percent (NaN for absent classes) of the validation set's truth through a cells x cells grid.

    Args:
        draw: a draw's name. validation: images. size: pixels a side, divisible by ``cells``.
    """
    from fmseg.datasets import get_draw
    from fmseg.metrics import grid_ceiling

    found = grid_ceiling(truth(draw, validation, size), get_draw(draw).num_classes, cells)
    return tuple(100 * float(v) for v in found)


@lru_cache(maxsize=8)
def truth(draw: str, validation: int, size: int) -> ndarray:
    """Labels of a draw's validation set, (images, size, size) uint8; drawn once for all grids, not to be written to."""
    from fmseg.datasets import draw_set

    labels = draw_set(draw, "val", validation, size=size).labels
    labels.flags.writeable = False
    return labels


def ceiling_cells(draw: str, validation: int, size: int, cells: int, groups: dict[str, list[int]]) -> dict:
    """A table row's cells: mean over each group of class ids, those absent from the validation set left out.

    Args:
        groups: {column: class ids}.
    """
    iou = ceiling(draw, validation, size, cells)
    means = {}
    for column, ids in groups.items():
        there = [iou[k] for k in ids if iou[k] == iou[k]]
        means[column] = cell({ONCE: sum(there) / len(there)})
    return means


def grids(size: int) -> tuple[int, ...]:
    """The grids to show for an image size: as many pixels a cell as :data:`GRIDS` has at 64 pixels."""
    return tuple(size // (64 // g) for g in GRIDS if size % (64 // g) == 0)
