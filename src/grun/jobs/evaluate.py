"""`grun evaluate`: measure a model before and after, on every split."""

from __future__ import annotations

__all__ = ["EVIDENCE", "evaluate", "loaded_for", "store_of", "subjects_of", "whole_model"]

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from grun.core.config.attacking import AttackConfig
from grun.core.config.jobs import EvaluateConfig
from grun.core.distributed import is_main, join_processes, wait
from grun.core.errors import UserError
from grun.core.storage.claims import claims_output, keeps
from grun.core.storage.content_hash import content_of_path, subject_folder
from grun.core.storage.fingerprints import fingerprint
from grun.core.storage.run_directory import RunDirectory
from grun.data.paraphrases import Splits
from grun.evaluation.measuring.evidence_store import EvidenceStore
from grun.evaluation.measuring.measure import measure
from grun.evaluation.measuring.plan import HOLDOUT
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.metrics import metrics as registry
from grun.evaluation.report.table import (
    before_after_table,
    in_the_table,
    plain_text,
    show_whole,
    summary_lines,
    to_markdown,
)
from grun.evaluation.report.widths import console
from grun.evaluation.result_files import Found, write_results
from grun.evaluation.scores import needs_of_metrics, score, summarise, usual_metrics
from grun.jobs.inputs.evaluation import ToMeasure, check_metrics, load_splits
from grun.jobs.inputs.own_answers import with_own_answers
from grun.models.loading.loaded import LoadedModel, content_if_given, load
from grun.models.loading.pretrained import adapter_folder, load_adapter

logger = logging.getLogger("grun")
EVIDENCE = "evidence"
LONGEST_ANSWER = 200  # tokens, as in TOFU


@keeps("the splits that are measured are kept")
@claims_output
def evaluate(config: EvaluateConfig, *, show: bool = True) -> Path:
    """Run an evaluation job: measure the model (unless it is left out), and the model with the adapter, on every split.

    Writes `metrics.json` (values, rows behind them, 95 % intervals, reasons of what is missing), `rows.jsonl` (every row
    with its answers and values before and after), `samples.json` (for `grun compare`), `table.md` and `figures/`, and shows
    the table.

    Args:
        config: of the job.
        show: print the table.

    Returns:
        The directory of the run.

    Raises:
        UserError: for wrong input.
    """
    names = [registry.get(name).name for name in config.metrics] or usual_metrics()
    data = load_splits(config)
    retain_log = _retain_log(config)
    check_metrics(config.metrics, data, retain_log is not None)
    join_processes(config.device)
    everything = fingerprint({**data.splits, HOLDOUT: data.holdout}) + content_if_given(config.model)
    run = RunDirectory.open(config.output, config, "evaluate", config.overwrite, data=everything)
    wait()
    if run.is_complete:
        logger.info("%s is complete already; nothing to do.", run.path)
        return run.path
    started = time.monotonic()
    needs = needs_of_metrics(names, summaries=not config.metrics)
    subjects, settings, splits = _prepared(config, data, needs, run)
    if is_main():
        run.start()
    wait()
    evidence = {
        one.label: measure(
            one,
            splits,
            settings,
            forget_split=data.forget,
            unseen_forget=data.unseen_forget,
            holdout=data.holdout,
            retain_log=retain_log,
        )
        for one in subjects
    }
    if is_main():
        scores = {subject: score(own, names) for subject, own in evidence.items()}
        sums = {} if config.metrics else {subject: summarise(own, data.utility) for subject, own in evidence.items()}
        shown = _write(run, config, data, Found(evidence, scores, sums))
        run.mark_complete(time.monotonic() - started)
        if show:
            shown()
    wait()
    return run.path


def _prepared(
    config: EvaluateConfig, data: ToMeasure, needs: frozenset[str], run: RunDirectory
) -> tuple[Sequence[Subject], MeasureSettings, Splits]:
    """The models, loaded, the settings for all of them, and the splits with all answers. No result is written."""
    base = loaded_for(config.model, config)
    splits = {name: with_own_answers(base, rows) for name, rows in data.splits.items()}
    settings = MeasureSettings(
        template=base.template,
        needs=needs,
        tokens_per_batch=config.tokens_per_batch,
        max_new_tokens=config.max_new_tokens or LONGEST_ANSWER,
        answer_tokens=data.answer_tokens if config.max_new_tokens is None else {},
        max_length=base.max_length,
    )
    return subjects_of(config, base, run.path, config.adapter, before=config.before), settings, splits


