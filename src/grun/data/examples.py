"""Rows from files and hub datasets: JSON lines, CSV, Parquet, or whatever `datasets` can load.

Columns with the usual names are recognised; others are given as `field=column`. The forms are:

    question/answer, prompt/completion (or response), instruction [+ input]/output
    messages    a conversation: the last assistant message is the answer, the user message before it the prompt
    text        running text: the first quarter of the words (at least 1, at most 64) is the prompt, the rest the
                answer

Optional columns are `paraphrased_question(s)`, `paraphrased_answer`, `perturbed_answer(s)`, `alternative_answer(s)`, and
the person or thing that a row is about as `subject`, `author` or `entity`.

Rows are numbered as an editor or spreadsheet shows them: the line of a JSON-lines file, the row of a CSV file with its
header as row 1, else counted from 1.
"""

from __future__ import annotations

__all__ = ["check_disjoint", "checked_text", "overlap", "read_examples", "split_text"]

import re
from collections.abc import Mapping, Sequence
from typing import Any

from grun.core.errors import UserError, nearest
from grun.core.python_objects import python_object
from grun.core.records import Example
from grun.data.tables import Row, read_rows

PROMPT_SHARE = 0.25
MOST_PROMPT_WORDS = 64
FORMS: tuple[tuple[str, str], ...] = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("prompt", "answer"),
)
PROMPTS = ("question", "prompt", "instruction")
OPTIONAL: dict[str, tuple[str, ...]] = {
    "subject": ("subject", "author", "entity"),
    "paraphrased_prompts": (
        "paraphrased_prompts",
        "paraphrased_prompt",
        "paraphrased_questions",
        "paraphrased_question",
    ),
    "paraphrased_answer": ("paraphrased_answer",),
    "perturbed_answers": ("perturbed_answers", "perturbed_answer"),
    "alternative_answers": ("alternative_answers", "alternative_answer", "alternatives", "alternate"),
}
FIELDS = ("prompt", "answer", "input", "messages", "text", *OPTIONAL)
MOST_NAMED = 20  # columns in a message
EXPECTED = "question/answer, prompt/completion, instruction/output, messages or text"


def read_examples(source: str, *, columns: Mapping[str, str] | None = None, need_answers: bool = True) -> list[Example]:
    """Read all rows of `source`.

    Args:
        source: a `.jsonl`, `.json` (lines or one array), `.csv`, `.tsv` or `.parquet` file; or a hub id or the folder
            of a local copy of one, with an optional configuration and split: `name`, `name:config`,
            `name:config:split` (`name::split` for a split alone); or a name that stands for rows in Python.
        columns: `field -> column` where the names cannot be guessed. Fields: prompt, answer, input, messages, text,
            subject, paraphrased_prompts, paraphrased_answer, perturbed_answers, alternative_answers.
        need_answers: False where only prompts are looked at: a column of them is enough, and `-` stands for the answers.

    Raises:
        UserError: one line that names the file, the row and what is wrong with it.
    """
    given = python_object(source)
    if given and isinstance(given[0], Example):
        return list(given)
    rows = read_rows(source)
    if not rows:
        raise UserError(f"{source} is empty: it holds no rows; expected one {EXPECTED} row per line.")
    names = _columns(rows[0], dict(columns or {}), source, need_answers)
    return [_example(row, names) for row in rows]


def split_text(text: str) -> tuple[str, str]:
    """Cut running text into a prompt (a quarter of the words, 1 to 64) and the rest.

    A single space at the cut is left out (it is put back where the two are joined); other white space ends the prompt.

    Raises:
        ValueError: if the text has fewer than two words.
    """
    text = text.strip()
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    if len(starts) < 2:
        raise ValueError(f"the text has {len(starts)} word{'s' * (len(starts) != 1)}, expected at least 2")
    cut = starts[min(max(1, int(len(starts) * PROMPT_SHARE)), MOST_PROMPT_WORDS)]
    prompt = text[:cut]
    return prompt[:-1] if re.search(r"\S $", prompt) else prompt, text[cut:]


def overlap(forget: Sequence[Example], retain: Sequence[Example]) -> int:
    """Number of forget rows whose (prompt, answer) is also a retain row."""
    known = {(row.prompt, row.answer) for row in retain}
    return sum((row.prompt, row.answer) in known for row in forget)


def check_disjoint(forget: Sequence[Example], retain: Sequence[Example]) -> int:
    """Number of forget rows that are retain rows as well.

    Raises:
        UserError: if nothing would be left to keep, because every retain row is also to be forgotten.
    """
    left = {(row.prompt, row.answer) for row in retain} - {(row.prompt, row.answer) for row in forget}
    if retain and not left:
        raise UserError(
            f"--forget and --retain are the same: all {len(retain)} retain rows are also to be forgotten; "
            "give --retain rows that the model should keep."
        )
    return overlap(forget, retain)


def _columns(first: Row, given: dict[str, str], source: str, need_answers: bool) -> dict[str, str]:
    """The column of each field, from those given and, for the others, from the first row's columns."""
    for field, column in given.items():
        if field not in FIELDS:
            raise UserError(f"--columns: unknown field '{field}'.{nearest(field, FIELDS)} Fields: {', '.join(FIELDS)}.")
        if column not in first.values:
            hint = nearest(column, first.values)
            raise UserError(f"{source} has no column '{column}' (--columns {field}={column}).{hint} {_found(first)}")
    names = dict(given)
    if not names.keys() & {"messages", "text"}:
        names |= _guess(first, given, source, need_answers)
    for field, candidates in OPTIONAL.items():
        present = [name for name in candidates if name in first.values]
        if field not in names and present:
            names[field] = present[0]
    return names


