"""Who may see what: incremental protocols (FMWISS, WILSON) and zero-shot splits (Grounded Diffusion, ZS3), as tables.

A protocol says which images a step may see and turns the ids of a data set into what a step may learn from them. It
knows neither files nor models: it takes class names and image-level presence, and gives index lists and look-up tables
of 256 entries, so ``labels = table[labels]`` is all that is left to do.

Sources: WILSON tasks.py and data/make_cocovoc.py, the split files shipped with it; MiB for disjoint and overlap;
Grounded-Diffusion VOC/class_split*.csv; ZS3 and SPNet for the seen and unseen classes of VOC.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fmseg import names
from fmseg.datasets import IGNORE
from fmseg.words import BASE_THINGS, VOC_THINGS, find

_BACKGROUND = "background"


def _place(name: str, order: Sequence[str]) -> int | None:
    """Where a class stands in an order; a VOC name is also looked up in COCO's words."""
    for word in (name, names.VOC_IN_COCO.get(name)):
        if word in order:
            return order.index(word)
    return None


def _check_present(present: np.ndarray, classes: Sequence[str]) -> None:
    if getattr(present, "ndim", 0) != 2 or present.shape[1] != len(classes) or present.dtype != bool:
        got = f"{getattr(present, 'shape', type(present).__name__)} {getattr(present, 'dtype', '')}"
        raise ValueError(f"`present` must be (N, {len(classes)}) bool, a column for each of `classes`; got {got}")


