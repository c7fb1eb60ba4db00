"""Several processes as one: who am I, sums over all, one after another. With one process every function is a no-op.

Started by ``torchrun``; gloo on CPUs, NCCL on GPUs. What a step computes does not depend on how many processes share it
(:func:`fmseg.training.train` says where it does).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class World:
    """The processes of a run: this one's ``rank``, their number ``size``, the GPU of this one (``local_rank``)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def world() -> World:
    """The processes that have been joined by :func:`joined`; one alone where none were."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the processes that ``torchrun`` started, for as long as the block lasts; alone where it did not.

    Args:
        device: 'cpu' (gloo), 'cuda' (NCCL; each process takes the GPU of its local rank) or 'auto'.

    Raises:
        ValueError: torchrun's environment is incomplete.
    """
    if "RANK" not in os.environ:
        yield World()
        return
    missing = [name for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"RANK is set but {', '.join(missing)} are not; start with torchrun, or unset RANK")
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield world()
    finally:
        dist.destroy_process_group()


def sum_over_all(value: float, device: torch.device) -> float:
    """Sum of a number over the processes; exact to float64."""
    if world().size == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def add_counts(matrix: np.ndarray, device: torch.device) -> np.ndarray:
    """Sum of int64 counts over the processes."""
    if world().size == 1:
        return matrix
    total = torch.from_numpy(np.ascontiguousarray(matrix)).to(device)
    dist.all_reduce(total)
    return total.cpu().numpy()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world().size > 1:
        dist.barrier()


class _Loss(nn.Module):
    """DistributedDataParallel averages gradients of what ``forward`` returns; a segmenter's loss is a method."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images, labels, *tags):
        return self.model.loss(images, labels, *tags)


def loss_of(model: nn.Module, device: torch.device) -> nn.Module:
    """A module whose ``forward(images, labels[, tags])`` is the model's loss; gradients are averaged over processes.

    A model some of whose parameters do not take part in every step says so: ``partial = True``.

    On GPUs batch norm becomes SyncBatchNorm first, in place, so that its statistics are those of the whole batch; on
    CPUs, where that does not exist, each process keeps its own, and those of rank 0 are saved.
    """
    wrapped = _Loss(model)
    if world().size == 1:
        return wrapped
    options = {"find_unused_parameters": getattr(model, "partial", False)}
    if device.type == "cuda":
        wrapped = nn.SyncBatchNorm.convert_sync_batchnorm(wrapped)
        return nn.parallel.DistributedDataParallel(wrapped, device_ids=[device.index], **options)
    return nn.parallel.DistributedDataParallel(wrapped, **options)
