"""`grun unlearn`: learn an adapter that makes a model forget."""

from __future__ import annotations

__all__ = ["Sides", "load_sides", "unlearn"]

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PreTrainedTokenizerBase, TrainingArguments

from grun.adapters import adapters, with_presets
from grun.batches import (
    Encoded,
    Template,
    collate,
    encode,
    length_batches,
    pad_token_id,
    paired_order,
    resolve_template,
    truncation_report,
)
from grun.benchmarks import load_benchmark
from grun.config import UnlearnConfig
from grun.errors import Interrupted, TrainingDiverged, UserError
from grun.gate_fitting import GateFeatures, calibrate, fit_gates, gate_features
from grun.models import load_model_and_tokenizer
from grun.objectives import objective_options, objectives, sides_of
from grun.progress import ProgressBar, quiet_trainer
from grun.readers import check_disjoint, read_examples
from grun.records import Batch, Example
from grun.refusals import REFUSALS
from grun.runs import RunDirectory, atomic_directory
from grun.signals import reference_logps
from grun.splitting import withhold
from grun.trainer import PairedRows, StopCleanly, UnlearnTrainer, Weights

logger = logging.getLogger("grun")
VALIDATION_ROWS = 200


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
        for name in ("forget", "retain"):
            if not getattr(config, name):
                raise UserError(f"--{name} is missing: give a file of what to {name.replace('retain', 'keep')}, or --benchmark.")
        forget = [row for source in config.forget for row in read_examples(source, columns=config.columns)]
        retain = [row for source in config.retain for row in read_examples(source, columns=config.columns)]
    shared = check_disjoint(forget, retain)
    if shared:
        logger.warning("%d rows are both in --forget and in --retain; they are forgotten.", shared)
        known = {(row.prompt, row.answer) for row in forget}
        retain = [row for row in retain if (row.prompt, row.answer) not in known]
    learn, validation = withhold(retain, config.withhold, config.seed)
    return Sides(forget, learn, validation)


@dataclass(frozen=True)
class _Rows:
    """Encoded rows and the means to batch them on the model's device."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int | None
    batch_size: int
    device: torch.device

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        rows = [encode(example, self.tokenizer, self.template, self.max_length) for example in examples]
        report = truncation_report(rows)
        if report:
            logger.warning(report)
        return rows

    def batches(self, rows: Sequence[Encoded]) -> Iterator[tuple[list[int], Batch]]:
        """Batches by length, each with the numbers of its rows."""
        for index in length_batches([len(row.input_ids) for row in rows], 4 * self.batch_size):
            yield index, collate([rows[i] for i in index], pad_token_id(self.tokenizer)).to(self.device)

    def reference(self, model: nn.Module, rows: Sequence[Encoded]) -> list[Tensor]:
        """Base-model log-probabilities of each row's answer tokens, on the CPU."""
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for index, batch in self.batches(rows):
            side = reference_logps(model, batch)
            for row, logps_T, mask_T in zip(index, side.logps_BT.cpu(), side.mask_BT.cpu(), strict=True):
                found[row] = logps_T[mask_T]
        return found

    def features(self, model: nn.Module, rows: Sequence[Encoded]) -> list[GateFeatures]:
        """What the adapter's gates read, row by row in the order given."""
        size = 4 * self.batch_size
        chunks = (rows[i : i + size] for i in range(0, len(rows), size))
        return gate_features(model, (collate(c, pad_token_id(self.tokenizer)).to(self.device) for c in chunks))


