"""Rows of a split shared among the processes of a distributed launch."""

from __future__ import annotations

__all__ = ["joined_shares", "own_share"]

from collections.abc import Sequence
from typing import TypeVar

from grun.core.distributed import rank, world

T = TypeVar("T")


def own_share(rows: Sequence[T]) -> Sequence[T]:
    """The rows that this process measures: every `world`-th, from its own rank on."""
    return rows[rank() :: world()]


def joined_shares(shares: Sequence[Sequence[T]], count: int) -> tuple[T, ...]:
    """All `count` rows in their order, from the shares of all processes."""
    return tuple(shares[i % len(shares)][i // len(shares)] for i in range(count))
