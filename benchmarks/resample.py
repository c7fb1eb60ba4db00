"""Hardness and image counts of real masks beside the official loops.

    python benchmarks/resample.py [masks] [--write]

2,000 decoded masks of 512 x 512 with about 10 classes each (100 different ones, in turns), one thread. Both do a
hundred masks in turns within one run, so that a busy machine slows both alike. "official steps" is written from what
preprocess/resample.py does with a mask: a sort, then a pass a class. Neither decodes files. Target: at least 10 times
as fast; counts equal. Scaled to ADE20K's 20,210 masks.
"""

import statistics
import time

import numpy as np
from measuring import aim, rounds, settle

from fmseg.label_format import ADE20K
from fmseg.resample import class_counts, hardness, image_counts

DIFFERENT, SIDE, CLASSES, ADE20K_MASKS = 100, 512, 150, 20_210


def made(seed: int) -> np.ndarray:
    """A mask of blobs about 16 pixels wide, some of them without a label."""
    generator = np.random.default_rng(seed)
    present = np.append(0, generator.choice(CLASSES, generator.integers(6, 14), replace=False) + 1)
    cells = generator.choice(present, (32, 32))
    rows, columns = (np.sort(generator.integers(0, 32, SIDE)) for _ in range(2))
    return cells[rows[:, None], columns].astype(np.uint8)


def official_hardness(masks, means):
    out = []
    for mask in masks:
        total, pixels = 0.0, 0
        for label in np.unique(mask):
            if label:
                count = np.sum(mask == label)
                pixels += count
                total += count * means[label - 1]
        out.append(total / (pixels + 1e-5))
    return out


def official_counts(values, most=20):
    ranked = sorted(range(len(values)), key=lambda i: values[i])
    counts = [0] * len(values)
    for rank, i in enumerate(ranked):
        counts[i] = min(1 + round((rank + 1) / len(values) * most), most)
    return counts


def our_hardness(masks, means):
    return hardness(np.stack([class_counts(mask, ADE20K) for mask in masks]), means)


FORMS = {"ours": (our_hardness, image_counts), "official steps": (official_hardness, official_counts)}


def main(count: int = 2_000) -> None:
    masks, means = [made(seed) for seed in range(DIFFERENT)], np.random.default_rng(0).random(CLASSES) * 3
    values, times = {name: [] for name in FORMS}, {name: [] for name in FORMS}
    for form, _ in FORMS.values():
        form(masks[:2], means)  # warm-up
    for _ in range(0, count, DIFFERENT):
        for name, (form, _) in FORMS.items():
            start = time.perf_counter()
            values[name] += list(form(masks, means))
            times[name].append(time.perf_counter() - start)
    counts, last = {}, {}
    for name, (_, form) in FORMS.items():
        start = time.perf_counter()
        counts[name] = list(form(values[name]))
        last[name] = time.perf_counter() - start
    apart = np.abs(np.divide(values["ours"], values["official steps"]) - 1).max()
    # the same masks come again and again; near ties may be ordered otherwise, so the counts of one set are compared
    same = list(image_counts(values["official steps"])) == counts["official steps"]
    print(f"hardness: largest relative difference {apart:.1e}; counts {'equal' if same else 'DIFFER'}")
    ratios = [b / a for a, b in zip(times["ours"], times["official steps"], strict=True)]
    done = len(values["ours"])
    for name in FORMS:
        whole = sum(times[name]) + last[name]
        scaled = whole / done * ADE20K_MASKS
        print(f"{name:16} {1e3 * whole / done:7.3f} ms a mask, {whole:6.2f} s for {done}, {scaled:6.1f} s for 20,210")
    settle([aim("hardness of masks: as fast as the official steps", statistics.median(ratios), ">=", 10, "x")])


if __name__ == "__main__":
    main(*rounds())
