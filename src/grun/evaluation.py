"""`grun evaluate`: measure a model before and after, on every split."""

from __future__ import annotations

__all__ = ["evaluate", "evaluate_model", "gather", "load_splits", "measure", "score"]

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftModel
from torch import nn

from grun.batches import resolve_template
from grun.benchmarks import load_benchmark
from grun.config import EvaluateConfig
from grun.errors import UserError, nearest
from grun.measuring import Results, evaluate_model, gather, interval, measure, score, with_paraphrases
from grun.metrics import metrics as registry
from grun.models import load_adapter, load_model_and_tokenizer
from grun.readers import read_examples
from grun.records import Evidence, Example, Score
from grun.report.table import before_after_table, show_whole, to_markdown
from grun.runs import RunDirectory, fingerprint
from grun.signals import context_length

logger = logging.getLogger("grun")
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
    names = [registry.get(name).name for name in config.metrics] or registry.names()
    splits, forget = load_splits(config)
    run = RunDirectory.open(config.output, config, "evaluate", config.overwrite, data=fingerprint(splits))
    if run.is_complete:
        logger.info("%s is complete already; nothing to do.", run.path)
        return run.path
    model, tokenizer = load_model_and_tokenizer(
        config.model, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    settings: dict[str, Any] = {
        "forget_split": forget,
        "template": resolve_template(config.template, tokenizer),
        "batch_size": config.batch_size,
        "max_new_tokens": config.max_new_tokens,
        "max_length": min(filter(None, (config.max_length, context_length(model))), default=None),
    }
    adapted = None if config.adapter is None else _adapted(config, model)
    run.start()
    started = time.monotonic()
    measured = {}
    if config.before or adapted is None:
        plain = adapted if isinstance(adapted, PeftModel) else model  # an adapter was put into the model itself
        measured["before"] = measure(plain, tokenizer, splits, label="before", adapters=False, **settings)
    if adapted is not None:
        measured["after"] = measure(adapted, tokenizer, splits, label="after", **settings)
    results = {subject: score(evidence, names) for subject, evidence in measured.items()}
    _warn_of_truncation(_any_subject(measured))
    run.write_json("metrics.json", _as_json(config, measured, results))
    run.write_text(
        "rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(measured, results))
    )
    run.write_text("table.md", to_markdown(results))
    run.mark_complete(time.monotonic() - started)
    show_whole(before_after_table(results))
    return run.path


def load_splits(config: EvaluateConfig) -> tuple[dict[str, tuple[Example, ...]], str | None]:
    """The splits to measure, and the name of the one that is to be forgotten (None if it is not among them).

    With each split in which every row has other phrasings comes `<split>_paraphrased`.

    Raises:
        UserError: for missing or contradictory settings, an unknown or empty split, or a file that cannot be read.
    """
    if bool(config.benchmark) == bool(config.data):
        found = "both were given" if config.data else "neither was given"
        raise UserError(f"--benchmark or --data: {found}; expected a benchmark, or files of your own as name=file.")
    splits, forget = _benchmark_splits(config) if config.benchmark else (_file_splits(config), "forget")
    for name in config.splits:
        if name not in splits:
            raise UserError(
                f"--splits: there is no split '{name}'.{nearest(name, splits)} It has: {', '.join(splits)}."
            )
    chosen = {name: rows[: config.max_rows] for name, rows in splits.items() if name in (config.splits or splits)}
    return with_paraphrases(chosen), forget if forget in chosen else None


def _benchmark_splits(config: EvaluateConfig) -> tuple[dict[str, tuple[Example, ...]], str]:
    data = load_benchmark(
        str(config.benchmark), data_dir=config.data_dir, seed=config.seed, options=config.benchmark_options
    )
    return {name: data.splits[name] for name in data.evaluation}, data.forget


def _file_splits(config: EvaluateConfig) -> dict[str, tuple[Example, ...]]:
    splits: dict[str, tuple[Example, ...]] = {}
    for given in config.data:
        name, equals, file = given.partition("=")
        if not equals or not file or not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"--data is '{given}', expected name=file, such as forget=forget.jsonl.")
        if name in splits:
            raise UserError(f"--data names the split '{name}' twice; give each file a name of its own.")
        splits[name] = tuple(read_examples(file, columns=config.columns))
    return splits


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
    config: EvaluateConfig, measured: Mapping[str, Mapping[str, Evidence]], results: Mapping[str, Results]
) -> Any:
    """What `metrics.json` holds: per split its size, and per metric the score of each subject."""
    splits = {}
    for split, evidence in _any_subject(measured).items():
        splits[split] = {
            "rows": len(evidence.rows),
            "truncated": sum(row.truncated for row in evidence.rows),
            "metrics": {
                metric: {
                    subject: _score_as_json(found[split][metric], config.seed) for subject, found in results.items()
                }
                for metric in _any_subject(results)[split]
            },
        }
    return {"model": config.model, "adapter": config.adapter, "splits": splits}


def _score_as_json(found: Score, seed: int) -> dict[str, Any]:
    low, high = interval(found, seed) or (None, None)
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
