"""Runs of Grounded Diffusion's Protocol II at the paper's size: MaskFormer on painted pairs, scored on photographs.

The counterpart of :mod:`fmseg.zero_shot` for VOC and COCO on disk and Stable Diffusion: a head is trained once on the
seen classes (:mod:`fmseg.real_grounded`), paints and labels the pairs, and a segmenter learns from these and, where a
row says so, from photographs with labels of seen classes alone. One process paints what is missing before it trains;
several (``torchrun``) want it painted beforehand, by ``python -m fmseg paint grounded-t2``.
"""

import time
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from fmseg import (
    distributed,
    grounded_online,
    image_counts,
    maskformer,
    names,
    on_disk,
    paper_segmenters,
    parts,
    protocols,
    real_grounded,
)
from fmseg.grounding import GroundingHead
from fmseg.inference import TestTime, evaluate_pictures, segment
from fmseg.labelmaps import pack
from fmseg.metrics import seen_unseen
from fmseg.photos import Photos
from fmseg.provenance import canonical_hash
from fmseg.real_grounded_pictures import Models, load
from fmseg.real_steps import presence_of
from fmseg.real_supervised import EXAMPLES, example_predictions
from fmseg.settings import check_config
from fmseg.train_config import TrainConfig
from fmseg.training import train

