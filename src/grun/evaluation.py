"""`grun evaluate`: measure a model before and after, on every split."""

from __future__ import annotations

__all__ = ["ToMeasure", "evaluate", "load_splits"]

import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftModel
from rich.console import Console
from torch import nn

from grun.batches import resolve_template
from grun.benchmarks import load_benchmark
from grun.config import EvaluateConfig
from grun.errors import UserError, nearest
from grun.evidence_store import EvidenceStore
from grun.intervals import interval
from grun.measuring import (
    HOLDOUT,
    Results,
    measure,
    needs_of_metrics,
    score,
    summarise,
    usual_metrics,
    with_paraphrases,
)
from grun.metrics import metrics as registry
from grun.metrics import summaries as summary_registry
from grun.models import load_adapter, load_model_and_tokenizer
from grun.readers import read_examples
from grun.records import Evidence, Example, Score
from grun.report.table import before_after_table, in_the_table, show_whole, summary_lines, to_markdown
from grun.runs import RunDirectory, fingerprint
from grun.signals import longest_row

logger = logging.getLogger("grun")
EVIDENCE = "evidence"
T = TypeVar("T")


def evaluate(config: EvaluateConfig) -> Path:
    """Run an evaluation job: measure the model (unless it is left out), and the model with the adapter, on every split.

    Writes `metrics.json` (values, rows behind them, 95 % intervals, reasons of what is missing), `rows.jsonl` (every row
    with its answers and values before and after) and `table.md`, and shows the table.

    Returns:
        The directory of the run.

    Raises:
        UserError: for wrong input.
    """
    names = [registry.get(name).name for name in config.metrics] or usual_metrics()
    asked = load_splits(config)
    data = fingerprint({**asked.splits, HOLDOUT: asked.holdout})
    run = RunDirectory.open(config.output, config, "evaluate", config.overwrite, data=data)
    if run.is_complete:
        logger.info("%s is complete already; nothing to do.", run.path)
        return run.path
    model, tokenizer = load_model_and_tokenizer(
        config.model, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    settings: dict[str, Any] = {
        "forget_split": asked.forget,
        "template": resolve_template(config.template, tokenizer),
        "needs": needs_of_metrics(names, summaries=not config.metrics),
        "holdout": asked.holdout,
        "retain_log": _retain_log(config),
        "tokens_per_batch": config.tokens_per_batch,
        "max_new_tokens": config.max_new_tokens,
        "max_length": longest_row(model, config.max_length),
    }
    adapted = None if config.adapter is None else _adapted(config, model)
    run.start()
    started = time.monotonic()
    measured = {}
    if config.before or adapted is None:
        plain = adapted if isinstance(adapted, PeftModel) else model  # an adapter was put into the model itself
        store = EvidenceStore(run.path / EVIDENCE / "before")
        measured["before"] = measure(
            plain, tokenizer, asked.splits, label="before", adapters=False, store=store, **settings
        )
    if adapted is not None:
        store = EvidenceStore(run.path / EVIDENCE / "after")
        base = None if isinstance(adapted, PeftModel) else model
        measured["after"] = measure(adapted, tokenizer, asked.splits, label="after", base=base, store=store, **settings)
    results = {subject: score(evidence, names) for subject, evidence in measured.items()}
    summary = {} if config.metrics else {who: summarise(found, asked.utility) for who, found in measured.items()}
    _warn_of_truncation(_any_subject(measured))
    run.write_json("metrics.json", _as_json(config, measured, results, summary))
    run.write_text(
        "rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(measured, results))
    )
    shown = results if config.metrics else in_the_table(results)
    lines = summary_lines(summary)
    run.write_text("table.md", to_markdown(shown) + "".join(f"\n{line}\n" for line in lines))
    run.mark_complete(time.monotonic() - started)
    show_whole(before_after_table(shown))
    for line in lines:
        Console().print(line, highlight=False)
    return run.path


@dataclass(frozen=True)
class ToMeasure:
    """What an evaluation looks at.

    Attributes:
        splits: rows by split; with each split in which every row has other phrasings comes `<split>_paraphrased`.
        forget: name of the split that is to be forgotten; None if it is not among them.
        holdout: rows like the forget rows that no model was trained on; there may be none.
        utility: splits that stand for utility (see `Benchmark`).
    """

    splits: dict[str, tuple[Example, ...]]
    forget: str | None
    holdout: tuple[Example, ...]
    utility: Mapping[str, bool]


def load_splits(config: EvaluateConfig) -> ToMeasure:
    """What to measure.

    Raises:
        UserError: for missing or contradictory settings, an unknown or empty split, or a file that cannot be read.
    """
    if bool(config.benchmark) == bool(config.data):
        found = "both were given" if config.data else "neither was given"
        raise UserError(f"--benchmark or --data: {found}; expected a benchmark, or files of your own as name=file.")
    every = _benchmark_splits(config) if config.benchmark else _file_splits(config)
    for name in config.splits:
        if name not in every.splits:
            raise UserError(
                f"--splits: there is no split '{name}'.{nearest(name, every.splits)} It has: {', '.join(every.splits)}."
            )
    asked = config.splits or every.splits
    chosen = {name: rows[: config.max_rows] for name, rows in every.splits.items() if name in asked}
    forget = every.forget if every.forget in chosen else None
    return ToMeasure(with_paraphrases(chosen), forget, every.holdout[: config.max_rows], every.utility)


def _benchmark_splits(config: EvaluateConfig) -> ToMeasure:
    data = load_benchmark(
        str(config.benchmark), data_dir=config.data_dir, seed=config.seed, options=config.benchmark_options
    )
    holdout = data.splits[data.holdout] if data.holdout else ()
    return ToMeasure({name: data.splits[name] for name in data.evaluation}, data.forget, tuple(holdout), data.utility)


def _file_splits(config: EvaluateConfig) -> ToMeasure:
    splits: dict[str, tuple[Example, ...]] = {}
    for given in config.data:
        name, equals, file = given.partition("=")
        if not equals or not file or not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"--data is '{given}', expected name=file, such as forget=forget.jsonl.")
        if name in splits:
            raise UserError(f"--data names the split '{name}' twice; give each file a name of its own.")
        splits[name] = tuple(read_examples(file, columns=config.columns))
    return ToMeasure(splits, "forget", splits.pop(HOLDOUT, ()), {})


