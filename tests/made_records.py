"""Records of class-incremental runs that never were, and a project in which the tables have nothing else."""

import shutil

import numpy as np
from toys import ROOT

from fmseg import (
    fmwiss_ablations,
    fmwiss_bounded_table,
    fmwiss_causes_table,
    fmwiss_pseudo,
    fmwiss_tables,
    image_counts,
)
from fmseg.fmwiss_causes import FATES
from fmseg.incremental_runs import EXAMPLES
from fmseg.labelmaps import pack
from fmseg.protocols import get
from fmseg.provenance import closure
from fmseg.records import run_key, write_record
from fmseg.settings import load

FAMILY = {**fmwiss_tables.EXPERIMENTS, **fmwiss_ablations.EXPERIMENTS, fmwiss_pseudo.ID: fmwiss_pseudo.EXPERIMENT}
CAUSES = {e.id: e for e in (*fmwiss_causes_table.EXPERIMENTS.values(), fmwiss_bounded_table.EXPERIMENT)}
STAGED = FAMILY | CAUSES  # what notebooks 15 to 18 make


def made_up(config, number=0):
    """A record of a run that never was; IoU grows with the class, a tenth of it is forgotten."""
    protocol = get(config["protocol"])
    known, old = len(protocol.order), protocol.new(0).stop
    iou = [round(0.2 + 0.01 * k + 0.001 * number, 6) for k in range(known)]
    seen = pack(np.full((EXAMPLES, 64, 64), number % known, np.uint8))
    result = {"iou": iou, "miou": round(100 * float(np.mean(iou)), 4), "weights": f"{number:016x}", "examples": seen}
    if config["base"]:
        result["base_iou"] = [v + 0.1 for v in iou[:old]]
    if "coco" in config["protocol"]:
        result["other_iou"] = [iou[0], *[None] * (old - 1), *[0.5] * (known - old)]
    share = {"precision": 0.5, "recall": 0.4, "iou": 0.3}
    if config["method"] == "fmwiss":
        result["masks"] = {k: share for k in ("clip", "seeds", "union", "teacher", "student", "grid")}
    if "causes" in config:
        says = {"score": 0.25, "called": dict(zip(FATES, (0.4, 0.1, 0.3, 0.2), strict=True)), "masks": share}
        teacher = {"teacher": says} if config["options"].get("teacher", True) else {}
        result["said"] = teacher | {"student": says}
    if config["method"] in ("cam", "ss", "wilson"):
        result["masks"] = {config["method"]: share}
    return {"key": run_key(config), "config": config, "code": {}, "claims": {}, "result": result, "curve": [],
            "seconds": 1.0 + number, "machine": {}, "versions": {}, "finished": "2026-11-22T00:00:00Z"}  # fmt: skip


def counts(rng, share, images=12, classes=4):
    """(B, C, 3): of each class's pixels in an image a share is right, and as many lie wrong."""
    truth = rng.integers(0, 200, (images, classes)) * (rng.random((images, classes)) < 0.6)
    right = np.round(truth * np.clip(share + rng.normal(0, 0.05, truth.shape), 0, 1)).astype(int)
    return np.stack([right, truth, right + rng.integers(0, 30, truth.shape)], -1)


def with_images(record, number):
    """The made-up record with counts of images, and the IoUs that these make."""
    result, rng = record["result"], np.random.default_rng(number)
    classes = len(result["iou"])
    for images, total in (("images", "iou"), ("other_images", "other_iou")):
        if total in result:
            share = 0.5 + 0.1 * (record["config"]["method"] == "fmwiss")
            own = counts(rng, share, 12, classes)
            if total == "other_iou":
                own[:, [k for k, v in enumerate(result["other_iou"]) if v is None]] = 0
            result[images] = image_counts.pack(own)
            result[total] = [None if np.isnan(v) else round(float(v), 6) for v in image_counts.iou(own)]
    return record


def complete(experiment, settings):
    """A record of every run of a table."""
    return [made_up(config, k) for k, config in enumerate(experiment.configs(settings))]


def project(folder, profile="smoke"):
    """This checkout's package and parameters in a folder of their own, with a made-up record of every run."""
    (folder / "fmseg").symlink_to(ROOT / "fmseg")
    for name in ("params.yaml", "claims.yaml"):
        shutil.copy(ROOT / name, folder)
    settings = load(profile, folder)
    for experiment in STAGED.values():
        code = closure(experiment.module, folder)
        for number, record in enumerate(complete(experiment, settings)):
            write_record(with_images(record, number) | {"code": code}, experiment.folder(settings))
    return settings