MODULE = "fmseg.real_zero_shot"
KEYS = ("method", "seed", "draw", "split", "size", "data", "test", "validation")
TRAINED = ("crop", "pipeline", "train")
OPTIONAL = ("pretrained", "sets", "head", "real", "clip", *TRAINED)
CLIP_DENSE = "clip-dense"
DATA_SETS = {"voc": names.VOC, "coco": names.COCO}
IGNORE = 255
PAINTED, REAL = "painted", "real seen"  # names of sources


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a segmenter for seen and unseen classes, or ask CLIP, and score it on whole photographs.

    Args:
        config: ``method`` (the row's name; 'clip-dense' is not trained), ``seed``, ``draw`` ('voc' or 'coco'),
            ``split`` (name of a :class:`fmseg.protocols.ZeroShot`), ``size`` (of :func:`fmseg.maskformer.build`),
            ``data`` (its splits ``train`` and ``validation``), ``test`` (fields of :class:`fmseg.inference.TestTime`),
            ``validation`` (photographs at most, None: all); of trained rows ``crop``, ``pipeline``
            (:class:`fmseg.photos.Photos`), ``train`` (fields of :class:`fmseg.train_config.TrainConfig` but ``seed``),
            ``pretrained``, ``sets`` (list of {"kind", "count", "rich"}) with ``head`` (configuration of
            :mod:`fmseg.real_grounded`), ``real`` (whether photographs are added); of 'clip-dense' ``clip``, see
            :func:`fmseg.real_experts.clip_of`.
        checkpoint, checkpoint_every, progress, on_step: as in :func:`fmseg.training.train`; which classes photographs
            hold is kept beside the checkpoint, in the folder ``presence``.

    Returns:
        As :func:`fmseg.zero_shot.run`; ``result`` also has ``data``, a hash of the photographs.

    Raises:
        ValueError: an unknown or missing key, name or value; nothing to train on. FileNotFoundError: data or weights
            are not there. RuntimeError: several processes, and not all is painted.
    """
    check_config(config, KEYS, OPTIONAL)
    split, how = protocols.get(config["split"]), TestTime(**config["test"])
    held_out = on_disk.open_set(config["draw"], on_disk.root_of(config["draw"]), config["data"]["validation"])
    if config.get("validation") is not None:
        held_out = held_out.subset(range(min(len(held_out), config["validation"])))
    if config["method"] == CLIP_DENSE:
        return _clip(config, split, held_out, how)
    check_config(config, KEYS + TRAINED, OPTIONAL)
    sources = training_sources(config, split, presence=checkpoint and Path(checkpoint).parent / "presence")
    if not sources:
        raise ValueError("the configuration trains on nothing: give `sets`, or `real`")
    classes = len(split.classes)
    model = maskformer.build(
        config["size"], num_classes=classes + 1, image_size=config["crop"][0], seed=config["seed"]
    )  # fmt: skip
    if config.get("pretrained"):
        paper_segmenters.load_pretrained(model, maskformer.weights_file(config["size"]))
    options = TrainConfig.from_dict({**config["train"], "seed": config["seed"]})
    table = split.evaluation(held_out.classes)

    def validation(model, part):
        return evaluate_pictures(Answering(model, classes), held_out, how, table=table, part=part)

    done = train(
        model, sources, options, validation=validation, checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        progress=progress, on_step=on_step,
    )  # fmt: skip
    counts = counted(Answering(model, classes), held_out, how, table, classes)
    labels = [first_labels(source) for source in sources if source.name.startswith(PAINTED)]
    more = scores(counts, split) | {
        "images": image_counts.pack(counts), "data": held_out.fingerprint()[:16],
        "sets": [{**what, "labels": some} for what, some in zip(config.get("sets", ()), labels, strict=True)],
    }  # fmt: skip
    return done.as_run(model, example_predictions(model, held_out, how), **more)


# -- what a row learns from ------------------------------------------------------------------------------------------


def training_sources(
    config: Mapping, split: protocols.ZeroShot, models: Models | None = None, presence: Path | None = None
) -> list[Photos]:
    """Painted pairs with background as the last class, photographs with 255 wherever no seen class is.

    Args:
        config: of a run. split: its classes. models: what paints; None: those that the head's configuration names.
        presence: a folder in which it is kept which classes photographs hold.
    """
    how, sources = (config["pipeline"], tuple(config["crop"])), []
    for number, what in enumerate(config.get("sets", ())):
        some = painted_pairs(config["head"], split, config["draw"], what, models)
        sources.append(Photos(some, *how, table=some.meaning(split), name=f"{PAINTED} {number}, {what['kind']}"))
    if config.get("real"):
        data = on_disk.open_set(config["draw"], on_disk.root_of(config["draw"]), config["data"]["train"])
        rows = split.images(presence_of(data, presence), data.classes)
        sources.append(Photos(data.subset(rows), *how, table=split.train_table(data.classes), name=REAL))
    return sources


class Pairs:
    """Painted pairs in the form that :class:`fmseg.photos.Photos` takes.

    Attributes:
        images: a name each, as paths. table: ids that labels can have, all of the data set's.
    """

    def __init__(self, pairs: grounded_online.PaintedPairs, key: Mapping):
        self.pairs, self.classes = pairs, pairs.classes
        told = canonical_hash(key)
        self.images = tuple(Path(f"{told}-{number:06d}") for number in range(len(pairs)))
        self.table = np.arange(len(pairs.classes), dtype=np.int16)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int):
        return self.pairs[index]

    def meaning(self, split: protocols.ZeroShot) -> ndarray:
        """(256,) uint8: the data set's ids as the split's, background as the one after them."""
        table = split.evaluation(self.classes)
        table[self.classes.index("background")] = len(split.classes)
        return table


def painted_pairs(
    head: Mapping, split: protocols.ZeroShot, draw: str, what: Mapping, models: Models | None = None
) -> Pairs:
    """A synthetic set, from the shared parts or painted now; see :func:`fmseg.grounded_online.paint_pairs`.

    Args:
        head: configuration of the head that labels. split: its classes are painted, seen and unseen.
        draw: 'voc' or 'coco', whose ids labels have. what: {"kind", "count", "rich"}. models: see
            :func:`training_sources`.

    Raises:
        RuntimeError: several processes, and parts are missing.
    """
    rich, dataset = what.get("rich", False), DATA_SETS[draw]
    key = {"head": dict(head), "classes": list(split.classes), "draw": draw, "kind": what["kind"], "rich": rich}
    folder = parts.folder("pairs", key, MODULE) / "set"
    count, size = what["count"], grounded_online.PART
    missing = sum(not parts.file_of(folder, k).exists() for k in range(-(-count // size)))
    if not missing:
        return Pairs(grounded_online.PaintedPairs(folder, dataset, count), key)
    if distributed.world().size > 1:
        raise RuntimeError(
            f"{missing} of {-(-count // size)} parts of painted pairs ({what['kind']}) are missing; `python -m fmseg "
            "paint grounded-t2 --profile paper` makes them, in as many processes as you like, then start this again"
        )
    models = models or load(head["zoo"]["diffusion"], head["zoo"]["oracle"])
    recipe = grounded_online.Recipe(
        steps=head["sampling"]["steps"], guidance=head["sampling"]["test"], step=head["step"], seed=head["seed"]
    )
    made = grounded_online.paint_pairs(
        models.pipe, shared_head(head, models), split.classes, dataset, count, folder, recipe, kind=what["kind"],
        rich=rich,
    )  # fmt: skip
    return Pairs(made, key)


def shared_head(config: Mapping, models: Models) -> GroundingHead:
    """The head of a configuration of :mod:`fmseg.real_grounded`, trained once whoever asks; a training that was broken
    off goes on."""
    folder = parts.folder("heads", config, "fmseg.real_grounded")

    def make(number: int) -> parts.Arrays:
        head, _ = real_grounded.trained(config, models, checkpoint=folder / "head.checkpoint")
        return {name: tensor.cpu().numpy() for name, tensor in head.state_dict().items()}

    (state,) = parts.obtain(folder, [0], make)
    head = GroundingHead.for_unet(models.pipe.unet.config, **config.get("head", {}))
    head.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return head.eval().requires_grad_(False)


def first_labels(source: Photos) -> dict:
    """The first label maps of a set in the split's ids, packed."""
    return pack(source.table[np.stack([source.data[k].labels for k in range(min(EXAMPLES, len(source)))])])


# -- scores -----------------------------------------------------------------------------------------------------------


class Answering(nn.Module):
    """A segmenter that can't answer with background, which does not count: the first ``num_classes`` scores alone."""

    def __init__(self, model: nn.Module, num_classes: int):
        super().__init__()
        self.model, self.num_classes, self.divisor = model, num_classes, model.divisor

    def logits(self, images: Tensor) -> Tensor:
        """(B, num_classes, H, W)."""
        return self.model.logits(images)[:, : self.num_classes]


def counted(model: nn.Module, data, how: TestTime, table: ndarray, classes: int) -> ndarray:
    """(rows, classes, 3) int64 of :func:`fmseg.image_counts.count`, over pictures of any size; equal in all processes.

    Args:
        model: has ``logits``. data: N pictures with labels. how: they are shown. table: (256,) uint8, for labels.
    """
    world = distributed.world()
    found = np.zeros((min(len(data), image_counts.BLOCKS), classes, 3), np.int64)
    for index in range(world.rank, len(data), world.size):
        picture = data[index]
        answer = segment(model, picture.image, how)
        found[index % image_counts.BLOCKS] += image_counts.count(answer[None], table[picture.labels][None], classes)[0]
    return distributed.add_counts(found, next((p.device for p in model.parameters()), torch.device("cpu")))


def scores(counts: ndarray, split: protocols.ZeroShot) -> dict[str, Any]:
    """``seen``, ``unseen``, ``harmonic`` and ``miou`` (the harmonic mean) in percent, and ``iou`` by class.

    Raises:
        ValueError: no picture shows a class of one of the groups.
    """
    iou = image_counts.iou(counts)
    found = {key: round(100 * value, 4) for key, value in seen_unseen(iou, **split.groups()).items()}
    if any(value != value for value in found.values()):
        raise ValueError("no validation picture shows a class of one of the groups; take more of them")
    each = [None if value != value else round(float(value), 6) for value in iou]
    return found | {"iou": each, "miou": found["harmonic"]}


class DenseClip(nn.Module):
    """CLIP's dense maps over names, behind the interface of a segmenter.

    Args:
        clip: of :func:`fmseg.real_experts.clip_of`. classes: names as words.
    """

    def __init__(self, clip, classes: tuple[str, ...]):
        super().__init__()
        from fmseg.clip import text_embeddings
        from fmseg.dense_clip import stride

        self.tower, self.num_classes, self.divisor = clip.model, len(classes), stride(clip.model)
        self.register_buffer("mean", torch.tensor(clip.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(clip.std).view(1, 3, 1, 1))
        self.register_buffer("text", text_embeddings(clip, classes).float())

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) cosines of pictures in 0..255, resized from the tower's grid."""
        from fmseg.dense_clip import dense_features
        from fmseg.dense_clip import scores as cosines
        from fmseg.pixel_loss import resize_scores

        x = (images.float() / 255 - self.mean) / self.std
        return resize_scores(cosines(dense_features(self.tower, x), self.text), tuple(images.shape[-2:]))


def _clip(config: Mapping, split: protocols.ZeroShot, held_out, how: TestTime) -> dict[str, Any]:
    from fmseg.real_experts import clip_of, spoken

    started = time.perf_counter()
    model = DenseClip(clip_of(config["clip"], config.get("pretrained", True)), spoken(split.classes)).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    counts = counted(model, held_out, how, split.evaluation(held_out.classes), len(split.classes))
    result = scores(counts, split)
    result["weights"] = canonical_hash(result)
    result |= {"images": image_counts.pack(counts), "data": held_out.fingerprint()[:16], "sets": []}
    result["examples"] = pack(example_predictions(model, held_out, how))
    return {"result": result, "curve": [], "seconds": time.perf_counter() - started, "model": None}
