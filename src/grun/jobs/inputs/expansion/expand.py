"""`grun expand`: rows about a topic from its name alone, and the topic of an unlearning run."""

from __future__ import annotations

__all__ = ["expand", "topic_rows"]

import dataclasses
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grun.core.config.jobs import ExpandConfig, UnlearnConfig
from grun.core.distributed import gathered, is_main, join_processes
from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.storage.claims import claims_output, keeps
from grun.core.storage.replacing import check_unchanged
from grun.core.storage.run_directory import RunDirectory
from grun.jobs.inputs.expansion.frames import filled
from grun.jobs.inputs.expansion.knowledge import Knowledge, knowledge_of
from grun.jobs.inputs.expansion.names import checked_name, plain
from grun.jobs.inputs.expansion.writing import Writer, described, neighbour_names, paraphrases, questions
from grun.jobs.inputs.own_answers import with_own_answers
from grun.jobs.inputs.topic_files import DESCRIBED, FORGET, NEIGHBOURS, TopicRows, read_topic, write_topic
from grun.models.loading.loaded import LoadedModel, content_if_given, load

logger = logging.getLogger("grun")
QUESTIONS, DESCRIPTIONS, NEIGHBOUR_ROWS = 60, 20, 40  # goals; every question is there in two wordings
NEIGHBOUR_NAMES, MOST_EACH = 10, 8  # names of neighbours, and most questions about one of them
READS = ("topic", "model", "writer", "seed", "dtype", "template")  # settings that the rows depend on
KINDS = ("question", "paraphrase")
PAIRED = ("questions", "paraphrases")
Row = dict[str, str]


@keeps("what is done is kept")
@claims_output
def expand(config: ExpandConfig) -> Path:
    """Write rows about a topic into files that a person can read and correct.

    Returns:
        The directory of the files.

    Raises:
        UserError: for wrong input, or a topic that the model does not know.
    """
    checked_name(config.topic)
    content = "".join(content_if_given(name) for name in (config.model, config.writer) if name)
    run = RunDirectory.open(config.output, config, "expand", config.overwrite, data=content)
    if run.is_complete:
        logger.info("%s is complete already; nothing to do.", run.path)
        return run.path
    check_unchanged(run.path, (FORGET, DESCRIBED, NEIGHBOURS))
    started = time.monotonic()
    found = _expanded(config)
    run.start()
    files = write_topic(found, run.path)
    run.write_json("metrics.json", {name: value for name, value in found.record.items() if name != "settings"})
    run.mark_complete(time.monotonic() - started)
    logger.info("Read and correct %s before you use them.", ", ".join(file.name for file in files))
    return run.path


def topic_rows(config: UnlearnConfig, run: Path | None) -> TopicRows:
    """The rows about the topic of an unlearning job, the same in all processes.

    Args:
        config: of the job.
        run: directory of the run, which may hold the rows from an earlier start; None for none.

    Raises:
        UserError: for wrong input, or a topic that the model does not know.
    """
    names = [f.name for f in dataclasses.fields(ExpandConfig) if f.name not in ("output", "overwrite")]
    settings = ExpandConfig(**{name: getattr(config, name) for name in names} | {"topic": config.topic or ""})
    checked_name(settings.topic)
    kept = None if run is None or config.overwrite else read_topic(run, _settings(settings))
    if kept is not None:
        return kept
    join_processes(config.device)
    found: TopicRows | UserError | None = None
    if is_main():
        try:
            found = _expanded(settings)
        except UserError as error:  # the other processes wait for a result
            found = error
    found = gathered(found)[0]
    if isinstance(found, UserError):
        raise found
    assert found is not None
    return found


def _settings(config: ExpandConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in READS}


