"""Which images a training step sees, and how they are disturbed: a function of (seed, step), of nothing else.

Several sources are concatenated, each repeated as often as it asks for, and shuffled uniformly over all of them, epoch
after epoch; batches run on across the end of an epoch. This is mmengine's RepeatDataset + ConcatDataset +
InfiniteSampler, the arrangement of FreeMask's joint training (dossier 2.4: no fixed share of real images per batch, no
weighting of sources), with a permutation that can be recomputed at any step, so that resuming is exact.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_ORDER, _AUGMENT, _MODEL, _CROP = 1, 2, 3, 4  # one stream of random numbers for each purpose
AUGMENTATIONS = ("flip", "crop", "color")
ZOOM = (0.75, 4 / 3)  # range of the scale jitter of "crop"
PADDING_GREY = 127.0


@dataclass(frozen=True, eq=False)
class Source:
    """Images with labels, and how often each of them appears in one epoch.

    Args:
        images: (N, H, W, 3) uint8 RGB; a memory-mapped array is read batch by batch.
        labels: (N, H, W) uint8, class ids, the ignore id where nothing is known.
        tags: (N, T) bool, image-level labels, or None. They come with every batch, untouched by augmentation.
        repeat: times each image appears in one epoch, >= 1.
        name: shown in error messages.

    Raises:
        TypeError: dtypes are not uint8. ValueError: shapes do not fit, no image, or ``repeat`` < 1.
    """

    images: np.ndarray
    labels: np.ndarray
    repeat: int = 1
    name: str = "real"
    tags: np.ndarray | None = None

    def __post_init__(self):
        for field in ("images", "labels"):
            array = getattr(self, field)
            if isinstance(array, Tensor):
                array = array.numpy()
                object.__setattr__(self, field, array)
            if getattr(array, "dtype", None) != np.uint8:
                got = getattr(array, "dtype", type(array).__name__)
                raise TypeError(f"source `{self.name}`: `{field}` must be a uint8 array, got {got}")
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"source `{self.name}`: `images` must be (N, H, W, 3), got {images.shape}")
        if labels.shape != images.shape[:3]:
            raise ValueError(
                f"source `{self.name}`: `labels` must be {images.shape[:3]} to fit `images`, got {labels.shape}"
            )
        if not len(images):
            raise ValueError(f"source `{self.name}` holds no image; leave it out instead")
        if isinstance(self.repeat, bool) or not isinstance(self.repeat, int) or self.repeat < 1:
            raise ValueError(f"source `{self.name}`: `repeat` must be a whole number >= 1, got {self.repeat!r}")
        tags = self.tags
        if tags is not None and (not isinstance(tags, np.ndarray) or tags.dtype.kind != "b" or tags.ndim != 2
                                 or len(tags) != len(images)):  # fmt: skip
            got = f"{getattr(tags, 'shape', type(tags).__name__)} {getattr(tags, 'dtype', '')}"
            raise ValueError(f"source `{self.name}`: `tags` must be ({len(images)}, T) bool, a row an image; got {got}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return self.images.shape[1:3]

    def take(self, index: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, H, W, 3) and labels (B, H, W) of those indices. ``seeds`` are for sources that draw crops."""
        return self.images[index], self.labels[index]

    def check_ids(self, num_classes: int, ignore_index: int) -> None:
        """Raise a ValueError where a label is neither in [0, num_classes) nor ``ignore_index``."""
        present = np.unique(self.labels)
        wrong = present[(present >= num_classes) & (present != ignore_index)]
        if len(wrong):
            raise ValueError(
                f"source `{self.name}` holds label {wrong[0]}; the model has classes 0..{num_classes - 1} "
                f"and {ignore_index} is ignored. Remap the labels or build a model with more classes"
            )

    def fingerprint(self) -> list:
        """Tells sources apart without reading all of a large one: sizes, and a hash of up to 64 of its images."""
        digest = hashlib.sha256()
        for i in np.linspace(0, len(self.images) - 1, min(64, len(self.images))).astype(int):
            digest.update(np.ascontiguousarray(self.images[i]))
            digest.update(np.ascontiguousarray(self.labels[i]))
        if self.tags is not None:
            digest.update(np.packbits(self.tags).tobytes())
        return [list(self.images.shape), self.repeat, digest.hexdigest()]


