"""`grun unlearn`: learn an adapter that makes a model forget."""

from __future__ import annotations

__all__ = ["unlearn"]

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from transformers import TrainerCallback, TrainingArguments

from grun.core.config.jobs import UnlearnConfig
from grun.core.distributed import is_main, join_processes, same_everywhere, wait, world
from grun.core.records import Example
from grun.core.storage.atomic_files import atomic_directory
from grun.core.storage.claims import claims_output, keeps
from grun.core.storage.directories.disk import check_room
from grun.core.storage.run_directory import FEATURES, RunDirectory
from grun.jobs.inputs.alternatives import FROM_MODEL, keep_alternatives, with_alternatives
from grun.jobs.inputs.expansion.expand import topic_rows
from grun.jobs.inputs.kept_gates import GATES, kept_gates
from grun.jobs.inputs.own_answers import with_own_answers, worth_answering
from grun.jobs.inputs.topic_files import TopicRows, keep_topic
from grun.jobs.inputs.unlearning import (
    OtherAnswers,
    UnlearningRows,
    check_gates,
    filled,
    fits_gates,
    load_unlearning_rows,
    open_run,
    other_answers,
    say_kept,
)
from grun.models.adaptations import adaptations
from grun.models.encoding.chunking import chunk_running_text
from grun.models.encoding.encode import Encoded
from grun.models.forward import adapters_off
from grun.models.gates.all_gates import JobRows, fit_all_gates
from grun.models.gates.features import features_of_rows, held_gates, make_room, readings_of_gates, save_features
from grun.models.loading.adapters import save_adapter
from grun.models.loading.loaded import LoadedModel, content_if_given, load
from grun.models.memory import bytes_on_disk, peak_memory
from grun.models.row_encoder import RowEncoder
from grun.training.arguments import rows_per_step, unlearning_arguments
from grun.training.forward_engines.engine import ForwardEngine
from grun.training.forward_engines.preparation import Preparation
from grun.training.forward_engines.selection import chosen_engine
from grun.training.interruption import StopCleanly, train_or_resume
from grun.training.loss.dual_variable import DualVariable, dual_variable, is_constrained
from grun.training.loss.plateau import stopping_callbacks
from grun.training.loss.recipe import freeze_unreached, recipe_of, resolved_hidden_layer
from grun.training.loss.terms import Recipe
from grun.training.objectives import objectives
from grun.training.pairs import PairedRows, paired_rows
from grun.training.progress import ProgressBar, quiet_trainer
from grun.training.trainer import UnlearnTrainer
from grun.training.trainer_settings import naming_trainer, parsed_settings
from grun.training.validation import spread, validation, validation_subset

logger = logging.getLogger("grun")
NORMAL = ("retain", "validation")  # kinds of rows to keep
WHOLE_MODEL = "model"  # directory of the result where all weights are trained
STRETCH = 40  # steps whose rows are prepared at a time, where training may stop early


