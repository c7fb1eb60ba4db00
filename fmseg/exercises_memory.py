"""Exercises of notebook 13: archives of old classes, and pasting from them."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fmseg.exercise import Exercise
from fmseg.memory import IGNORE, Instance, Memory, on_grid


def _pasted() -> list[tuple]:
    """(H, W) labels of one pasted object, 255 elsewhere, and the grid: blobs, one of which covers cells by half."""
    generator = torch.Generator().manual_seed(13)
    half = torch.full((8, 8), IGNORE)
    half[2:4, 1:5] = 4
    half[5:8, 4:7] = 4
    made = [(half, (4, 4)), (torch.where(torch.rand(8, 12, generator=generator) < 0.5, 2, IGNORE), (4, 4))]
    return [*made, (torch.where(torch.rand(6, 6, generator=generator) < 0.6, 9, IGNORE), (2, 3))]


def _cells(labels: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Share of each cell that is covered, and the object's class."""
    size = labels.shape[0] // grid[0], labels.shape[1] // grid[1]
    covered = labels != IGNORE
    return F.avg_pool2d(covered[None, None].float(), size)[0, 0], labels[covered][0]


def _where(chosen: Tensor, label: Tensor) -> Tensor:
    return torch.where(chosen, label, torch.tensor(IGNORE))


def _corner(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    return labels[:: labels.shape[0] // grid[0], :: labels.shape[1] // grid[1]]


def _any(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    share, label = _cells(labels, grid)
    return _where(share > 0, label)


def _more_than_half(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    share, label = _cells(labels, grid)
    return _where(share > 0.5, label)


def _whole(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    share, label = _cells(labels, grid)
    return _where(share == 1, label)


def _averaged(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    size = labels.shape[0] // grid[0], labels.shape[1] // grid[1]
    return F.avg_pool2d(labels[None, None].float(), size)[0, 0].round().long()


labels_on_grid = Exercise(
    lambda labels, grid: on_grid(labels[None], grid)[0],
    _pasted,
    {
        "You read one pixel of each cell: an object between the pixels you look at disappears.": _corner,
        "A cell that is only touched belongs to the image still; half of it must be covered.": _any,
        "Exactly half is enough ('at least').": _more_than_half,
        "A cell need not be covered entirely.": _whole,
        "You averaged class ids, 255 among them: ids are names, not amounts.": _averaged,
    },
    learned="What is left over at the rim teaches nothing wrong: it is not counted as the old class.",
)


def _two_archives() -> list[tuple]:
    """Keys that two workers kept, and the capacity; some instances both have seen."""
    return [([3, 8, 9], [1, 2, 8], 3), ([5, 6], [7], 3), ([1, 4, 20, 30], [2, 4, 5, 6], 4), ([9, 11], [1, 2], 2)]


def _merged(first: list[int], second: list[int], capacity: int) -> list[int]:
    memories = []
    for keys in (first, second):
        memory = Memory([1], capacity=capacity)
        piece = np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), bool)
        memory.archives[1] = [Instance(*piece, label=1, key=key) for key in keys]
        memories.append(memory)
    memories[0].merge(memories[1])
    return [instance.key for instance in memories[0].archives[1]]


merged_archives = Exercise(
    _merged,
    _two_archives,
    {
        "What both workers have seen is kept twice.": lambda a, b, n: sorted(a + b)[:n],
        "The first worker's instances come first, whatever their keys: then the order of the workers decides.": (
            lambda a, b, n: list(dict.fromkeys(a + b))[:n]
        ),
        "More are kept than the archive may hold.": lambda a, b, n: sorted(set(a + b)),
        "Half from each worker is not a draw from everything: one of them may have seen ten times as much.": (
            lambda a, b, n: sorted({*a[: -(-n // 2)], *b[: n // 2]})
        ),
        "You keep the largest keys; the smallest are wanted.": lambda a, b, n: sorted(set(a + b))[-n:],
    },
    learned="The smallest keys of everything are the smallest of the smallest: so it can be split among workers.",
)


def _chances() -> list[tuple]:
    return [(10, 8), (15, 24), (2, 1)]


seen_in_batch = Exercise(
    lambda classes, images: 1 - (1 - 1 / classes) ** images,
    _chances,
    {
        "Chances do not simply add up: the same class may be drawn twice.": lambda classes, images: images / classes,
        "This is the chance that the class is *not* seen.": lambda classes, images: (1 - 1 / classes) ** images,
        "This is the chance that *every* paste is of that class.": lambda classes, images: (1 / classes) ** images,
        "This is the expected number, cut off at one; the chance is smaller.": lambda classes, images: min(
            1.0, images / classes
        ),
    },
    learned="How often an old class is seen in a batch hangs on the batch; over many steps all are seen alike.",
)
