"""The pictures and labels of a class-incremental run in the mini world: what each step may see, and what it may not.

A later step of a weak protocol has pictures and image-level labels; its masks are replaced by "nothing is known" here,
before any method sees them. Channels of a model are logits of the protocol (:mod:`fmseg.protocols`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy import ndarray

from fmseg import protocols
from fmseg.batches import Source
from fmseg.datasets import IGNORE, Drawn, draw_set
from fmseg.protocols import Incremental

BASE, STEP = 0, 1
_KEPT = 3  # stream of the draw of which pictures are kept


@dataclass(frozen=True)
class Data:
    """Everything that a run may look at, and the truth that judges it.

    Attributes:
        protocol: who may see what.
        base, step: the pictures of step 0 and 1, with all that the world knows of them; give methods the sources below.
        held_out: {draw: validation pictures}; the first is that of the base step.
    """

    protocol: Incremental
    base: Drawn
    step: Drawn
    held_out: dict[str, Drawn]

    def base_source(self) -> Source:
        """Step 0: pictures with pixel labels."""
        labels = self.protocol.pixel_labels(BASE, self.base.classes)[self.base.labels]
        return Source(self.base.images, labels, name="base")

    def weak_source(self) -> Source:
        """Step 1 with image-level labels of its classes: ``tags`` (N, new classes), and no pixel labels."""
        tags = self.protocol.image_labels(STEP, self.step.present, self.step.classes)
        return Source(self.step.images, np.full_like(self.step.labels, IGNORE), name="step", tags=tags)

    def pixel_source(self) -> Source:
        """Step 1 with pixel labels of its classes, all else background: for comparators with more supervision."""
        told = replace(self.protocol, weak=False)
        return Source(
            self.step.images, told.pixel_labels(STEP, self.step.classes)[self.step.labels], name="step, pixels"
        )

    def joint_sources(self) -> list[Source]:
        """All pictures of both steps with all their labels, each picture once: the upper bound."""
        parts = [self.base, self.step]
        if self.base.draw == self.step.draw:  # overlap: a picture may be in both
            seen = {image.tobytes() for image in self.base.images}
            parts[1] = self.step.subset([i for i, image in enumerate(self.step.images) if image.tobytes() not in seen])
        table = {drawn.name: self.protocol.evaluation(STEP, drawn.classes) for drawn in parts}
        return [Source(d.images, table[d.name][d.labels], name=f"joint {k}") for k, d in enumerate(parts) if len(d)]

    def validation(self, step: int, draw: str | None = None) -> Source:
        """Validation pictures of a draw (default: the first), classes unknown after ``step`` counting as background."""
        drawn = self.held_out[draw or next(iter(self.held_out))]
        return Source(drawn.images, self.protocol.evaluation(step, drawn.classes)[drawn.labels], name="validation")

    def new_truth(self) -> ndarray:
        """(N, H, W) uint8: logits of the new classes in the step's pictures, 0 elsewhere. For measuring alone."""
        return replace(self.protocol, weak=False).pixel_labels(STEP, self.step.classes)[self.step.labels]

    def new_names(self) -> tuple[str, ...]:
        """Names of the new classes, by logit."""
        return tuple(self.protocol.order[k] for k in self.protocol.new(STEP))

    def old_names(self) -> tuple[str, ...]:
        """Names of the old classes without background, by logit."""
        return tuple(self.protocol.order[k] for k in self.protocol.new(BASE) if k)


def draws_of(protocol: Incremental) -> tuple[str, ...]:
    """The draws that play a mini protocol's data sets, by step: ('voc', 'voc') or ('coco', 'voc')."""
    return tuple(name.removeprefix("mini ") for name in protocol.datasets)


def load(config: dict[str, Any]) -> Data:
    """Draw the pictures of a run.

    Args:
        config: ``protocol`` (a name of :data:`fmseg.protocols.PROTOCOLS`), ``images`` ({draw: training pictures drawn,
            of which a step keeps those it may see}), ``validation`` (pictures), ``size`` (pixels), ``seed``, ``share``
            of the step's pictures that are kept, drawn from the seed, in (0, 1].

    Raises:
        ValueError: an unknown protocol, a share out of range, or a step that is left without pictures.
    """
    protocol, share = protocols.get(config["protocol"]), config["share"]
    if not isinstance(protocol, Incremental):
        raise ValueError(f"`protocol` must be class-incremental; got {config['protocol']!r}, a zero-shot split")
    if not 0 < share <= 1:
        raise ValueError(f"`share` must be in (0, 1], the part of the step's pictures that is kept; got {share}")
    size, steps = config["size"], []
    drawn = {
        name: draw_set(name, "train", config["images"][name], seed=config["seed"], size=size)
        for name in dict.fromkeys(draws_of(protocol))
    }
    for step, name in enumerate(draws_of(protocol)):
        kept = protocol.images(step, drawn[name].present, drawn[name].classes)
        if step == STEP and share < 1:
            order = np.random.default_rng([config["seed"], _KEPT]).permutation(len(kept))
            kept = np.sort(kept[order[: max(1, round(share * len(kept)))]])
        if not len(kept):
            raise ValueError(
                f"step {step} of {protocol.name} may see none of the {len(drawn[name])} pictures; raise `images`"
            )
        steps.append(drawn[name].subset(kept))
    held_out = {name: draw_set(name, "val", config["validation"], size=size) for name in drawn}
    return Data(protocol, *steps, held_out)