def _guess(first: Row, given: dict[str, str], source: str, need_answers: bool) -> dict[str, str]:
    for prompt, answer in FORMS:
        form = {"prompt": given.get("prompt", prompt), "answer": given.get("answer", answer)}
        if form["prompt"] in first.values and form["answer"] in first.values:
            if prompt == "instruction" and "input" in first.values:
                form.setdefault("input", "input")
            return form | given
    for name in ("messages", "text"):
        if name in first.values and not given.keys() & {"prompt", "answer"}:
            return {name: name}
    alone = [column for column in (given.get("prompt"), *PROMPTS) if column in first.values]
    if alone and not need_answers:
        return {"prompt": str(alone[0])}
    missing = [name for name, there in (("prompt", bool(alone)), ("answer", "answer" in given)) if not there]
    lacks = f"a column for the {missing[0]}" if len(missing) == 1 else "columns for prompt and answer"
    columns = " ".join(f"--columns {name}=..." for name in missing)
    raise UserError(f"{source} lacks {lacks}. {_found(first)} Expected {EXPECTED}, or {columns}")


def _found(first: Row) -> str:
    names = [f"{name!s:.40}" for name in list(first.values)[:MOST_NAMED]]
    more = f" and {len(first.values) - len(names)} more" if len(first.values) > len(names) else ""
    return f"Columns found: {', '.join(names) or 'none'}{more}."


def _example(row: Row, names: Mapping[str, str]) -> Example:
    optional: dict[str, Any] = {
        "subject": _subject(row, names),
        "paraphrased_prompts": _texts(row, names, "paraphrased_prompts"),
        "paraphrased_answer": next(iter(_texts(row, names, "paraphrased_answer")), None),
        "perturbed_answers": _texts(row, names, "perturbed_answers"),
        "alternative_answers": _texts(row, names, "alternative_answers"),
        "source": row.where,
    }
    if "messages" in names:
        prompt, answer, turns = _conversation(row, names["messages"])
        return Example(prompt, answer, turns=turns, **optional)
    if "text" in names:
        try:
            prompt, answer = split_text(_text(row, names["text"]))
        except ValueError as error:
            raise UserError(f"{row.where}: {error}: its beginning is the prompt, the rest the answer.") from error
        return Example(prompt, answer, raw_text=True, **optional)
    prompt = _text(row, names["prompt"])
    if _cell(row, names, "input"):
        prompt = f"{prompt}\n{_text(row, names['input'])}"
    return Example(prompt, _text(row, names["answer"]) if "answer" in names else "-", **optional)


def _cell(row: Row, names: Mapping[str, str], field: str) -> Any:
    """The cell of an optional field; None where it has no column (a column without a name is none)."""
    return row.values.get(names[field]) if field in names else None


def _text(row: Row, column: str) -> str:
    """A cell that must hold text."""
    if column not in row.values:
        raise UserError(f"{row.where}: column '{column}' is missing. {_found(row)} Give every row the same columns.")
    return checked_text(row.values[column], row, f"'{column}'")


def checked_text(value: Any, row: Row, what: str) -> str:
    """A text from a cell, without white space around it.

    Args:
        value: found in the cell.
        row: for messages.
        what: stands for the cell in messages.

    Raises:
        UserError: if it is no text, is empty, or holds half a character.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(f"{row.where}: {what} is empty; expected text. Fill it in or remove the row.")
    if not isinstance(value, str):
        raise UserError(f"{row.where}: {what} is {_short(value)} ({type(value).__name__}), expected text in quotes.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        broken = f"half a character (\\u{ord(value[error.start]):x})"
        raise UserError(f"{row.where}: {what} holds {broken}, which is no text; repair or remove the row.") from error
    return value.strip()


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or deep lists
        return "something very long"
    return text if len(text) <= 40 else text[:37] + "..."


def _texts(row: Row, names: Mapping[str, str], field: str) -> tuple[str, ...]:
    """An optional cell with one text or a list of texts; nothing if it is absent or null."""
    value = _cell(row, names, field)
    if value is None or (isinstance(value, str) and value == ""):
        return ()
    items = value if isinstance(value, (list, tuple)) else [value]
    return tuple(checked_text(item, row, f"'{names[field]}'") for item in items)


def _subject(row: Row, names: Mapping[str, str]) -> str | None:
    value = _cell(row, names, "subject")
    if isinstance(value, int) and not isinstance(value, bool):  # a person's number
        return str(value)
    return (
        None
        if value is None or (isinstance(value, str) and value == "")
        else checked_text(value, row, f"'{names['subject']}'")
    )


def _conversation(row: Row, column: str) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """Prompt, answer and earlier turns of a list of `{"role": ..., "content": ...}` messages."""
    messages = row.values.get(column)
    if not isinstance(messages, (list, tuple)) or not all(isinstance(m, Mapping) for m in messages):
        raise UserError(f"{row.where}: '{column}' is {_short(messages)}, expected a list of role and content pairs.")
    roles = [checked_text(m.get("role"), row, f"role of message {i}") for i, m in enumerate(messages, 1)]
    if roles[-2:] != ["user", "assistant"]:
        found = ", ".join(roles[:MOST_NAMED]) or "no message"
        raise UserError(f"{row.where}: '{column}' holds {found}; expected user and assistant messages at its end.")
    turns = []
    for number, (role, message) in enumerate(zip(roles, messages, strict=True), 1):
        content = message.get("content")
        if role != "system" or content:  # many data sets have empty system messages
            turns.append((role, checked_text(content, row, f"content of message {number} ({role})")))
    return turns[-2][1], turns[-1][1], tuple(turns[:-2])
