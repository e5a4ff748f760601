"""The peak memory of this process."""

from __future__ import annotations

__all__ = ["peak_memory"]

import sys

import torch


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
