"""What an unlearning run forgets, keeps and answers instead, read from a benchmark or from files."""

from __future__ import annotations

__all__ = [
    "check_gates",
    "OtherAnswers",
    "UnlearningRows",
    "filled",
    "fits_gates",
    "load_unlearning_rows",
    "open_run",
    "ordinary_beside",
    "other_answers",
    "say_kept",
    "usual_settings",
    "withhold",
]

import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.storage.claims import check_writable
from grun.core.storage.fingerprints import fingerprint
from grun.core.storage.run_directory import RunDirectory
from grun.data.benchmarks import load_benchmark
from grun.data.content import decoded, read_content
from grun.data.examples import check_disjoint, read_examples
from grun.data.refusals import Refusals
from grun.data.shipped_prompts import clashing, drawn_rows, ordinary_rows
from grun.jobs.inputs.alternatives import FROM_MODEL
from grun.jobs.inputs.topic_files import TopicRows, read_topic
from grun.models.adaptations import NO_TOPICS, with_presets
from grun.training.objectives import objectives

logger = logging.getLogger("grun")
OtherAnswers = Callable[[Example], Sequence[str]]
ORDINARY = 300  # rows to keep where none were given
FEWEST = 4  # rows to forget with a gate for topics
SHOW = 60  # characters of a prompt in messages


@dataclass(frozen=True)
class UnlearningRows:
    """Examples of an unlearning run.

    Attributes:
        forget: what to forget.
        retain: what to keep.
        validation: what to keep that is only looked at.
        neighbours: prompts about close topics, for which gates learn to stay shut.
    """

    forget: list[Example]
    retain: list[Example]
    validation: list[Example]
    neighbours: list[Example] = field(default_factory=list)

    @property
    def parts(self) -> dict[str, list[Example]]:
        """Rows by kind; without neighbours where there are none, as runs of older versions are recorded."""
        return {name: rows for name, rows in vars(self).items() if rows or name != "neighbours"}


def filled(config: UnlearnConfig) -> UnlearnConfig:
    """The configuration, with all that was left open filled in: from the preset, and from what the objective declares.

    Raises:
        UserError: for an unknown preset, adaptation or objective, or a setting that the adaptation does not have.
    """
    if config.alternatives is None:
        config = replace(config, alternatives=objectives.get(config.objective).info.get("alternatives", "column"))
    return with_presets(config)


def usual_settings(config: UnlearnConfig) -> UnlearnConfig:
    """The settings of a run where nothing but the adaptation and the preset is given.

    A run of an older version had these values of all settings that were added since; before there was a patience, no run
    stopped early, and before there were gates for topics, no adapter had one.
    """
    usual = replace(filled(UnlearnConfig(adapt=config.adapt, preset=config.preset)), patience=None)
    return usual if usual.topic_layer is None else replace(usual, topic_layer=NO_TOPICS)


def load_unlearning_rows(config: UnlearnConfig, expand: Callable[[], TopicRows] | None = None) -> UnlearningRows:
    """Read what to forget and what to keep, from a benchmark or from files, and withhold whole retain subjects.

    Args:
        config: of the job.
        expand: function that gives the rows about a topic, called once everything else is read; None reads those that a run
            has kept.

    Raises:
        UserError: for missing or contradictory settings, unreadable files, identical forget and retain rows, or too few of
            them.
    """
    if config.topic is not None and (config.benchmark or config.forget):
        raise UserError("--topic and --forget/--benchmark were both given; take the rows from one of them.")
    if config.benchmark and (config.forget or config.retain):
        raise UserError("--benchmark and --forget/--retain were both given; take the rows from one of them.")
    if config.benchmark:
        data = load_benchmark(
            config.benchmark, data_dir=config.data_dir, seed=config.seed, options=config.benchmark_options
        )
        forget, retain = list(data.splits[data.forget]), list(data.splits[data.retain])
    else:
        if not config.forget and config.topic is None:
            raise UserError("--forget is missing: give a file of what to forget, or --topic, or --benchmark.")
        forget = [row for source in config.forget for row in read_examples(source, columns=config.columns)]
        retain = [row for source in config.retain for row in read_examples(source, columns=config.columns)]
    neighbours = [
        row for source in config.neighbours for row in read_examples(source, columns=config.columns, need_answers=False)
    ]
    if config.topic is not None:
        topic = _kept_topic(config) if expand is None else expand()
        forget, neighbours = topic.forget, neighbours + (topic.neighbours if fits_gates(config) else [])
    _check_neighbours(neighbours, forget)
    _check_enough(config, forget)
    if not config.retain and not config.benchmark:
        retain = ordinary_beside(forget, config.seed)
    shared = check_disjoint(forget, retain)
    if shared:
        logger.warning("%d rows are in both --forget and --retain; they are forgotten.", shared)
        known = {(row.prompt, row.answer) for row in forget}
        retain = [row for row in retain if (row.prompt, row.answer) not in known]
    return UnlearningRows(forget, *withhold(retain, config.withhold, config.seed), neighbours)


