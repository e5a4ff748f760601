"""The adapter of the model left out."""

from __future__ import annotations

__all__ = ["adapter_removed"]

from collections.abc import Iterator

from grun.evaluation.attacks import AttackMaterial, attacks
from grun.evaluation.attacks.opened import NotPossible, Opened, Trial, as_asked


@attacks.register(
    "adapter_removed",
    source="arXiv 2502.17823",
    measures="leak",
    access="weights",
    needs=(),
    note="adapter_removed: whoever holds the base weights leaves the adapter out and has everything back. An adapter on "
    "frozen weights is access control, not erasure.",
)
def adapter_removed(material: AttackMaterial, opened: Opened) -> Iterator[Trial]:
    """Ask the model without its adapter.

    Every method on frozen weights gives everything back: an adapter controls the access to what the weights know and erases
    nothing. The figures say how much that is.
    """
    if not opened.has_adapter:
        raise NotPossible("the model has no adapter that could be left out: its weights themselves were changed")
    yield Trial(as_asked(material, range(len(material.forget)), ""), adapters=False)
