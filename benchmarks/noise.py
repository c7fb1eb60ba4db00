"""FreeMask's filter, from the scores on the head's grid to a filtered mask file, beside the official steps.

    python benchmarks/noise.py [rounds] [--write]

150 x 128 x 128 scores, a 512 x 512 mask with 10 classes, one thread, all in turns within one run, so that a busy
machine slows all alike. "official steps" is written from what preprocess/filter.py and the `predict` it calls do on an
image: resize, argmax (which nobody reads), copy, cross-entropy, a pass a class; "without waste" leaves out argmax and
copy. Peak memory: that of a process of its own beyond scores and mask. Targets against the official steps: at least 8
times as fast, at most a quarter of the memory; means within 1e-6, masks equal but for pixels within 1e-5 of the
threshold. The statistics of real images, whose sizes are no multiples of the grid, are timed, too; and, where there is
a GPU, the fused loss on it beside resize and cross-entropy.
"""

import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from measuring import added_peak, aim, in_turns, peak_in_own_process, rounds, settle

from fmseg.label_format import ADE20K
from fmseg.noise import MARGIN, ClassLoss, filter_labels, loss_map

CLASSES, GRID, SIDE, PRESENT = 150, 128, 512, 10
REAL = ((171, 128), (683, 512))


def made(seed: int, grid=(GRID, GRID), size=(SIDE, SIDE), block: int = 8) -> tuple[torch.Tensor, np.ndarray]:
    """Scores of a segmenter that is mostly right, (1, 150, h, w), and a mask in ADE20K's ids with regions of blocks."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(PRESENT) * (CLASSES // PRESENT) + 1  # the same in all images
    cells = torch.randint(0, PRESENT, (-(-grid[0] // block), -(-grid[1] // block)), generator=generator)
    regions = ids[cells].repeat_interleave(block, 0).repeat_interleave(block, 1)[: grid[0], : grid[1]]
    logits = torch.randn(1, CLASSES, *grid, generator=generator)
    sure = 6 + 3 * torch.randn(grid, generator=generator)
    logits.scatter_add_(1, regions[None, None] - 1, sure[None, None])
    mask = F.interpolate(regions[None, None].float(), size)[0, 0].to(torch.uint8)
    mask[: size[0] // 16] = 0
    return logits, mask.numpy()


def official_loss(logits, mask, wasteful=True):
    z = F.interpolate(logits, mask.shape[1:], mode="bilinear", align_corners=False)
    if wasteful:
        z.argmax(1)
        z = torch.cat([one[None] for one in z])
    return F.cross_entropy(z, mask - 1, ignore_index=-1, reduction="none")


def official_filter(logits, file, means, wasteful=True):
    mask = torch.from_numpy(file).long()[None]
    loss, out = official_loss(logits, mask, wasteful), mask.clone()
    for label in torch.unique(mask).tolist():
        if label:
            out[(mask == label) & (loss > means[label - 1] * MARGIN)] = 0
    return out[0].numpy().astype(np.uint8)


def official_means(images, wasteful=True):
    sums = [(0, 0.0)] * CLASSES
    for logits, file in images:
        mask = torch.from_numpy(file).long()[None]
        loss = official_loss(logits, mask, wasteful)
        for label in torch.unique(mask).tolist():
            if label:
                count, total = sums[label - 1]
                here = mask == label
                sums[label - 1] = count + here.sum().item(), total + loss[here].sum().item()
    return np.array([total / (count + 1e-5) for count, total in sums])


def our_filter(logits, file, means):
    labels = torch.from_numpy(ADE20K.read(file))[None]
    return ADE20K.write(filter_labels(loss_map(logits, labels), labels, means)[0].numpy())


def our_means(images):
    stats = ClassLoss(CLASSES)
    for logits, file in images:
        labels = torch.from_numpy(ADE20K.read(file))[None]
        stats.update(loss_map(logits, labels), labels)
    return stats.compute()


def without_waste(*args):
    return official_filter(*args, wasteful=False)


FILTERS = {"ours": our_filter, "official steps": official_filter, "without waste": without_waste}


def peak(name: str) -> float:
    """MB that this process needs at its peak for one image, scores and mask not counted; Linux."""

    means = np.ones(CLASSES)
    FILTERS[name](*made(0, (8, 8), (32, 32)), means)  # libraries are loaded
    image = made(1)
    return added_peak(lambda: FILTERS[name](*image, means))


def compare(image, means, real) -> tuple[float, float]:
    """Are the results the same? The class means' largest relative difference, and how far from the threshold the
    farthest pixel lies that one form drops and the other keeps."""
    ours, theirs = our_means(real), official_means(real)
    seen = theirs > 0
    off = float((np.abs(ours - theirs)[seen] / theirs[seen]).max())
    print(f"class means: largest relative difference {off:.1e}")
    mine, other = our_filter(*image, means), official_filter(*image, means)
    mask = torch.from_numpy(image[1]).long()
    loss = official_loss(image[0].double(), mask[None])[0]
    apart = (loss - torch.from_numpy(np.append(0, MARGIN * means))[mask]).abs()[torch.from_numpy(mine != other)]
    far = float(apart.max()) if len(apart) else 0.0
    print(f"masks: {(other != image[1]).mean():.1%} of the pixels are filtered; {len(apart)} differ, at most {far:.1e} "
          "from the threshold")  # fmt: skip
    return off, far


def on_gpu(image, turns: int) -> None:
    """Time of the fused loss on the GPU beside that of resize and cross-entropy, in turns."""
    logits, mask = image[0].cuda(), torch.from_numpy(image[1]).long()[None].cuda()
    labels = torch.from_numpy(ADE20K.read(image[1]))[None].cuda()
    jobs = {
        "on the GPU, fused loss": lambda: loss_map(logits, labels),
        "on the GPU, resize and loss": lambda: official_loss(logits, mask, wasteful=False),
    }
    times = {name: [] for name in jobs}
    for turn in range(turns + 1):
        for name, job in jobs.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            job()
            torch.cuda.synchronize()
            times[name] += [time.perf_counter() - start] if turn else []
    for name, values in times.items():
        print(f"{name:28} {1e3 * statistics.median(values):8.3f} ms an image")


def main(turns: int = 9) -> None:
    torch.set_num_threads(1)
    image, real = made(1), [made(seed, *REAL) for seed in (2, 3)]
    means = official_means(real)
    means_off, mask_off = compare(image, means, real)
    jobs = {name: (lambda form=form: form(*image, means)) for name, form in FILTERS.items()}
    jobs |= {
        "statistics, ours": lambda: our_means(real[:1]),
        "statistics, official steps": lambda: official_means(real[:1]),
        "statistics, without waste": lambda: official_means(real[:1], wasteful=False),
    }
    times = in_turns(jobs, turns)
    ratios = {}
    for name, values in times.items():
        base = times["statistics, ours" if "statistics" in name else "ours"]
        ratios[name] = statistics.median(a / b for a, b in zip(values, base, strict=True))
        print(f"{name:28} {1e3 * statistics.median(values):8.1f} ms an image, {ratios[name]:6.2f} x ours")
    if torch.cuda.is_available():
        on_gpu(image, turns)
    peaks = {name: peak_in_own_process(name) for name in FILTERS}
    for name, megabytes in peaks.items():
        print(f"{name:28} {megabytes:8.1f} MB at the peak")
    faster, share = ratios["official steps"], 100 * peaks["ours"] / peaks["official steps"]
    settle(
        [
            aim("noise filter of a 512 x 512 mask: as fast as the official steps", faster, ">=", 8, "x"),
            aim("noise filter: peak memory of the official steps'", share, "<=", 25, "%"),
            aim("class means: largest relative difference from the official steps", means_off, "<=", 1e-6, ""),
            aim("filtered masks: farthest from the threshold of a pixel that differs", mask_off, "<=", 1e-5, ""),
        ]
    )


if __name__ == "__main__":
    if "--peak" in sys.argv:
        torch.set_num_threads(1)
        print(peak(sys.argv[-1]))
    else:
        main(*rounds())
