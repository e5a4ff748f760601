"""Objectives of one's own: any function of signals, for one call."""

from __future__ import annotations

__all__ = ["usable_objective"]

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from grun.core.errors import UserError
from grun.core.records import SideSignals, Signals
from grun.core.registry import Entry
from grun.training.objectives import SIDES, objectives

ROWS, TOKENS, VOCABULARY, HIDDEN = 2, 3, 7, 5  # of the trial batch


@contextmanager
def usable_objective(objective: str | Callable[..., Any]) -> Iterator[str]:
    """Inside, an objective is registered, under the name that is given; a function is registered for as long.

    Args:
        objective: name of a registered objective, or a function `(Signals, *, settings) -> scalar`. Its needs are found by
            calling it once on a random batch and noting what it reads.

    Raises:
        UserError: for a function without a name of its own, or that fails on the random batch.
    """
    if isinstance(objective, str):
        yield objective
        return
    known = next((entry.name for entry in objectives if entry.target is objective), None)
    if known is not None:
        yield known
        return
    name = str(getattr(objective, "__name__", ""))
    if not name.isidentifier():
        raise UserError("objective is a function without a name; define it with def.")
    if name in objectives.names():
        raise UserError(
            f"objective is a function called '{name}', which is the name of a registered objective; rename it."
        )
    info = {"needs": _needs(objective, name), "retain": "ce", "content": _content(objective)}
    with objectives.having(Entry(name, objective, info)):
        yield name


def _content(function: Callable[..., Any]) -> str:
    """Hash of a function's code: a run goes on only with the same objective."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        code: Any = getattr(function, "__code__", None)
        text = repr(function) if code is None else f"{code.co_code!r} {code.co_consts!r} {code.co_names!r}"
    return hashlib.sha256(text.encode()).hexdigest()


class _Noting(Mapping[str, Any]):
    """A mapping that notes what is looked up."""

    def __init__(self, values: Mapping[str, Any], note: Callable[[str], None]) -> None:
        self._values, self._note = values, note

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _needs(function: Callable[..., Any], name: str) -> tuple[str, ...]:
    """What an objective reads, as `side.quantity`."""
    read: list[str] = []
    sides = {}
    for side in SIDES:

        def note(quantity: str, side: str = side) -> None:
            if quantity != "targets":
                read.append(f"{side}.{quantity}")

        sides[side] = SideSignals(torch.ones(ROWS, TOKENS, dtype=torch.bool), _Noting(_quantities(), note))
    try:
        loss = function(Signals(sides, torch.ones(HIDDEN) / HIDDEN**0.5))
    except Exception as error:  # the user's own code: whatever it raises, the reader wants to know where
        raise UserError(
            f"objective '{name}' fails on a random batch of {ROWS} rows ({type(error).__name__}: {error}); register it with "
            "@objectives.register(name, needs=(...)) if it cannot be tried."
        ) from error
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"objective '{name}' returns {found}, expected a scalar tensor to minimise.")
    if not read:
        raise UserError(f"objective '{name}' reads nothing of the signals, so nothing could be learnt from it.")
    return tuple(dict.fromkeys(read))


def _quantities() -> dict[str, Tensor]:
    """All that may be said about N answer tokens, at random."""
    count = ROWS * TOKENS
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {"targets": torch.randint(VOCABULARY, (count,), generator=generator)}
    for prefix in ("", "ref_"):
        logits_NV = torch.randn(count, VOCABULARY, generator=generator, requires_grad=not prefix)
        found[f"{prefix}logits"] = logits_NV
        found[f"{prefix}logps"] = logits_NV.log_softmax(1).gather(1, found["targets"][:, None]).squeeze(1)
        found[f"{prefix}hidden"] = torch.randn(count, HIDDEN, generator=generator, requires_grad=not prefix)
    return found
