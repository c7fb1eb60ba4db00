"""The five draws of the mini world, as arrays: images, semantic and instance masks, image-level labels, captions.

Which image comes out is a function of (draw, split, seed, index) alone: the same bytes in any order, from any number
of workers. `voc`, `coco`, `ade` and `stuff` play the papers' data sets; `web` is what foundation models are trained on.
Two more draws with the looks of `web` and all masks train the segmenters that only look at pictures: `oracle` holds no
word that `web` alone knows, `judge` holds them all; most of their pictures are upright, as those that they are asked
about. `icon` is the part of the web that shows one large thing upright, as product pictures do; foundation models learn
words from it many times faster than from scenes. `duo` shows two: what a model learns of pairs from scenes is little.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from fmseg.words import BASE_THINGS, STUFF, THINGS, VOC_THINGS, WEB_THINGS, article, find
from fmseg.world import Picture, Scene, Statistics, check_size, compose, render

IGNORE = 255
SEED_RANGES = {"claim": range(0, 100), "tune": range(100, 200), "spare": range(200, 300)}
SPLITS = ("train", "val", "large")  # `large`: disjoint supervised data for oracles and the difficulty figure
_FROM_THE_WEB = ("web", "icon", "duo")  # captions are wrong at a known rate
_CAPTION_OMITS = _CAPTION_ADDS = 0.15


def _long_tail(count: int, ratio: float, stride: int) -> tuple[float, ...]:
    """Weights from 1 down to 1/ratio, geometric, dealt out by a fixed stride so that no word has all the luck."""
    ranks = [(k * stride) % count for k in range(count)]
    return tuple(round(ratio ** (-rank / (count - 1)), 6) for rank in ranks)


@dataclass(frozen=True)
class Draw:
    """One view of the world.

    Attributes:
        name: 'voc', 'coco', 'ade', 'stuff', 'web', 'oracle', 'judge', 'icon' or 'duo'.
        classes: class names by id; id 0 is 'background' where stuff is background.
        statistics: what its scenes look like.
        split_by_seed: whether seed s has a training split of its own (`voc`, `coco`) or all seeds share one.
    """

    name: str
    number: int
    classes: tuple[str, ...]
    statistics: Statistics
    split_by_seed: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def has_background(self) -> bool:
        return self.classes[0] == "background"


_PLAIN = ("background",)
_WIDE = Statistics(WEB_THINGS, counts=(0.5, 0.3, 0.2), radius=(7.0, 26.0), turn=180.0, clutter=6, tint=0.2,
                   noise=(0.0, 0.08), contrast=0.2, blur=0.3, light=(0.6, 1.3))  # fmt: skip
_ICON = replace(_WIDE, counts=(1.0,), radius=(15.0, 26.0), turn=20.0, stuff_counts=(0.8, 0.2), clutter=1,
                noise=(0.0, 0.03), contrast=0.36, blur=0.0)  # fmt: skip
DRAWS = {
    draw.name: draw
    for draw in (
        Draw("voc", 1, _PLAIN + VOC_THINGS, Statistics(VOC_THINGS), split_by_seed=True),
        Draw("coco", 2, _PLAIN + BASE_THINGS + VOC_THINGS,
             Statistics(BASE_THINGS + VOC_THINGS, counts=(0.3, 0.4, 0.3)), split_by_seed=True),
        Draw("ade", 3, THINGS + STUFF,
             Statistics(THINGS, _long_tail(40, 4.0, 17), counts=(0.2, 0.45, 0.35), stuff_counts=(0.2, 0.5, 0.3),
                        stuff_weights=_long_tail(8, 3.0, 3))),
        Draw("stuff", 4, THINGS + STUFF,
             Statistics(THINGS, _long_tail(40, 8.0, 23), counts=(0.25, 0.35, 0.25, 0.15), radius=(7.0, 18.0),
                        stuff_counts=(0.3, 0.3, 0.4), stuff_weights=_long_tail(8, 5.0, 5), clutter=5)),
        Draw("web", 5, _PLAIN + WEB_THINGS, _WIDE),
        Draw("oracle", 6, THINGS + STUFF, replace(_WIDE, things=THINGS, upright=0.6)),
        Draw("judge", 7, WEB_THINGS + STUFF, replace(_WIDE, upright=0.6)),
        Draw("icon", 8, _PLAIN + WEB_THINGS, _ICON),
        Draw("duo", 9, _PLAIN + WEB_THINGS, replace(_ICON, counts=(0.0, 1.0), radius=(12.0, 18.0))),
    )
}  # fmt: skip


def get_draw(name: str) -> Draw:
    """The draw of that name; an unknown name is a ValueError that lists the known ones."""
    return DRAWS[tuple(DRAWS)[find(name, tuple(DRAWS), "draw")]]


def seed_range(seed: int) -> str:
    """'claim', 'tune' or 'spare': what a seed may be used for.

    Raises:
        ValueError: the seed lies in none of the ranges.
    """
    for name, seeds in SEED_RANGES.items():
        if seed in seeds:
            return name
    raise ValueError(f"`seed` must lie in one of {SEED_RANGES}; got {seed!r}")


def sample(draw: Draw | str, split: str, seed: int, index: int, size: int = 64) -> Picture:
    """One picture of a draw.

    Args:
        draw: a draw or its name.
        split: 'train', 'val' or 'large'. The validation split is the same for every seed, as is the training split of
            draws without ``split_by_seed``.
        seed: 0..299, see :data:`SEED_RANGES`.
        index: >= 0.
        size: pixels a side, 32..512.

    Raises:
        ValueError: an unknown draw or split, a seed out of the ranges, a negative index, a size not allowed.
    """
    return render(scene_of(draw, split, seed, index), size)


def scene_of(draw: Draw | str, split: str, seed: int, index: int) -> Scene:
    """The scene behind a picture of :func:`sample`: what is where, before it has pixels.

    Args, Raises: as :func:`sample`.
    """
    return compose(_generator(draw, split, seed, index), _resolve(draw).statistics)


def _resolve(draw):
    return get_draw(draw) if isinstance(draw, str) else draw


def _generator(draw, split, seed, index):
    draw = _resolve(draw)
    seed_range(seed)
    if index < 0:
        raise ValueError(f"`index` must be >= 0; got {index}")
    own = draw.split_by_seed and split == "train"
    stream = [20231, draw.number, find(split, SPLITS, "split"), seed + 1 if own else 0, index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(stream)))


def labels_of(picture: Picture, draw: Draw | str) -> ndarray:
    """Semantic mask (H, W) uint8 in a draw's class ids.

    A thing that the draw has no class for counts as what surrounds it: background, or the stuff beneath.
    """
    draw = _resolve(draw)
    if draw.has_background:
        labels = np.zeros_like(picture.stuff)
    else:
        labels = np.array([draw.classes.index(name) for name in STUFF], dtype=np.uint8)[picture.stuff]
    for number, name in enumerate(picture.things, start=1):
        if name in draw.classes:
            labels[picture.instance == number] = draw.classes.index(name)
    return labels


def caption_of(picture: Picture, rng: np.random.Generator | None = None, words: tuple[str, ...] = ()) -> str:
    """A sentence that names what can be seen: 'a photo of a striped star and a plain disc on grass'.

    With a generator, caption noise is added as in the draws of the web: each thing is omitted, and one that is
    not there is added, with probability 0.15.
    """
    names = [picture.things[k - 1] for k in picture.visible()]
    if rng is not None:
        names = [name for name in names if rng.random() >= _CAPTION_OMITS]
        if rng.random() < _CAPTION_ADDS:
            names.append(words[int(rng.integers(len(words)))])
    ground = STUFF[int(np.bincount(picture.stuff.ravel(), minlength=len(STUFF)).argmax())]
    if not names:
        return f"a photo of {ground}"
    return f"a photo of {' and '.join(article(name) for name in names)} on {ground}"


@dataclass(frozen=True)
class Example:
    """One image of any set: ``image`` (H, W, 3) uint8 RGB, ``labels`` (H, W) uint8 class ids or 255, ``name``."""

    image: ndarray
    labels: ndarray
    name: str


@dataclass(frozen=True)
class Drawn:
    """A drawn set. N images of H = W pixels.

    Attributes:
        images: (N, H, W, 3) uint8 RGB.
        labels: (N, H, W) uint8 class ids of ``draw.classes``; 255 = ignore (the world itself never ignores).
        instances: (N, H, W) uint8, 0 = none, k = the k-th thing of that image.
        present: (N, C) bool, image-level labels: which classes can be seen (stuff and background by any pixel).
        things: class name of every instance, by image.
        captions: one sentence an image; noisy on `web`, `icon` and `duo`.
        draw: where they come from.
    """

    images: ndarray
    labels: ndarray
    instances: ndarray
    present: ndarray
    things: tuple[tuple[str, ...], ...]
    captions: tuple[str, ...]
    draw: Draw

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        return self.draw.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.draw.classes

    @property
    def num_classes(self) -> int:
        return self.draw.num_classes

    def __getitem__(self, index: int) -> Example:
        """One image with its labels, as sets on disk give them."""
        return Example(self.images[index], self.labels[index], f"{self.name}_{index:06d}")

    def subset(self, indices: Iterable[int]) -> "Drawn":
        """The images of those indices, in that order."""
        keep = [int(i) for i in indices]
        arrays = {key: getattr(self, key)[keep] for key in ("images", "labels", "instances", "present")}
        texts = {key: tuple(getattr(self, key)[i] for i in keep) for key in ("things", "captions")}
        return replace(self, **arrays, **texts)


def draw_set(name: str, split: str, count: int, *, seed: int = 0, size: int = 64, start: int = 0) -> Drawn:
    """Draw ``count`` samples of a split, from index ``start`` on.

    Args, Raises: as :func:`sample`; ``count`` >= 1.
    """
    draw, size = get_draw(name), check_size(size)
    if count < 1:
        raise ValueError(f"`count` must be >= 1; got {count}")
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    labels, instances = (np.empty((count, size, size), dtype=np.uint8) for _ in range(2))
    present = np.zeros((count, draw.num_classes), dtype=bool)
    things, captions = [], []
    for k in range(count):
        rng = _generator(draw, split, seed, start + k)
        picture = render(compose(rng, draw.statistics), size)
        images[k], instances[k], labels[k] = picture.image, picture.instance, labels_of(picture, draw)
        counts = np.bincount(labels[k].ravel(), minlength=draw.num_classes)
        present[k] = counts > 0
        seen = {picture.things[j - 1] for j in picture.visible()}
        for hidden in set(picture.things) - seen:
            if hidden in draw.classes:
                present[k, draw.classes.index(hidden)] = False
        things.append(picture.things)
        noisy = (rng, draw.statistics.things) if draw.name in _FROM_THE_WEB else ()
        captions.append(caption_of(picture, *noisy))
    return Drawn(images, labels, instances, present, tuple(things), tuple(captions), draw)


def voc_palette() -> ndarray:
    """(256, 3) uint8: VOC's colour map, the bits of the id dealt to R, G, B from the top."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours
