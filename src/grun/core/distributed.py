"""Several processes on one job (`accelerate launch`, `torchrun`): their numbers, and the values that they agree on.

Everything works the same in a single process, at no cost.
"""

from __future__ import annotations

__all__ = [
    "all_true",
    "gathered",
    "is_main",
    "join_processes",
    "mean_over_processes",
    "rank",
    "same_everywhere",
    "wait",
    "world",
]

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor


def join_processes(device: str) -> None:
    """Join the other processes of a distributed launch; without one, do nothing.

    Args:
        device: as in the configuration; `cpu` picks the gloo backend.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _joined() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """True in the process that writes files and messages."""
    return rank() == 0


def wait() -> None:
    """Wait until every process is here."""
    if _joined():
        dist.barrier()


def gathered(part: Any) -> list[Any]:
    """The values that all processes passed, in the order of their numbers."""
    parts: list[Any] = [part]
    if _joined():
        parts = [None] * world()
        dist.all_gather_object(parts, part)
    return parts


def mean_over_processes(value: float) -> float:
    """Mean of a number over all processes."""
    values = gathered(value)
    return float(sum(values) / len(values))


def all_true(flag: bool) -> bool:
    """True if a condition holds in every process, so that all of them stop together or none does."""
    return all(gathered(flag))


def same_everywhere(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the main process, because computed ones may differ in the last bit."""
    if _joined():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()