def _retain_log(config: EvaluateConfig) -> EvidenceStore | None:
    """The evidence of the evaluation that `--retain-log` names."""
    if config.retain_log is None:
        return None
    folder = Path(config.retain_log).expanduser() / EVIDENCE / "before"
    if not folder.is_dir():
        raise UserError(
            f"--retain-log '{config.retain_log}' is not an evaluation of a model; evaluate the model that was trained on "
            "retain data only with the same splits, and name that directory."
        )
    return EvidenceStore(folder)


def _adapted(config: EvaluateConfig, model: Any) -> nn.Module:
    """The model with the adapter; or, from a folder that holds a whole model (full fine-tuning), that model."""
    folder = Path(str(config.adapter))
    holds_adapter = any((part / "adapter_config.json").is_file() for part in (folder, folder / "adapter"))
    for whole in (folder, folder / "model"):
        if (whole / "config.json").is_file() and not holds_adapter:
            return load_model_and_tokenizer(
                str(whole), dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
            )[0]
    return load_adapter(model, str(config.adapter))


def _warn_of_truncation(evidence: Mapping[str, Evidence]) -> None:
    for split, found in evidence.items():
        cut = sum(row.truncated for row in found.rows)
        if cut:
            logger.warning("%s: %d of %d answers were too long and lost their ends.", split, cut, len(found.rows))


def _any_subject(by_subject: Mapping[str, T]) -> T:
    """What was measured of the first subject: splits, rows and metrics are those of every subject."""
    return next(iter(by_subject.values()))


def _as_json(
    config: EvaluateConfig,
    measured: Mapping[str, Mapping[str, Evidence]],
    results: Mapping[str, Results],
    summary: Mapping[str, Mapping[str, Score]],
) -> Any:
    """What `metrics.json` holds: per split its size, per metric the score of each subject, and what sums all splits up."""
    splits = {}
    for split, evidence in _any_subject(measured).items():
        splits[split] = {
            "rows": len(evidence.rows),
            "truncated": sum(row.truncated for row in evidence.rows),
            "metrics": {
                metric: {
                    subject: _score_as_json(found[split][metric], registry.get(metric).info, config.seed)
                    for subject, found in results.items()
                }
                for metric in _any_subject(results)[split]
            },
        }
    names = list(_any_subject(summary)) if summary else []
    sums = {
        name: {
            who: _score_as_json(found[name], summary_registry.get(name).info, config.seed)
            for who, found in summary.items()
        }
        for name in names
    }
    return {"model": config.model, "adapter": config.adapter, "splits": splits, "summaries": sums}


def _score_as_json(found: Score, info: Mapping[str, Any], seed: int) -> dict[str, Any]:
    low, high = interval(found, info, seed) or (None, None)
    return {
        "value": found.value,
        "n": found.n,
        "low": low,
        "high": high,
        "per_gate": list(found.per_gate),
        "reason": found.reason,
    }


def _rows(measured: Mapping[str, Mapping[str, Evidence]], results: Mapping[str, Results]) -> list[dict[str, Any]]:
    """What `rows.jsonl` holds."""
    rows = []
    for split, evidence in _any_subject(measured).items():
        for i, row in enumerate(evidence.rows):
            line: dict[str, Any] = {"split": split, "row": i + 1, "source": row.example.source}
            line |= {"question": row.example.prompt, "gold": row.example.answer, "truncated": row.truncated}
            for subject, found in measured.items():
                scores = results[subject][split].items()
                values = {metric: score.per_row[i] for metric, score in scores if score.per_row}
                line[subject] = {"answer": found[split].rows[i].generated, **values}
            rows.append(line)
    return rows
