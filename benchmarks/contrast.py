"""The dense contrastive loss, forward and backward, beside loops and a vectorised form of the same equation.

    python benchmarks/contrast.py [rounds] [--write]

24 maps of 256 channels on a 32x32 grid, 21 classes, 10 points a class. All in turns within one run on one thread and on
the same points, in processor time, which other processes do not add to; `dense_contrast` is timed with its draw of the
points, the others without. Peak memory: that of a process of its own beyond the maps, the gradient of the maps
included. Targets: at least 10 times as fast as loops, at most 1.2 times the vectorised form's time, at most 100 MB.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F
from measuring import added_peak, aim, peak_in_own_process, rounds, settle

from fmseg.contrast import POINTS, TEMPERATURE, contrast, dense_contrast, sample_points

BATCH, WIDTH, SIDE, CLASSES = 24, 256, 32, 21


def made(batch: int = BATCH, side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """Random maps and labels in blocks of 4x4."""
    torch.manual_seed(0)
    features = torch.randn(batch, WIDTH, side, side, requires_grad=True)
    blocks = torch.randint(0, CLASSES, (batch, side // 4, side // 4))
    return features, blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)


def drawn(labels: torch.Tensor) -> torch.Tensor:
    return sample_points(labels, POINTS, torch.Generator().manual_seed(0))


def rows_of(features: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """As public code takes them: all maps with the channels last, then the points."""
    return F.normalize(features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])[at], dim=1)


def by_points(features: torch.Tensor, labels: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Eq. 7, one pair of points at a time."""
    rows, ids = rows_of(features, at).unbind(), labels.flatten()[at].tolist()
    losses = []
    for i, anchor in enumerate(rows):
        similar = [torch.exp(torch.dot(anchor, row) / TEMPERATURE) for row in rows]
        against = sum(s for s, c in zip(similar, ids, strict=True) if c != ids[i])
        shares = [s / (s + against) for j, s in enumerate(similar) if j != i and ids[j] == ids[i]]
        losses.append(-sum(torch.log(share) for share in shares) / len(shares))
    return sum(losses) / len(losses)


def by_anchors(features: torch.Tensor, labels: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Eq. 7, one anchor at a time, its pairs at once."""
    rows, ids = rows_of(features, at), labels.flatten()[at]
    losses = []
    for i, anchor in enumerate(rows):
        similar = torch.exp(rows @ anchor / TEMPERATURE)
        same = ids == ids[i]
        against = similar[~same].sum()
        same[i] = False
        losses.append(-torch.log(similar[same] / (similar[same] + against)).mean())
    return torch.stack(losses).mean()


def on_rows(rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Eq. 7 as public code has it: exponentials scaled by each row's largest, masks of floats."""
    similar = rows @ rows.T / TEMPERATURE
    similar = similar - similar.max(1, keepdim=True).values.detach()
    same = (ids[:, None] == ids[None]).float()
    against = (similar.exp() * (1 - same)).sum(1, keepdim=True)
    log_share = similar - (similar.exp() + against).log()
    positive = same - torch.eye(len(ids))
    return -((positive * log_share).sum(1) / positive.sum(1)).mean()


def vectorised(features: torch.Tensor, labels: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return on_rows(rows_of(features, at), labels.flatten()[at])


def ours(features: torch.Tensor, labels: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return dense_contrast(features, labels, torch.Generator().manual_seed(0))


FORMS = {
    "dense_contrast": ours, "vectorised": vectorised, "loops over anchors": by_anchors, "loops over points": by_points
}  # fmt: skip


def seconds(function, leaf: torch.Tensor, results: list) -> float:
    """Processor time of one forward and backward; notes its value."""
    leaf.grad = None
    start = time.process_time()
    loss = function()
    loss.backward()
    results.append(loss.item())
    return time.process_time() - start


def peak(name: str) -> float:
    """MB that this process needs at its peak for one forward and backward, the maps themselves not counted; Linux."""

    small = made(1, 8)
    FORMS[name](*small, drawn(small[1])).backward()  # libraries are loaded
    features, labels = made()
    at = drawn(labels)
    return added_peak(lambda: FORMS[name](features, labels, at).backward())


def main(turns: int = 9) -> None:
    torch.set_num_threads(1)
    features, labels = made()
    at = drawn(labels)
    points = rows_of(features, at).detach().requires_grad_()
    ids = labels.flatten()[at]
    jobs = {name: (lambda form=form: form(features, labels, at), features) for name, form in FORMS.items()}
    jobs |= {
        "contrast, drawn points": (lambda: contrast(points, ids, normalise=False), points),
        "vectorised, drawn points": (lambda: on_rows(points, ids), points),
    }
    times, values = {name: [] for name in jobs}, {name: [] for name in jobs}
    for turn in range(turns + 1):
        for name, (function, leaf) in jobs.items():
            if name == "loops over points" and turn > 2:
                continue  # seconds each
            each = seconds(function, leaf, values[name])
            times[name] += [each] if turn else []  # the first is warm-up
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(f"{len(at)} points of {CLASSES} classes in {BATCH} maps of {WIDTH} x {SIDE} x {SIDE}")
    for name, value in middle.items():
        base = middle["contrast, drawn points" if "drawn" in name else "dense_contrast"]
        print(f"{name:26} {1e3 * value:8.2f} ms, {value / base:7.2f} x ours, loss {values[name][0]:.6f}")
    peaks = {name: peak_in_own_process(name) for name in ("dense_contrast", "vectorised")}
    for name, megabytes in peaks.items():
        print(f"{name:26} {megabytes:8.1f} MB at the peak beyond the maps")
    slower = min(middle["loops over anchors"], middle["loops over points"]) / middle["dense_contrast"]
    longer, what = middle["dense_contrast"] / middle["vectorised"], "dense contrastive loss, forward and backward"
    settle(
        [
            aim(f"{what}: as fast as loops over the same points", slower, ">=", 10, "x"),
            aim(f"{what}: time of the vectorised form", longer, "<=", 1.2, "x"),
            aim(f"{what}: peak memory beyond the maps", peaks["dense_contrast"], "<=", 100, "MB"),
        ]
    )


if __name__ == "__main__":
    if "--peak" in sys.argv:
        torch.set_num_threads(1)
        print(peak(sys.argv[-1]))
    else:
        main(*rounds())
