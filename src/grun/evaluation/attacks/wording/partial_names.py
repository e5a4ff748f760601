"""`partial_names`: a part of the name."""

from __future__ import annotations

__all__ = ["partial_names"]

import random

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked_otherwise, of_name


@attacks.register("partial_names", measures="leak", source="arXiv 2402.16835", access="prompt", needs=("names",))
def partial_names(material: AttackMaterial) -> list[Probe]:
    """Ask with the surname alone, the first name alone, or an initial and the surname (a form of probing by fewer words).

    Names of one word have no parts.
    """
    return asked_otherwise(material, of_name(_forms))


def _forms(name: str, draw: random.Random) -> dict[str, str]:
    first, *rest = name.split()
    if not rest:
        return {}
    return {"surname": rest[-1], "first name": first, "initial": f"{first[0]}. {rest[-1]}"}