def derive_seed(*key: int) -> int:
    """A 63-bit seed from a tuple of non-negative integers; distinct tuples give independent streams."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Mixture:
    """Endless shuffled batches from several sources.

    Args:
        sources: one or more :class:`Source` or :class:`fmseg.photos.Photos`, all with the same image size.
        batch_size: images in a batch, >= 1; may exceed the size of an epoch.
        seed: root seed, >= 0.
        augment: names out of ``AUGMENTATIONS``.
        ignore_index: label given to padding by "crop".

    Raises:
        ValueError: no source, sources of different image sizes, or with and without ``tags``.
    """

    def __init__(self, sources: Sequence[Source], batch_size: int, seed: int, augment=(), ignore_index: int = 255):
        self.sources = [sources] if hasattr(sources, "take") else list(sources)
        if not self.sources:
            raise ValueError("`sources` is empty; pass at least one Source")
        sizes = {s.name: tuple(s.size) for s in self.sources}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"all sources must have one image size, got {sizes}; resize them beforehand")
        tags = [getattr(s, "tags", None) for s in self.sources]
        widths = {None if t is None else t.shape[1] for t in tags}
        if len(widths) > 1:
            raise ValueError(f"all sources must have `tags` of one width, or none of them; got widths {widths}")
        self._tags = None if tags[0] is None else tags
        self.batch_size, self.seed, self.augment, self.ignore_index = batch_size, seed, tuple(augment), ignore_index
        self._source = np.concatenate([np.full(len(s) * s.repeat, i) for i, s in enumerate(self.sources)])
        self._index = np.concatenate([np.tile(np.arange(len(s)), s.repeat) for s in self.sources])
        self._epoch = (-1, None)

    def __len__(self) -> int:
        """Images in one epoch, repetitions included."""
        return len(self._index)

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self))
            self._epoch = (epoch, order)
        return self._epoch[1]

    def pick(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Source number and image number of every image of a step's batch: two (B,) int64 arrays."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        picked = np.array([self._permutation(place // len(self))[place % len(self)] for place in places])
        return self._source[picked], self._index[picked]

    def batch(self, step: int, share: tuple[int, int] = (0, 1)) -> tuple[Tensor, ...]:
        """The batch of a step, counted from 0, or an equal share of it.

        Args:
            step: >= 0.
            share: (k, n): the k-th of n runs of neighbouring images, with n a divisor of ``batch_size``. The shares
                together are the batch, whoever makes them.

        Returns:
            images (B/n, 3, H, W) uint8, or float32 in [0, 255] where an augmentation made it so; labels (B/n, H, W)
            int64; and, where the sources have any, tags (B/n, T) bool.
        """
        which, index = self.pick(step)
        each = self.batch_size // share[1]
        rows = slice(share[0] * each, (share[0] + 1) * each)
        seeds = np.array([derive_seed(self.seed, _CROP, step, place) for place in range(self.batch_size)[rows]])
        which, index = which[rows], index[rows]
        height, width = self.sources[0].size
        images = np.empty((each, height, width, 3), np.uint8)
        labels = np.empty((each, height, width), np.uint8)
        for number in np.unique(which):
            here = which == number
            images[here], labels[here] = self.sources[number].take(index[here], seeds[here])
        image_tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        label_tensor = torch.from_numpy(labels).long()
        if self.augment:
            rng = np.random.default_rng([self.seed, _AUGMENT, step])
            image_tensor, label_tensor = augment(
                image_tensor, label_tensor, self.augment, rng, self.ignore_index, rows=rows, of=self.batch_size
            )  # fmt: skip
        if self._tags is None:
            return image_tensor, label_tensor
        tags = np.stack([self._tags[source][image] for source, image in zip(which, index, strict=True)])
        return image_tensor, label_tensor, torch.from_numpy(tags)

    def model_seed(self, step: int, share: int = 0) -> int:
        """Seed of the numbers that the model itself draws in this step and share (drop-out, point sampling)."""
        return derive_seed(self.seed, _MODEL, step, *([share] if share else []))


def augment(
    images: Tensor, labels: Tensor, names: Sequence[str], rng: np.random.Generator, ignore_index: int = 255,
    *, rows: slice = slice(None), of: int | None = None,
):  # fmt: skip
    """Disturb a batch; images and labels are moved together.

    * ``flip``: left-right with probability 1/2.
    * ``crop``: scale jitter, the zoom log-uniform in [3/4, 4/3]; zoomed in a random window is kept, zoomed out the
      image lies at a random place and the rest is grey and ignored (mmsegmentation's RandomResize, RandomCrop, Pad).
    * ``color``: brightness +-32, contrast and saturation x [0.5, 1.5], each with probability 1/2
      (mmsegmentation's PhotoMetricDistortion without the hue).

    Args:
        images: (B, 3, H, W) uint8 or float32 in [0, 255].
        labels: (B, H, W) int64.
        names: out of ``AUGMENTATIONS``; applied in that order, whatever the order of ``names``.
        rng: source of all draws.
        ignore_index: label of padding.
        rows, of: the images are these rows of a batch of that many: what happens to them does not depend on whether
            the others are there.

    Returns:
        images and labels of the same shapes; images float32 in [0, 255] after "crop" or "color".

    Raises:
        ValueError: an unknown name.
    """
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if unknown:
        raise ValueError(f"`augment` holds {unknown[0]!r}; known: {', '.join(AUGMENTATIONS)}")
    of = len(images) if of is None else of
    if "flip" in names:
        turned = torch.from_numpy(rng.random(of)[rows] < 0.5)
        images = torch.where(turned[:, None, None, None], images.flip(-1), images)
        labels = torch.where(turned[:, None, None], labels.flip(-1), labels)
    if "crop" in names:
        images, labels = _jitter_scale(images.float(), labels, rng, ignore_index, rows, of)
    if "color" in names:
        images = _jitter_colour(images.float(), rng, rows, of)
    return images, labels


def _jitter_scale(images: Tensor, labels: Tensor, rng, ignore_index: int, rows, of) -> tuple[Tensor, Tensor]:
    zoom = np.exp(rng.uniform(*np.log(ZOOM), of))[rows]
    slack = np.abs(1 - 1 / zoom)  # how far the window may move, in half image sides
    shift = rng.uniform(-1, 1, (of, 2))[rows] * slack[:, None]
    transform = np.zeros((len(images), 2, 3), np.float32)
    transform[:, 0, 0] = transform[:, 1, 1] = 1 / zoom
    transform[:, :, 2] = shift
    where = F.affine_grid(torch.from_numpy(transform), list(images.shape), align_corners=False)
    images = F.grid_sample(images - PADDING_GREY, where, mode="bilinear", align_corners=False) + PADDING_GREY
    moved = F.grid_sample((labels - ignore_index)[:, None].float(), where, mode="nearest", align_corners=False)
    return images.clamp_(0, 255), moved[:, 0].long() + ignore_index


def _jitter_colour(images: Tensor, rng, rows, of) -> Tensor:
    def draw(low, high, neutral):
        values = np.where(rng.random(of) < 0.5, rng.uniform(low, high, of), neutral)[rows]
        return torch.from_numpy(values.astype(np.float32))[:, None, None, None]

    images = images * draw(0.5, 1.5, 1.0) + draw(-32, 32, 0.0)
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * draw(0.5, 1.5, 1.0)).clamp_(0, 255)
