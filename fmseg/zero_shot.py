"""Runs of Grounded Diffusion's Protocol II: a standard segmenter trained on synthetic sets, scored on real pictures.

Seen and unseen classes as ZS3 has them; background does not count in the score. Baselines that can be run here: the
same segmenter on real pictures with labels of seen classes alone, the same with generated features of unseen classes
(:mod:`fmseg.zero_shot_generator`), and CLIP's dense maps without any training.
"""

import time
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from fmseg import image_counts, protocols, zoo
from fmseg.clip import load_clip, text_embeddings
from fmseg.datasets import Drawn, draw_set
from fmseg.evaluation import predict, weights_hash
from fmseg.labelmaps import pack
from fmseg.measure_perception import dense_scores
from fmseg.metrics import Confusion, seen_unseen
from fmseg.provenance import canonical_hash
from fmseg.segmenters import Segmenter, build
from fmseg.settings import check_config
from fmseg.train_config import TrainConfig
from fmseg.training import Source, train
from fmseg.zero_shot_generator import train_classifier, train_generator
from fmseg.zero_shot_sets import synthetic

KEYS = ("method", "seed", "draw", "split", "images", "validation", "size", "zoo", "train")
OPTIONAL = ("segmenter", "backbone", "sets", "head", "real", "generator")
CLIP_DENSE = "clip-dense"
REAL = "real seen"  # name of the source of real pictures
EXAMPLES = 6  # validation pictures, and pairs of a synthetic set, whose label maps are kept
_GROUP = 50  # validation pictures at a time


