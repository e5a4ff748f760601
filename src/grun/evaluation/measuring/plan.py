"""The plan of a measurement: which splits are measured, in which order, and which quantities of each."""

from __future__ import annotations

__all__ = ["HOLDOUT", "PlannedSplit", "plan_splits"]

from collections.abc import Sequence
from dataclasses import dataclass, replace

from grun.core.errors import UserError
from grun.core.records import Example
from grun.data.paraphrases import PARAPHRASED, Splits, with_paraphrases
from grun.evaluation.measuring.settings import MeasureSettings

HOLDOUT = "holdout"
NOT_NEEDED_OF_HOLDOUT = frozenset(
    {"generated", "fluency", "paraphrased", "perturbed"}
)  # attacks read true answers only
NOT_NEEDED_OF_NORMAL = frozenset({"gradient"})  # attacks compare the forget split with the hold-out rows


@dataclass(frozen=True)
class PlannedSplit:
    """A split, and the settings with which it is measured.

    Attributes:
        name: name of the split.
        examples: its rows.
        settings: settings of the measurement, with the needs and the answer length of this split.
    """

    name: str
    examples: tuple[Example, ...]
    settings: MeasureSettings

    @property
    def asked(self) -> str:
        """Text that is the same whenever the same is measured; evidence is stored under it."""
        return f"{sorted(self.settings.needs)}, {self.settings.max_new_tokens} tokens"


def plan_splits(
    splits: Splits, settings: MeasureSettings, forget_split: str | None, holdout: Sequence[Example]
) -> list[PlannedSplit]:
    """Every split of `with_paraphrases(splits)`, then the hold-out rows if a metric compares with them.

    Raises:
        UserError: for an empty split, or a `forget_split` that is not among them.
    """
    rows = with_paraphrases(splits)
    if forget_split is not None and forget_split not in rows:
        raise UserError(f"the forget split '{forget_split}' is not among the splits {', '.join(rows)}.")
    if holdout and HOLDOUT in settings.needs and forget_split is not None:
        rows[HOLDOUT] = tuple(holdout)
    plan = []
    for name, own in rows.items():
        needs = _needs_of(name, settings.needs, forget_split)
        limit = settings.answer_tokens.get(name.removesuffix(PARAPHRASED), settings.max_new_tokens)
        plan.append(PlannedSplit(name, own, replace(settings, needs=needs, max_new_tokens=limit)))
    return plan


def _needs_of(split: str, needs: frozenset[str], forget_split: str | None) -> frozenset[str]:
    if split == HOLDOUT:
        return needs - NOT_NEEDED_OF_HOLDOUT
    return needs if split == forget_split else needs - NOT_NEEDED_OF_NORMAL
