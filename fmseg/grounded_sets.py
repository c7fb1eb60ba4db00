"""Triplets of picture, mask and class for the grounding head: what an oracle finds in painted pictures.

Grounded Diffusion, section 4.1; dossier 2.8 and section 5. The oracle looks once at every picture; which of its
instances count (least score, least area, best or union) is decided afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from fmseg import grounded_pictures, parts, zoo
from fmseg.grounded_pictures import Pictures
from fmseg.grounding_targets import oracle_targets
from fmseg.oracle import Instance, instances, load_oracle, probabilities

RULES = ("rule", "score", "area")  # of a configuration's `oracle`, beside `name`
PLACE = "place"  # stands for the groups of features that were not read: (N, 2) int64, number of the set and row


@dataclass(frozen=True)
class Triplets:
    """N pictures with up to O named classes each.

    Attributes:
        features: group -> (N, C, h, w) float16.
        named: (N, O) int64 into ``classes``, -1 where a picture names fewer.
        masks: (N, O, H, W) bool, what to learn or to be compared with.
        detected: (N, O) bool, whether there is a mask; False also where nothing is named.
        classes: names; ``text``: (C, D) float32, their queries.
        images: (N, H, W, 3) uint8.
    """

    features: dict[str, Tensor]
    named: Tensor
    masks: Tensor
    detected: Tensor
    classes: tuple[str, ...]
    text: Tensor
    images: ndarray

    def __len__(self) -> int:
        return len(self.named)

    @property
    def present(self) -> Tensor:
        """(N, O) bool: where a class is named."""
        return self.named >= 0

    def subset(self, rows: Sequence[int] | Tensor | ndarray) -> "Triplets":
        """The pictures of those rows, in that order."""
        rows = torch.as_tensor(np.asarray(rows), dtype=torch.int64)
        features = {group: tensor[rows] for group, tensor in self.features.items()}
        taken = (tensor[rows] for tensor in (self.named, self.masks, self.detected))
        return Triplets(features, *taken, self.classes, self.text, self.images[rows.numpy()])


def together(sets: Sequence[Triplets]) -> Triplets:
    """Several sets of the same classes as one.

    Raises:
        ValueError: no set, or sets of other classes.
    """
    if not sets or any(s.classes != sets[0].classes for s in sets):
        raise ValueError(f"`sets` must be at least one, all of the same classes; got {len(sets)}")
    most = max(s.named.shape[1] for s in sets)
    named, masks, detected = (
        torch.cat([_widened(getattr(s, what), most, fill) for s in sets])
        for what, fill in (("named", -1), ("masks", False), ("detected", False))
    )
    features = {group: torch.cat([s.features[group] for s in sets]) for group in sets[0].features}
    images = np.concatenate([s.images for s in sets])
    return Triplets(features, named, masks, detected, sets[0].classes, sets[0].text, images)


def _widened(x: Tensor, most: int, fill) -> Tensor:
    extra = x.new_full((len(x), most - x.shape[1], *x.shape[2:]), fill)
    return torch.cat([x, extra], 1)


def seen_by(oracle: str, pictures: Pictures, swapped: bool = False) -> list[list[Instance]]:
    """Every instance of a class of the draw's things that an oracle of the zoo finds, with its smallest fragments.

    Args:
        oracle: 'oracle' or 'judge'. pictures: painted ones, looked at once and kept in shared parts.
        swapped: the oracle is handed red for blue, as the official code does with its detector.

    Returns:
        For each picture its instances, best first, ``label`` in the oracle's ids.
    """
    key = pictures.key | {"oracle": zoo.weights_hash(oracle), "swapped": swapped}
    images = pictures.images[..., ::-1] if swapped else pictures.images
    path = parts.folder("oracle", key, "fmseg.grounded_sets")
    size = grounded_pictures.PART

    def make(number: int) -> parts.Arrays:
        return _looked_at(oracle, np.ascontiguousarray(images[number * size : (number + 1) * size]))

    whole = len(pictures) // size
    found = parts.obtain(path, range(whole), make)
    if whole * size < len(pictures):
        found.append(make(whole))
    return [_unpacked(part, k) for part in found for k in range(int(part["count"]))]


def _looked_at(oracle: str, images: ndarray) -> parts.Arrays:
    model, known = load_oracle(oracle)
    things = range(len(known) - 8)  # grounds come last
    each = [instances(p, things, least_area=1) for p in probabilities(model, images)]
    flat = [(row, i) for row, found in enumerate(each) for i in found]
    side = images.shape[1:3]
    masks = np.stack([i.mask for _, i in flat]) if flat else np.zeros((0, *side), bool)
    return {
        "count": np.int64(len(images)),
        "row": np.array([row for row, _ in flat], np.int64),
        "label": np.array([i.label for _, i in flat], np.int64),
        "score": np.array([i.score for _, i in flat], np.float64),
        "masks": np.packbits(masks.reshape(len(flat), -1), axis=1),
        "side": np.array(side, np.int64),
    }


def _unpacked(part: parts.Arrays, row: int) -> list[Instance]:
    high, wide = (int(n) for n in part["side"])
    found = []
    for k in np.flatnonzero(part["row"] == row):
        mask = np.unpackbits(part["masks"][k], count=high * wide).reshape(high, wide).astype(bool)
        found.append(Instance(int(part["label"][k]), float(part["score"][k]), mask))
    return found


def oracle_masks(
    found: Sequence[Sequence[Instance]], asks: Sequence, known: Sequence[str], size: Sequence[int], *,
    rule: str = "best", score: float = 0.0, area: int = 12,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The oracle's mask of each class that a prompt names.

    Args:
        found: instances by picture, ``label`` in ``known``. asks: pictures with ``names``.
        known: class names by the oracle's ids. size: (H, W).
        rule, score: see :func:`fmseg.grounding_targets.oracle_targets`.
        area: instances of fewer pixels are no instances: in painted things the oracle often sees fragments of other
            classes, which would make it believe that it found what was asked for.

    Returns:
        masks (N, O, H, W) bool and detected (N, O) bool, O the most names of a picture.

    Raises:
        ValueError: a name that the oracle does not know, or an unknown rule.
    """
    most = max(len(a.names) for a in asks)
    masks = torch.zeros(len(asks), most, *size, dtype=torch.bool)
    detected = torch.zeros(len(asks), most, dtype=torch.bool)
    for row, wanted in enumerate(asks):
        unknown = [name for name in wanted.names if name not in known]
        if unknown:
            raise ValueError(f"the oracle does not know the class {unknown[0]!r}; ask another, such as the judge")
        large = [i for i in found[row] if i.mask.sum() >= area]
        ids = [known.index(name) for name in wanted.names]
        n = len(ids)
        masks[row, :n], detected[row, :n] = oracle_targets(large, ids, size, rule=rule, least=score)
    return masks, detected