def run(
    config: dict[str, Any],
    *,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a segmenter for seen and unseen classes, or ask CLIP, and score it.

    Args:
        config: ``method`` (the row's name; 'clip-dense' is not trained), ``seed``, ``draw``, ``split`` (name of a
            :class:`fmseg.protocols.ZeroShot`), ``images`` and ``validation`` (real pictures), ``size``, ``zoo``
            ({model: hash}), ``train``; for trained rows ``segmenter``, ``backbone``, ``sets`` (list of {"kind",
            "count", "rich"}), ``head`` (configuration of the head that labels them), ``real`` (whether real pictures
            with labels of seen classes are added), ``generator`` ({"steps", "classifier_steps"}: features of unseen
            classes are generated).
        checkpoint, checkpoint_every, progress, on_step: as in :func:`fmseg.training.train`.

    Returns:
        As :func:`fmseg.supervised.run`; ``miou`` is the harmonic mean in percent; besides ``seen``, ``unseen``,
        ``harmonic`` in percent, and ``iou`` by class of the split; ``images`` is what each validation image adds to it
        (:mod:`fmseg.image_counts`); ``examples`` are packed predictions with background
        (the id after the last class) where the row knows it, ``sets`` the first label maps of each synthetic set.

    Raises:
        ValueError: an unknown or missing key, name or value; nothing to train on; other weights than the zoo's.
    """
    check_config(config, KEYS, OPTIONAL)
    wrong = [name for name, known in config["zoo"].items() if zoo.weights_hash(name) != known]
    if wrong:
        raise ValueError(f"`zoo` of the configuration does not hold the hashes of the shipped models: {wrong}")
    split = protocols.get(config["split"])
    held_out = draw_set(config["draw"], "val", config["validation"], size=config["size"])
    truth = split.evaluation(held_out.classes)[held_out.labels]
    if config["method"] == CLIP_DENSE:
        return _clip(config, split, held_out.images, truth)
    sources = training_sources(config, split)
    if not sources:
        raise ValueError("the configuration trains on nothing: give `sets`, or `real`")
    model = build(
        config["segmenter"], num_classes=len(split.classes) + 1, image_size=config["size"], seed=config["seed"],
        backbone=config["backbone"],
    )  # fmt: skip
    options = TrainConfig.from_dict({**config["train"], "seed": config["seed"]})

    def validation(model: nn.Module, part: slice) -> Confusion:
        found = answers_of(model, held_out.images[part], len(split.classes))
        return Confusion(len(split.classes)).update(found, truth[part])

    done = train(
        model, sources, options, validation=validation, checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        progress=progress, on_step=on_step,
    )  # fmt: skip
    started = time.perf_counter()
    if config.get("generator"):
        imagine(model, sources, split, config["generator"], config["seed"])
    result = _scores(answers_of(model, held_out.images, len(split.classes)), truth, split)
    result["weights"] = weights_hash(model)[:16]
    result["examples"] = pack(predict(model, held_out.images[:EXAMPLES]))
    painted = [source for source in sources if source.name != REAL]
    result["sets"] = [
        {"kind": what["kind"], "rich": what.get("rich", False), "labels": pack(source.labels[:EXAMPLES])}
        for what, source in zip(config.get("sets", ()), painted, strict=True)
    ]
    curve = [[step, round(100 * value, 4)] for step, value in done.curve]
    return {"result": result, "curve": curve, "seconds": done.seconds + time.perf_counter() - started, "model": model}


def training_sources(config: Mapping, split: protocols.ZeroShot) -> list[Source]:
    """What a row learns from: synthetic sets with background as the last class, real pictures with 255 elsewhere."""
    sources = []
    for what in config.get("sets", ()):
        pairs = synthetic(what["kind"], split.classes, what["count"], config["head"], rich=what.get("rich", False))
        sources.append(Source(pairs.images, pairs.labels, name=pairs.name))
    if config.get("real"):
        real = draw_set(config["draw"], "train", config["images"], seed=config["seed"], size=config["size"])
        sources.append(real_source(real, split))
    return sources


def real_source(real: Drawn, split: protocols.ZeroShot) -> Source:
    """Real pictures with at least one seen class; all other pixels, background included, are not labelled."""
    rows = split.images(real.present, real.classes)
    table = split.train_table(real.classes)
    return Source(real.images[rows], table[real.labels[rows]], name=REAL)


@torch.no_grad()
def answers_of(model: nn.Module, images: ndarray, classes: int) -> ndarray:
    """(N, H, W) uint8, the best of the first ``classes`` logits: background can't be answered, as it does not count."""
    was_training, made = model.training, np.empty(images.shape[:3], np.uint8)
    model.eval()
    for start in range(0, len(images), _GROUP):
        x = torch.from_numpy(images[start : start + _GROUP]).permute(0, 3, 1, 2).contiguous()
        made[start : start + _GROUP] = model.logits(x)[:, :classes].argmax(1).numpy()
    model.train(was_training)
    return made


def imagine(model: Segmenter, sources: list[Source], split: protocols.ZeroShot, options: Mapping, seed: int) -> None:
    """Train the classifier again with generated features of unseen classes (ZS3), in place.

    Args:
        model: with a 1x1 convolution ``decode_head.conv_seg`` as its classifier.
        sources: real pictures with labels of seen classes. options: ``steps`` of the generator, ``classifier_steps``.

    Differs from the original: words are those of the zoo's CLIP, not word2vec; features are of the mini segmenter.
    """
    features, labels = pixel_features(model, sources)
    seen = labels < len(split.seen)
    features, labels = features[seen], labels[seen]
    scale = features.std().clamp(min=1e-6)  # the kernels' bandwidths are fixed
    text = text_embeddings(load_clip(zoo.folder("clip")), split.classes).float()
    made = train_generator(features / scale, labels, text, steps=options["steps"], seed=seed)
    classifier = model.model.decode_head.conv_seg
    with torch.no_grad():
        classifier.weight *= scale
    unseen = range(len(split.seen), len(split.classes))
    train_classifier(
        classifier, features / scale, labels, made, text, unseen, steps=options["classifier_steps"], seed=seed
    )  # fmt: skip
    with torch.no_grad():
        classifier.weight /= scale


@torch.no_grad()
def pixel_features(model: Segmenter, sources: list[Source]) -> tuple[Tensor, Tensor]:
    """(N, C) float32 inputs of the classifier on its grid, and (N,) int64 labels at the cells' centres; 255 left out.

    Raises:
        ValueError: the model's head has no 1x1 convolution as its classifier.
    """
    classifier, kept = getattr(model.model.decode_head, "conv_seg", None), []
    if not isinstance(classifier, nn.Conv2d) or classifier.kernel_size != (1, 1):
        raise ValueError(f"{model.name} has no 1x1 convolution as its classifier; take segformer or deeplabv3")
    hook = classifier.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    was_training, found, names = model.training, [], []
    model.eval()
    try:
        for source in sources:
            for start in range(0, len(source), _GROUP):
                images = torch.from_numpy(source.images[start : start + _GROUP]).permute(0, 3, 1, 2).contiguous()
                model.grid_logits(images)
                x = kept.pop()
                step = images.shape[2] // x.shape[2]
                at = torch.from_numpy(source.labels[start : start + _GROUP])[:, step // 2 :: step, step // 2 :: step]
                labelled = at != 255
                found.append(x.permute(0, 2, 3, 1)[labelled])
                names.append(at[labelled].long())
    finally:
        hook.remove()
        model.train(was_training)
    return torch.cat(found), torch.cat(names)


def _clip(config: Mapping, split: protocols.ZeroShot, images: ndarray, truth: ndarray) -> dict[str, Any]:
    """CLIP's dense maps over all classes' names: what it knows without a mask and without training."""
    started, clip = time.perf_counter(), load_clip(zoo.folder("clip"))
    maps = dense_scores(clip, images, text_embeddings(clip, split.classes), by=2)
    size = images.shape[1:3]
    answers = np.empty(truth.shape, np.uint8)
    for start in range(0, len(images), _GROUP):
        part = nn.functional.interpolate(maps[start : start + _GROUP], size, mode="bilinear", align_corners=False)
        answers[start : start + _GROUP] = part.argmax(1).numpy()
    result = _scores(answers, truth, split)
    result["weights"] = canonical_hash(result)
    result |= {"examples": pack(answers[:EXAMPLES]), "sets": []}
    return {"result": result, "curve": [], "seconds": time.perf_counter() - started, "model": None}


def _scores(answers: ndarray, truth: ndarray, split: protocols.ZeroShot) -> dict[str, Any]:
    counts = image_counts.count(answers, truth, len(split.classes))
    iou = image_counts.iou(counts)
    found = seen_unseen(iou, **split.groups())
    if any(value != value for value in found.values()):
        raise ValueError("no validation picture shows a class of one of the groups; take more of them")
    percent = {key: round(100 * value, 4) for key, value in found.items()}
    each = [None if value != value else round(float(value), 6) for value in iou]
    return percent | {"iou": each, "miou": percent["harmonic"], "images": image_counts.pack(counts)}
