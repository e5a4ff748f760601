"""Alternative answers that the model makes up, kept in the directory of the run."""

from __future__ import annotations

__all__ = ["keep_alternatives", "with_alternatives"]

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.storage.run_directory import RunDirectory
from grun.models.row_encoder import RowEncoder
from grun.training.made_up_answers import made_up_alternatives

ALTERNATIVES = "alternatives.json"


def with_alternatives(
    config: UnlearnConfig, rows: RowEncoder, model: nn.Module, forget: Sequence[Example], run: RunDirectory
) -> list[Example]:
    """Forget rows with alternatives that the model made up, now or before this run was interrupted.

    Raises:
        UserError: if the file with those of before is damaged.
    """
    kept = run.read_json(ALTERNATIVES)
    if (run.path / ALTERNATIVES).exists() and not _are_answers(kept, len(forget)):
        raise UserError(
            f"'{run.path / ALTERNATIVES}' is damaged: expected a list of answers for each of {len(forget)} rows; restore it "
            "from a backup, or delete the directory of the run."
        )
    if kept is not None:
        return [dataclasses.replace(row, alternative_answers=tuple(one)) for row, one in zip(forget, kept, strict=True)]
    return made_up_alternatives(
        model,
        rows.tokenizer,
        forget,
        rows.template,
        seed=config.seed,
        batch_size=config.batch_size,
        max_length=rows.max_length,
    )


def _are_answers(kept: Any, rows: int) -> bool:
    if not isinstance(kept, list) or len(kept) != rows:
        return False
    return all(isinstance(one, list) and one and all(isinstance(text, str) for text in one) for one in kept)


def keep_alternatives(run: RunDirectory, forget: Sequence[Example]) -> None:
    """Write down what the model made up, to be read and for the next start."""
    if run.read_json(ALTERNATIVES) is None:
        run.write_json(ALTERNATIVES, [row.alternative_answers for row in forget])
