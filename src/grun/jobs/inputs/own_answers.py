"""The base model's own answers, for rows that come without any."""

from __future__ import annotations

__all__ = ["LONGEST", "with_own_answers", "worth_answering"]

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace

from grun.core.distributed import is_main
from grun.core.process.environment import cache_directory
from grun.core.process.progress import Progress
from grun.core.records import Example
from grun.core.storage.atomic_files import read_json, write_json
from grun.core.storage.cache import keep
from grun.models.encoding.encode import encode_prompt
from grun.models.forward import adapters_off
from grun.models.generation import greedy
from grun.models.loading.loaded import LoadedModel
from grun.training.validation import spread

LONGEST = 32  # tokens of an answer
SHUT = 32  # normal rows with shut gates that training sees: no edit changes them, but losses are averages over rows


def with_own_answers(base: LoadedModel, rows: Sequence[Example], limit: int = LONGEST) -> list[Example]:
    """The rows, those without an answer with the base model's greedy one; it is kept in the user's cache.

    Args:
        base: the model; its adapters, if it has any, are off.
        rows: rows with or without answers.
        limit: longest answer, in tokens.

    Raises:
        UserError: if a prompt is too long for the model.
    """
    missing = [i for i, row in enumerate(rows) if not row.answer]
    if not missing:
        return list(rows)
    prompts = [encode_prompt(rows[i], base.tokenizer, base.template, base.max_length) for i in missing]
    content = base.content
    key = json.dumps([content, asdict(base.template), limit, prompts])
    file = cache_directory() / "own_answers" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    answers = None if content is None else read_json(file)
    if not isinstance(answers, list) or [type(one) for one in answers] != [str] * len(missing):
        with (
            Progress("answers of the model", len(missing), "row", shown=is_main()) as progress,
            adapters_off(base.model),
        ):
            size = 4 * base.encoder.batch_size
            answers = greedy(base.model, base.tokenizer, prompts, limit, size, progress.update)
        if content is not None and is_main():
            keep(file, lambda temporary: write_json(temporary, answers))
    found = list(rows)
    for i, answer in zip(missing, answers, strict=True):
        found[i] = replace(rows[i], answer=answer)
    return found


def worth_answering(rows: Sequence[Example], open_rows: Collection[int]) -> list[Example]:
    """Normal rows that training can use: those with an answer or an open gate, and `SHUT` others at equal distances.

    The edits cannot change an answer to a prompt that opens no gate, so that most of these need none.

    Args:
        rows: normal rows.
        open_rows: numbers of those that open a gate.
    """
    used = {*open_rows, *(i for i, row in enumerate(rows) if row.answer)}
    others = [i for i in range(len(rows)) if i not in used]
    used.update(spread(others, SHUT))
    return [rows[i] for i in sorted(used)]
