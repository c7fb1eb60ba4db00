"""What a layout-to-image model got wrong, asked of the oracle: where, and for every thing of a mask, how.

FreeMask shows wrong regions by hand-drawn boxes (its figure of red boxes) and counts nothing. Here the oracle, which
was trained on other pictures with all labels, says what each pixel shows. It errs, too: its word on real pictures of
the same masks is the control.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from fmseg.datasets import IGNORE
from fmseg.generation import from_layouts
from fmseg.oracle import LEAST_AREA
from fmseg.synthetic import noise_seed
from fmseg.words import STUFF

RIGHT, PATTERN, SHAPE, OTHER, GROUND = (
    "as the mask says", "another pattern", "another shape", "pattern and shape wrong", "ground alone",
)  # fmt: skip
KINDS = (RIGHT, PATTERN, SHAPE, OTHER, GROUND)
Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two are one beyond


def painted(
    masks: ndarray, classes: Sequence[str], index: int, name: str, *, steps: int, guidance: float, pipe=None
) -> ndarray:  # fmt: skip
    """Pictures number ``index`` of some masks, from the noise that runs would paint them from.

    Args:
        masks: (N, H, W) uint8 class ids, 255 where there is none. classes: names by id.
        index: >= 0. name: the zoo's model. steps, guidance, pipe: as :func:`fmseg.generation.from_layouts`.

    Returns:
        (N, H, W, 3) uint8 RGB.
    """
    seeds = [noise_seed(mask, index) for mask in masks]
    return from_layouts(masks, classes, seeds, name, steps=steps, guidance=guidance, pipe=pipe)


def fault_boxes(wrong: ndarray, least: int = LEAST_AREA) -> list[Box]:
    """Boxes around connected wrong regions, that of most pixels first.

    Args:
        wrong: (H, W) bool. least: smaller regions are passed over, in pixels. Pixels connect by their sides.

    Raises:
        TypeError: ``wrong`` is no bool (H, W).
    """
    from scipy.ndimage import find_objects, label

    if getattr(wrong, "dtype", None) != np.bool_ or wrong.ndim != 2:
        got = f"{getattr(wrong, 'dtype', type(wrong).__name__)} of {getattr(wrong, 'shape', '')}"
        raise TypeError(f"`wrong` must be (H, W) bool, true where the picture is wrong; got {got}")
    numbered, _ = label(wrong)
    sizes = np.bincount(numbered.ravel())[1:]
    places = find_objects(numbered)
    order = [k for k in np.argsort(-sizes, kind="stable") if sizes[k] >= least]
    return [(places[k][0].start, places[k][1].start, places[k][0].stop, places[k][1].stop) for k in order]


def kind_of_fault(meant: str, seen: str) -> str:
    """How a thing that was meant and a class that is seen differ: one of :data:`KINDS`.

    Args:
        meant: a thing, 'striped star'. seen: a thing or a ground.
    """
    if seen == meant:
        return RIGHT
    if seen in STUFF:
        return GROUND
    (pattern, shape), (its_pattern, its_shape) = meant.split(), seen.split()
    if shape == its_shape:
        return PATTERN
    return SHAPE if pattern == its_pattern else OTHER


def faults_of_things(labels: ndarray, seen: ndarray, classes: Sequence[str], least: int = LEAST_AREA) -> list[dict]:
    """What stands where masks have a thing.

    Args:
        labels: (N, H, W) uint8, the masks. seen: (N, H, W) integer class ids, what the oracle reads in the pictures.
        classes: names by id. least: of a thing in pixels; smaller ones are passed over.

    Returns:
        One dict a picture and thing class that its mask holds: ``picture``, ``meant``, ``seen`` (the name that most of
        its pixels are read as; of equals the lower id), ``kind`` of :data:`KINDS`, ``pixels``.

    Raises:
        ValueError: the shapes differ.
    """
    if labels.shape != seen.shape:
        raise ValueError(f"`seen` must have the masks' shape {labels.shape}; got {seen.shape}")
    found = []
    for number, (mask, read) in enumerate(zip(labels, seen, strict=True)):
        for c in np.unique(mask[mask != IGNORE]):
            here = mask == c
            if classes[c] in STUFF or here.sum() < least:
                continue
            most = classes[int(np.bincount(read[here].astype(np.int64)).argmax())]
            kind = kind_of_fault(classes[c], most)
            found.append(
                {"picture": number, "meant": classes[c], "seen": most, "kind": kind, "pixels": int(here.sum())}
            )
    return found


def shares(found: Sequence[dict]) -> dict[str, float]:
    """{kind: percent of the things}; of nothing, NaN."""
    counted = Counter(row["kind"] for row in found)
    return {kind: 100 * counted[kind] / len(found) if found else float("nan") for kind in KINDS}