def unlearn(config: UnlearnConfig) -> Path:
    """Run an unlearning job; run it again after an interruption to resume it.

    Returns:
        The directory of the adapter (or, with `adapt="full"`, of the model).

    Raises:
        UserError: for wrong input, before anything is written.
        TrainingDiverged: if a loss or gradient is not finite; the last good state is kept.
        Interrupted: if the user stopped the run; its state is kept.
    """
    config = with_presets(config)
    entry = objectives.get(config.objective)
    objective = partial(entry.target, **objective_options(entry, config.objective_options))
    sides = load_sides(config)
    model, tokenizer = load_model_and_tokenizer(
        config.model, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    rows = _Rows(tokenizer, resolve_template(config.template, tokenizer), _longest(config, model), config.batch_size, model.device)
    encoded = {name: rows.encode(getattr(sides, name)) for name in ("forget", "retain", "validation")}
    run = RunDirectory.open(config.output, config, "unlearn", config.overwrite)
    target = run.path / ("model" if config.adapt == "full" else "adapter")
    if run.is_complete and target.is_dir():
        logger.info("%s is complete already; nothing to do.", run.path)
        return target
    started = time.monotonic()
    data = _paired_rows(config, sides_of(entry), entry.info["needs"], encoded, sides, rows, model)
    validate = _validation(encoded, rows, model)
    torch.manual_seed(config.seed)
    adapted = adapters.get(config.adapt).target(model, config)
    validate = partial(validate, adapted)
    facts: dict[str, Any] = {"rows": {name: len(part) for name, part in encoded.items()}}
    if config.fit_gate_first and config.gate != "none":
        facts["gates"] = _fit(config, adapted, encoded, rows, with_state=run.last_checkpoint() is None)
    trainer = _trainer(config, entry.info, adapted, data, objective, validate, pad_token_id(tokenizer), run)
    _train(trainer, run)
    facts["validation"] = validate()
    facts["trainable_parameters"] = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    facts["seconds"] = round(time.monotonic() - started, 2)
    with atomic_directory(target) as directory:
        adapted.save_pretrained(str(directory))
        if config.adapt == "full":
            tokenizer.save_pretrained(str(directory))
    run.mark_complete(facts)
    return target


def _longest(config: UnlearnConfig, model: nn.Module) -> int | None:
    """The configured length, or the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    return min(filter(None, (config.max_length, context)), default=None)


def _paired_rows(
    config: UnlearnConfig,
    names: Sequence[str],
    needs: Sequence[str],
    encoded: dict[str, list[Encoded]],
    examples: Sides,
    rows: _Rows,
    model: nn.Module,
) -> PairedRows:
    """All training items in order: every forget row once per pass, each beside a retain row drawn at random."""
    forget, retain = encoded["forget"], encoded["retain"]
    steps = _steps(config, len(forget))
    order: list[dict[str, int]] = []
    refusals: list[Encoded] = []
    drawn: dict[tuple[int, int], int] = {}
    draw = random.Random(f"refusals {config.seed}")
    epoch = 0
    while len(order) < steps * config.batch_size:
        for f, r in paired_order(len(forget), len(retain), config.seed, epoch):
            item = {"forget": f, "retain": r}
            if "refusal" in names:
                key = (f, draw.randrange(len(REFUSALS)))
                if key not in drawn:
                    drawn[key] = len(refusals)
                    refusals.append(_refusal(examples.forget[f], REFUSALS[key[1]], rows))
                item["refusal"] = drawn[key]
            order.append({name: item[name] for name in names})
        epoch += 1
    everything = {"forget": forget, "retain": retain, "refusal": refusals}
    side_rows = {name: everything[name] for name in names}
    wanted = {need.split(".")[0] for need in needs if need.endswith(".ref_logps")}
    references = {name: rows.reference(model, side_rows[name]) for name in wanted}
    return PairedRows(side_rows, order[: steps * config.batch_size], references)


def _refusal(example: Example, refusal: str, rows: _Rows) -> Encoded:
    refused = Example(prompt=example.prompt, answer=refusal, turns=example.turns, source=example.source)
    return encode(refused, rows.tokenizer, rows.template, rows.max_length)


def _steps(config: UnlearnConfig, forget_rows: int) -> int:
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, math.ceil(config.epochs * forget_rows / config.batch_size))


def _validation(
    encoded: dict[str, list[Encoded]], rows: _Rows, base: nn.Module
) -> Callable[[nn.Module], dict[str, float]]:
    """Answer probabilities of forget rows and of withheld retain rows, against the base model's.

    `score` is the withheld rows' probability relative to the base model's (at most 1), times one minus the forget rows'.
    """
    parts = {"forget": encoded["forget"][:VALIDATION_ROWS], "retain": (encoded["validation"] or encoded["retain"])[:VALIDATION_ROWS]}
    before = {name: _probability(rows.reference(base, part)) for name, part in parts.items()}

    def validate(model: nn.Module) -> dict[str, float]:
        was_training = model.training
        model.eval()
        now = {name: _probability(_scored(model, rows, part)) for name, part in parts.items()}
        model.train(was_training)
        kept = now["retain"] / max(before["retain"], 1e-12)
        return {
            "forget_probability": now["forget"],
            "forget_probability_before": before["forget"],
            "retain_ratio": kept,
            "score": min(kept, 1.0) * (1.0 - now["forget"]),
        }

    return validate


@torch.no_grad()
def _scored(model: nn.Module, rows: _Rows, part: Sequence[Encoded]) -> list[Tensor]:
    from grun.signals import side_signals

    found: list[Tensor] = []
    for _, batch in rows.batches(part):
        side = side_signals(model, batch, with_grad=False)
        found += [logps_T[mask_T] for logps_T, mask_T in zip(side.logps_BT, side.mask_BT, strict=True)]
    return found


def _probability(logps: Sequence[Tensor]) -> float:
    """Mean over rows of the answer probability `exp(mean log-probability)`."""
    return float(torch.stack([row.float().mean().exp() for row in logps]).mean())


def _fit(
    config: UnlearnConfig, model: nn.Module, encoded: dict[str, list[Encoded]], rows: _Rows, with_state: bool
) -> dict[str, Any]:
    """Fit, calibrate and freeze the gates. After an interruption the checkpoint holds them already."""
    facts: dict[str, Any] = {}
    if with_state:
        features = {name: rows.features(model, part) for name, part in encoded.items() if part}
        normal = features.get("validation", features["retain"])
        fits = fit_gates(model, features["forget"], features["retain"], normal)
        facts["fits"] = [vars(fit) for fit in fits]
        if config.calibrate:
            facts["false_positive_rate"] = calibrate(model, normal, config.false_positive_rate)
    for name, parameter in model.named_parameters():
        if ".grun_gate." in name:
            parameter.requires_grad = False
    return facts


class _InOrder(UnlearnTrainer):
    """Rows come in the order that they were paired in, which is already seeded."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        assert self.train_dataset is not None
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def _trainer(
    config: UnlearnConfig,
    info: dict[str, Any],
    model: nn.Module,
    data: PairedRows,
    objective: Callable[..., Any],
    validate: Callable[[], dict[str, float]],
    pad: int,
    run: RunDirectory,
) -> UnlearnTrainer:
    weights = Weights(
        forget=config.forget_weight if config.forget_weight is not None else info.get("forget_weight", 1.0),
        retain=config.retain_weight if config.retain_weight is not None else info["retain_weight"],
        gate=0.0 if config.fit_gate_first else (config.gate_weight or 0.0),
    )
    every = config.evaluate_every or 25
    arguments = TrainingArguments(
        output_dir=str(run.path / "checkpoints"),
        max_steps=len(data) // config.batch_size,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type="linear",
        logging_steps=5,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
        remove_unused_columns=False,
        report_to="none",
        seed=config.seed,
        use_cpu=next(model.parameters()).device.type == "cpu",
        dataloader_pin_memory=False,
    )
    trainer = _InOrder(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,
        objective=objective,
        weights=weights,
        validate=validate,
        pad_token_id=pad,
        callbacks=[StopCleanly(), ProgressBar("unlearn")],
    )
    return quiet_trainer(trainer)


def _train(trainer: UnlearnTrainer, run: RunDirectory) -> None:
    checkpoint = run.last_checkpoint()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except TrainingDiverged as error:
        kept = run.last_checkpoint()
        state = f"the last good state is kept in {kept}" if kept else "no state was saved before it"
        raise TrainingDiverged(f"{error}; {state}. Lower --learning-rate and start again with --overwrite.") from error
    stopper = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StopCleanly))
    if stopper.asked:
        step = trainer.state.global_step
        raise Interrupted(f"stopped after step {step}; the state is kept in {run.path}. Run the same command to resume.")
    run.write_json("log.json", trainer.state.log_history)
