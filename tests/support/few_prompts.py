"""Runs the command line as if few prompts shipped with the package, and with a head that is learnt in few steps."""

from __future__ import annotations

__all__ = ["RARE", "STEPS", "few_prompts", "ship_few"]

import sys

from grun.cli.main import main
from grun.data.shipped_prompts import ShippedPrompt
from grun.models.gates import all_gates
from grun.models.gates.topics import background
from grun.models.gates.topics import head as topic_head

ORDINARY, STEPS = 24, 20
THINGS = ("rain", "harbour", "novel", "bread", "winter", "music", "island", "garden", "engine")
RARE = "quidditch"  # a topic of two texts, one of which names it
FORMS = ("What is the {0}?", "Tell me more about the {0} in the north.", "The {0}, in two sentences", "{0}: a list")


def few_prompts() -> tuple[ShippedPrompt, ...]:
    """Invented ordinary prompts, and some on each of several topics."""
    ordinary = [ShippedPrompt(f"What is {i} plus {i + 3}, and why is it so?") for i in range(ORDINARY)]
    topics = [ShippedPrompt(form.format(thing), thing) for thing in THINGS for form in FORMS]
    return (*ordinary, *topics, ShippedPrompt("Who plays quidditch?", RARE), ShippedPrompt("Brooms and hoops", RARE))


def ship_few() -> None:
    """Replace the shipped prompts, for the rest of this process."""
    for module in (all_gates, background):
        vars(module)["shipped_prompts"] = few_prompts
    topic_head.STEPS = STEPS


if __name__ == "__main__":
    ship_few()
    sys.exit(main(sys.argv[1:]))
