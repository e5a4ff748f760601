"""What attacks on the weights get, and what they give: a model, changed in some way, and what to ask it then.

Such an attack is a generator `(AttackMaterial, Opened, *, settings) -> Iterator[Trial]`. The model is measured while the
generator waits, and the attack undoes its change when it goes on or is closed. An attack of `recognition` is a function with
the same arguments, which gives numbers for the forgotten rows and then the unknown ones. Beside what every attack registers:

    on_request   True: it takes long or needs much memory, and is only done when it is named
    references   labels of other subjects that undergo the same, for comparison
    asks         labels of other subjects that are asked the same prompts as they are
    uses         `unrelated`: it needs those rows of the material
    note         a sentence below the table
"""

from __future__ import annotations

__all__ = ["NotPossible", "Opened", "Trial", "as_asked"]

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from grun.evaluation.attacks import AttackMaterial, Probe
from grun.evaluation.attacks.asking import asked
from grun.models.row_encoder import RowEncoder


class NotPossible(Exception):
    """The attack cannot be done with this model; the message says why."""


@dataclass(frozen=True)
class Opened:
    """A model whose weights the attacker holds.

    Attributes:
        model: in evaluation mode, with its adapter if it has one.
        encoder: writes rows for it.
        adapters: False where the model is attacked without its adapter.
        has_adapter: the model after unlearning has an adapter, whether this is that model or one to compare with.
        steps: of a search for an input.
        requantized: the same model with its base weights quantised to `8bit` or `4bit`, as a context; raises `NotPossible`.
    """

    model: nn.Module
    encoder: RowEncoder
    adapters: bool
    has_adapter: bool
    steps: int
    requantized: Callable[[str], AbstractContextManager[nn.Module]]


@dataclass(frozen=True)
class Trial:
    """What to ask the model as an attack has left it.

    Attributes:
        probes: all of one variant.
        model: the changed model; None for the opened one.
        adapters: False leaves its adapter out.
    """

    probes: tuple[Probe, ...]
    model: nn.Module | None = None
    adapters: bool = True


def as_asked(material: AttackMaterial, rows: Iterable[int], variant: str) -> tuple[Probe, ...]:
    """Rows to forget, by their numbers, asked as they are."""
    return tuple(Probe(asked(material.forget[i]), i, variant) for i in rows)
