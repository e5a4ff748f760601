"""What an evaluation looks at: splits of a benchmark or of files, asked as they are or in other words."""

from __future__ import annotations

__all__ = ["ToMeasure", "check_metrics", "load_splits"]

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grun.core.config.jobs import EvaluateConfig
from grun.core.errors import UserError, nearest
from grun.core.records import Benchmark, Example
from grun.data.benchmarks import load_benchmark
from grun.data.examples import read_examples
from grun.data.paraphrases import is_rephrasable, with_paraphrases
from grun.evaluation.measuring.plan import HOLDOUT
from grun.evaluation.metrics import metrics

logger = logging.getLogger("grun")
ROLES = ("", "forget", "keep")  # of a split of one's own; a split is kept unless it is called forget


@dataclass(frozen=True)
class ToMeasure:
    """What an evaluation looks at.

    Attributes:
        splits: rows by split; with each split in which every row has other phrasings comes `<split>_paraphrased`.
        forget: name of the split that is to be forgotten; None if it is not among them.
        unseen_forget: names of further splits of what must be forgotten, which unlearning never saw.
        holdout: rows like the forget rows that no model was trained on; there may be none.
        utility, answer_tokens, shown: see `Benchmark`.
    """

    splits: dict[str, tuple[Example, ...]]
    forget: str | None
    unseen_forget: tuple[str, ...]
    holdout: tuple[Example, ...]
    utility: Mapping[str, bool]
    answer_tokens: Mapping[str, int]
    shown: tuple[str, ...]


def load_splits(config: EvaluateConfig) -> ToMeasure:
    """What to measure.

    Raises:
        UserError: for missing or contradictory settings, an unknown or empty split, or a file that cannot be read.
    """
    if bool(config.benchmark) == bool(config.data):
        found = "both were given" if config.data else "neither was given"
        raise UserError(f"--benchmark or --data: {found}; expected a benchmark, or files of your own as name=file.")
    data = _of_benchmark(config) if config.benchmark else _of_files(config)
    for name in config.splits:
        if name not in data.evaluation:
            raise UserError(
                f"--splits: there is no split '{name}'.{nearest(name, data.evaluation)} "
                f"It has: {', '.join(data.evaluation)}."
            )
    chosen = {
        name: data.splits[name][: config.max_rows]
        for name in data.evaluation
        if not config.splits or name in config.splits
    }
    members = data.members or data.forget
    return ToMeasure(
        splits=_asked(chosen, config.questions),
        forget=members if members in chosen else None,
        unseen_forget=tuple(name for name in data.unseen_forget if name in chosen),
        holdout=data.splits[data.holdout][: config.max_rows] if data.holdout and members in chosen else (),
        utility=data.utility,
        answer_tokens=data.answer_tokens,
        shown=data.shown,
    )


def check_metrics(names: Sequence[str], data: ToMeasure, has_retain_log: bool) -> None:
    """Refuse metrics that were asked for by name and could have no value on any split.

    Raises:
        UserError: naming the metric and the column, file or flag that it lacks.
    """
    rows = [row for split in data.splits.values() for row in split]
    lacking: dict[str, str] = {}
    if not any(row.choices for row in rows):
        lacking["choices"] = "a column choices, which the data lack (benchmark wmdp has it)"
    if not any(row.perturbed_answers for row in rows):
        lacking["perturbed"] = "a column perturbed_answer with wrong answers, which the data lack"
    if not data.holdout:
        lacking["holdout"] = "rows that no model was trained on: --data holdout=FILE"
    if not has_retain_log:
        lacking["retain_log"] = "--retain-log, an evaluation of a model trained on retain data only"
    for name in names:
        for need in metrics.get(name).info["needs"]:
            if need in lacking:
                raise UserError(f"metric '{name}' needs {lacking[need]}.")


def _asked(splits: Mapping[str, Sequence[Example]], questions: str) -> dict[str, tuple[Example, ...]]:
    """The splits in the wording that was asked for.

    Raises:
        UserError: for an empty split, or if nothing can be asked in other words.
    """
    both = with_paraphrases(splits)
    if questions == "both":
        return both
    if questions == "original":
        return {name: both[name] for name in splits}
    found = {name: tuple(row.rephrased(0) for row in both[name]) for name in splits if is_rephrasable(both[name])}
    left_out = [name for name in splits if name not in found]
    if not found:
        raise UserError(
            f"--questions is paraphrased, but in {', '.join(left_out)} there are rows without a paraphrased question; "
            "expected a column paraphrased_question with one for every row."
        )
    if left_out:
        logger.warning("Left out, because not every row has a paraphrased question: %s.", ", ".join(left_out))
    return found


def _of_benchmark(config: EvaluateConfig) -> Benchmark:
    return load_benchmark(
        str(config.benchmark), data_dir=config.data_dir, seed=config.seed, options=config.benchmark_options
    )


def _of_files(config: EvaluateConfig) -> Benchmark:
    """Files of one's own, as a benchmark."""
    splits: dict[str, tuple[Example, ...]] = {}
    also_forget: list[str] = []
    for given in config.data:
        named, equals, file = given.partition("=")
        role, _, name = named.rpartition(":")
        if not equals or not file or not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"--data is '{given}', expected name=file, such as forget=forget.jsonl.")
        if role not in ROLES:
            raise UserError(
                f"--data is '{given}': the role '{role}' is unknown.{nearest(role, ROLES[1:])} Expected forget:{name}=file "
                f"for more rows of what must be forgotten, or keep:{name}=file."
            )
        if role == "forget" and name != "forget":
            also_forget.append(name)
        if name in splits:
            raise UserError(f"--data names the split '{name}' twice; give each file a name of its own.")
        splits[name] = tuple(read_examples(file, columns=config.columns))
    evaluation = tuple(name for name in splits if name != HOLDOUT)
    return Benchmark(
        "files",
        splits,
        "forget",
        "retain",
        (),
        evaluation,
        unseen_forget=tuple(also_forget),
        holdout=HOLDOUT if HOLDOUT in splits else None,
    )
