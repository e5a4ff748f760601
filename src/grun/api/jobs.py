"""The jobs as functions: `unlearn`, `expand`, `evaluate`, `attack`, `finetune`, `calibrate`, `compare`."""

from __future__ import annotations

__all__ = ["attack", "calibrate", "compare", "evaluate", "expand", "finetune", "unlearn"]

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grun.api.attacking import attack
from grun.api.documentation import with_settings
from grun.api.objects import ModelLike, RowsLike, Standing, as_it_was, named_model, named_rows
from grun.api.results import (
    CalibrateResult,
    CompareResult,
    EvaluateResult,
    ExpandResult,
    FinetuneResult,
    RunResult,
    UnlearnResult,
)
from grun.api.settings import from_python, naming_parameters
from grun.core.config.jobs import EvaluateConfig, ExpandConfig, FinetuneConfig, UnlearnConfig
from grun.core.config.requests import CalibrateConfig, CompareConfig
from grun.core.errors import UserError
from grun.core.process.libraries import quiet_libraries


@with_settings(UnlearnConfig)
@quiet_libraries()
def unlearn(
    model: ModelLike,
    forget: RowsLike = None,
    retain: RowsLike = None,
    *,
    neighbours: RowsLike = None,
    tokenizer: Any = None,
    objective: str | Callable[..., Any] = "idk_deep",
    callbacks: Sequence[Any] = (),
    **settings: Any,
) -> UnlearnResult:
    """Learn an adapter that makes a model forget; the same call again resumes an interrupted run.

    Args:
        model: hub id, path, loaded model, or pair of a loaded model and its tokenizer. A loaded model is as it was when
            this returns: put the adapter on it with `result.attach(model)`.
        forget: rows to forget: a path or hub id, several of them, a list of dicts (`{"question": ..., "answer": ...}`; other
            columns as in the guide), a `datasets.Dataset` or a data frame.
        retain: rows to keep, likewise; None for ordinary prompts that come with the package.
        neighbours: prompts about close topics that must stay, likewise; answers are not needed.
        tokenizer: of a loaded model; None for the one in the folder that the model was loaded from.
        objective: name of a registered objective, or a function of `grun.Signals` that returns the loss to minimise.
        callbacks: more `transformers.TrainerCallback`s.
        **settings: every other setting of `grun unlearn`, by its name.

    Raises:
        UserError: for wrong input, before anything is written; names the parameter.
        TrainingDiverged: if a loss or gradient is not finite; the last good state is kept.
        Interrupted: if the user stopped the run; its state is kept.
    """
    from grun.api.objectives import usable_objective
    from grun.jobs.unlearn import unlearn as job

    with naming_parameters(), usable_objective(objective) as name:
        standing = Standing()
        values = {
            "model": named_model(model, tokenizer, standing),
            "forget": named_rows(forget, "forget", standing),
            "retain": named_rows(retain, "retain", standing),
            "neighbours": named_rows(neighbours, "neighbours", standing),
            "objective": name,
            **settings,
        }
        config = from_python(UnlearnConfig, values, "grun.unlearn")
        with as_it_was(standing, trains_weights=config.adapt == "full"):
            return UnlearnResult(job(config, callbacks).parent)


@with_settings(ExpandConfig)
@quiet_libraries()
def expand(
    topic: str, model: ModelLike, *, writer: ModelLike | None = None, tokenizer: Any = None, **settings: Any
) -> ExpandResult:
    """Write rows about a topic from its name, into files to be read and corrected before `grun.unlearn` takes them.

    Args:
        topic: name of what is to be forgotten.
        model: the model that is to forget, as `grun.unlearn` takes it; it gives the answers.
        writer: model that writes rows, likewise; None for the model that is to forget.
        tokenizer: of a loaded model; None for the one in the folder that the model was loaded from.
        **settings: every other setting of `grun expand`, by its name.

    Raises:
        UserError: for wrong input, or a topic that the model seems to know nothing about.
    """
    from grun.jobs.inputs.expansion.expand import expand as job

    with naming_parameters():
        standing = Standing()
        values = {
            "topic": topic,
            "model": named_model(model, tokenizer, standing),
            "writer": None if writer is None else named_model(writer, None, standing),
            **settings,
        }
        config = from_python(ExpandConfig, values, "grun.expand")
        with as_it_was(standing):
            return ExpandResult(job(config))


@with_settings(EvaluateConfig)
@quiet_libraries()
def evaluate(
    model: ModelLike,
    data: Mapping[str, RowsLike] | Sequence[str] | None = None,
    *,
    adapter: str | Path | RunResult | None = None,
    tokenizer: Any = None,
    show: bool = False,
    **settings: Any,
) -> EvaluateResult:
    """Measure a model before and after, on every split of a benchmark or of your own rows.

    Args:
        model: hub id, path, loaded model, or pair of a loaded model and its tokenizer. A loaded `peft.PeftModel` is measured
            with its adapter and without.
        data: rows by split (`{"forget": ..., "normal": ...}`), each as `grun.unlearn` takes them; or `name=file` texts.
        adapter: directory of an adapter, or the result of `grun.unlearn`.
        tokenizer: of a loaded model; None for the one in the folder that the model was loaded from.
        show: print the table.
        **settings: every other setting of `grun evaluate`, by its name.

    Raises:
        UserError: for wrong input; names the parameter.
    """
    from grun.jobs.evaluate import evaluate as job

    with naming_parameters():
        standing = Standing()
        values = {
            "model": named_model(model, tokenizer, standing),
            "data": _named_splits(data, standing),
            "adapter": str(adapter.path if isinstance(adapter, RunResult) else adapter)
            if adapter is not None
            else None,
            **settings,
        }
        config = from_python(EvaluateConfig, values, "grun.evaluate")
        with as_it_was(standing):
            return EvaluateResult(job(config, show=show))


