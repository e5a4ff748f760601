"""Base weights of fewer bits under the adapter."""

from __future__ import annotations

__all__ = ["quantized"]

from collections.abc import Iterator

from grun.evaluation.attacks import AttackMaterial, attacks
from grun.evaluation.attacks.opened import NotPossible, Opened, Trial, as_asked


@attacks.register(
    "quantized",
    source="arXiv 2410.16454",
    measures="leak",
    access="weights",
    needs=(),
    on_request=True,
    references=("before",),
)
def quantized(
    material: AttackMaterial, opened: Opened, *, widths: tuple[str, ...] = ("8bit", "4bit")
) -> Iterator[Trial]:
    """Quantise the base weights to 8 and to 4 bits, and ask (Zhang et al.).

    Small changes that unlearning made to weights can vanish in the rounding. An adapter stays as it is. Needs bitsandbytes,
    and memory for a second model.
    """
    reasons = []
    for width in widths:
        try:
            with opened.requantized(width) as model:
                yield Trial(as_asked(material, range(len(material.forget)), width), model, opened.adapters)
        except NotPossible as error:
            reasons.append(str(error))
    if len(reasons) == len(widths):
        raise NotPossible(reasons[0])
