"""Protocol I: masks of painted pictures against the oracle's (dossier 2.10; section 5, items 13 and 14).

A picture counts if the oracle finds every class that its prompt names. It belongs to a column by how many classes it
names and which of them the head has seen. mIoU is the mean over classes of the mean over their pictures; the mean of
global intersections over unions is kept beside it. Nothing of the protocol was published as code.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg.daam import THRESHOLD, normalised_heat
from fmseg.grounded_pictures import Pictures
from fmseg.grounded_sets import Triplets

COLUMNS = ("one seen", "one unseen", "two seen", "two seen+unseen", "two unseen")
THRESHOLDS = tuple(round(0.1 + 0.05 * k, 2) for k in range(17))  # of DAAM, 0.1 to 0.9


def columns_of(data: Triplets, seen: Sequence[str]) -> list[str]:
    """The column that each picture belongs to: see :data:`COLUMNS`. More than two names count as two."""
    found = []
    for row in data.named.tolist():
        known = [data.classes[k] in seen for k in row if k >= 0]
        if len(known) == 1:
            found.append("one seen" if known[0] else "one unseen")
        else:
            found.append("two seen" if all(known) else "two seen+unseen" if any(known) else "two unseen")
    return found


def overlaps(masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union in pixels, (N, O) int64 each, of masks (N, O, H, W) bool."""
    return (masks & truth).sum((2, 3)), (masks | truth).sum((2, 3))


def complete(data: Triplets) -> Tensor:
    """(N,) bool: pictures in which every named class has a mask."""
    return (data.detected | ~data.present).all(1)


def scores(masks: Tensor, data: Triplets, groups: Sequence[str | None]) -> dict[str, dict[str, float | int | None]]:
    """mIoU by group of pictures.

    Args:
        masks: (N, O, H, W) bool, the answers. data: what they are compared with.
        groups: the group of each picture, None to leave it out; pictures that are not :func:`complete` never count.

    Returns:
        group -> ``miou`` (percent; mean over classes of their pictures' mean), ``pooled`` (percent; from intersections
        and unions added up over pictures), ``pictures`` and ``classes`` that counted.

    Raises:
        ValueError: shapes do not fit.
    """
    if masks.shape != data.masks.shape or masks.dtype != torch.bool or len(groups) != len(data):
        raise ValueError(
            f"`masks` must be bool {tuple(data.masks.shape)} with a group a picture; got {tuple(masks.shape)} of "
            f"{masks.dtype} and {len(groups)} groups"
        )
    inside, whole = (x.numpy() for x in overlaps(masks, data.masks))
    counts, named, made = complete(data).numpy(), data.named.numpy(), {}
    for group in dict.fromkeys(g for g in groups if g is not None):
        rows = [k for k, g in enumerate(groups) if g == group and counts[k]]
        by_class: dict[int, list[tuple[int, int]]] = {}
        for row in rows:
            for slot in np.flatnonzero(named[row] >= 0):
                by_class.setdefault(int(named[row, slot]), []).append((inside[row, slot], whole[row, slot]))
        if by_class:
            each = [np.mean([i / u if u else 1.0 for i, u in pairs]) for pairs in by_class.values()]
            pooled = [sum(i for i, _ in p) / max(1, sum(u for _, u in p)) for p in by_class.values()]
            made[group] = {"miou": _percent(each), "pooled": _percent(pooled)}
            made[group] |= {"pictures": len(rows), "classes": len(by_class)}
    return made


def _percent(values) -> float:
    return round(100 * float(np.mean(values)), 4)


def mean_score(found: dict[str, dict]) -> float:
    """The mean over groups of mIoU, what a record calls its mIoU; 0 where nothing counted."""
    return round(float(np.mean([group["miou"] for group in found.values()])), 4) if found else 0.0


def daam_masks(pictures: Pictures, data: Triplets, threshold: float) -> Tensor:
    """(N, O, H, W) bool: DAAM's heat maps of the named classes above a threshold."""
    heat = torch.from_numpy(pictures.heat)[:, : data.named.shape[1]]
    size = tuple(data.masks.shape[2:])
    if not len(data):
        return torch.zeros(data.masks.shape, dtype=torch.bool)
    normalised = normalised_heat(heat.flatten(0, 1).float(), size).unflatten(0, heat.shape[:2])
    return (normalised > threshold) & data.present[:, :, None, None]


def swept(pictures: Pictures, data: Triplets, groups: Sequence[str | None]) -> dict[str, dict]:
    """DAAM at every threshold of :data:`THRESHOLDS`.

    Returns:
        ``curve``: threshold (as text) -> group -> mIoU in percent; ``fixed``: :func:`scores` at 0.4, the code's
        default; ``best``: group -> its scores at the threshold that is best for that group on these very pictures,
        which flatters DAAM; with ``threshold``.
    """
    found = {t: scores(daam_masks(pictures, data, t), data, groups) for t in THRESHOLDS}
    best = {}
    for group in found[THRESHOLD]:
        at = max(THRESHOLDS, key=lambda t: found[t][group]["miou"])
        best[group] = found[at][group] | {"threshold": at}
    curve = {f"{t:g}": {g: s["miou"] for g, s in of.items()} for t, of in found.items()}
    return {"curve": curve, "fixed": found[THRESHOLD], "best": best}


def through_grid(masks: Tensor, cells: int) -> Tensor:
    """Masks averaged over a grid of ``cells`` a side, resized back and cut at a half: the most that logits on that grid
    can be expected to keep. (N, O, H, W) bool to the same."""
    if not len(masks):
        return masks
    small = F.adaptive_avg_pool2d(masks.float(), cells)
    return F.interpolate(small, tuple(masks.shape[2:]), mode="bilinear", align_corners=False) > 0.5
