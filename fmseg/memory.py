"""A memory of old classes, and copy-paste from it (FMWISS section 3.3 and figure 4; no public code exists).

While the base model trains, up to B instances of each of its classes are kept, cut out with their masks. In later steps
one is pasted into each image of the new classes, so that the old ones go on being seen with a label of every pixel.
Foundation models are to look at the image *before* anything is pasted: they would find the pasted object, too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

IGNORE = 255
CAPACITY = 50  # B, instances kept of a class (FMWISS, VOC)
LEAST_SHARE = 0.01  # of an image's area; smaller pieces teach little and are mostly slivers of something hidden


@dataclass(frozen=True, eq=False)
class Instance:
    """One object, cut out: ``image`` (h, w, 3) uint8 RGB, ``mask`` (h, w) bool, no larger than it must be, ``label``.

    ``key`` says by lot who stays when an archive is full, and tells instances apart.
    """

    image: ndarray
    mask: ndarray
    label: int
    key: int


@dataclass
class Memory:
    """Archives of at most ``capacity`` instances, one for each class.

    Kept are the instances with the smallest keys, and a key is drawn from (seed, class, image, instance). So the
    archive is a uniform draw from everything it was shown, whatever the order, in one piece or in many; and an image
    that comes back in a later epoch changes nothing.

    Args:
        classes: ids of the classes with an archive; background has none.
        capacity: B >= 1.
        seed: of the draw.
        least_share: pieces below this share of the image's area are left out, in [0, 1).

    Raises:
        ValueError: a value is out of range, or a class appears twice.
    """

    classes: Sequence[int]
    capacity: int = CAPACITY
    seed: int = 0
    least_share: float = LEAST_SHARE
    archives: dict[int, list[Instance]] = field(init=False)

    def __post_init__(self):
        if len(set(self.classes)) < len(self.classes) or any(not 0 <= c < IGNORE for c in self.classes):
            raise ValueError(f"`classes` must be different ids in [0, {IGNORE}); got {list(self.classes)}")
        if self.capacity < 1:
            raise ValueError(f"`capacity` must be >= 1; got {self.capacity}. To do without, paste nothing")
        if not 0 <= self.least_share < 1:
            raise ValueError(f"`least_share` must be in [0, 1), a share of the image's area; got {self.least_share}")
        self.archives = {int(label): [] for label in self.classes}

    def __len__(self) -> int:
        return sum(map(len, self.archives.values()))

    def update(
        self, images: ndarray, labels: ndarray, numbers: Iterable[int], instances: ndarray | None = None
    ) -> None:
        """Show images of the base step.

        Args:
            images: (N, H, W, 3) uint8 RGB.
            labels: (N, H, W) uint8 class ids; ids without an archive, 255 among them, are passed over.
            numbers: N numbers >= 0 that name the images within their data set.
            instances: (N, H, W) integer, the same number on all pixels of an object, 0 on none. Without it, objects
                are the connected components of a class (four neighbours): VOC's augmented labels have no instances.

        Raises:
            TypeError, ValueError: arrays that do not fit.
        """
        numbers = list(numbers)
        _check_images(images, labels, numbers, instances)
        for i, number in enumerate(numbers):
            for label in np.intersect1d(np.unique(labels[i]), list(self.archives)):
                here = labels[i] == label
                for k, mask in _objects(here, None if instances is None else instances[i]):
                    if mask.sum() >= self.least_share * mask.size:
                        self._offer(images[i], mask, int(label), _lot(self.seed, int(label), number, k))

    def merge(self, other: "Memory") -> None:
        """Take in what another memory of the same draw was shown, such as another process's.

        Raises:
            ValueError: it has other classes, capacity, seed or least share.
        """
        mine, its = ((list(m.archives), m.capacity, m.seed, m.least_share) for m in (self, other))
        if mine != its:
            raise ValueError(f"`other` must be of the same classes, capacity, seed and least share {mine}; got {its}")
        for archive in other.archives.values():
            for instance in archive:
                self._keep(instance)

    def draw(self, generator: torch.Generator | None = None) -> Instance:
        """An instance at random: first a class, uniform over the archives that hold something, then one of it.

        Raises:
            ValueError: the memory is empty.
        """
        filled = [archive for archive in self.archives.values() if archive]
        if not filled:
            raise ValueError(
                f"the memory of classes {list(self.archives)} is empty; show it the base step's images with `update`, "
                "or train without copy-paste"
            )
        archive = filled[_below(len(filled), generator)]
        return archive[_below(len(archive), generator)]

    def _offer(self, image: ndarray, mask: ndarray, label: int, key: int) -> None:
        archive = self.archives[label]
        if len(archive) == self.capacity and key > archive[-1].key:
            return
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        self._keep(Instance(image[box].copy(), mask[box].copy(), label, key))

    def _keep(self, instance: Instance) -> None:
        archive = self.archives[instance.label]
        if all(known.key != instance.key for known in archive):
            archive.append(instance)
            archive.sort(key=lambda one: one.key)
            del archive[self.capacity :]


@dataclass(frozen=True)
class Pasted:
    """Images with an old object in each.

    Attributes:
        images: (B, 3, H, W), dtype as given.
        labels: (B, H, W) int64: the object's class where it lies, 255 elsewhere.
    """

    images: Tensor
    labels: Tensor


def paste(
    images: Tensor,
    memory: Memory,
    *,
    probability: float = 1.0,
    flip: float = 0.5,
    generator: torch.Generator | None = None,
) -> Pasted:
    """Paste an instance of an old class into each image, whole, at a uniformly random place.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 255]; not changed.
        memory: where instances come from; not empty unless ``probability`` is 0.
        probability: of pasting into an image, in [0, 1].
        flip: probability of turning the instance left to right, in [0, 1].
        generator: of all draws; None: torch's global one.

    Returns:
        :class:`Pasted`.

    Raises:
        ValueError: shapes or probabilities out of range, an empty memory.

    An instance that is larger than the image is made smaller, keeping its shape, until it fits; nothing else changes
    its scale.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.shape[2] * images.shape[3]:
        raise ValueError(f"`images` must be (B, 3, H, W), not empty; got {tuple(images.shape)}")
    for name, value in (("probability", probability), ("flip", flip)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1]; got {value}")
    out = images.clone()
    labels = torch.full((len(images), *images.shape[2:]), IGNORE, dtype=torch.int64, device=images.device)
    for image, label in zip(out, labels, strict=True):
        if _chance(generator) >= probability:
            continue
        instance = memory.draw(generator)
        piece, mask = _fitted(instance, tuple(label.shape))
        if _chance(generator) < flip:
            piece, mask = piece.flip(-1), mask.flip(-1)
        top, left = (_below(whole - part + 1, generator) for whole, part in zip(label.shape, mask.shape, strict=True))
        place = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
        piece, mask = piece.to(image), mask.to(image.device)
        image[:, *place] = torch.where(mask, piece, image[:, *place])
        label[place] = torch.where(mask, instance.label, label[place])
    return Pasted(out, labels)