def ordinary_beside(forget: Sequence[Example], seed: int) -> list[Example]:
    """Ordinary rows that come with the package, without those that may be about what is to be forgotten."""
    rows = drawn_rows(len(ordinary_rows()), seed)
    dropped = clashing([row.prompt for row in rows], [f"{row.prompt} {row.answer}" for row in forget])
    return [row for i, row in enumerate(rows) if i not in dropped][:ORDINARY]


def _kept_topic(config: UnlearnConfig) -> TopicRows:
    found = read_topic(Path(config.output).expanduser())
    if found is None:
        raise UserError(f"--topic '{config.topic}': its rows are not in '{config.output}'.")
    return found


def fits_gates(config: UnlearnConfig) -> bool:
    """True if gates are fitted before the edit is trained."""
    wanted = with_presets(config)
    return bool(wanted.fit_gate_first) and wanted.gate != "none"


def check_gates(config: UnlearnConfig) -> None:
    """Check that gates that are fitted first are, with presets filled in.

    Raises:
        UserError: for settings that need a gate that is fitted first, where there is none.
    """
    if (config.shut_for or config.keep_features or config.neighbours) and not fits_gates(config):
        raise UserError(
            "--shut-for, --keep-features and --neighbours need a gate that is fitted first: --adapt grun, --fit-gate-first."
        )
    if config.topic_layer not in (None, NO_TOPICS) and not config.fit_gate_first:
        raise UserError(
            f"--topic-layer is {config.topic_layer}, but a gate for topics is always fitted first: give --fit-gate-first, or "
            f"--topic-layer {NO_TOPICS}."
        )
    if config.gate == "lexical" and not config.fit_gate_first:
        raise UserError("--gate is lexical, but such a gate is never trained: give --fit-gate-first, or --gate mlp.")
    if config.gate_scope == "mentioned" and config.gate != "lexical":
        raise UserError(
            f"--gate-scope is mentioned, but --gate is {config.gate}: only a lexical gate knows what is asked."
        )


def _check_enough(config: UnlearnConfig, forget: Sequence[Example]) -> None:
    """Refuse so few rows that a gate for topics cannot be judged on rows that it was not fitted on."""
    has_topic_gate = fits_gates(config) and with_presets(config).topic_layer not in (None, NO_TOPICS)
    if has_topic_gate and len(forget) < FEWEST:
        raise UserError(
            f"--forget has {len(forget)} row{'s' * (len(forget) != 1)}, but a gate that recognises topics needs at least "
            f"{FEWEST} to be checked; give more rows in other words, or --topic-layer {NO_TOPICS}."
        )


def _check_neighbours(neighbours: Sequence[Example], forget: Sequence[Example]) -> None:
    """Refuse a neighbouring prompt that is also to be forgotten."""
    known = {_plain(row.prompt) for row in forget}
    for row in neighbours:
        if _plain(row.prompt) in known:
            raise UserError(
                f"--neighbours {row.source}: '{row.prompt[:SHOW]}' is also to be forgotten; remove the row from one of them."
            )


