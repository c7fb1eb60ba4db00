"""FreeMask's chain at the paper's size, in shards that any number of processes share and that a kill does not hurt.

Two passes. Over the real training pictures: the judge's loss by class, and each mask's pixels by class; from both the
plan, which pictures each mask gets. Over the plan: paint, judge, drop, and write picture and mask in FreeMask's own
layout (:mod:`fmseg.freemask_folders`). Only what was drawn is painted (:mod:`fmseg.resample`); a picture that another
plan has painted by the same generator is taken over.

A shard's outcome is a shared part (:mod:`fmseg.parts`): who comes first makes it, beside others who do the same, on one
machine or on several that see one file system. What is made is a function of configuration, data and weights.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray

from fmseg import freemask_folders as folders
from fmseg import on_disk, paper_segmenters, parts, real_painting, segmenters
from fmseg.datasets import IGNORE
from fmseg.label_format import LabelFormat
from fmseg.noise import ClassLoss, filter_labels, loss_map
from fmseg.on_disk import OnDisk
from fmseg.provenance import canonical_hash
from fmseg.resample import SIDE, class_counts, hardness, manifest, nearest, pairs
from fmseg.settings import check_config
from fmseg.tables import json_text

REAL, PAINTED = 100, 50  # pictures a shard, of the first and the second pass
SYNTHETIC = ("most", "resample", "alpha", "draw")
FILTER = ("method", "size", "weights")
MODULE = "fmseg.real_freemask_chain"


@dataclass(frozen=True)
class Made:
    """Synthetic pictures to train on: ``data``, and ``facts`` for a record (pictures, share of pixels kept, ...)."""

    data: OnDisk
    facts: dict[str, Any]


class Chain:
    """The chain of a run's configuration.

    Args:
        config: ``data``, ``split``, optional ``images`` (the first pictures alone, for trials); ``generator``
            (:func:`fmseg.real_painting.pipeline`); ``filter``: {"method", "size", "weights": file of FMSEG_WEIGHTS, a
            segmenter trained on the real pictures, or None: random, for trials}; ``synthetic``: {"most": N_max,
            "resample": by hardness or all pictures of all masks, "alpha": the filter's margin or None, "draw": root
            seed of the draw}.
        painter: makes, of a generator, a function (labels (H, H) uint8, class names, index) -> (H, H, 3) uint8.
        side: pixels a side of masks and pictures.

    Raises:
        ValueError: a key is missing, unknown or does not fit. FileNotFoundError: data or weights are not there.
    """

    def __init__(self, config: dict[str, Any], painter: Callable | None = None, side: int = SIDE):
        for name, keys in (("generator", real_painting.KEYS), ("filter", FILTER), ("synthetic", SYNTHETIC)):
            check_config(config[name], keys)
        if config["filter"]["method"] == "mask2former":
            raise ValueError("`filter.method` must score pixels with logits, which 'mask2former' does not")
        most, alpha = config["synthetic"]["most"], config["synthetic"]["alpha"]
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f"`synthetic.most` must be an integer >= 1, pictures of the hardest mask; got {most!r}")
        if alpha is not None and not alpha >= 0:
            raise ValueError(f"`synthetic.alpha` must be >= 0, or null for no filter; got {alpha!r}")
        self.config, self.painter, self.side = config, painter or _painter, side
        self.real = on_disk.open_set(config["data"], on_disk.root_of(config["data"]), config["split"])
        if config.get("images"):
            self.real = self.real.subset(range(min(len(self.real), config["images"])))
        self.names = {path.stem: k for k, path in enumerate(self.real.images)}

    # -- the real pictures -------------------------------------------------------------------------------------------

    @cached_property
    def judge(self) -> segmenters.Segmenter:
        """The model that judges, in evaluation mode, on a GPU where there is one."""
        given, classes = self.config["filter"], self.real.num_classes
        make = segmenters.build if given["size"] == "mini" else paper_segmenters.build
        model = make(given["method"], given["size"], num_classes=classes, image_size=self.side)
        if given["weights"] is not None:
            paper_segmenters.load_pretrained(model, real_painting.weights_path(given["weights"]), "all")
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)

    def judge_identity(self) -> dict[str, Any]:
        """What the judge's losses are a function of."""
        weights = self.config["filter"]["weights"]
        file = None if weights is None else real_painting.file_identity(real_painting.weights_path(weights))
        return self.config["filter"] | {"file": file}

    @cached_property
    def content(self) -> str:
        """Hash of the real pictures and masks."""
        return self.real.fingerprint()[:16]

    @cached_property
    def measured(self) -> tuple[ClassLoss, ndarray]:
        """Losses by class over the real pictures at their own size, and (N, C) pixels by class of each mask, squashed
        to a square as the generator takes it; measured now where they are not yet."""
        key = {"data": self.content, "judge": self.judge_identity(), "side": self.side}
        folder = parts.folder("freemask-means", key, MODULE)
        found = parts.obtain(folder, range(-(-len(self.real) // REAL)), self._measure)
        whole = ClassLoss(self.real.num_classes)
        for part in found:
            whole.merge(ClassLoss.from_state(part["counts"], part["sums"]))
        return whole, np.concatenate([part["pixels"] for part in found])

    def _measure(self, number: int) -> parts.Arrays:
        stats, ids, pixels = ClassLoss(self.real.num_classes), LabelFormat(self.real.num_classes), []
        for k in range(number * REAL, min((number + 1) * REAL, len(self.real))):
            example = self.real[k]
            loss, labels = self.losses(example.image, example.labels)
            stats.update(loss, labels)
            pixels.append(class_counts(example.labels, ids, side=self.side))
        return {"counts": stats.counts, "sums": stats.sums, "pixels": np.stack(pixels)}

    @torch.no_grad()
    def losses(self, image: ndarray, labels: ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of every pixel, nats, and the labels, both (1, H, W), of a picture of any size.

        Differs from the official code: sides are padded to multiples of the judge's divisor, edges repeated.
        """
        device = next(self.judge.parameters()).device
        x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device).float()
        target = torch.from_numpy(labels.astype(np.int64))[None].to(device)
        height, width = labels.shape
        below, right = -height % self.judge.divisor, -width % self.judge.divisor
        x = F.pad(x, (0, right, 0, below), mode="replicate")
        whole = F.pad(target, (0, right, 0, below), value=IGNORE)
        return loss_map(self.judge.grid_logits(x), whole)[:, :height, :width].cpu(), target.cpu()

    # -- the plan ----------------------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Which pictures each mask gets, see :func:`fmseg.resample.manifest`; without re-sampling all of them."""
        wanted = self.config["synthetic"]
        if not wanted["resample"]:
            every = list(range(wanted["most"]))
            return {"most": wanted["most"], "masks": [{"mask": name, "images": every} for name in sorted(self.names)]}
        stats, pixels = self.measured
        hard = {name: float(hardness(row, stats.compute())) for name, row in zip(self.names, pixels, strict=True)}
        return manifest(hard, wanted["most"], wanted["draw"])

    @cached_property
    def drawn(self) -> list[tuple[str, int]]:
        """(mask, index) of all pictures of the plan."""
        return pairs(self.plan)

    # -- the synthetic pictures --------------------------------------------------------------------------------------

    @cached_property
    def folder(self) -> Path:
        """Where shards, manifest and FreeMask's folder of this set lie."""
        wanted, filtered = self.config["synthetic"], self.config["synthetic"]["alpha"] is not None
        means = [round(float(v), 12) for v in self.measured[0].compute()] if filtered else None
        key = {"pictures": self.store.name, "plan": canonical_hash([list(pair) for pair in self.drawn])}
        key |= {"alpha": wanted["alpha"], "judge": self.judge_identity() if filtered else None, "means": means}
        return parts.folder("freemask-sets", key, MODULE)

    @cached_property
    def store(self) -> Path:
        """Where pictures lie that any plan has had painted by this generator for these masks."""
        key = {"generator": real_painting.identity(self.config["generator"]), "data": self.content, "side": self.side}
        return parts.folder("freemask-pictures", key, "fmseg.real_painting")

    @property
    def root(self) -> Path:
        """FreeMask's folder, ADE20K_Synthetic and so on."""
        return self.folder / folders.folder_of(self.real.name)

    def shards(self) -> int:
        """Shards of the second pass."""
        return -(-len(self.drawn) // PAINTED)

    def missing(self) -> int:
        """Shards of the second pass that nobody has finished."""
        return sum(not parts.file_of(self.folder, k).exists() for k in range(self.shards()))

    def perform(self) -> Made:
        """Everything that is not there yet, beside others who do the same; then the pictures to train on.

        Raises:
            OSError: the disk is full or read-only; names the file. ValueError: a mask with names that do not fit.
            FileNotFoundError: a file of a finished shard was taken away; names it.
        """
        found = parts.obtain(self.folder, range(self.shards()), self._shard)
        digest = hashlib.sha256(b"".join(part["sha256"].tobytes() for part in found)).hexdigest()
        folders.put(self.folder / "manifest.json", json_text(self.plan | {"sha256": digest}).encode())
        before, after = (np.sum([part[name] for part in found], axis=0) for name in ("before", "after"))
        shares = [None if b == 0 else round(a / b, 6) for a, b in zip(after.tolist(), before.tolist(), strict=True)]
        facts = {"pictures": len(self.drawn), "kept": round(float(after.sum() / max(1, before.sum())), 6),
                 "kept by class": shares, "sha256": digest[:16]}  # fmt: skip
        return Made(folders.read(self.root, self.real, self.drawn), facts)

    @cached_property
    def _paint(self) -> Callable[..., ndarray]:
        return self.painter(self.config["generator"])

    def _shard(self, number: int) -> parts.Arrays:
        form, classes = folders.label_format(self.real), self.real.num_classes
        wanted = self.drawn[number * PAINTED : (number + 1) * PAINTED]
        digests, before, after = [], np.zeros(classes, np.int64), np.zeros(classes, np.int64)
        for name, index in wanted:
            labels = nearest(self.real.labels(self.names[name]), self.side)
            picture, mask = folders.paths(self.root, self.real.name, name, index)
            content = self._picture(name, index, labels, picture)
            kept = self._filtered(content, labels)
            folders.put(mask, written := folders.png(kept, form))
            digests.append(np.frombuffer(hashlib.sha256(content + written).digest(), np.uint8))
            before += np.bincount(labels[labels != IGNORE], minlength=classes)
            after += np.bincount(kept[kept != IGNORE], minlength=classes)
        return {"sha256": np.stack(digests), "before": before, "after": after}

    def _picture(self, name: str, index: int, labels: ndarray, place: Path) -> bytes:
        """Bytes of a picture, painted now or before, in the store and at its place."""
        kept = self.store / f"{name}_{index:03d}.jpg"
        if not kept.exists():
            image = self._paint(labels, self.real.classes, index)
            if image.shape != (*labels.shape, 3) or image.dtype != np.uint8:
                raise ValueError(
                    f"`painter` must paint uint8 of {(*labels.shape, 3)} for {name}; got {image.dtype} {image.shape}"
                )
            folders.put(kept, folders.jpeg(image))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(kept, place)
        except OSError:  # another file system, or one without links
            shutil.copyfile(kept, place)
        return kept.read_bytes()

    def _filtered(self, picture: bytes, labels: ndarray) -> ndarray:
        """Labels less what the filter drops from the picture as it is written, JPEG and all, as officially."""
        from io import BytesIO

        from PIL import Image

        alpha = self.config["synthetic"]["alpha"]
        if alpha is None:
            return labels
        loss, target = self.losses(np.array(Image.open(BytesIO(picture)).convert("RGB")), labels)
        return filter_labels(loss, target, self.measured[0].compute(), alpha=float(alpha))[0].numpy().astype(np.uint8)


def _painter(generator: dict[str, Any]) -> Callable[..., ndarray]:
    pipe = real_painting.pipeline(generator)
    options = {key: generator[key] for key in ("steps", "guidance")}
    return lambda labels, classes, index: real_painting.paint(pipe, labels, classes, index, **options)
