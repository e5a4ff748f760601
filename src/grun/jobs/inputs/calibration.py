"""Prompts that thresholds are calibrated on, and what is to be promised."""

from __future__ import annotations

__all__ = ["CalibrationPrompts", "calibration_prompts", "unseen"]

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grun.core.config.jobs import UnlearnConfig
from grun.core.config.requests import CalibrateConfig
from grun.core.config.schema import from_mapping
from grun.core.errors import UserError
from grun.core.python_objects import is_pipe
from grun.core.records import Example
from grun.core.storage.fingerprints import fingerprint
from grun.data.examples import read_examples
from grun.jobs.inputs.unlearning import UnlearningRows, load_unlearning_rows
from grun.models.gates.guarantee import Guarantee
from grun.models.gates.misses import Paraphrases

logger = logging.getLogger("grun")


@dataclass(frozen=True)
class CalibrationPrompts:
    """The prompts of a calibration, and what is to be promised.

    Attributes:
        guarantee: for normal prompts.
        normal: normal prompts.
        forget: prompts to open for; may be none.
        paraphrases: prompts to forget in other words; None if none were given.
    """

    guarantee: Guarantee
    normal: list[Example]
    forget: list[Example]
    paraphrases: Paraphrases | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of all prompts."""
        known: dict[str, Sequence[Example]] = {"normal": self.normal, "forget": self.forget}
        if self.paraphrases is not None:  # earlier versions had none
            known["paraphrases"] = self.paraphrases.prompts
        return fingerprint(known)


def calibration_prompts(config: CalibrateConfig) -> CalibrationPrompts:
    """What is to be promised, and the prompts for it.

    Raises:
        UserError: for unreadable prompts, or too few.
    """
    if not config.normal:
        raise UserError("--normal is missing: give a file of normal prompts that unlearning has not seen.")
    if config.miss_rate is not None and not config.paraphrases:
        raise UserError("--paraphrases is missing: --miss-rate needs a file of prompts to forget in other words.")
    guarantee = Guarantee(config.alpha, config.delta)
    normal = _each_once("--normal", config.normal, config)
    _check_enough(normal, guarantee)
    paraphrases = None
    if config.paraphrases:
        paraphrases = Paraphrases(_each_once("--paraphrases", config.paraphrases, config), config.miss_rate)
        _check_enough_paraphrases(paraphrases, guarantee)
    return CalibrationPrompts(guarantee, normal, _prompts_of(config.forget, config), paraphrases)


def _each_once(flag: str, sources: Sequence[str], config: CalibrateConfig) -> list[Example]:
    """The prompts of files, none of which may be there twice."""
    known: dict[str, str] = {}
    found: list[Example] = []
    for source in sources:
        rows = _prompts_of([source], config)
        if (content := fingerprint({"": rows})) in known:
            raise UserError(f"{flag} '{source}' holds the same rows as '{known[content]}'; give every prompt once.")
        known[content] = source
        found += rows
    return found


def _check_enough(normal: Sequence[Example], guarantee: Guarantee, left: str = "") -> None:
    if len(normal) < guarantee.prompts_needed:
        raise UserError(
            f"--normal has {len(normal)} prompts{left}, too few for --alpha {guarantee.alpha:g} with --delta "
            f"{guarantee.delta:g}: {guarantee.prompts_needed} are needed."
        )


def _check_enough_paraphrases(paraphrases: Paraphrases, guarantee: Guarantee, left: str = "") -> None:
    """Refuse fewer prompts than a bound needs: one to measure, and with a rate that they are to keep enough in each half."""
    found, misses = len(paraphrases.prompts), paraphrases.promised(guarantee.delta)
    if misses is None and not found:
        raise UserError(f"--paraphrases has 0 prompts{left}; at least 1 is needed.")
    if misses is not None and found < (needed := 2 * misses.prompts_needed):
        raise UserError(
            f"--paraphrases has {found} prompts{left}, too few for --miss-rate {misses.alpha:g} with --delta "
            f"{guarantee.delta:g}: {needed} are needed, half of them to set thresholds and half to measure them."
        )


def unseen(
    prompts: CalibrationPrompts, runs: Mapping[str, Mapping[str, Any]], *, placed_by_forget: bool = False
) -> CalibrationPrompts:
    """The prompts without those that gates or thresholds were made for.

    Normal prompts may be no retain rows or neighbours of an adapter: gates were made to stay shut for those. A prompt that is
    a forget row stays: traffic may hold it, and it makes the promise no easier. Paraphrases may be no rows at all that a gate
    was learnt with, whatever their case and spaces, and no prompts that thresholds are set on, and each counts once.

    Args:
        prompts: the prompts.
        runs: settings of the runs that learnt the adapters, by the name of the adapter.
        placed_by_forget: prompts to forget decide on thresholds.

    Raises:
        UserError: if too few are left.
    """
    sides = _learnt_with(runs, ["--normal", *(["--paraphrases"] if prompts.paraphrases else [])])
    kept = {_key(row) for side in sides for row in (*side.retain, *side.validation, *side.neighbours)}
    normal = [row for row in prompts.normal if _key(row) not in kept]
    if len(normal) < len(prompts.normal):
        logger.warning(
            "%d of %d normal prompts are left out: they are retain rows of a gate.",
            len(prompts.normal) - len(normal),
            len(prompts.normal),
        )
        _check_enough(normal, prompts.guarantee, " that are no retain rows of a gate")
    left = replace(prompts, normal=normal)
    if prompts.paraphrases is None:
        return left
    learnt = [row for side in sides for part in side.parts.values() for row in part]
    placing = prompts.forget if placed_by_forget else []
    return replace(left, paraphrases=_in_other_words(prompts.paraphrases, learnt, [*prompts.normal, *placing], prompts))


def _learnt_with(runs: Mapping[str, Mapping[str, Any]], flags: Sequence[str]) -> list[UnlearningRows]:
    """The rows that adapters were learnt with, as far as they can still be read; of others the user is told."""
    found, unknown = list[UnlearningRows](), list[str]()
    for name, settings in runs.items():
        try:
            learnt_with = from_mapping(UnlearnConfig, settings, name)
            if any(map(is_pipe, (*learnt_with.forget, *learnt_with.retain, *learnt_with.neighbours))):
                raise UserError("what came through a pipe is gone, and another pipe may have its name now")
            found.append(load_unlearning_rows(learnt_with))
        except UserError:
            unknown.append(name)
    for flag, kind in (("--normal", "retain rows"), ("--paraphrases", "rows")):
        if unknown and flag in flags:
            logger.warning(
                "The %s of %s cannot be read here: make sure that %s holds none of them.",
                kind,
                ", ".join(unknown),
                flag,
            )
    return found


def _in_other_words(
    given: Paraphrases, learnt: Collection[Example], set_on: Collection[Example], prompts: CalibrationPrompts
) -> Paraphrases:
    """The paraphrases without those that gates or thresholds were made for, each once."""
    why = {_key_of_words(row): "a prompt that thresholds are set on" for row in set_on}
    why |= {_key_of_words(row): "a row that a gate was learnt with" for row in learnt}
    kept, dropped = list[Example](), Counter[str]()
    for row in given.prompts:
        if reason := why.get(key := _key_of_words(row)):
            dropped[reason] += 1
        else:
            why[key] = "given before"
            kept.append(row)
    left = replace(given, prompts=kept)
    if dropped:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in dropped.items())
        logger.warning("%d of %d paraphrases are left out: %s.", dropped.total(), len(given.prompts), reasons)
        _check_enough_paraphrases(left, prompts.guarantee, " that neither a gate nor a threshold is made from")
    return left


def _key(row: Example) -> Any:
    return row.turns, row.prompt


def _key_of_words(row: Example) -> Any:
    """What makes a prompt another one: case and spaces do not."""
    return tuple(" ".join(text.casefold().split()) for text in (*(content for _, content in row.turns), row.prompt))


def _prompts_of(sources: Sequence[str], config: CalibrateConfig) -> list[Example]:
    """Prompts in files or hub data sets; answers are not looked at."""
    return [row for source in sources for row in read_examples(source, columns=config.columns, need_answers=False)]