def _plain(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def say_kept(config: UnlearnConfig, data: UnlearningRows) -> None:
    """Say which rows are kept where none were given."""
    if not config.retain and not config.benchmark:
        logger.info(
            "--retain was not given: %d ordinary prompts that come with grun are kept, with the model's own answers.",
            len(data.retain) + len(data.validation),
        )


def open_run(config: UnlearnConfig, data: UnlearningRows | None, objects: str = "") -> RunDirectory:
    """The directory of an unlearning run; see `RunDirectory.open`.

    Args:
        config: of the job, with presets filled in.
        data: the rows; None if they are not known yet.
        objects: fingerprint of what was given as Python objects, a model or an objective.
    """
    if config.cache_dir is not None:
        check_writable(Path(config.cache_dir).expanduser(), "--cache-dir")
    content, usual = None if data is None else fingerprint(data.parts) + objects, usual_settings(config)
    return RunDirectory.open(config.output, config, "unlearn", config.overwrite, data=content, usual=usual)


def other_answers(config: UnlearnConfig, sides: Collection[str], forget: Sequence[Example]) -> dict[str, OtherAnswers]:
    """Where the answers of the sides `refusal` and `alternative` come from.

    Args:
        config: names a file of refusals, and which answers count as alternatives.
        sides: those that a batch holds.
        forget: the forget rows, all of which must have alternatives if that side is needed.

    Raises:
        UserError: if the file cannot be read or is empty, or a row has no alternative.
    """
    found: dict[str, OtherAnswers] = {}
    if "refusal" in sides:
        found["refusal"] = _refusals(config, forget)
    elif config.refusals is not None:
        raise UserError(f"--refusals was given, but objective '{config.objective}' uses none; dpo and idk do.")
    if "alternative" in sides and config.alternatives in FROM_MODEL:
        found["alternative"] = lambda row: row.alternative_answers  # the model is asked once it is there
    elif "alternative" in sides:
        column = "perturbed_answers" if config.alternatives == "perturbed" else "alternative_answers"
        lacking = [row for row in forget if not getattr(row, column)]
        if lacking:
            raise UserError(
                f"objective '{config.objective}' needs alternative answers, but {len(lacking)} of {len(forget)} forget rows "
                f"have no {column} (the first: {lacking[0].source or repr(lacking[0].prompt)}). Add a column "
                f"{column}, or choose another source with --alternatives."
            )
        found["alternative"] = lambda row: getattr(row, column)
    return found


def _refusals(config: UnlearnConfig, forget: Sequence[Example]) -> OtherAnswers:
    """The sentences of the user's file to every row, else one sentence of the package in the language of the row."""
    file = config.refusals
    if file is None:
        own = Refusals([row.prompt for row in forget], config.seed)
        return lambda row: (own.to(row.prompt),)
    said = f"--refusals '{file}'"
    lines = decoded(read_content(file, said), said).splitlines()
    sentences = tuple(line.strip() for line in lines if line.strip())
    if not sentences:
        raise UserError(f"--refusals '{file}' is empty; expected one sentence per line.")
    return lambda _: sentences


def withhold(rows: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Set whole subjects aside until `share` of the rows is withheld; rows without a subject each stand alone.

    Returns:
        The rows to learn from and the withheld ones, both in their original order.

    Raises:
        UserError: if nothing would be left to learn from.
    """
    keys = [row.subject if row.subject is not None else f"\0row {i}" for i, row in enumerate(rows)]
    subjects = sorted(set(keys))
    random.Random(f"withhold {seed}").shuffle(subjects)
    wanted, chosen, count, sizes = share * len(rows), set[str](), 0, Counter(keys)
    for subject in subjects:
        size = sizes[subject]
        if count + size / 2 > wanted:
            break
        chosen.add(subject)
        count += size
    learn = [row for row, key in zip(rows, keys, strict=True) if key not in chosen]
    if not learn:
        raise UserError(
            f"--withhold {share} leaves none of the {len(rows)} retain rows to learn from; give more rows or lower it."
        )
    return learn, [row for row, key in zip(rows, keys, strict=True) if key in chosen]