@dataclass(frozen=True)
class _Job:
    """Everything that training needs, in memory and on its device."""

    config: UnlearnConfig
    recipe: Recipe
    run: RunDirectory
    rows: RowEncoder
    examples: dict[str, list[Example]]
    encoded: dict[str, list[Encoded]]
    answers: Mapping[str, OtherAnswers]
    arguments: TrainingArguments
    dual: DualVariable | None
    model: Any
    base: LoadedModel

    def engine(self) -> ForwardEngine:
        """The engine that runs rows through the model."""
        looked = [*validation_subset(self.encoded["forget"]), *validation_subset(self.normal)]
        return chosen_engine(self.config, self.model, self.rows, self.recipe, self.arguments, looked)

    @property
    def normal(self) -> list[Encoded]:
        """Normal rows to validate on: those withheld, if there are any."""
        return self.encoded["validation"] or self.encoded["retain"]

    def trainer(self, engine: ForwardEngine, callbacks: Sequence[TrainerCallback]) -> UnlearnTrainer:
        """The trainer, once the base model was asked all that the loss needs; building it changes no weight."""
        items, patience = self._items(), self.config.patience
        stretch = STRETCH * rows_per_step(self.arguments)
        if patience is None or world() > 1 or self.arguments.dataloader_num_workers:
            stretch = len(items)
        prepare = Preparation(engine, self.recipe, items.sides, items.order, stretch)
        items = dataclasses.replace(items, references=prepare.references, prepare=prepare)
        metric, rows = str(self.arguments.metric_for_best_model), [self.encoded["forget"], self.normal]
        if patience is not None:
            rows = [spread(validation_subset(part)) for part in rows]
        validate = validation(engine.base_probability, engine.probability, *rows)
        own = [
            StopCleanly(),
            ProgressBar("unlearn"),
            *([] if self.dual is None else [self.dual]),
            *([] if patience is None else stopping_callbacks(patience, metric, len(self.encoded["forget"]))),
        ]
        return quiet_trainer(
            UnlearnTrainer(
                model=self.model,
                args=self.arguments,
                train_dataset=items,
                eval_dataset=items,
                recipe=self.recipe,
                validate=validate,
                engine=engine,
                callbacks=[*own, *callbacks],
            )
        )

    def _items(self) -> PairedRows:
        """All training items in order."""
        count = self.arguments.max_steps * rows_per_step(self.arguments)
        forget, sides = self.examples["forget"], self.recipe.sides
        return paired_rows(self.rows, self.encoded, forget, sides, count, self.config.seed, self.answers)

    def answered(self, open_rows: Mapping[str, Sequence[int]] | None) -> _Job:
        """The job with the base model's own answers to normal rows that have none, as far as training can use them.

        Args:
            open_rows: numbers of rows that open a gate, by kind; None to answer all, as earlier versions did.
        """
        changed = {kind: self.examples[kind] for kind in NORMAL if any(not row.answer for row in self.examples[kind])}
        with adapters_off(self.model):
            for kind, rows in changed.items():
                numbers = range(len(rows)) if open_rows is None else open_rows[kind]
                changed[kind] = with_own_answers(self.base, worth_answering(rows, numbers))
        encoded = {kind: self.rows.encode(rows) for kind, rows in changed.items()}
        return dataclasses.replace(self, examples=self.examples | changed, encoded=self.encoded | encoded)


@keeps("what is done is kept")
@claims_output
def unlearn(config: UnlearnConfig, callbacks: Sequence[TrainerCallback] = (), topic: TopicRows | None = None) -> Path:
    """Run an unlearning job; run it again after an interruption to resume it.

    Args:
        config: of the job.
        callbacks: more callbacks for the trainer.
        topic: rows about the topic that the settings name, if they are written already.

    Returns:
        The directory of the adapter (or, where all weights are trained, of the model).

    Raises:
        UserError: for wrong input, before anything is written.
        TrainingDiverged: if a loss or gradient is not finite; the last good state is kept.
        Interrupted: if the user stopped the run; its state is kept.
    """
    config = filled(config)
    recipe = recipe_of(config)
    adaptations.get(config.adapt).info.get("check", lambda config: None)(config)
    parsed_settings(config.trainer)
    check_gates(config)
    if config.topic is not None and topic is None:
        # Refuses a directory that holds something else, before anything is written about the topic.
        open_run(config, None)
    expand = cache(lambda: topic_rows(config, Path(config.output).expanduser()) if topic is None else topic)
    data = load_unlearning_rows(config, expand)
    answers = other_answers(config, recipe.sides, data.forget)
    join_processes(config.device)
    objective = objectives.get(config.objective).info.get("content", "")  # of a function that was given
    run = open_run(config, data, content_if_given(config.model) + objective)
    wait()
    whole_model = adaptations.get(config.adapt).info.get("whole_model", False)
    target = run.path / (WHOLE_MODEL if whole_model else "adapter")
    if run.is_complete and target.is_dir():
        logger.info("%s is complete already; nothing to do.", run.path)
        return target
    say_kept(config, data)
    started = time.monotonic()
    job = _prepared(config, recipe, data, answers, run)
    check_room(run.path, bytes_on_disk(job.model, job.arguments.max_steps, job.arguments.save_steps))
    if is_main():
        run.start()
        if config.topic is not None:
            keep_topic(expand(), run.path)
        if "alternative" in recipe.sides and config.alternatives in FROM_MODEL:
            keep_alternatives(run, job.examples["forget"])
    wait()
    facts = _trained(job, target, callbacks)
    if is_main():
        run.write_json("metrics.json", facts)
        run.mark_complete(time.monotonic() - started)
    wait()
    return target


