"""Milliseconds an image, forward and backward, of the mini segmenters on one thread, and their ratios to SegFormer.

All are measured in turns within one run, so that a busy machine slows all of them alike: python
benchmarks/segmenter_speed.py [rounds]
"""

import statistics
import sys
import time

import torch

from fmseg.segmenters import build

BATCH, CLASSES = 16, 48


def main(rounds: int = 10) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, 64, 64), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (BATCH, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    models = {name: build(name, num_classes=CLASSES) for name in ("segformer", "segmenter", "mask2former", "deeplabv3")}
    seconds = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            model.loss(images, labels).backward()
            if turn:  # the first is warm-up
                seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["segformer"])
    for name, values in seconds.items():
        middle, parameters = statistics.median(values), sum(p.numel() for p in models[name].parameters())
        milliseconds = 1e3 * middle / BATCH
        print(f"{name:12} {milliseconds:6.2f} ms an image, {middle / base:5.2f} x SegFormer, {parameters} weights")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
