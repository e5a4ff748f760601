"""Several processes on one job (`accelerate launch`, `torchrun`): their numbers, and the values that they agree on.

Everything works the same in a single process, at no cost.
"""

from __future__ import annotations

__all__ = [
    "all_true",
    "check_launch",
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
import re
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from grun.core.errors import UserError

NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
ADDRESS = ("MASTER_ADDR",)
LAUNCH = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")  # what every process of a launch is told


def join_processes(device: str) -> None:
    """Join the other processes of a distributed launch; without one, do nothing.

    Args:
        device: as in the configuration; `cpu` picks the gloo backend.

    Raises:
        UserError: if the environment holds a part of a launch only, or no numbers.
    """
    check_launch()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())


def check_launch() -> None:
    """Refuse variables of a launcher that no launcher leaves like this: they come from a shell or a script.

    Raises:
        UserError: if they are a part of those of a launch, or no numbers.
    """
    advice = "start with `accelerate launch` or `torchrun`, or unset it"
    for name in NUMBERS:
        value = os.environ.get(name)
        if value is not None and not re.fullmatch("-?[0-9]{1,9}", value, re.ASCII):
            raise UserError(f"the environment variable {name} is '{value}', expected a whole number; {advice}.")
    is_launched = int(os.environ.get("LOCAL_RANK", "-1")) >= 0
    name, needed = ("LOCAL_RANK", LAUNCH) if is_launched else ("WORLD_SIZE", ADDRESS)
    missing = [one for one in needed if one not in os.environ]
    if missing and (is_launched or int(os.environ.get("WORLD_SIZE", "1")) > 1) and not _joined():
        raise UserError(f"the environment variable {name} is set, but not {', '.join(missing)}; {advice}.")


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
