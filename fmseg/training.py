"""One training loop for everything that learns to segment here.

It knows torch and numpy, and of a model only this: ``loss(images, labels) -> scalar``, ``logits(images) ->
(B, C, H, W)``, ``num_classes``. Every random choice is a function of (seed, step), so a run that was killed and resumed
ends with the same bits as one that was not, and the caller's random state is left as it was.
"""

import difflib
import hashlib
import io
import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fmseg.batches import AUGMENTATIONS, Mixture, Source
from fmseg.evaluation import evaluate, predict, weights_hash
from fmseg.metrics import mean_iou

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
MOMENTUM = 0.9  # of "sgd"


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        steps: optimiser steps, >= 1.
        batch_size: images a step, >= 1.
        lr: peak learning rate, > 0.
        weight_decay: >= 0; not applied to norms, biases and positional embeddings.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        schedule: "poly" (1 - t)^poly_power, "cosine" or "constant", t in [0, 1] after the warm-up.
        warmup_steps: linear rise at the start, steps, >= 0.
        poly_power: exponent of "poly", > 0.
        grad_clip: largest norm of the whole gradient, > 0, or None.
        seed: root of every random choice, >= 0.
        augment: names out of ``fmseg.batches.AUGMENTATIONS``.
        eval_every: steps between points of the curve; None: only at the end.
        ignore_index: label of pixels that do not count.
        device: "cpu", "cuda", or "auto" (cuda where there is one).

    Raises:
        ValueError: a value outside its range, naming the field.
    """

    steps: int
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    schedule: str = "poly"
    warmup_steps: int = 0
    poly_power: float = 1.0
    grad_clip: float | None = None
    seed: int = 0
    augment: tuple[str, ...] = ()
    eval_every: int | None = None
    ignore_index: int = 255
    device: str = "cpu"

    def __post_init__(self):
        if isinstance(self.augment, str):
            raise ValueError(f"`augment` must be a list of names, got a text; write [{self.augment!r}]")
        object.__setattr__(self, "augment", tuple(self.augment))
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup_steps", 0), ("seed", 0), ("eval_every", 1)):
            value = getattr(self, name)
            if value is None and name == "eval_every":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be a whole number >= {least}, got {value!r}")
        for name, allow_zero in (("lr", False), ("weight_decay", True), ("poly_power", False), ("grad_clip", False)):
            value = getattr(self, name)
            if value is None and name == "grad_clip":
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (value == 0 and not allow_zero):
                raise ValueError(f"`{name}` must be a number {'>=' if allow_zero else '>'} 0, got {value!r}")
        choices = {
            "optimizer": ("adamw", "sgd"),
            "schedule": ("poly", "cosine", "constant"),
            "device": ("cpu", "cuda", "auto"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise ValueError(f"`augment` holds {name!r}; known: {', '.join(AUGMENTATIONS)}")

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        """Build from plain values (params.yaml, a run record); an unknown key is an error, not ignored."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1, 0.0)[0]
                raise ValueError(f"unknown training key {key!r}; did you mean {near!r}? Known: {', '.join(known)}")
        if "steps" not in values:
            raise ValueError("training needs `steps`, the number of optimiser steps")
        return cls(**values)

    def to_dict(self) -> dict:
        """Plain values, as JSON can hold them; ``from_dict(config.to_dict()) == config``."""
        return asdict(self) | {"augment": list(self.augment)}


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


