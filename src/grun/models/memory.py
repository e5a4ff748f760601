"""The peak memory of this process, and the room that a training run takes on disk."""

from __future__ import annotations

__all__ = ["bytes_on_disk", "peak_memory"]

import math
import sys
from typing import Any

import torch

CHECKPOINTS_AT_ONCE = 3  # two are kept, and a third is written before the oldest is deleted
MOMENTS = 2  # of AdamW, for every number that is trained


def bytes_on_disk(model: Any, max_steps: int, save_steps: float) -> int:
    """Least number of bytes that a training run holds on disk at its largest: checkpoints, then two of them and the result.

    Args:
        model: adapted, or all of it trained.
        max_steps: steps of the run.
        save_steps: steps between checkpoints.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    everything = sum(p.numel() * p.element_size() for p in model.parameters())
    result = trained if hasattr(model, "peft_config") else everything
    checkpoint = result + MOMENTS * trained
    count = min(CHECKPOINTS_AT_ONCE, math.ceil(max_steps / max(1.0, save_steps)))
    return max(count * checkpoint, min(count, CHECKPOINTS_AT_ONCE - 1) * checkpoint + result)


def peak_memory() -> dict[str, float]:
    """Peak memory in MiB: `host`, the resident set of the process, and `device`, allocated by torch, where there is one."""
    found: dict[str, float] = {}
    if sys.platform != "win32":
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
        found["host"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
    if torch.cuda.is_available():
        found["device"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return found
