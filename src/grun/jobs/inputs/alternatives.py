"""Alternative answers that come from the model, kept in the directory of the run."""

from __future__ import annotations

__all__ = ["FROM_MODEL", "keep_alternatives", "with_alternatives"]

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.storage.run_directory import RunDirectory
from grun.data.refusals import Refusals
from grun.data.shipped_prompts import drawn_rows, ordinary_rows
from grun.models.row_encoder import RowEncoder
from grun.training.answers.made_up import made_up_alternatives
from grun.training.answers.untaught import untaught_answers

ALTERNATIVES = "alternatives.json"
FROM_MODEL = ("generate", "unknown")  # values of `alternatives` for which the model is asked


def with_alternatives(
    config: UnlearnConfig,
    rows: RowEncoder,
    model: nn.Module,
    parts: Mapping[str, Sequence[Example]],
    run: RunDirectory,
) -> list[Example]:
    """Forget rows with alternatives that the model gave, now or before this run was interrupted.

    Args:
        config: of the job.
        rows: encoder of prompts.
        model: the model before unlearning.
        parts: rows by kind.
        run: directory that keeps them.

    Raises:
        UserError: if the file with those of before is damaged.
    """
    forget = parts["forget"]
    kept = run.read_json(ALTERNATIVES)
    if (run.path / ALTERNATIVES).exists() and not _are_answers(kept, len(forget)):
        raise UserError(
            f"'{run.path / ALTERNATIVES}' is damaged: expected a list of answers for each of {len(forget)} rows; restore it "
            "from a backup, or delete the directory of the run."
        )
    if kept is not None:
        return [dataclasses.replace(row, alternative_answers=tuple(one)) for row, one in zip(forget, kept, strict=True)]
    shared: dict[str, Any] = dict(seed=config.seed, batch_size=config.batch_size, max_length=rows.max_length)
    if config.alternatives == "generate":
        return made_up_alternatives(model, rows.tokenizer, forget, rows.template, **shared)
    normal = [*parts["retain"], *parts["validation"], *drawn_rows(len(ordinary_rows()), config.seed)]
    return untaught_answers(
        model,
        rows.tokenizer,
        forget,
        rows.template,
        normal=[text for row in normal for text in (row.prompt, row.answer) if text],
        refusal=Refusals([row.prompt for row in forget], config.seed).to,
        **shared,
    )


def _are_answers(kept: Any, rows: int) -> bool:
    if not isinstance(kept, list) or len(kept) != rows:
        return False
    return all(isinstance(one, list) and one and all(isinstance(text, str) for text in one) for one in kept)


def keep_alternatives(run: RunDirectory, forget: Sequence[Example]) -> None:
    """Write down what the model made up, to be read and for the next start."""
    if run.read_json(ALTERNATIVES) is None:
        run.write_json(ALTERNATIVES, [row.alternative_answers for row in forget])
