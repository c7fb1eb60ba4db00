"""The loop for what is not a segmenter, the zoo's models and own generators: AdamW, an average of the weights, a log.

Every random choice of step s is drawn after seeding with (seed, s), so a run that was killed and resumed ends with the
same bits. What is left behind: ``<name>.safetensors`` in half precision and ``<name>.json``, the facts of the run.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fmseg import checkpoints
from fmseg.records import machine, versions


@dataclass(frozen=True)
class Recipe:
    """How long and how fast.

    Attributes:
        steps, batch_size: optimiser steps of how many images.
        lr: peak learning rate; rises over ``warmup`` (fraction of the steps), then falls as a cosine to a hundredth.
        weight_decay: on matrices and kernels only.
        average: decay of the exponential average of the weights that is kept at the end; 0 keeps the last weights.
        seed: of initial weights, order and noise.
        clip: largest norm of the gradient.
    """

    steps: int
    batch_size: int
    lr: float
    warmup: float = 0.05
    weight_decay: float = 0.01
    average: float = 0.0
    seed: int = 0
    clip: float = 1.0

    def learning_rate(self, step: int) -> float:
        """At a step counted from 0."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def batch_indices(count: int, recipe: Recipe, step: int) -> np.ndarray:
    """Which of ``count`` examples make the batch of a step: epochs of permutations by (seed, epoch)."""
    first, size = step * recipe.batch_size, recipe.batch_size
    out = []
    while size:
        epoch, at = divmod(first, count)
        order = np.random.Generator(np.random.PCG64([recipe.seed, 7919, epoch])).permutation(count)
        part = order[at : at + size]
        out.append(part)
        first, size = first + len(part), size - len(part)
    return np.concatenate(out)


def _groups(model: nn.Module, weight_decay: float) -> list[dict]:
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class _Average:
    """Exponential average of the weights; buffers are copied."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.values = decay, {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # so that the initial weights are soon forgotten
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[key].lerp_(value, 1 - decay)
            else:
                self.values[key].copy_(value)

    def state_dict(self) -> dict:
        return self.values

    def load_state_dict(self, state: dict) -> None:
        self.values = state


def fit(
    model: nn.Module,
    recipe: Recipe,
    loss: Callable[[int], Tensor | tuple[Tensor, dict[str, float]]],
    *,
    count: int,
    checkpoint: Path,
    identity: dict,
    each: Callable[[int], None] | None = None,
    every: int = 200,
    progress: bool = True,
) -> dict:
    """Train ``model`` in place, or go on where a checkpoint left it.

    Args:
        model: everything that learns or must be kept, in one module.
        recipe: see :class:`Recipe`.
        loss: the loss of a step, called with the number of the step after torch's generator was seeded for it; may
            also return parts of the loss by name, for the log.
        count: size of the training set, for the report.
        checkpoint: file of the state; a log lies beside it.
        identity: what the run is (configuration, data); a checkpoint of another one is refused.
        each: called with the number of steps done, after each step (a teacher that follows, say).
        every: steps between checkpoints and lines of the log.

    Returns:
        {"steps", "exposures", "seconds", "loss": [[step, mean loss]], "machine", "versions"}.

    Raises:
        ValueError: a foreign checkpoint. FloatingPointError: the loss is not finite.
    """
    from tqdm import tqdm

    optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.lr, betas=(0.9, 0.98))
    parts = {"model": model, "optimizer": optimizer}
    if recipe.average:
        parts["average"] = _Average(model, recipe.average)
    run = {"config": asdict(recipe) | identity, "data": count}
    done = checkpoints.load(checkpoint, run, **parts) or {"step": 0, "seconds": 0.0, "loss": []}
    started, before, recent = time.perf_counter(), done["seconds"], []
    with tqdm(total=recipe.steps, initial=done["step"], disable=not progress, mininterval=5, unit="step") as bar:
        for step in range(done["step"], recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate(step)
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            model.train()
            value = loss(step)
            value, named = value if isinstance(value, tuple) else (value, {})
            if not math.isfinite(value.item()):
                raise FloatingPointError(
                    f"the loss is {value.item()} at step {step}; try a smaller `lr` than {recipe.lr}"
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            if recipe.average:
                parts["average"].update(model, step)
            if each is not None:
                each(step + 1)
            recent.append({"loss": value.item()} | named)
            bar.update()
            if (step + 1) % every == 0 or step + 1 == recipe.steps:
                means = {key: float(np.mean([r[key] for r in recent if key in r])) for key in recent[-1]}
                recent = []
                done = {
                    "step": step + 1,
                    "seconds": before + time.perf_counter() - started,
                    "loss": done["loss"] + [[step + 1, round(means["loss"], 5)]],
                }
                checkpoints.save(checkpoint, run, done, **parts)
                with checkpoint.with_suffix(".log").open("a") as log:
                    print(json.dumps({"step": step + 1, "seconds": round(done["seconds"])} | means), file=log)
    if recipe.average:
        model.load_state_dict(parts["average"].values)
    model.eval()
    return {
        "steps": recipe.steps, "exposures": recipe.steps * recipe.batch_size, "seconds": round(done["seconds"], 1),
        "loss": done["loss"], "machine": machine(), "versions": versions(),
    }  # fmt: skip


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write a state dict as safetensors in half precision (whole numbers as they are), whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    half = {k: (v.half() if v.is_floating_point() else v).contiguous().clone() for k, v in state.items()}
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(half, partial)
    os.replace(partial, path)
