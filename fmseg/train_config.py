"""How to train: the options of a run, the learning rate of a step, the optimiser's groups. Knows torch only.

The vocabulary is that of mmsegmentation's config files, so that the papers' recipes (:mod:`fmseg.paper_segmenters`)
fit.
"""

import difflib
import math
from dataclasses import asdict, dataclass, field, fields

import torch
from torch import nn

from fmseg.batches import AUGMENTATIONS

MOMENTUM = 0.9  # of "sgd"
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        steps: optimiser steps, >= 1.
        batch_size: images a step, over all processes and accumulated parts together, >= 1.
        lr: peak learning rate, > 0.
        weight_decay: >= 0; without ``keys`` not applied to norms, biases and positional embeddings.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        nesterov: of "sgd".
        schedule: "poly" (1 - t)^poly_power, "cosine" or "constant", t in [0, 1] after the warm-up.
        warmup_steps: linear rise at the start, steps, >= 0.
        poly_power: exponent of "poly", > 0.
        min_lr: where "poly" and "cosine" end, >= 0.
        grad_clip: largest norm of the whole gradient, > 0, or None.
        keys: {part of a parameter's name: {"lr": factor, "decay": factor}}; of several parts that fit the longest
            counts (mmengine's ``custom_keys``). Where it is given, all other parameters decay.
        norm_decay: factor of the weight decay of norms that no key names, with ``keys`` (mmengine's
            ``norm_decay_mult``).
        backbone_lr: factor of the learning rate of all parameters below a module called ``backbone``, >= 0; what
            mmengine's ``{"backbone": {"lr_mult": ...}}`` does. With ``keys``, name the backbone there.
        seed: root of every random choice, >= 0.
        augment: names out of ``fmseg.batches.AUGMENTATIONS``.
        eval_every: steps between points of the curve; None: only at the end.
        ignore_index: label of pixels that do not count.
        device: "cpu", "cuda", or "auto" (cuda where there is one).
        precision: "fp32", "bf16" or "fp16" (mixed, with loss scaling; needs a GPU).
        accumulate: parts that a process's share of a batch is split into, to save memory, >= 1.
        freeze_norm: batch norm uses its running statistics in training too.
        workers: processes that make batches, >= 0; 0: made between steps.

    Raises:
        ValueError: a value outside its range, naming the field.
    """

    steps: int
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    nesterov: bool = False
    schedule: str = "poly"
    warmup_steps: int = 0
    poly_power: float = 1.0
    min_lr: float = 0.0
    grad_clip: float | None = None
    keys: dict[str, dict[str, float]] = field(default_factory=dict)
    norm_decay: float = 1.0
    backbone_lr: float = 1.0
    seed: int = 0
    augment: tuple[str, ...] = ()
    eval_every: int | None = None
    ignore_index: int = 255
    device: str = "cpu"
    precision: str = "fp32"
    accumulate: int = 1
    freeze_norm: bool = False
    workers: int = 0

    def __post_init__(self):
        if isinstance(self.augment, str):
            raise ValueError(f"`augment` must be a list of names, got a text; write [{self.augment!r}]")
        object.__setattr__(self, "augment", tuple(self.augment))
        least = {"steps": 1, "batch_size": 1, "warmup_steps": 0, "seed": 0, "eval_every": 1, "accumulate": 1}
        for name, smallest in (least | {"workers": 0}).items():
            value = getattr(self, name)
            if value is None and name == "eval_every":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise ValueError(f"`{name}` must be a whole number >= {smallest}, got {value!r}")
        zero_is_fine = {"lr": False, "weight_decay": True, "poly_power": False, "grad_clip": False}
        for name, allow_zero in (zero_is_fine | {"min_lr": True, "norm_decay": True, "backbone_lr": True}).items():
            value = getattr(self, name)
            if value is None and name == "grad_clip":
                continue
            if not _is_number(value) or value < 0 or (value == 0 and not allow_zero):
                raise ValueError(f"`{name}` must be a number {'>=' if allow_zero else '>'} 0, got {value!r}")
        choices = {
            "optimizer": ("adamw", "sgd"),
            "schedule": ("poly", "cosine", "constant"),
            "device": ("cpu", "cuda", "auto"),
            "precision": tuple(PRECISIONS),
            "nesterov": (False, True),
            "freeze_norm": (False, True),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(map(str, allowed))
                raise ValueError(f"`{name}` must be one of {known}; got {getattr(self, name)!r}")
        for name in self.augment:
            if name not in AUGMENTATIONS:
                raise ValueError(f"`augment` holds {name!r}; known: {', '.join(AUGMENTATIONS)}")
        for key, factors in self.keys.items():
            good = isinstance(factors, dict) and set(factors) <= {"lr", "decay"}
            if not good or not all(_is_number(v) and v >= 0 for v in factors.values()):
                raise ValueError(f"`keys[{key!r}]` must be {{'lr': factor, 'decay': factor}}, got {factors!r}")
        if self.keys and self.backbone_lr != 1.0:
            raise ValueError(
                f"`backbone_lr` ({self.backbone_lr}) and `keys` exclude each other; write keys: "
                f"{{'backbone': {{'lr': {self.backbone_lr}}}}}"
            )

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


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def learning_rate(config: TrainConfig, step: int, factor: float = 1.0) -> float:
    r"""Learning rate of a step, counted from 0: a pure function, so there is no scheduler state to save.

    .. math:: \eta_s = \min(1, (s+1)/w) \, (\eta_{min} + (f\eta - \eta_{min}) \, g(t)), \quad
              t = \max(0, s-w)/(S-w), \quad g(t) = (1-t)^p,\; (1+\cos\pi t)/2 \;\text{or}\; 1

    with f the ``factor`` of a parameter group. Differs from mmsegmentation: its warm-up starts at a millionth.
    """
    t = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    shape = {
        "poly": max(0.0, 1 - t) ** config.poly_power,
        "cosine": (1 + math.cos(math.pi * min(1.0, t))) / 2,
        "constant": 1.0,
    }[config.schedule]
    rise = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.min_lr == 0.0:
        return config.lr * factor * rise * shape
    return rise * (config.min_lr + (config.lr * factor - config.min_lr) * shape)


def parameter_groups(
    model: nn.Module, weight_decay: float, keys: dict[str, dict[str, float]] | None = None, norm_decay: float = 1.0,
    backbone_lr: float = 1.0,
) -> list[dict]:  # fmt: skip
    """Optimiser groups, each with its ``weight_decay`` and the ``factor`` of its learning rate.

    Without ``keys`` two groups: with weight decay, and without (norms, biases, embeddings, class tokens), and two more
    for a backbone with a rate of its own. With them as mmengine's DefaultOptimWrapperConstructor does it: see
    :class:`TrainConfig`.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    norms = {id(p) for m in model.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
    by_length = sorted(sorted(keys or {}), key=len, reverse=True)
    groups: dict[tuple[float, float], list] = {} if keys else {(1.0, weight_decay): [], (1.0, 0.0): []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor, decay = 1.0, weight_decay
        if keys:
            fits = next((key for key in by_length if key in name), None)
            if fits is not None:
                factor, decay = keys[fits].get("lr", 1.0), weight_decay * keys[fits].get("decay", 1.0)
            elif id(parameter) in norms:
                decay = weight_decay * norm_decay
        elif parameter.ndim <= 1 or _is_position(name) or id(parameter) in embeddings:
            decay = 0.0
        if "backbone" in name.split("."):
            factor *= backbone_lr
        groups.setdefault((factor, decay), []).append(parameter)
    return [{"params": p, "weight_decay": decay, "factor": factor} for (factor, decay), p in groups.items()]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)


def _is_position(name: str) -> bool:
    return "pos_embed" in name or "cls_token" in name or "cls_emb" in name


def optimizer_of(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that a configuration asks for."""
    groups = parameter_groups(model, config.weight_decay, config.keys, config.norm_decay, config.backbone_lr)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, nesterov=config.nesterov, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)
