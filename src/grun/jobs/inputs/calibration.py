"""Normal prompts that thresholds are calibrated on, and what is to be promised."""

from __future__ import annotations

__all__ = ["promised", "prompts_of", "unseen"]

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from grun.core.config.jobs import UnlearnConfig
from grun.core.config.requests import CalibrateConfig
from grun.core.config.schema import from_mapping
from grun.core.errors import UserError
from grun.core.python_objects import is_pipe
from grun.core.records import Example
from grun.core.storage.fingerprints import fingerprint
from grun.data.examples import read_examples
from grun.jobs.inputs.unlearning import load_unlearning_rows
from grun.models.gates.guarantee import Guarantee

logger = logging.getLogger("grun")


def promised(config: CalibrateConfig) -> tuple[Guarantee, list[Example]]:
    """What is to be promised, and the normal prompts for it.

    Raises:
        UserError: for unreadable prompts, or too few.
    """
    if not config.normal:
        raise UserError("--normal is missing: give a file of normal prompts that unlearning has not seen.")
    guarantee = Guarantee(config.alpha, config.delta)
    known: dict[str, str] = {}
    normal: list[Example] = []
    for source in config.normal:
        rows = prompts_of([source], config)
        if (content := fingerprint({"": rows})) in known:
            raise UserError(f"--normal '{source}' holds the same rows as '{known[content]}'; give every prompt once.")
        known[content] = source
        normal += rows
    _check_enough(normal, guarantee)
    return guarantee, normal


def _check_enough(normal: Sequence[Example], guarantee: Guarantee, left: str = "") -> None:
    if len(normal) < guarantee.prompts_needed:
        raise UserError(
            f"--normal has {len(normal)} prompts{left}, too few for --alpha {guarantee.alpha:g} with --delta "
            f"{guarantee.delta:g}: {guarantee.prompts_needed} are needed."
        )


def unseen(normal: Sequence[Example], runs: Mapping[str, Mapping[str, Any]], guarantee: Guarantee) -> list[Example]:
    """The normal prompts that are no retain rows or neighbours of an adapter: gates were made to stay shut for those.

    A prompt that is a forget row stays: traffic may hold it, and it makes the promise no easier.

    Args:
        normal: the prompts.
        runs: settings of the runs that learnt the adapters, by the name of the adapter.
        guarantee: what is to be promised.

    Raises:
        UserError: if too few are left.
    """
    learnt: set[Any] = set()
    unknown: list[str] = []
    for name, settings in runs.items():
        try:
            learnt_with = from_mapping(UnlearnConfig, settings, name)
            if any(map(is_pipe, (*learnt_with.forget, *learnt_with.retain, *learnt_with.neighbours))):
                raise UserError("what came through a pipe is gone, and another pipe may have its name now")
            sides = load_unlearning_rows(learnt_with)
        except UserError:
            unknown.append(name)
            continue
        learnt |= {(row.turns, row.prompt) for row in (*sides.retain, *sides.validation, *sides.neighbours)}
    if unknown:
        logger.warning(
            "The retain rows of %s cannot be read here: make sure that --normal holds none of them.",
            ", ".join(unknown),
        )
    left = [row for row in normal if (row.turns, row.prompt) not in learnt]
    if len(left) < len(normal):
        logger.warning(
            "%d of %d normal prompts are left out: they are retain rows of a gate.",
            len(normal) - len(left),
            len(normal),
        )
        _check_enough(left, guarantee, " that are no retain rows of a gate")
    return left


def prompts_of(sources: Sequence[str], config: CalibrateConfig) -> list[Example]:
    """Prompts in files or hub data sets; answers are not looked at."""
    return [row for source in sources for row in read_examples(source, columns=config.columns, need_answers=False)]
