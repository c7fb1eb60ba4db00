"""The grounding head at Stable Diffusion 1.4's size beside the same function in the paper's order of operations.

    python benchmarks/grounding.py [rounds] [--write]

One picture, two classes, masks of 512x512, one thread. "resized first" brings every feature to its group's size and
then convolves, and takes the dot product with the features at 512x512, as the official code does; weights are the same,
and so are the logits. Both in turns within one run, so that a busy machine slows both alike; printed are the medians
over the turns, and the fastest, which other programs disturb least. Peak memory: that of a process of its own beyond
weights and features, in a forward without gradients, and in one with a backward (gradients of the weights included).
Targets: forward at least 4 times as fast, at most a third of the memory. On a GPU, where there is one, the same ratios
and pictures per second; memory is then that of the GPU.
"""

import statistics
import sys
from functools import partial

import torch
import torch.nn.functional as F
from measuring import added_peak, aim, in_turns, peak_in_own_process, rounds, settle

from fmseg.grounding import GroundingHead
from fmseg.grounding_official import official_head
from fmseg.taps import GROUPS

SIDES = dict(zip(GROUPS, (8, 16, 32, 64), strict=True))
WIDTHS = {  # of a tap, in order of execution
    "low": [1280] * 6,
    "mid": [640, *[1280] * 5],
    "high": [320, 640, 640, 1280, 640, 640],
    "highest": [320, 320, 320, 640, 320, 320, 320],
}
SIZE, CLASSES = 512, 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def made(shrink: int = 1) -> tuple[dict[str, list[torch.Tensor]], torch.Tensor]:
    """Features of one picture, without and with its prompt, and two queries; random."""
    torch.manual_seed(0)
    features = {
        group: [torch.randn(1, 2 * c, SIDES[group] // shrink, SIDES[group] // shrink).to(DEVICE) for c in WIDTHS[group]]
        for group in GROUPS
    }
    return features, torch.randn(1, CLASSES, 768).to(DEVICE)


def resize(x: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)


def resized_first(head: GroundingHead, features: dict, text: torch.Tensor, size: int) -> torch.Tensor:
    _, mid, high, highest = (features[g][0].shape[2] for g in GROUPS)
    sizes = {"low": mid, "mid": high, "high": highest}
    whole = {g: torch.cat([resize(t, side) for t in features[g]], 1) for g, side in sizes.items()}
    whole["highest"] = torch.cat(features["highest"], 1)
    low, mid, high, highest = (head.squeeze[g](whole[g]) for g in GROUPS)
    x = head.mix["mid"](torch.cat([resize(low, sizes["mid"]), mid], 1))
    x = head.mix["high"](torch.cat([resize(x, sizes["high"]), high], 1))
    grid = head.mix["highest"](torch.cat([x, highest], 1))
    at_full = resize(grid, size)
    patches = F.unfold(grid, head.patch, stride=head.patch).transpose(1, 2).contiguous()
    memory = F.linear(patches, head.to_memory.weight.flatten(1))
    queries = head.to_query(text)
    for layer in head.decoder:
        queries = layer(queries, memory)
    return torch.einsum("bdhw,bod->bohw", at_full, head.mlp(queries))


def ours(head: GroundingHead, features: dict, text: torch.Tensor, size: int) -> torch.Tensor:
    return head(features, text, size=size)


FORMS = {"GroundingHead": ours, "resized first": resized_first}


def work(name: str, head: GroundingHead, features: dict, text: torch.Tensor, size: int, backward: bool) -> torch.Tensor:
    head.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(backward):
        logits = FORMS[name](head, features, text, size)
    if backward:
        logits.square().mean().backward()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return logits.detach()


def peak(name: str, backward: bool) -> float:
    """MB that this process, or its GPU, needs at its peak beyond weights and features; Linux."""
    head = official_head().to(DEVICE).train(backward)
    work(name, head, *made(shrink=4), 128, backward)  # libraries are loaded
    head.zero_grad(set_to_none=True)
    features, text = made()
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work(name, head, features, text, SIZE, backward)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return added_peak(lambda: work(name, head, features, text, SIZE, backward))


def main(turns: int = 5) -> None:
    torch.set_num_threads(1)
    head = official_head().to(DEVICE).eval()
    features, text = made()
    with torch.no_grad():
        deviation = (ours(head, features, text, SIZE) - resized_first(head, features, text, SIZE)).abs().max()
    print(f"largest deviation of the logits {deviation:.1e}")
    aims = []
    for backward in (False, True):
        head.train(backward)
        jobs = {name: partial(work, name, head, features, text, SIZE, backward) for name in FORMS}
        times = in_turns(jobs, turns)
        ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
        best = min(times["resized first"]) / min(times["GroundingHead"])
        print("forward and backward" if backward else "forward")
        memory = {}
        for name in FORMS:
            memory[name] = peak_in_own_process(name, str(int(backward)))
            middle, best_of = statistics.median(times[name]), min(times[name])
            rate = f", {1 / middle:.1f} pictures/s" if DEVICE == "cuda" else ""
            print(f"  {name:14} {middle:7.3f} s, fastest {best_of:.3f} s, {memory[name]:6.1f} MB at the peak{rate}")
        share = memory["GroundingHead"] / memory["resized first"]
        print(f"  {ratio:.2f} times as fast ({best:.2f} by the fastest), {share:.2f} of the memory")
        if not backward:
            what = "grounding head at Stable Diffusion 1.4's size, forward"
            aims = [
                aim(f"{what}: as fast as resizing first", ratio, ">=", 4, "x"),
                aim(f"{what}: peak memory of resizing first", 100 * share, "<=", 100 / 3, "%"),
            ]
    settle(aims)


if __name__ == "__main__":
    if "--peak" in sys.argv:
        torch.set_num_threads(1)
        print(peak(sys.argv[-2], sys.argv[-1] == "1"))
    else:
        main(*rounds())
