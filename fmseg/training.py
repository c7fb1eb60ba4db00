"""One training loop for everything that learns to segment here, on one process or many.

It knows torch and numpy, and of a model only this: ``loss(images, labels) -> scalar``, ``logits(images) ->
(B, C, H, W)``, ``num_classes``; ``loss(images, labels, tags)`` where the sources have image-level labels; and, if the
model has it, ``at_step(step, steps)``, called before each step, for what changes on the way (a warm-up, say). Every
random choice is a function of (seed, step), so a run that was killed and resumed ends with the same bits as one that
was not, and the caller's random state is left as it was.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fmseg import checkpoints, distributed
from fmseg.batches import Mixture, Source
from fmseg.evaluation import evaluate, predict, weights_hash
from fmseg.labelmaps import pack
from fmseg.metrics import Confusion, mean_iou
from fmseg.train_config import PRECISIONS, TrainConfig, learning_rate, optimizer_of, parameter_groups

__all__ = [
    "Source",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "learning_rate",
    "parameter_groups",
    "predict",
    "train",
    "weights_hash",
]
Validation = Source | Callable[[nn.Module, slice], Confusion]


@dataclass
class TrainResult:
    """What a run leaves behind besides its weights.

    Attributes:
        curve: [step, mIoU in [0, 1]] with a validation set, else [step, mean loss since the point before].
        losses: loss of every step, nats.
        iou: (C,) per-class IoU at the end, NaN for classes absent from the validation set; None without one.
        seconds: wall-clock time of all sessions, evaluation included.
        steps: optimiser steps done.
        resumed_from: step of the checkpoint this session started from, 0 if there was none.
    """

    curve: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    iou: np.ndarray | None = None
    seconds: float = 0.0
    steps: int = 0
    resumed_from: int = 0

    @property
    def miou(self) -> float | None:
        """Mean of ``iou`` over the classes present in the validation set, in [0, 1]."""
        return None if self.iou is None else mean_iou(self.iou)

    def as_run(self, model: nn.Module, examples: np.ndarray, **more) -> dict:
        """What a run's record is made of (:func:`fmseg.supervised.run`); needs a validation set.

        Args:
            model: what was trained; its weights' hash is kept.
            examples: (n, H, W) uint8, predictions on the first validation images, for figures.
            more: further measured values, JSON only; they join ``result``.

        Returns:
            ``result`` (``iou`` as fractions with None for classes absent from the validation set, ``miou`` in percent,
            ``weights``, ``examples``), ``curve`` ([step, mIoU in percent]), ``seconds``, ``model``.
        """
        result = {
            "iou": plain(self.iou),
            "miou": round(100 * mean_iou(self.iou), 4),
            "weights": weights_hash(model)[:16],
            "examples": pack(examples),
        } | more
        curve = [[step, round(100 * value, 4)] for step, value in self.curve]
        return {"result": result, "curve": curve, "seconds": self.seconds, "model": model}

    def to_dict(self) -> dict:
        """Plain values, for a checkpoint."""
        iou = None if self.iou is None else self.iou.tolist()
        done = {"curve": self.curve, "losses": self.losses, "iou": iou}
        return done | {"seconds": self.seconds, "steps": self.steps}

    @classmethod
    def from_dict(cls, done: dict) -> "TrainResult":
        """What :meth:`to_dict` gave, as the start of a further session."""
        iou = None if done["iou"] is None else np.array(done["iou"])
        return cls(done["curve"], done["losses"], iou, done["seconds"], done["steps"], resumed_from=done["steps"])


def plain(iou: np.ndarray) -> list[float | None]:
    """Per-class IoU as a record keeps it: six decimals, None for a class without ground truth."""
    return [None if value != value else round(float(value), 6) for value in iou]


def _device(config: TrainConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` is 'cuda' but torch sees no GPU; use 'cpu' or 'auto'")
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if config.precision == "fp16" and not cuda:
        raise ValueError("`precision` 'fp16' needs a GPU; use 'bf16' or 'fp32'")
    return torch.device("cuda", distributed.world().local_rank) if cuda else torch.device("cpu")


def train(
    model: nn.Module,
    sources: Source | Sequence[Source],
    config: TrainConfig,
    *,
    validation: Validation | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train ``model`` in place.

    Under ``torchrun``, inside :func:`fmseg.distributed.joined`, each process computes its share of every batch; the
    gradient is that of the whole batch, whose loss is averaged over all its labelled pixels, as one process would
    average it. The same holds for the parts of ``accumulate``. Exceptions: batch norm sees its own share only (on GPUs
    it becomes SyncBatchNorm; ``freeze_norm`` removes the difference); drop-out and sampled points have a stream of
    their own in each share; Mask2Former's losses are normalised over processes, but part by part in accumulation.

    Args:
        model: has ``loss``, ``logits`` and ``num_classes``; may have ``loss_weight(labels)``, what a share of a batch
            counts (default: its labelled pixels), and ``at_step(step, steps)``. Left on the
            device of ``config`` and in its former mode.
        sources: what to learn from; mixed as :class:`fmseg.batches.Mixture` says.
        config: see :class:`TrainConfig`.
        validation: evaluated every ``eval_every`` steps and at the end: a source, or a function of the model and of
            which part of the pictures to take that gives a confusion; shared by the processes.
        checkpoint: file for the state of the run. If it exists, the run goes on from there, exactly; it is written
            every ``checkpoint_every`` steps, at the end, and when the run is interrupted (Ctrl-C), by one process.
        checkpoint_every: steps between checkpoints, >= 1; None: only at the end and on interruption.
        progress: show a bar with loss and remaining time, in the first process.
        on_step: called after every step with (steps done, loss); what it raises ends the run.

    Returns:
        :class:`TrainResult`.

    Raises:
        ValueError: labels out of range, images of different sizes, a checkpoint that is damaged or belongs to another
            run, a batch that processes and parts cannot share equally. FloatingPointError: the loss or the scores are
            not finite. KeyboardInterrupt: interrupted.
    """
    from tqdm import tqdm

    if checkpoint_every is not None and (checkpoint is None or checkpoint_every < 1):
        raise ValueError(f"`checkpoint_every` ({checkpoint_every}) must be >= 1 and needs a `checkpoint` path")
    world, device = distributed.world(), _device(config)
    shares = world.size * config.accumulate
    if config.batch_size % shares:
        raise ValueError(
            f"`batch_size` ({config.batch_size}) must be a multiple of {shares}: {world.size} processes, "
            f"{config.accumulate} parts each"
        )
    mixture = Mixture(sources, config.batch_size, config.seed, config.augment, config.ignore_index)
    for source in [*mixture.sources, *([validation] if isinstance(validation, Source) else [])]:
        source.check_ids(model.num_classes, config.ignore_index)
    was_training = model.training
    model.to(device)
    stepper = _Stepper(model, config, device)
    run_key = {"config": config.to_dict() | {"device": "", "workers": 0, "accumulate": 1}}
    run_key["data"] = [source.fingerprint() for source in mixture.sources]
    done = checkpoints.load(checkpoint, run_key, **stepper.parts()) if checkpoint else None
    result = TrainResult.from_dict(done) if done else TrainResult()
    seconds_before, started = result.seconds, time.perf_counter()

    def save():
        result.seconds = seconds_before + time.perf_counter() - started
        if world.first:
            checkpoints.save(checkpoint, run_key, result.to_dict(), **stepper.parts())

    devices = [device] if device.type == "cuda" else []
    quiet = not progress or not world.first
    bar = tqdm(total=config.steps, initial=result.steps, disable=quiet, unit="step", mininterval=0.5)
    with bar, torch.random.fork_rng(devices), _deferred_interrupt(checkpoint is not None) as interrupted:
        try:
            for step, parts in _batches(mixture, config, result.steps, world):
                loss = stepper.step(step, parts, mixture)
                result.losses.append(loss)
                result.steps = step + 1
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()
                last = result.steps == config.steps
                if last or (config.eval_every and result.steps % config.eval_every == 0):
                    _add_point(result, model, validation, config, device)
                if checkpoint and (last or (checkpoint_every and result.steps % checkpoint_every == 0)):
                    save()
                if on_step is not None:
                    on_step(result.steps, loss)
                if interrupted:
                    raise KeyboardInterrupt(f"stopped after step {result.steps} of {config.steps}")
        except KeyboardInterrupt:
            if checkpoint and len(interrupted) < 2:  # the second Ctrl-C may have hit inside a step
                save()
            raise
        finally:
            model.train(was_training)
    result.seconds = seconds_before + time.perf_counter() - started
    return result