def _named_splits(data: Mapping[str, RowsLike] | Sequence[str] | None, standing: Standing) -> list[str]:
    if data is None or not isinstance(data, Mapping):
        return [str(one) for one in data or ()]
    found = []
    for split, rows in data.items():
        names = named_rows(rows, f"data[{split}]", standing)
        if len(names) != 1:
            raise UserError(f"data['{split}'] is {len(names)} sources, expected rows or one path.")
        found.append(f"{split}={names[0]}")
    return found


@with_settings(FinetuneConfig)
@quiet_libraries()
def finetune(
    model: ModelLike | None = None, data: RowsLike = None, *, tokenizer: Any = None, **settings: Any
) -> FinetuneResult:
    """Make a target model: fine-tune a model, or train a small one and its tokenizer from scratch.

    Args:
        model: as `grun.unlearn` takes it; None trains a small Llama from scratch. A loaded model is copied, not changed.
        data: rows to train on, as `grun.unlearn` takes them; None with `benchmark=...`.
        tokenizer: of a loaded model.
        **settings: every other setting of `grun finetune`, by its name.

    Raises:
        UserError: for wrong input, before anything is written; names the parameter.
        TrainingDiverged: if the loss is not finite; the last good state is kept.
        Interrupted: if the user stopped the run; its state is kept.
    """
    from grun.jobs.finetune import finetune as job

    with naming_parameters():
        standing = Standing()
        values = {
            "model": None if model is None else named_model(model, tokenizer, standing),
            "data": named_rows(data, "data", standing),
            **settings,
        }
        config = from_python(FinetuneConfig, values, "grun.finetune")
        with as_it_was(standing, trains_weights=True):
            return FinetuneResult(job(config).parent)


@with_settings(CalibrateConfig)
@quiet_libraries()
def calibrate(
    model: ModelLike,
    adapter: str | Path | RunResult,
    normal: RowsLike,
    *,
    forget: RowsLike = None,
    paraphrases: RowsLike = None,
    tokenizer: Any = None,
    **settings: Any,
) -> CalibrateResult:
    """Set the thresholds of gates so that at most a share `alpha` of normal prompts opens any, with confidence `1 - delta`.

    Args:
        model: the base model, as `grun.unlearn` takes it.
        adapter: directory of an adapter, or the result of `grun.unlearn`; it stays as it is.
        normal: normal prompts, drawn as those to come will be; rows as of `grun.unlearn`, answers are not needed.
        forget: prompts to open for.
        paraphrases: prompts to forget in other words, which unlearning has not seen: the share that opens no gate is bounded,
            and kept below `miss_rate` if that is given.
        tokenizer: of a loaded model.
        **settings: every other setting of `grun calibrate`, by its name.

    Raises:
        UserError: for wrong input; for too few prompts, with the number that is needed; if both bounds cannot be kept.
    """
    from grun.jobs.calibrate import calibrate as job

    with naming_parameters():
        standing = Standing()
        values = {
            "model": named_model(model, tokenizer, standing),
            "adapter": str(adapter.path if isinstance(adapter, RunResult) else adapter),
            "normal": named_rows(normal, "normal", standing),
            "forget": named_rows(forget, "forget", standing),
            "paraphrases": named_rows(paraphrases, "paraphrases", standing),
            **settings,
        }
        config = from_python(CalibrateConfig, values, "grun.calibrate")
        with as_it_was(standing):
            return CalibrateResult(job(config).parent)


@quiet_libraries(imported=False)
def compare(
    runs: Sequence[str | Path | EvaluateResult],
    *,
    metrics: Sequence[str] = (),
    splits: Sequence[str] = (),
    output: str | Path | None = None,
    seed: int = 0,
    show: bool = False,
) -> CompareResult:
    """Put evaluations side by side, with the differences to the first and their 95 % bootstrap intervals.

    Args:
        runs: results of `grun.evaluate`, or their directories.
        metrics: only these; none: those of the usual table.
        splits: only these; none: all that every run has.
        output: folder for `comparison.json` and `comparison.md`; None to write nothing.
        seed: of the bootstrap.
        show: print the table.

    Raises:
        UserError: for fewer than two runs, one that is not a complete evaluation, or other rows in a split.
    """
    from grun.evaluation.comparison import run_names
    from grun.evaluation.report.comparison_table import comparison_table
    from grun.jobs.compare import compare as job

    with naming_parameters():
        paths = [run.path if isinstance(run, RunResult) else run for run in runs]
        given = {"runs": paths, "metrics": list(metrics), "splits": list(splits), "output": output, "seed": seed}
        config = from_python(CompareConfig, given, "grun.compare")
        folders = tuple(map(Path, config.runs))
        to = None if output is None else Path(output)
        found = job(folders, metrics=metrics, splits=splits, output=to, seed=seed, show=show)
    return CompareResult(folders, tuple(found), comparison_table(found, run_names(folders))[0])
