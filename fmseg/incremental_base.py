"""The model before an incremental step: trained once for a seed and setting, kept in a file, shared by every method.

Two families differ by their loss: "softmax" (cross-entropy, as the comparators with pixel labels begin) and "sigmoid"
(a yes or no for each class, as WILSON and FMWISS begin; ``--bce``). The file is a checkpoint of the one training loop,
so a base that was interrupted goes on, and one that is finished is read.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fmseg import distributed
from fmseg.batches import Source
from fmseg.distill import binary_cross_entropy
from fmseg.pixel_loss import resize_scores
from fmseg.provenance import canonical_hash, closure
from fmseg.records import lock
from fmseg.segmenters import Segmenter, build
from fmseg.step_models import begin_rare
from fmseg.training import TrainConfig, TrainResult, train

FAMILIES = ("softmax", "sigmoid")
WEAK = ("cam", "ss", "wilson", "fmwiss")  # methods with image-level labels in the step
DECIDES = ("protocol", "images", "validation", "size", "seed", "segmenter", "backbone", "base", "prior")  # run's keys
_PROJECT = Path(__file__).resolve().parent.parent


def family(method: str) -> str:
    """Which base model a method begins with: "softmax" or "sigmoid"."""
    return "sigmoid" if method in (*WEAK, "lwf-mc") else "softmax"


class Binary(nn.Module):
    """A segmenter that learns every class by its own yes or no: WILSON's step 0."""

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter, self.num_classes = segmenter, segmenter.num_classes

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """() nats, summed over classes: :func:`fmseg.distill.binary_cross_entropy` at full resolution."""
        scores = resize_scores(self.segmenter.grid_logits(images), tuple(labels.shape[1:]))
        return binary_cross_entropy(scores, labels)

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W): the segmenter's scores."""
        return self.segmenter.logits(images)


def path_of(
    config: dict[str, Any], folder: str | PathLike, decides: Sequence[str] = DECIDES, module: str = __name__
) -> Path:
    """Where the base model of a run lies: named by what decides it and by the code that trains it.

    Args:
        config: of the run. folder: of base models.
        decides: keys of the configuration; one that it lacks does not count.
        module: what its imports reach is the code.
    """
    key = canonical_hash({name: config[name] for name in decides if name in config})
    code = canonical_hash(closure(module, _PROJECT))
    return Path(folder) / f"{key}-{code}.pt"


def base_model(
    config: dict[str, Any],
    source: Source,
    validation: Source,
    classes: int,
    folder: str | PathLike | None = None,
    *,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    begin: Callable[[dict[str, Any], int], Segmenter] | None = None,
    decides: Sequence[str] = DECIDES,
    module: str = __name__,
) -> tuple[Segmenter, TrainResult]:
    """The base model of a run, from its file or trained now.

    Two processes that want the same one do not train it twice: the second waits and reads. Under ``torchrun`` those of
    one run train it together.

    Args:
        config: of a run (:mod:`fmseg.incremental_runs`); ``base`` holds ``family`` and fields of
            :class:`fmseg.training.TrainConfig` but ``seed``.
        source, validation: pictures of the base step with its labels; ``decides`` names the keys that they follow from.
        classes: K, with background.
        folder: where base models are kept; None: nowhere, it is trained for this run alone.
        progress, on_step: as in :func:`fmseg.training.train`.
        begin: (config, classes) -> the segmenter before any training; None: :func:`fresh`.
        decides, module: see :func:`path_of`.

    Returns:
        The segmenter in eval mode, and its training's result.

    Raises:
        ValueError: an unknown family, or a file that belongs to other pictures.
    """
    options = dict(config["base"])
    family = options.pop("family")
    if family not in FAMILIES:
        raise ValueError(f"`base.family` must be one of {', '.join(FAMILIES)}; got {family!r}")
    how = TrainConfig.from_dict({**options, "seed": config["seed"]})
    model = (begin or fresh)(config, classes)
    learner = model if family == "softmax" else Binary(model)
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="fmseg-base-") as kept:
        path = path_of(config, kept, decides, module)
        with _alone(path):
            result = train(
                learner, source, how, validation=validation, checkpoint=path,
                checkpoint_every=max(1, how.steps // 8), progress=progress, on_step=on_step,
            )  # fmt: skip
    return model.eval(), result


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """This run alone trains or reads a base model; its first process holds the lock for all."""
    first = distributed.world().first
    held = lock(path.with_suffix(".lock"), f"base model {path.stem}", wait=24 * 3600) if first else nullcontext()
    with held:
        distributed.wait_for_all()
        yield


def fresh(config: dict[str, Any], num_classes: int) -> Segmenter:
    """The run's segmenter before any training: its backbone from the configuration, its head from the seed."""
    model = build(
        config["segmenter"], num_classes=num_classes, image_size=config["size"], seed=config["seed"],
        backbone=config["backbone"],
    )  # fmt: skip
    return started(model, config)


def started(model: Segmenter, config: dict[str, Any]) -> Segmenter:
    """The segmenter, its classes rare at first where the run has a ``prior``; joint training has softmax outputs."""
    if config.get("prior") is not None:
        begin_rare(model, config["prior"], softmax=not config["base"] or config["base"]["family"] == "softmax")
    return model


def prior_of_new(config: dict[str, Any]) -> float | None:
    """With which probability a step's new classes begin, where outputs are a yes or no each; else None."""
    return config.get("prior") if family(config["method"]) == "sigmoid" else None