class _Steps(torch.utils.data.Dataset):
    """Batches by step, for loader processes."""

    def __init__(self, mixture: Mixture, shares: list[tuple[int, int]]):
        self.mixture, self.shares = mixture, shares

    def __getitem__(self, step: int) -> tuple[int, list[tuple[Tensor, ...]]]:
        return step, [self.mixture.batch(step, share) for share in self.shares]


def _batches(mixture, config, start, world) -> Iterator[tuple[int, list[tuple[Tensor, ...]]]]:
    """(step, this process's parts of the batch) from a step on; a step's batch is the same whoever makes it."""
    count = world.size * config.accumulate
    own = [(world.rank * config.accumulate + k, count) for k in range(config.accumulate)]
    steps = range(start, config.steps)
    if not config.workers:
        yield from (_Steps(mixture, own)[step] for step in steps)
        return
    yield from torch.utils.data.DataLoader(
        _Steps(mixture, own), batch_size=None, sampler=steps, num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


class _Stepper:
    """One optimiser step over this process's parts of a batch."""

    def __init__(self, model, config: TrainConfig, device):
        self.model, self.config, self.device = model, config, device
        self.loss = distributed.loss_of(model, device)
        self.optimizer = optimizer_of(model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.dtype = PRECISIONS[config.precision]

    def parts(self) -> dict:
        """What a checkpoint keeps."""
        parts = {"model": self.model, "optimizer": self.optimizer}
        return parts | ({"scaler": self.scaler} if self.scaler.is_enabled() else {})

    def step(self, step: int, parts: list[tuple[Tensor, ...]], mixture: Mixture) -> float:
        config, world = self.config, distributed.world()
        if hasattr(self.model, "at_step"):
            self.model.at_step(step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step, group["factor"])
        self._train_mode()
        alone = world.size * len(parts) == 1
        counts = [1.0] if alone else [self._count(labels) for _, labels, *_ in parts]
        total = 1.0 if alone else distributed.sum_over_all(sum(counts), self.device)
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for k, (batch, count) in enumerate(zip(parts, counts, strict=True)):
            images, labels, *tags = (t.to(self.device, non_blocking=True) for t in batch)
            torch.manual_seed(mixture.model_seed(step, world.rank * len(parts) + k))
            last = k == len(parts) - 1
            with nullcontext() if last or world.size == 1 else self.loss.no_sync():  # exchange gradients once
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    loss = self.loss(images, labels, *tags)
                if not alone:  # DDP averages over processes, so the shares of the sum are multiplied by their number
                    loss = loss * (world.size * count / max(total, 1.0))
                value += loss.item()
                if world.size == 1:
                    self._check(value, step)
                self.scaler.scale(loss).backward()
        value = value if alone else distributed.sum_over_all(value, self.device) / world.size
        self._check(value, step)
        if config.grad_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value

    def _count(self, labels: Tensor) -> float:
        weigh = getattr(self.model, "loss_weight", None)
        return float(weigh(labels) if weigh else (labels != self.config.ignore_index).sum())

    def _check(self, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {step + 1} of {self.config.steps} (lr "
                f"{learning_rate(self.config, step):.3g}); try a smaller `lr`, a longer `warmup_steps` "
                f"({self.config.warmup_steps}), or `grad_clip` ({self.config.grad_clip})"
            )

    def _train_mode(self) -> None:
        self.model.train()
        if self.config.freeze_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()


def _add_point(result: TrainResult, model, validation, config: TrainConfig, device) -> None:
    if validation is None:
        since = int(result.curve[-1][0]) if result.curve else 0
        result.curve.append([result.steps, float(np.mean(result.losses[since:]))])
        return
    world = distributed.world()
    part = slice(world.rank, None, world.size)
    if isinstance(validation, Source):
        images, labels = validation.images[part], validation.labels[part]
        confusion = evaluate(model, images, labels, model.num_classes, ignore_index=config.ignore_index)
    else:
        confusion = validation(model, part)
    matrix = distributed.add_counts(confusion.matrix, device)
    result.iou = Confusion.from_matrix(matrix, config.ignore_index).compute()
    result.curve.append([result.steps, mean_iou(result.iou)])


@contextmanager
def _deferred_interrupt(active: bool):
    """Collect the first Ctrl-C in a list instead of raising inside a half-done step; the second one raises."""
    pressed = []
    if not active or threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def note(signum, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(signum)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
