"""A project for tests: this checkout's package and a module whose runs take no time."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fmseg import freemask_real, zoo
from fmseg.provenance import closure
from fmseg.records import run_key

ROOT = Path(__file__).parent.parent
VALUES = {
    "seeds": [0, 1], "world": {"size": 32, "train": {"ade": 8, "voc": 8}, "val": 4},
    "train": {"batch_size": 4, "warmup": 0.5, "points": 2, "augment": ["flip"], "backbone_lr": 0.1},
    "lr": {m: 0.001 for m in ("segformer", "segmenter", "mask2former", "deeplabv3")},
    "lr_scratch": {m: 0.002 for m in ("segformer", "segmenter", "mask2former", "deeplabv3")},
    "exposures": {"table": 8, "converged": {"voc": 8, "ade": 8}}, "world_supervised": {"seeds": 1, "large": 8},
    "zoo": {"real": 12, "generated": 4},
}  # fmt: skip
TOY = """
OFFSET = 0.0  # a constant of a kernel, for tests to change


def run(config, *, checkpoint=None, checkpoint_every=None):
    base = 0.2 + 0.02 * config["seed"] + 0.1 * len(config["method"]) / 10 + OFFSET
    base -= 0.05 if config["backbone"] == "scratch" else 0
    iou = [round(base + 0.004 * k, 6) for k in range(48 if config["draw"] == "ade" else 21)]
    miou = round(100 * sum(iou) / len(iou), 4)
    result = {"iou": iou, "miou": miou, "weights": f"{miou:.4f}", "examples": {}}
    return {"result": result, "curve": [[1, miou]], "seconds": config["seed"] + 1.0}
"""
REAL = replace(freemask_real.EXPERIMENT, module="fmseg.toy")  # its runs take no time


def ships(monkeypatch, *models):
    """A zoo that has these models, whatever this checkout ships."""

    def weights_hash(name):
        if name not in models:
            raise ValueError(f"the zoo has no model {name!r}")
        return f"hash-of-{name}"

    monkeypatch.setattr(zoo, "names", lambda: sorted(models))
    monkeypatch.setattr(zoo, "weights_hash", weights_hash)


def invented(settings, experiment=freemask_real.EXPERIMENT, code=None, spread=1.0):
    """Records with made-up results for every run of an experiment, as if they had been trained."""
    code, made = closure(experiment.module, ROOT) if code is None else code, []
    for number, config in enumerate(experiment.configs(settings)):
        classes = 48 if config["draw"] == "ade" else 21
        iou = list(np.clip(np.linspace(0.1, 0.9, classes) + spread * 0.01 * (number % 5), 0, 1).round(6))
        iou[3] = None
        miou = 100 * np.mean([v for v in iou if v is not None])
        result = {"iou": iou, "miou": round(float(miou), 4), "weights": f"{number:016x}", "examples": {}}
        made.append(
            {"key": run_key(config), "config": config, "code": code, "claims": {}, "result": result, "curve": [],
             "seconds": 1.0 + number, "machine": {}, "versions": {}, "finished": ""}
        )  # fmt: skip
    return made