def _expanded(config: ExpandConfig) -> TopicRows:
    """Rows about a topic, with the base model's own answers to those that are to be forgotten."""
    name = checked_name(config.topic)
    base = load(config.model, config, template=config.template, batch_size=config.batch_size)
    knowledge = knowledge_of(base, name)
    if not knowledge.is_known and not config.force_topic:
        raise UserError(
            f"--topic is '{name}', but the model seems to know nothing about it ({_said(knowledge)}); check the spelling, "
            "or give --force-topic."
        )
    other = base if config.writer in (None, config.model) else load(str(config.writer), config)
    forget, descriptions, neighbours = _rows(Writer(other, base, name, config.seed))
    files = {FORGET: _answered(base, forget), DESCRIBED: _answered(base, descriptions), NEIGHBOURS: neighbours}
    counts = {
        "questions": _counts(row for row in files[FORGET] if row["kind"] == "question"),
        "paraphrases": _counts(row for row in files[FORGET] if row["kind"] == "paraphrase"),
        "descriptions": _counts(files[DESCRIBED]),
        "neighbours": _counts(neighbours),
    }
    _say(name, counts, len({row["subject"] for row in neighbours}))
    record = {"settings": _settings(config), "rows": counts, "knowledge": dataclasses.asdict(knowledge)}
    return TopicRows(files, record)


def _rows(writer: Writer) -> tuple[list[Row], list[Row], list[Row]]:
    """Questions, descriptions, and questions about neighbours, all without answers."""
    frames = filled(writer.name)
    known = {plain(text) for pair in frames for text in pair}
    forget = [_row(text, kind, "frame") for pair in frames for text, kind in zip(pair, KINDS, strict=True)]
    if not writer.has_room():
        logger.warning("The writer's context is too short for examples to go on from: all rows come from frames.")
        return forget, [], []
    asked = questions(writer, QUESTIONS - len(frames), known)
    reworded = paraphrases(writer, asked, known)
    descriptions = described(writer, DESCRIPTIONS, known)
    names = neighbour_names(writer, NEIGHBOUR_NAMES, [*asked, *reworded, *descriptions])
    forget += [_row(text, kind, "model") for kind, own in zip(KINDS, (asked, reworded), strict=True) for text in own]
    return forget, [_row(text, "description", "model") for text in descriptions], _neighbours(names, writer.seed)


def _row(text: str, kind: str, source: str) -> Row:
    return {"question": text, "kind": kind, "from": source}


def _neighbours(names: Sequence[str], seed: int) -> list[Row]:
    """Frames about each neighbour, of different facets; the model named the neighbours."""
    each = min(MOST_EACH, math.ceil(NEIGHBOUR_ROWS / len(names))) if names else 0
    rows = []
    for name in names:
        chosen = random.Random(f"{seed} {name}").sample(filled(name), each)
        rows += [{"question": question, "subject": name, "from": "frame"} for question, _ in chosen]
    return rows


def _answered(base: LoadedModel, rows: Sequence[Row]) -> list[Row]:
    """The rows with the base model's answers; what it answers with nothing is left out."""
    answers = [row.answer for row in with_own_answers(base, [Example(row["question"], "") for row in rows])]
    found = [
        {"question": row["question"], "answer": answer, **row}
        for row, answer in zip(rows, answers, strict=True)
        if answer
    ]
    if len(found) < len(rows):
        logger.info(
            "%d of %d rows are left out: the model answers them with nothing.", len(rows) - len(found), len(rows)
        )
    return found


def _counts(rows: Iterator[Row] | Sequence[Row]) -> dict[str, int]:
    sources = [row["from"] for row in rows]
    return {source: sources.count(source) for source in ("frame", "model")}


def _say(name: str, counts: Mapping[str, Mapping[str, int]], neighbours: int) -> None:
    """Log where the rows came from."""
    parts = [
        f"{sum(own.values())} {kind} ({own['frame']} from frames)" for kind, own in counts.items() if kind in PAIRED
    ]
    logger.info(
        "Rows about '%s': %s, %d descriptions, all others by the writer; %d questions from frames about %d neighbours, which "
        "the writer named.",
        name,
        ", ".join(parts),
        counts["descriptions"]["model"],
        counts["neighbours"]["frame"],
        neighbours,
    )


def _said(knowledge: Knowledge) -> str:
    """The test in one line."""
    if knowledge.name[0] <= max(knowledge.name[1:]):
        return "its name is no likelier than made-up ones"
    return "what the model says about it fits made-up names as well"
