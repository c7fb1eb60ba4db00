"""What FreeMask's synthetic pictures cost at the paper's size: painting, judging, class means, disk.

A call of the U-Net, a decoding and a look of the judge are timed here and now, on noise with random weights; the rest
is arithmetic. Neither data nor weights are needed. Training is :mod:`fmseg.plan`'s.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fmseg import on_disk, paper_segmenters, segmenters
from fmseg.cite import duration
from fmseg.noise import loss_map
from fmseg.provenance import canonical_hash
from fmseg.real_freemask_chain import SYNTHETIC
from fmseg.rectify import install, keep_masks, with_guidance
from fmseg.resample import SIDE, counts_by_rank
from fmseg.stable_diffusion import decode, encode_prompts, sample_noise

MASKS = {"ade20k": 20_210, "coco-stuff": 118_287}  # training masks, where the data are not at hand
BYTES = 60_000  # of a picture with its mask on disk: a JPEG of 512x512 at quality 75, roughly
GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Needs:
    """Of one generator: ``painted`` pictures, ``judged`` ones (those that a filter looks at, in every set anew), and
    ``real`` pictures that class means are taken over; ``steps`` of the sampler; name of the ``data``."""

    data: str
    steps: int
    painted: int
    judged: int
    real: int


@dataclass(frozen=True)
class Seconds:
    """Measured: a guided ``call`` of the U-Net, the ``rest`` of a picture (text, decoding), a look of the ``judge``;
    ``memory``: bytes of a GPU at the peak, None on a CPU; ``device``."""

    call: float
    rest: float
    judge: float
    memory: int | None
    device: str


def masks_of(config: dict[str, Any]) -> int:
    """Training masks of a run; counted on disk where the data are at hand."""
    if config.get("images"):
        return config["images"]
    try:
        return len(on_disk.open_set(config["data"], on_disk.root_of(config["data"]), config["split"]))
    except OSError:
        return MASKS[config["data"]]


def needs(configs: Iterable[dict[str, Any]]) -> list[Needs]:
    """What runs need painted and judged, by generator; sets that runs share count once.

    Of one mask the plans draw from the same N_max pictures, so the largest plan is what has to be painted.
    """
    found: dict[str, dict] = {}
    for config in configs:
        wanted = config.get("synthetic", {})
        if set(wanted) != set(SYNTHETIC):
            continue
        masks, most = masks_of(config), wanted["most"]
        drawn = int(counts_by_rank(masks, most).sum()) if wanted["resample"] else masks * most
        one = found.setdefault(
            canonical_hash([config["generator"], config["data"]]),
            {"config": config, "painted": 0, "judged": {}, "real": {}},
        )
        one["painted"] = max(one["painted"], drawn)
        judge = canonical_hash(config["filter"])
        if wanted["alpha"] is not None:
            one["judged"][canonical_hash([judge, wanted])] = drawn
        if wanted["alpha"] is not None or wanted["resample"]:
            one["real"][judge] = masks
    return [
        Needs(one["config"]["data"], one["config"]["generator"]["steps"], one["painted"], sum(one["judged"].values()),
              sum(one["real"].values()))
        for one in found.values()
    ]  # fmt: skip


@torch.no_grad()
def calibrate(
    judge: dict[str, Any], clock: Callable[[], float], pipe=None, *, classes: int = 150, guidance: float = 2.0
) -> Seconds:  # fmt: skip
    """Time one guided call of the U-Net, the rest of a picture, and one look of the judge, each after one not counted.

    Args:
        judge: ``filter`` of a run; weights are random. clock: gives seconds.
        pipe: default Stable Diffusion 1.4 with random weights. classes: of the judge. guidance: above 1 two rows a
            call.
    """
    if pipe is None:
        from fmseg.grounded_full import random_pipeline

        pipe = random_pipeline()
    cuda = pipe.unet.device.type == "cuda"
    install(pipe.unet)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        pipe.to(dtype=torch.float16)
    side, rows = pipe.unet.config.sample_size, 2 if guidance > 1 else 1
    text = encode_prompts(pipe, [""])
    grids = [side >> k for k in range(len(pipe.unet.config.block_out_channels))]
    keep = keep_masks(np.zeros((1, side, side), np.uint8), [()], grids, text.shape[1])
    keep = {k: mask.to(pipe.unet.device) for k, mask in (with_guidance(keep) if rows == 2 else keep).items()}
    noise = sample_noise((pipe.unet.config.in_channels, side, side), [0]).to(pipe.unet.device, pipe.unet.dtype)
    latents, words = noise.expand(rows, -1, -1, -1), text.to(pipe.unet.dtype).expand(rows, -1, -1)

    def call():
        return pipe.unet(latents, 500, words, cross_attention_kwargs={"rectify": keep}).sample

    each = _once(call, clock, cuda)
    rest = _once(lambda: (encode_prompts(pipe, [""]), decode(pipe, noise)), clock, cuda)
    looked = _judge_seconds(judge, classes, clock, cuda)
    name = torch.cuda.get_device_name() if cuda else "CPU"
    return Seconds(each, rest, looked, torch.cuda.max_memory_allocated() if cuda else None, name)


def _judge_seconds(judge: dict[str, Any], classes: int, clock: Callable[[], float], cuda: bool) -> float:
    make = segmenters.build if judge["size"] == "mini" else paper_segmenters.build
    model = make(judge["method"], judge["size"], num_classes=classes, image_size=SIDE).eval()
    device = "cuda" if cuda else "cpu"
    model, picture = model.to(device), torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8, device=device)
    labels = torch.arange(SIDE * SIDE, device=device).view(1, SIDE, SIDE) // (SIDE * SIDE // 10)  # ten classes
    return _once(lambda: loss_map(model.grid_logits(picture), labels.clamp(max=9)), clock, cuda)


def _once(work: Callable[[], object], clock: Callable[[], float], cuda: bool) -> float:
    marks = []
    for _ in range(2):
        before = clock()
        work()
        if cuda:
            torch.cuda.synchronize()
        marks.append(clock() - before)
    return marks[-1]


@lru_cache(maxsize=8)
def _once_a_judge(measure: Callable[..., Seconds], judge: str, clock: Callable[[], float]) -> Seconds:
    """A plan of all tables times Stable Diffusion once, not once a table: minutes without a GPU."""
    return measure(json.loads(judge), clock)


def seconds_of(needed: Needs, each: Seconds) -> float:
    """Seconds of one device for everything but training; PLMS asks the U-Net once more than it has steps."""
    picture = (needed.steps + 1) * each.call + each.rest
    return needed.painted * picture + (needed.judged + needed.real) * each.judge


def lines(table: str, configs: list[dict[str, Any]], clock: Callable[[], float], pipe=None) -> list[str]:
    """The part of a plan that says what synthetic pictures cost; [] of runs that need none.

    Args:
        table: id, for the launch line. configs: of its runs. clock, pipe: as :func:`calibrate`.
    """
    wanted = needs(configs)
    if not wanted:
        return []
    judge = next(c["filter"] for c in configs if "filter" in c)
    each = calibrate(judge, clock, pipe) if pipe else _once_a_judge(calibrate, json.dumps(judge, sort_keys=True), clock)
    made = []
    for one in wanted:
        total = seconds_of(one, each)
        made += [
            f"  painting for {one.data}, before training: {one.painted:,} pictures of {one.steps} steps, "
            f"{one.judged:,} looks of the filter's judge, {one.real:,} real pictures for class means",
            f"    {each.call:.3g} s a call of the U-Net, {each.judge:.3g} s a look ({each.device}"
            + (f", {each.memory / 1e9:.1f} GB at the peak); " if each.memory else "); ")
            + ", ".join(f"{n} such device{'s' * (n > 1)} {duration(total / n)}" for n in GPUS)
            + f"; {one.painted * BYTES / 10**9:.1f} GB on disk",
        ]
    return [*made, f"    python -m fmseg paint {table}  (once on every device; they share the work)"]
