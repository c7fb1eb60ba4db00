"""Training a grounding head on triplets: the official recipe (dossier 2.8) with its quirks as options.

Officially: Adam at a constant rate of 1e-5 without decay or clipping, one picture a step, classes that the oracle does
not find skipped, binary cross-entropy added up over a picture's classes. A mini head has seconds, not days, and takes
larger steps over more pictures; what it learns from is the same.
"""

import math
import time
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmseg import checkpoints
from fmseg.evaluation import weights_hash
from fmseg.grounded_sets import Triplets
from fmseg.grounding import GroundingHead
from fmseg.grounding_targets import grounding_loss
from fmseg.train_config import TrainConfig, learning_rate, optimizer_of

QUIRKS = {"undetected": "skip", "average": "pictures"}


def build(unet_config: Mapping[str, Any], options: Mapping[str, Any], seed: int) -> GroundingHead:
    """A fresh head for a U-Net; torch's global random state is left alone.

    Args:
        unet_config: of the U-Net that is read.
        options: of :class:`fmseg.grounding.GroundingHead`.
        seed: of the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GroundingHead.for_unet(unet_config, **options)


def batch_of(data: Triplets, rows: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, Tensor]:
    """What the head takes of those rows: features, text (B, O, D), masks, detected, present.

    A slot without a class gets the first class's text, which ``present`` keeps out of sight.
    """
    named = data.named[rows]
    text = data.text[named.clamp(min=0)]
    features = {group: tensor[rows] for group, tensor in data.features.items()}
    return features, text, data.masks[rows], data.detected[rows], named >= 0


def picked(seed: int, step: int, batch: int, count: int) -> Tensor:
    """(batch,) int64: the pictures of a step, counted from 0; epoch after epoch in an order of its own."""
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {int(e): np.random.default_rng([seed, 7, int(e)]).permutation(count) for e in np.unique(places // count)}
    return torch.tensor([int(orders[int(p // count)][p % count]) for p in places])


def train(
    head: nn.Module,
    data: Triplets,
    config: TrainConfig,
    *,
    undetected: str = "skip",
    average: str = "pictures",
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a head in place, on one process.

    Args:
        head: see :func:`build`.
        data: what to learn from; pictures without any mask only cost time.
        config: steps, batch, rate, schedule, clipping, seed. Of "adamw", ``weight_decay`` 0 is Adam.
        undetected, average: see :func:`fmseg.grounding_targets.grounding_loss`.
        checkpoint, checkpoint_every: as in :func:`fmseg.training.train`; a resumed run ends with the same bits.
        on_step: called after every step with (steps done, loss); what it raises ends the run.

    Returns:
        ``losses`` (nats, every step), ``curve`` ([step, mean loss since the point before]), ``seconds``.

    Raises:
        ValueError: no picture, or a checkpoint that is damaged or of another run.
        FloatingPointError: the loss is not finite.
    """
    if not len(data):
        raise ValueError("`data` holds no picture: the oracle found nothing that was asked for; paint more, or lower "
                         "its least area and score")  # fmt: skip
    optimizer = optimizer_of(head, config)
    key = {"config": config.to_dict() | {"undetected": undetected, "average": average}, "data": fingerprint(data)}
    done = checkpoints.load(checkpoint, key, model=head, optimizer=optimizer) if checkpoint else None
    losses, before, started = (done or {}).get("losses", []), (done or {}).get("seconds", 0.0), time.perf_counter()
    head.train()
    for step in range(len(losses), config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, group["factor"])
        features, text, masks, detected, present = batch_of(data, picked(config.seed, step, config.batch_size,
                                                                         len(data)))  # fmt: skip
        logits = head(features, text, size=masks.shape[2:], present=present)
        loss = grounding_loss(logits, masks, detected, present=present, undetected=undetected, average=average)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step + 1} of {config.steps}; lower `lr`")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.grad_clip is not None:
            nn.utils.clip_grad_norm_(head.parameters(), config.grad_clip)
        optimizer.step()
        losses.append(value)
        if checkpoint and (len(losses) == config.steps or (checkpoint_every and len(losses) % checkpoint_every == 0)):
            so_far = {"losses": losses, "seconds": before + time.perf_counter() - started}
            checkpoints.save(checkpoint, key, so_far, model=head, optimizer=optimizer)
        if on_step is not None:
            on_step(len(losses), value)
    head.eval()
    return {"losses": losses, "curve": curve(losses), "seconds": before + time.perf_counter() - started}


def curve(losses: list[float], points: int = 20) -> list[list[float]]:
    """[step, mean loss since the point before], at most ``points`` of them."""
    each = -(-len(losses) // points)
    ends = range(each, len(losses) + each, each)
    return [[min(end, len(losses)), round(float(np.mean(losses[end - each : end])), 6)] for end in ends]


def fingerprint(data: Triplets) -> list:
    """Tells sets apart: sizes, and sums over masks, names and features."""
    sums = [int(data.masks.sum()), int(data.named.sum()), int(data.detected.sum())]
    return [
        *data.named.shape,
        *sums,
        *(float(t[:: max(1, len(t) // 16)].float().sum()) for t in data.features.values()),
    ]


@torch.no_grad()
def answers(head: nn.Module, data: Triplets, batch: int = 25) -> Tensor:
    """(N, O, H, W) float32 logits of each picture's named classes, 0 where none is named. The head stays as it is."""
    was_training, made = head.training, [torch.zeros(0, *data.masks.shape[1:])]
    head.eval()
    for start in range(0, len(data), batch):
        features, text, masks, _, present = batch_of(data, torch.arange(start, min(start + batch, len(data))))
        made.append(head(features, text, size=masks.shape[2:], present=present))
    head.train(was_training)
    return torch.cat(made)


def identity(head: nn.Module) -> str:
    """First 16 hex digits of the hash of a head's weights."""
    return weights_hash(head)[:16]