def subjects_of(
    config: EvaluateConfig | AttackConfig, base: LoadedModel, folder: Path, adapter: str | None, *, before: bool = True
) -> list[Subject]:
    """The model before and after unlearning, each with a store of its evidence.

    Args:
        config: what else decides on measurements, and whether they are looked up in the cache.
        base: the model.
        folder: directory of the run.
        adapter: directory of the adapter, or folder of a whole model; without it there is nothing after unlearning, unless the
            caller's own model has one.
        before: measure the model without the adapter as well.
    """
    model, tokenizer = base.model, base.tokenizer
    store = store_of(config, base, folder)  # a hash of the model as it is before an adapter is put into it
    adapted, own_content = _adapted(config, model, adapter)
    subjects = []
    if before or adapted is None:
        plain = adapted if isinstance(adapted, PeftModel) else model  # an adapter was put into the model itself
        subjects.append(Subject(plain, tokenizer, "before", adapters=False, store=store("before")))
    if adapted is not None:
        other = None if isinstance(adapted, PeftModel) else model
        subjects.append(Subject(adapted, tokenizer, "after", base=other, store=store("after", own_content)))
    return subjects


def store_of(config: EvaluateConfig | AttackConfig, model: LoadedModel, folder: Path) -> Callable[..., EvidenceStore]:
    """A function that gives stores of evidence of a model, by name and the contents of what was put into it.

    Args:
        config: what else decides on measurements, and whether they are looked up in the cache.
        model: the model.
        folder: directory of the run.
    """
    content = model.content if config.cache else None
    decisive = {
        "template": model.template,
        "max_length": model.max_length,
        "dtype": config.dtype,
        "quantize": config.quantize,
        "device": model.device.type,
    }

    def store(name: str, *contents: str | None) -> EvidenceStore:
        return EvidenceStore(folder / EVIDENCE / name, subject_folder([content, *contents], decisive))

    return store


def loaded_for(name: str, config: EvaluateConfig | AttackConfig) -> LoadedModel:
    """A model as the settings ask for it."""
    return load(name, config, template=config.template, max_length=config.max_length, quantize=config.quantize)


def _write(run: RunDirectory, config: EvaluateConfig, data: ToMeasure, found: Found) -> Callable[[], None]:
    """Write everything; returns a function that shows it."""
    for split, evidence in found.splits.items():
        cut = sum(row.truncated for row in evidence.rows)
        if cut:
            logger.warning("%s: %d of %d answers were too long and lost their ends.", split, cut, len(evidence.rows))
    write_results(run.path, found, {"model": config.model, "adapter": config.adapter}, config.seed)
    if config.figures:
        from grun.evaluation.report.figures import draw_figures  # matplotlib takes a second to import

        draw_figures(run.path / "figures", found, data.forget, config.seed)
    shown = found.scores if config.metrics else in_the_table(found.scores, data.shown)
    lines = summary_lines(found.summaries)
    to_forget = [split for split, evidence in found.splits.items() if evidence.to_forget]
    run.write_text("table.md", to_markdown(shown, to_forget) + "".join(f"\n{line}\n" for line in lines))

    def show() -> None:
        show_whole(before_after_table(shown, to_forget=to_forget))
        for line in lines:
            console().print(plain_text(line), highlight=False)

    return show


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
    return EvidenceStore(folder, is_foreign=True)


def whole_model(directory: str) -> Path | None:
    """The folder of the whole model in the result of a run (full fine-tuning); None where the result is an adapter."""
    folder = Path(directory)
    if any((part / "adapter_config.json").is_file() for part in (folder, folder / "adapter")):
        return None
    return next((part for part in (folder, folder / "model") if (part / "config.json").is_file()), None)


def _adapted(
    config: EvaluateConfig | AttackConfig, model: Any, adapter: str | None
) -> tuple[nn.Module | None, str | None]:
    """The model with the adapter, or the whole model that the folder holds (full fine-tuning); and its content.

    Without the name of an adapter there is none, unless the caller's own model has one.
    """
    if adapter is None:
        return (model if isinstance(model, PeftModel) else None), None
    if (whole := whole_model(adapter)) is not None:
        other = loaded_for(str(whole), config)
        return other.model, other.content if config.cache else None
    content = content_of_path(adapter_folder(adapter)) if config.cache else None
    return load_adapter(model, adapter), content
