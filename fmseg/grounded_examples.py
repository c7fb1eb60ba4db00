"""A few answers of a run, small enough for its record: test pictures by what they were asked for, masks packed.

A picture need not be kept: it is a function of its prompt and its seed, and can be painted again.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fmseg.grounded_pictures import Ask, Pictures, paint
from fmseg.grounded_scores import COLUMNS, complete
from fmseg.grounded_sets import Triplets
from fmseg.labelmaps import pack, unpack

EACH = 2  # pictures of a column


def rows_of(data: Triplets, groups: Sequence[str | None], each: int = EACH) -> list[int]:
    """The first pictures of every column in which all that was asked for has a mask, column by column."""
    there, found = complete(data).tolist(), []
    for column in COLUMNS:
        found += [k for k, group in enumerate(groups) if group == column and there[k]][:each]
    return found


def coded(masks: Tensor) -> ndarray:
    """(N, O, H, W) bool, O <= 8, as (N, H, W) uint8: bit o of a pixel is mask o; masks may overlap."""
    bits = torch.tensor([1 << k for k in range(masks.shape[1])], dtype=torch.uint8)
    return (masks.to(torch.uint8) * bits[:, None, None]).sum(1, dtype=torch.uint8).numpy()


def decoded(maps: ndarray, count: int) -> ndarray:
    """(N, H, W) uint8 of :func:`coded` as (N, count, H, W) bool."""
    return np.stack([(maps >> k) & 1 for k in range(count)], 1).astype(bool)


def kept(pictures: Pictures, data: Triplets, groups: Sequence[str | None], masks: Tensor) -> dict:
    """What a record keeps of a run's answers.

    Args:
        pictures: painted ones. data: their triplets. groups: the column of each. masks: (N, O, H, W) bool, answers.

    Returns:
        JSON values: ``asks`` (column, names, prompt and seed of each picture), ``masks`` and ``oracle``, packed.
    """
    rows = rows_of(data, groups)
    asks = [pictures.asks[row] for row in rows]
    said = [
        {"column": groups[row], "names": list(a.names), "prompt": a.prompt, "seed": str(a.seed)}
        for row, a in zip(rows, asks, strict=True)
    ]
    return {"asks": said, "masks": pack(coded(masks[rows])), "oracle": pack(coded(data.masks[rows]))}


def masks_of(examples: Mapping, what: str = "masks") -> list[ndarray]:
    """For each picture its masks (names, H, W) bool; ``what``: 'masks', the answers, or 'oracle'."""
    counts = [len(asked["names"]) for asked in examples["asks"]]
    maps = unpack(examples[what])
    return [decoded(one[None], count)[0] for one, count in zip(maps, counts, strict=True)]


def painted_again(examples: Mapping, sampling: Mapping) -> ndarray:
    """The pictures (N, H, W, 3) uint8, from their prompts and seeds.

    Args:
        examples: of :func:`kept`. sampling: of the run's configuration, ``steps`` and guidance of ``test``.

    They agree with those that the run saw as pictures in groups of another size do, see :mod:`fmseg.generation`.
    """
    asks = [Ask(tuple(a["names"]), a["prompt"], int(a["seed"])) for a in examples["asks"]]
    return paint(asks, sampling["steps"], sampling["test"])["images"]