def on_grid(labels: Tensor, grid: Sequence[int]) -> Tensor:
    """What :class:`Pasted` says at the resolution of losses: a cell belongs to the object that covers at least half.

    Args:
        labels: (B, H, W) int64, as :attr:`Pasted.labels`.
        grid: (h, w), divisors of H and W.

    Returns:
        (B, h, w) int64: class ids, 255 where less than half of the cell is covered.

    Raises:
        ValueError: the grid does not divide the image.
    """
    height, width = labels.shape[1:]
    if height % grid[0] or width % grid[1]:
        raise ValueError(f"`grid` must divide the image of {height}x{width}; got {tuple(grid)}")
    covered = labels != IGNORE
    size = height // grid[0], width // grid[1]
    share = F.avg_pool2d(covered[:, None].float(), size)[:, 0]
    which = F.max_pool2d(labels.masked_fill(~covered, -1)[:, None].float(), size)[:, 0].long()  # one class an image
    return torch.where(share >= 0.5, which, IGNORE)


def erase(masks: Tensor, pasted: Tensor) -> Tensor:
    """Pseudo-labels of new classes with nothing under what was pasted.

    Args:
        masks: (B, C, h, w) bool or float, made from the images before pasting.
        pasted: (B, h, w) int64, 255 where nothing was pasted, as of :func:`on_grid`.

    Returns:
        As ``masks``.

    Raises:
        ValueError: shapes do not fit.
    """
    if masks.ndim != 4 or (masks.shape[0], *masks.shape[2:]) != tuple(pasted.shape):
        raise ValueError(
            f"`masks` must be (B, C, h, w) on the grid of `pasted` (B, h, w); got {tuple(masks.shape)} and "
            f"{tuple(pasted.shape)}. Bring labels to the grid with `on_grid`"
        )
    return masks.masked_fill((pasted != IGNORE)[:, None], 0)


def _objects(here: ndarray, instances: ndarray | None):
    """(number, mask) of the objects of a class."""
    if instances is None:
        from scipy.ndimage import label as components

        numbered, _ = components(here)
    else:
        numbered = np.where(here, instances, 0)
    for k in np.unique(numbered):
        if k:
            yield int(k), numbered == k


def _lot(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def _below(count: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(count, (), generator=generator))


def _chance(generator: torch.Generator | None) -> float:
    return float(torch.rand((), generator=generator))


def _fitted(instance: Instance, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image (3, h, w) and mask (h, w) of an instance, no larger than ``size``."""
    piece, mask = torch.from_numpy(instance.image).permute(2, 0, 1), torch.from_numpy(instance.mask)
    factor = min(size[0] / mask.shape[0], size[1] / mask.shape[1], 1.0)
    if factor == 1.0:
        return piece, mask
    smaller = [max(1, int(side * factor)) for side in mask.shape]
    both = torch.cat([piece.float(), mask[None].float()])[None]
    both = F.interpolate(both, smaller, mode="bilinear", align_corners=False, antialias=True)[0]
    return both[:3].round(), both[3] >= 0.5


def _check_images(images: ndarray, labels: ndarray, numbers: list[int], instances: ndarray | None) -> None:
    for name, array in (("images", images), ("labels", labels)):
        if getattr(array, "dtype", None) != np.uint8:
            raise TypeError(f"`{name}` must be a uint8 array; got {getattr(array, 'dtype', type(array).__name__)}")
    if images.ndim != 4 or images.shape[3] != 3 or labels.shape != images.shape[:3]:
        raise ValueError(
            f"`images` must be (N, H, W, 3) and `labels` (N, H, W) to fit; got {images.shape} and {labels.shape}"
        )
    if len(numbers) != len(images) or len(set(numbers)) < len(numbers) or any(n < 0 for n in numbers):
        raise ValueError(f"`numbers` must be {len(images)} different numbers >= 0, one an image; got {numbers[:8]}")
    if instances is not None and (instances.shape != labels.shape or instances.dtype.kind not in "iu"):
        raise ValueError(
            f"`instances` must be integers of shape {labels.shape}; got {instances.dtype} {instances.shape}"
        )