def learning_rate(config: TrainConfig, step: int) -> float:
    r"""Learning rate of a step, counted from 0: a pure function, so there is no scheduler state to save.

    .. math:: \eta_s = \eta \min(1, (s+1)/w) \, g(t), \quad t = \max(0, s-w)/(S-w), \quad
              g(t) = (1-t)^p,\; (1+\cos\pi t)/2 \;\text{or}\; 1
    """
    t = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    shape = {
        "poly": max(0.0, 1 - t) ** config.poly_power,
        "cosine": (1 + math.cos(math.pi * min(1.0, t))) / 2,
        "constant": 1.0,
    }
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup_steps)) * shape[config.schedule]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two optimiser groups: with weight decay, and without (norms, biases, embeddings, class tokens)."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        special = "pos_embed" in name or "cls_token" in name or "cls_emb" in name or id(parameter) in embeddings
        (free if parameter.ndim <= 1 or special else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` is 'cuda' but torch sees no GPU; use 'cpu' or 'auto'")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def train(
    model: nn.Module,
    sources: Source | Sequence[Source],
    config: TrainConfig,
    *,
    validation: Source | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train ``model`` in place.

    Args:
        model: has ``loss``, ``logits`` and ``num_classes``; left on the device of ``config`` and in its former mode.
        sources: what to learn from; mixed as :class:`fmseg.batches.Mixture` says.
        config: see :class:`TrainConfig`.
        validation: evaluated every ``eval_every`` steps and at the end.
        checkpoint: file for the state of the run. If it exists, the run goes on from there, exactly; it is written
            every ``checkpoint_every`` steps, at the end, and when the run is interrupted (Ctrl-C).
        checkpoint_every: steps between checkpoints, >= 1; None: only at the end and on interruption.
        progress: show a bar with loss and remaining time.
        on_step: called after every step with (steps done, loss); what it raises ends the run.

    Returns:
        :class:`TrainResult`.

    Raises:
        ValueError: labels out of range, images of different sizes, a checkpoint that is damaged or belongs to another
            run. FloatingPointError: the loss or the scores are not finite. KeyboardInterrupt: interrupted.
    """
    from tqdm import tqdm

    if checkpoint_every is not None and (checkpoint is None or checkpoint_every < 1):
        raise ValueError(f"`checkpoint_every` ({checkpoint_every}) must be >= 1 and needs a `checkpoint` path")
    device = _device(config.device)
    mixture = Mixture(sources, config.batch_size, config.seed, config.augment, config.ignore_index)
    for source in [*mixture.sources, *([validation] if validation else [])]:
        _check_ids(source, model.num_classes, config.ignore_index)
    was_training = model.training
    model.to(device)
    optimizer = _optimizer(model, config)
    run_key = {"config": config.to_dict() | {"device": ""}, "data": [_fingerprint(s) for s in mixture.sources]}
    result = _load(checkpoint, model, optimizer, run_key) if checkpoint else TrainResult()
    seconds_before, started = result.seconds, time.perf_counter()

    def save():
        result.seconds = seconds_before + time.perf_counter() - started
        _save(checkpoint, model, optimizer, run_key, result)

    devices = [device] if device.type == "cuda" else []
    bar = tqdm(total=config.steps, initial=result.steps, disable=not progress, unit="step", mininterval=0.5)
    with bar, torch.random.fork_rng(devices), _deferred_interrupt(checkpoint is not None) as interrupted:
        try:
            for step in range(result.steps, config.steps):
                loss = _step(model, optimizer, mixture, config, step, device)
                result.losses.append(loss)
                result.steps = step + 1
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()
                last = result.steps == config.steps
                if last or (config.eval_every and result.steps % config.eval_every == 0):
                    _add_point(result, model, validation, config)
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


def _step(model, optimizer, mixture: Mixture, config: TrainConfig, step: int, device) -> float:
    images, labels = (t.to(device) for t in mixture.batch(step))
    torch.manual_seed(mixture.model_seed(step))
    lr = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    loss = model.loss(images, labels)
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value} at step {step + 1} of {config.steps} (lr {lr:.3g}); "
            f"try a smaller `lr`, a longer `warmup_steps` ({config.warmup_steps}), or `grad_clip` ({config.grad_clip})"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.grad_clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    return value


def _add_point(result: TrainResult, model, validation: Source | None, config: TrainConfig) -> None:
    if validation is None:
        since = int(result.curve[-1][0]) if result.curve else 0
        result.curve.append([result.steps, float(np.mean(result.losses[since:]))])
        return
    confusion = evaluate(
        model, validation.images, validation.labels, model.num_classes, ignore_index=config.ignore_index
    )
    result.iou = confusion.compute()
    result.curve.append([result.steps, mean_iou(result.iou)])


def _check_ids(source: Source, num_classes: int, ignore_index: int) -> None:
    present = np.unique(source.labels)
    wrong = present[(present >= num_classes) & (present != ignore_index)]
    if len(wrong):
        raise ValueError(
            f"source `{source.name}` holds label {wrong[0]}; the model has classes 0..{num_classes - 1} "
            f"and {ignore_index} is ignored. Remap the labels or build a model with more classes"
        )


def _fingerprint(source: Source) -> list:
    """Tells sources apart without reading all of a large one: sizes, and a hash of up to 64 of its images."""
    digest = hashlib.sha256()
    for i in np.linspace(0, len(source.images) - 1, min(64, len(source.images))).astype(int):
        digest.update(np.ascontiguousarray(source.images[i]))
        digest.update(np.ascontiguousarray(source.labels[i]))
    return [list(source.images.shape), source.repeat, digest.hexdigest()]


def _save(path, model, optimizer, run_key: dict, result: TrainResult) -> None:
    """Write to a temporary name in the same folder, then rename: a reader never meets half a file."""
    path = Path(path)
    iou = None if result.iou is None else result.iou.tolist()
    done = {"curve": result.curve, "losses": result.losses, "iou": iou}
    done |= {"seconds": result.seconds, "steps": result.steps}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "run": run_key, "result": done}
        torch.save(state, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _load(path, model, optimizer, run_key: dict) -> TrainResult:
    path = Path(path)
    if not path.exists():
        return TrainResult()
    remedy = "delete it to start anew, or pass another `checkpoint` path"
    content = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
        run, done = state["run"], state["result"]
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {path} is truncated or no checkpoint of this loop ({what}); {remedy}") from error
    if run != run_key:
        if run["data"] != run_key["data"]:
            differs = "the training images"
        else:
            now, then = run_key["config"], run["config"]
            keys = [k for k in {**then, **now} if then.get(k) != now.get(k)]
            differs = ", ".join(f"{k} ({then.get(k)!r} there, {now.get(k)!r} here)" for k in keys)
        raise ValueError(f"checkpoint {path} belongs to another run: {differs} differ; {remedy}")
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} is of another model ({str(error).splitlines()[0]}); {remedy}") from error
    iou = None if done["iou"] is None else np.array(done["iou"])
    return TrainResult(done["curve"], done["losses"], iou, done["seconds"], done["steps"], resumed_from=done["steps"])


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