def _trained(job: _Job, target: Path, callbacks: Sequence[TrainerCallback]) -> dict[str, Any]:
    """Fit the gates, train, and save the result.

    Args:
        job: everything that training needs.
        target: directory of the adapter or the model.
        callbacks: more callbacks for the trainer.

    Returns:
        What the run found.
    """
    facts: dict[str, Any] = {
        "rows": {name: len(part) for name, part in job.encoded.items()},
        "trainable_parameters": sum(p.numel() for p in job.model.parameters() if p.requires_grad),
    }
    if fits_gates(job.config):
        facts |= _fit(job)
        job = job.answered(facts.get("open_rows"))
    engine = job.engine()
    with naming_trainer(job.config.trainer):
        trainer = job.trainer(engine, callbacks)
    train_or_resume(trainer, job.run)
    facts["validation"] = trainer.validate(trainer.model_wrapped)
    facts |= engine.facts
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if world() > 1 else None
    if is_main():
        with atomic_directory(target) as directory:
            if target.name == WHOLE_MODEL:
                job.model.save_pretrained(str(directory), state_dict=state)
                job.rows.tokenizer.save_pretrained(str(directory))
            else:
                save_adapter(job.model, directory, state_dict=state)
    return facts | {"steps": trainer.state.global_step, "peak_memory_mib": peak_memory()}


def _prepared(
    config: UnlearnConfig, recipe: Recipe, data: UnlearningRows, answers: Mapping[str, OtherAnswers], run: RunDirectory
) -> _Job:
    """Load the model, encode the rows, and adapt the model; nothing is written."""
    base = load(
        config.model, config, template=config.template, max_length=config.max_length, batch_size=config.batch_size
    )
    model, rows = base.model, base.encoder
    recipe = resolved_hidden_layer(recipe, config, model)
    # Gates need no answers, and training only few of those to normal rows once gates are fitted (see `_Job.answered`).
    later = fits_gates(config) and not is_constrained(config)
    unanswered = ("neighbours", *NORMAL) if later else ("neighbours",)
    examples = {
        kind: chunk_running_text(
            part if kind in unanswered else with_own_answers(base, part), rows.tokenizer, rows.max_length
        )
        for kind, part in data.parts.items()
    }
    if "alternative" in recipe.sides and config.alternatives in FROM_MODEL:
        examples["forget"] = with_alternatives(config, rows, model, examples, run)
    forget = examples["forget"]
    encoded = {kind: rows.encode(part) for kind, part in examples.items()}
    arguments = unlearning_arguments(config, run, len(forget), model.device)
    base_loss = partial(rows.mean_nll, model, encoded["retain"])
    dual = dual_variable(config, recipe, len(forget) / rows_per_step(arguments), base_loss)
    torch.manual_seed(config.seed)
    adapted = adaptations.get(config.adapt).target(model, config)
    freeze_unreached(adapted, recipe, next(rows.batches(encoded["forget"][:1]))[1])
    return _Job(config, recipe, run, rows, examples, encoded, answers, arguments, dual, adapted, base)


def _fit(job: _Job) -> dict[str, Any]:
    """Fit, calibrate and freeze the gates. After an interruption those of the checkpoint are taken."""
    config, model, run = job.config, job.model, job.run
    checkpoint = run.last_checkpoint()
    facts: dict[str, Any] = {} if checkpoint is None else kept_gates(run.path, {k: len(job.encoded[k]) for k in NORMAL})
    if checkpoint is not None:  # now, because rows whose gates are shut need no states
        make_room(model, facts.get("topic_kept", {}), facts.get("lexicon", {}))
        set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))
    else:
        found = fit_all_gates(
            model,
            job.rows,
            {kind: JobRows(job.examples[kind], encoded) for kind, encoded in job.encoded.items()},
            content=job.base.content,
            shut_for=config.shut_for,
            false_positive_rate=config.false_positive_rate if config.calibrate else None,
            seed=config.seed,
        )
        found.say()
        if config.keep_features and is_main():
            forget = features_of_rows(model, job.rows, job.encoded["forget"])
            save_features(run.path / FEATURES, forget, readings_of_gates(model))
        facts["gates"] = [dataclasses.asdict(fit) for fit in found.fits]
        facts["open_rows"] = {kind: found.open_rows.get(kind, []) for kind in NORMAL}
        facts["topic_kept"] = {part: list(layer.configs[part].topic_kept) for layer, part in held_gates(model)}
        facts["lexicon"] = {part: list(layer.configs[part].lexicon) for layer, part in held_gates(model)}
        if "normal" in found.opened:
            facts["validation_false_positive_rate"] = found.opened["normal"].share
            facts["recognition"] = found.as_json()
        same_everywhere(tensor for name, tensor in model.state_dict().items() if ".grun_gate." in name)
        if is_main():
            run.write_json(GATES, facts)
    for name, parameter in model.named_parameters():
        if ".grun_gate." in name:
            parameter.requires_grad = False
    return facts