@dataclass(frozen=True)
class Incremental:
    """A class-incremental protocol. Step 0 has pixel labels; later steps image-level labels of their new classes only.

    Attributes:
        name: 'voc/15-5' and the like.
        order: class names by logit, background first.
        sizes: how many logits each step adds; the first counts background.
        datasets: data set of each step.
        overlap: step s sees every image with a class of step s; else (disjoint) only those without a future class.
        weak: False for comparators that get pixel labels of the new classes at later steps too ("P" rows).
        void_is_background: as the official code trains, which maps void (255) to background. Differs from the official
            code: off by default, void does not count.
    """

    name: str
    order: tuple[str, ...]
    sizes: tuple[int, ...]
    datasets: tuple[str, ...]
    overlap: bool = False
    weak: bool = True
    void_is_background: bool = False

    @property
    def steps(self) -> int:
        return len(self.sizes)

    def new(self, step: int) -> range:
        """Logits that a step adds; those of step 0 begin with background."""
        self._check_step(step)
        return range(sum(self.sizes[:step]), sum(self.sizes[: step + 1]))

    def known(self, step: int) -> range:
        """Logits of a model after a step."""
        return range(self.new(step).stop)

    def groups(self) -> dict[str, list[int]]:
        """Logits by column of the papers' tables: 'old' (step 0 without background), 'new' (later steps), 'all'.

        Background counts in 'all' alone (proved from WILSON's per-class rows, dossier 1.6).
        """
        first, last = self.new(0).stop, self.new(self.steps - 1).stop
        return {"old": list(range(1, first)), "new": list(range(first, last)), "all": list(range(last))}

    def images(self, step: int, present: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Indices of the images that a step may see, ascending.

        Args:
            step: 0..steps-1.
            present: (N, C) bool, which classes an image holds (anywhere in its mask).
            classes: the data set's class names by id, C of them.

        Raises:
            ValueError: no such step, or ``present`` does not fit.
        """
        _check_present(present, classes)
        logits = self._logits(classes)
        here, future = np.isin(logits, [k for k in self.new(step) if k]), logits > self.new(step).stop - 1
        seen = present[:, here].any(1)
        if not self.overlap:
            seen &= ~present[:, future].any(1)
        return np.flatnonzero(seen)

    def pixel_labels(self, step: int, classes: Sequence[str]) -> np.ndarray:
        """(256,) uint8: what a data set's ids become in training: this step's logits, all else background.

        Raises:
            ValueError: the step has image-level labels only; or no such step.
        """
        if step and self.weak:
            raise ValueError(
                f"step {step} of {self.name} carries image-level labels only: take `image_labels`. For a comparator "
                "with pixel labels use dataclasses.replace(protocol, weak=False)"
            )
        table = self._table(classes, self.new(step))
        table[IGNORE] = 0 if self.void_is_background else IGNORE
        return table

    def image_labels(self, step: int, present: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """(N, new classes of the step without background) bool, columns in the order of the logits."""
        _check_present(present, classes)
        logits = self._logits(classes)
        wanted = [k for k in self.new(step) if k]
        out = np.zeros((len(present), len(wanted)), bool)
        for column, logit in enumerate(wanted):
            out[:, column] = present[:, logits == logit].any(1)
        return out

    def evaluation(self, step: int, classes: Sequence[str]) -> np.ndarray:
        """(256,) uint8: what ids become in evaluation after a step: unseen classes are background, void stays void."""
        table = self._table(classes, self.known(step))
        table[IGNORE] = IGNORE
        return table

    def _check_step(self, step: int) -> None:
        if step not in range(self.steps):
            raise ValueError(f"`step` of {self.name} must be 0..{self.steps - 1}; got {step!r}")

    def _logits(self, classes: Sequence[str]) -> np.ndarray:
        """(C,) logit of every class of a data set."""
        places = [_place(name, self.order) for name in classes]
        if None in places:
            raise ValueError(
                f"{self.name} has no class {classes[places.index(None)]!r}; are these the class names of "
                f"{' or '.join(dict.fromkeys(self.datasets))}?"
            )
        return np.array(places)

    def _table(self, classes: Sequence[str], kept: range) -> np.ndarray:
        logits, table = self._logits(classes), np.zeros(256, np.uint8)
        table[: len(logits)] = np.where(np.isin(logits, kept), logits, 0)
        table[len(logits) :] = IGNORE  # an id that the data set does not have never counts
        return table


@dataclass(frozen=True)
class ZeroShot:
    """Seen and unseen classes. Background and everything without a name here does not count.

    Attributes:
        name: 'voc/zs3', 'voc/grounded-1' and the like.
        dataset: whose class names these are.
        seen, unseen: class names, in the source's order.
        certainty: how sure the lists are: 'STATED', or what is known.
    """

    name: str
    dataset: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    certainty: str = "STATED"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by logit: seen, then unseen."""
        return self.seen + self.unseen

    def groups(self) -> dict[str, list[int]]:
        """Logits by column: 'seen' and 'unseen' (their harmonic mean is in :func:`fmseg.metrics.seen_unseen`)."""
        count = len(self.seen)
        return {"seen": list(range(count)), "unseen": list(range(count, len(self.classes)))}

    def train_table(self, classes: Sequence[str]) -> np.ndarray:
        """(256,) uint8: a data set's ids to logits; unseen classes, background and void become 255."""
        return self._table(classes, self.seen)

    def evaluation(self, classes: Sequence[str]) -> np.ndarray:
        """(256,) uint8: a data set's ids to logits; background and void become 255."""
        return self._table(classes, self.classes)

    def images(self, present: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Indices of training images with at least one seen class; whatever else they hold is ignored."""
        _check_present(present, classes)
        return np.flatnonzero(present[:, self.train_table(classes)[: len(classes)] != IGNORE].any(1))

    def _table(self, classes: Sequence[str], kept: Sequence[str]) -> np.ndarray:
        missing = [name for name in self.classes if not any(_place(c, [name]) == 0 for c in classes)]
        if missing:
            raise ValueError(f"{self.name}: the data set has no class {missing[0]!r}; expected those of {self.dataset}")
        table = np.full(256, IGNORE, np.uint8)
        for number, name in enumerate(classes):
            place = _place(name, self.classes)
            if place is not None and self.classes[place] in kept:
                table[number] = place
        return table


def _voc_steps(task: str, order: Sequence[str], dataset: str, overlap: bool, name: str) -> Incremental:
    old, new = map(int, task.split("-"))
    return Incremental(name, (_BACKGROUND, *order), (1 + old, new), (dataset, dataset), overlap)


def _rotated(order: Sequence[str], dataset: str, number: int, unseen: int, prefix: str, certainty="STATED") -> ZeroShot:
    """Split 1 leaves out the last classes of an order; each further split the ones before them."""
    end = len(order) - unseen * (number - 1)
    left_out = tuple(order[end - unseen : end])
    seen = tuple(order[end:]) + tuple(order[: end - unseen])
    return ZeroShot(f"{prefix}-{number}", dataset, seen, left_out, certainty)


# Grounded-Diffusion VOC/class_split1.csv; splits 2 and 3 start at tvmonitor and at horse
_GROUNDED_VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "cat", "chair", "cow", "diningtable", "horse",
    "motorbike", "person", "pottedplant", "sheep", "tvmonitor", "car", "dog", "sofa", "train",
)  # fmt: skip
_GROUNDED_COCO = {
    1: (
        "airplane", "train", "parking meter", "cat", "bear", "suitcase", "frisbee", "snowboard", "fork", "sandwich",
        "hot dog", "toilet", "mouse", "toaster", "hair drier",
    ),
    2: (
        "tv", "laptop", "remote", "keyboard", "cell phone", "microwave", "oven", "sink", "refrigerator", "book",
        "clock", "vase", "scissors", "teddy bear", "toothbrush",
    ),
    3: (
        "spoon", "bowl", "banana", "apple", "orange", "broccoli", "carrot", "pizza", "donut", "cake", "chair", "couch",
        "potted plant", "bed", "dining table",
    ),
}  # fmt: skip
_COCO_CERTAINTY = {
    1: "STATED",
    2: "known up to the border name tv",
    3: "known up to the border names spoon, bowl and couch",
}


def mini_order(variant: int = 0) -> tuple[str, ...]:
    """Order of the mini world's twenty `voc` classes: 0 the fixed one, 1..3 further ones, for sensitivity rows.

    Raises:
        ValueError: another variant.
    """
    if variant not in range(4):
        raise ValueError(f"`variant` must be 0, 1, 2 or 3; got {variant!r}")
    if variant == 0:
        return VOC_THINGS
    return tuple(VOC_THINGS[i] for i in np.random.default_rng([2302, 14250, variant]).permutation(len(VOC_THINGS)))


def _make() -> dict[str, Incremental | ZeroShot]:
    made: list[Incremental | ZeroShot] = []
    for task in ("15-5", "10-10"):
        for overlap in (False, True):
            kind = "overlap" if overlap else "disjoint"
            made.append(_voc_steps(task, names.VOC[1:], "voc", overlap, f"voc/{task}/{kind}"))
            for variant in range(4):
                name = f"mini/{task}/{kind}" + (f"/order-{variant}" if variant else "")
                made.append(_voc_steps(task, mini_order(variant), "mini voc", overlap, name))
    in_voc = set(names.VOC_IN_COCO.values())
    things = names.COCO[1:]
    order = [n for n in things if n not in in_voc] + [n for n in things if n in in_voc]
    made.append(Incremental("coco-to-voc", (_BACKGROUND, *order), (61, 20), ("coco", "voc")))
    mini = (_BACKGROUND, *BASE_THINGS, *VOC_THINGS)
    made.append(Incremental("mini/coco-to-voc", mini, (21, 20), ("mini coco", "mini voc")))
    made.append(ZeroShot("voc/zs3", "voc", names.VOC[1:16], names.VOC[16:]))
    made.append(ZeroShot("mini/zs3", "mini voc", VOC_THINGS[:15], VOC_THINGS[15:]))
    for number in (1, 2, 3):
        made.append(_rotated(_GROUNDED_VOC, "voc", number, 5, "voc/grounded"))
        unseen = _GROUNDED_COCO[number]
        seen = tuple(name for name in things if name not in unseen)
        made.append(ZeroShot(f"coco/grounded-{number}", "coco", seen, unseen, _COCO_CERTAINTY[number]))
        made.append(_rotated(VOC_THINGS, "mini voc", number, 5, "mini/grounded-voc", "ours"))
        made.append(_rotated(BASE_THINGS + VOC_THINGS, "mini coco", number, 8, "mini/grounded-coco", "ours"))
    return {protocol.name: protocol for protocol in made}


PROTOCOLS = _make()


def get(name: str) -> Incremental | ZeroShot:
    """A protocol by name; an unknown name is a ValueError that lists near ones."""
    return PROTOCOLS[tuple(PROTOCOLS)[find(name, tuple(PROTOCOLS), "protocol")]]


def first_seen(split: ZeroShot, count: int) -> ZeroShot:
    """The split with the first ``count`` classes of its order seen, the others unseen (Grounded Diffusion, table 4).

    The order in which the paper adds classes is not recovered; ours is the split's own.
    """
    if not 1 <= count < len(split.classes):
        raise ValueError(f"`count` must be 1..{len(split.classes) - 1} for {split.name}; got {count!r}")
    every = split.classes
    return replace(
        split, name=f"{split.name}/first-{count}", seen=every[:count], unseen=every[count:], certainty="ours"
    )


def presence(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(N, C) bool: which classes occur in (N, H, W) uint8 masks, or in a sequence of (H, W) masks; 255 is none."""
    out = np.zeros((len(labels), num_classes), bool)
    for row, mask in zip(out, labels, strict=True):
        row |= np.bincount(np.asarray(mask).ravel(), minlength=256)[:num_classes] > 0
    return out