def named_ids(asks: Sequence, classes: Sequence[str]) -> Tensor:
    """(N, O) int64: the classes that each picture names, by their place in ``classes``; -1 for none."""
    most = max(len(a.names) for a in asks)
    return torch.tensor([[*(classes.index(n) for n in a.names), *[-1] * (most - len(a.names))] for a in asks])


def unread(
    pictures: Pictures, classes: Sequence[str], oracle: Mapping, *, number: int = 0, text: Tensor | None = None
) -> Triplets:
    """Pictures with the oracle's masks; in place of features, under :data:`PLACE`, where :func:`read` finds them.

    Most pictures drop out when what to learn from, or what counts in a score, is chosen; their features need not be
    read.

    Args:
        pictures: painted ones. classes: names, of which pictures name some.
        oracle: ``name`` of the zoo's model, ``rule``, ``score``, ``area`` of :func:`oracle_masks`, and perhaps
            ``swapped`` of :func:`seen_by`.
        number: which of several sets this is, that are put :func:`together` and read at once.
        text: (C, D) queries; None: from the zoo's text encoder.
    """
    options = {key: oracle[key] for key in RULES}
    known = load_oracle(oracle["name"])[1]
    found = seen_by(oracle["name"], pictures, oracle.get("swapped", False))
    masks, detected = oracle_masks(found, pictures.asks, known, pictures.images.shape[1:3], **options)
    text = grounded_pictures.queries(classes) if text is None else text
    place = torch.stack([torch.full((len(pictures),), number), torch.arange(len(pictures))], 1)
    named = named_ids(pictures.asks, classes)
    return Triplets({PLACE: place}, named, masks, detected, tuple(classes), text, pictures.images)


def read(data: Triplets, several: Sequence[Pictures], step: int, keep: bool = True) -> Triplets:
    """The same triplets with the features of the pictures that are left.

    Args:
        data: from :func:`unread`, perhaps a choice. several: the sets of pictures by number.
        step: of the features, counted from the clean end.
        keep: whether features are kept in shared parts, then of whole sets; else only what is asked for is made.
    """
    place, made = data.features[PLACE], {}
    for number, pictures in enumerate(several):
        mine = (place[:, 0] == number).nonzero()[:, 0]
        rows = place[mine, 1]
        if not len(rows):
            continue
        if keep:
            found = {g: t[rows] for g, t in grounded_pictures.kept_features(pictures, step).items()}
        else:
            found = grounded_pictures.features(pictures.taken(rows.tolist()), step)
        for group, tensor in found.items():
            made.setdefault(group, tensor.new_empty(len(data), *tensor.shape[1:]))[mine] = tensor
    return replace(data, features=made)


def triplets(
    pictures: Pictures, classes: Sequence[str], step: int, oracle: Mapping, *, text: Tensor | None = None,
    keep: bool = True,
) -> Triplets:  # fmt: skip
    """Pictures with their features and the oracle's masks: :func:`unread` and :func:`read` at once."""
    return read(unread(pictures, classes, oracle, text=text), [pictures], step, keep)


def only_of(whole: Triplets, seen: Sequence[str]) -> Triplets:
    """The pictures that name classes of ``seen`` alone, whatever the oracle found in them."""
    allowed = torch.tensor([name in seen for name in whole.classes] + [True])  # the last is for -1
    return whole.subset(allowed[whole.named].all(1).nonzero()[:, 0])


def with_any_mask(whole: Triplets) -> Triplets:
    """The pictures in which at least one class was found: officially the others are no training step."""
    return whole.subset(whole.detected.any(1).nonzero()[:, 0])


def drawn_by(whole: Triplets, seed: int, share: float) -> Triplets:
    """The share of the pictures that a seed sees: all seeds draw from the same painted ones.

    Raises:
        ValueError: the share is not in (0, 1], or leaves no picture.
    """
    count = round(share * len(whole))
    if not 0 < share <= 1 or not count:
        raise ValueError(f"`share` must be in (0, 1] and leave a picture; got {share} of {len(whole)} pictures")
    order = np.random.default_rng([seed, 2301, 5221]).permutation(len(whole))
    return whole.subset(np.sort(order[:count]))
