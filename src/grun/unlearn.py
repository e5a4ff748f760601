"""`grun unlearn`: learn an adapter that makes a model forget."""

from __future__ import annotations

__all__ = ["Sides", "load_sides", "unlearn"]

import dataclasses
import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from grun.adapters import adapters, with_presets
from grun.batches import Encoded, pad_token_id, resolve_template
from grun.benchmarks import load_benchmark
from grun.config import UnlearnConfig
from grun.errors import UserError
from grun.gate_fitting import calibrate, fit_gates
from grun.models import load_model_and_tokenizer
from grun.objectives import objective_options, objectives, sides_of
from grun.progress import ProgressBar, quiet_trainer
from grun.readers import check_disjoint, read_examples
from grun.records import Example
from grun.rows import RowEncoder, paired_rows, validation
from grun.runs import RunDirectory, atomic_directory, fingerprint
from grun.splitting import withhold
from grun.trainer import UnlearnTrainer, Weights
from grun.training import StopCleanly, train_or_resume, training_arguments

logger = logging.getLogger("grun")
GATES = "gates.json"


@dataclass(frozen=True)
class Sides:
    """Examples of an unlearning run: what to forget, what to keep, and what to keep that is only looked at."""

    forget: list[Example]
    retain: list[Example]
    validation: list[Example]


def load_sides(config: UnlearnConfig) -> Sides:
    """Read what to forget and what to keep, from a benchmark or from files, and withhold whole retain subjects.

    Raises:
        UserError: for missing or contradictory settings, unreadable files, or identical forget and retain rows.
    """
    if config.benchmark and (config.forget or config.retain):
        raise UserError("--benchmark and --forget/--retain were both given; take the rows from one of them.")
    if config.benchmark:
        data = load_benchmark(
            config.benchmark, data_dir=config.data_dir, seed=config.seed, options=config.benchmark_options
        )
        forget, retain = list(data.splits[data.forget]), list(data.splits[data.retain])
    else:
        for name, meaning in (("forget", "forget"), ("retain", "keep")):
            if not getattr(config, name):
                raise UserError(f"--{name} is missing: give a file of what to {meaning}, or --benchmark.")
        forget = [row for source in config.forget for row in read_examples(source, columns=config.columns)]
        retain = [row for source in config.retain for row in read_examples(source, columns=config.columns)]
    shared = check_disjoint(forget, retain)
    if shared:
        logger.warning("%d rows are in both --forget and --retain; they are forgotten.", shared)
        known = {(row.prompt, row.answer) for row in forget}
        retain = [row for row in retain if (row.prompt, row.answer) not in known]
    return Sides(forget, *withhold(retain, config.withhold, config.seed))


def unlearn(config: UnlearnConfig) -> Path:
    """Run an unlearning job; run it again after an interruption to resume it.

    Returns:
        The directory of the adapter (or, where all weights are trained, of the model).

    Raises:
        UserError: for wrong input, before anything is written.
        TrainingDiverged: if a loss or gradient is not finite; the last good state is kept.
        Interrupted: if the user stopped the run; its state is kept.
    """
    config = with_presets(config)
    entry = objectives.get(config.objective)
    objective = partial(entry.target, **objective_options(entry, config.objective_options))
    sides = load_sides(config)
    run = RunDirectory.open(config.output, config, "unlearn", config.overwrite, data=fingerprint(vars(sides)))
    way = adapters.get(config.adapt)
    whole_model = way.info.get("whole_model", False)
    target = run.path / ("model" if whole_model else "adapter")
    if run.is_complete and target.is_dir():
        logger.info("%s is complete already; nothing to do.", run.path)
        return target
    model, tokenizer = load_model_and_tokenizer(
        config.model, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    template = resolve_template(config.template, tokenizer)
    rows = RowEncoder(tokenizer, template, _longest(config, model), config.batch_size, model.device)
    encoded = {name: rows.encode(getattr(sides, name)) for name in ("forget", "retain", "validation")}
    started = time.monotonic()
    items = paired_rows(rows, encoded, sides.forget, sides_of(entry), _steps(config, len(sides.forget)), config.seed)
    references = {need.split(".")[0] for need in entry.info["needs"] if need.endswith(".ref_logps")}
    items = dataclasses.replace(items, ref_logps={s: rows.reference(model, items.sides[s]) for s in references})
    validate = validation(rows, model, encoded["forget"], encoded["validation"] or encoded["retain"])
    torch.manual_seed(config.seed)
    adapted = way.target(model, config)
    run.start()
    facts: dict[str, Any] = {
        "rows": {name: len(part) for name, part in encoded.items()},
        "trainable_parameters": sum(p.numel() for p in adapted.parameters() if p.requires_grad),
    }
    if config.fit_gate_first and config.gate != "none":
        facts |= _fit(config, adapted, encoded, rows, run)
    trainer = quiet_trainer(
        UnlearnTrainer(
            model=adapted,
            args=_arguments(config, run, len(items), model.device),
            train_dataset=items,
            eval_dataset=items,
            objective=objective,
            weights=_weights(config, entry.info),
            validate=partial(validate, adapted),
            pad_token_id=pad_token_id(tokenizer),
            callbacks=[StopCleanly(), ProgressBar(f"{config.objective}, {config.adapt}")],
        )
    )
    train_or_resume(trainer, run)
    facts["validation"] = validate(adapted)
    with atomic_directory(target) as directory:
        save: Any = adapted.save_pretrained
        save(str(directory))
        if whole_model:
            tokenizer.save_pretrained(str(directory))
    run.write_json("metrics.json", facts)
    run.mark_complete(time.monotonic() - started)
    return target


def _longest(config: UnlearnConfig, model: nn.Module) -> int | None:
    """The configured length, or the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    return min(filter(None, (config.max_length, context)), default=None)


def _steps(config: UnlearnConfig, forget_rows: int) -> int:
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, math.ceil(config.epochs * forget_rows / config.batch_size))


def _weights(config: UnlearnConfig, info: dict[str, Any]) -> Weights:
    return Weights(
        forget=config.forget_weight if config.forget_weight is not None else info.get("forget_weight", 1.0),
        retain=config.retain_weight if config.retain_weight is not None else info["retain_weight"],
        gate=0.0 if config.fit_gate_first else (config.gate_weight or 0.0),
    )


def _fit(
    config: UnlearnConfig, model: nn.Module, encoded: dict[str, list[Encoded]], rows: RowEncoder, run: RunDirectory
) -> dict[str, Any]:
    """Fit, calibrate and freeze the gates. After an interruption the checkpoint holds them already."""
    resumed = run.last_checkpoint() is not None
    facts: dict[str, Any] = run.read_json(GATES) if resumed else {}
    if not resumed:
        features = {name: rows.features(model, part) for name, part in encoded.items() if part}
        normal = features.get("validation", features["retain"])
        fits = fit_gates(model, features["forget"], features["retain"], normal, seed=config.seed)
        facts["gates"] = [dataclasses.asdict(fit) for fit in fits]
        if config.calibrate:
            rate = calibrate(model, features["forget"], normal, config.false_positive_rate)
            facts["validation_false_positive_rate"] = rate
        run.write_json(GATES, facts)
    for name, parameter in model.named_parameters():
        if ".grun_gate." in name:
            parameter.requires_grad = False
    return facts


def _arguments(config: UnlearnConfig, run: RunDirectory, items: int, device: torch.device) -> TrainingArguments:
    return training_arguments(
        run,
        device,
        max_steps=items // config.batch_size,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type="linear",
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=config.evaluate_every,
        save_steps=config.evaluate_every,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
        seed=config.seed,
    )
