"""`grun finetune`: make a target model that knows what is later to be forgotten."""

from __future__ import annotations

__all__ = ["finetune"]

import logging
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from grun.core.config.checks import MOST_STEPS
from grun.core.config.jobs import FinetuneConfig
from grun.core.distributed import check_launch, world
from grun.core.errors import TrainingDiverged, UserError
from grun.core.process.threads import fit_threads
from grun.core.records import Batch, Example
from grun.core.storage.atomic_files import atomic_directory
from grun.core.storage.claims import claims_output, keeps
from grun.core.storage.directories.disk import check_room
from grun.core.storage.fingerprints import fingerprint
from grun.core.storage.run_directory import RunDirectory
from grun.jobs.inputs.finetuning import load_rows
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded, encode, truncation_report
from grun.models.encoding.templates import QA, resolve_template
from grun.models.forward import side_signals
from grun.models.loading.from_scratch import check_shape, learn_tokenizer, small_llama
from grun.models.loading.loaded import LoadedModel, load
from grun.models.loading.pretrained import resolve_device
from grun.models.memory import bytes_on_disk
from grun.models.row_encoder import RowEncoder
from grun.training.arguments import training_arguments
from grun.training.interruption import ResumableTrainer, StopCleanly, train_or_resume
from grun.training.progress import ProgressBar, quiet_trainer
from grun.training.trainer_settings import naming_trainer, parsed_settings

logger = logging.getLogger("grun")
POOL = 16  # batches whose rows are sorted by length together: little padding, and still a random order
CONTEXT = (512, 2048)  # least and most tokens that a model from scratch can read
FROM_SCRATCH = {"epochs": 20.0, "learning_rate": 4e-3, "adam_beta2": 0.98}  # few steps: forget old gradients sooner
PRETRAINED = {"epochs": 5.0, "learning_rate": 1e-5, "adam_beta2": 0.999}


@keeps("what is done is kept")
@claims_output
def finetune(config: FinetuneConfig) -> Path:
    """Train a target model; run it again after an interruption to resume it.

    Returns:
        The directory of the model and its tokenizer.

    Raises:
        UserError: for wrong input, before anything is written.
        TrainingDiverged: if the loss is not finite; the last good state is kept.
        Interrupted: if the user stopped the run; its state is kept.
    """
    check_launch()
    parsed_settings(config.trainer)
    rows = load_rows(config)
    run = RunDirectory.open(config.output, config, "finetune", config.overwrite, data=fingerprint({"rows": rows}))
    target = run.path / "model"
    if run.is_complete and target.is_dir():
        logger.info("%s is complete already; nothing to do.", run.path)
        return target
    base, encoded = _prepared(config, rows)
    model: Any = base.model
    report = truncation_report(encoded)
    if report:
        logger.warning(report)
    batches, arguments = _arguments(config, model, encoded, run)
    trainer = _trainer(config, model, batches, arguments, base.encoder.pad)
    check_room(run.path, bytes_on_disk(model, arguments.max_steps, arguments.save_steps))
    run.start()
    started = time.monotonic()
    train_or_resume(trainer, run)
    with atomic_directory(target) as directory:
        model.save_pretrained(str(directory))
        base.tokenizer.save_pretrained(str(directory))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    facts = {
        "rows": len(rows),
        "tokens": sum(len(row.input_ids) for row in encoded),
        "truncated_rows": sum(row.truncated > 0 for row in encoded),
        "template": base.template.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": trainer.state.global_step,
        "loss": losses[-1] if losses else None,
    }
    run.write_json("metrics.json", facts)
    run.mark_complete(time.monotonic() - started)
    return target


def _prepared(config: FinetuneConfig, rows: Sequence[Example]) -> tuple[LoadedModel, list[Encoded]]:
    """The model and its encoded rows; all that can be wrong with the input is found here."""
    if config.model is not None:
        base = load(
            config.model,
            config,
            template=config.template,
            max_length=config.max_length,
            batch_size=config.batch_size,
        )
        return base, [encode(row, base.tokenizer, base.template, base.max_length) for row in rows]
    device = resolve_device(config.device)
    pattern = config.template if "{prompt}" in config.template else QA
    shape = {"hidden_size": config.hidden_size, "layers": config.layers, "heads": config.heads}
    check_shape(**shape, vocab_size=0)
    tokenizer = learn_tokenizer(_texts(rows, pattern), config.vocab_size)
    check_shape(**shape, vocab_size=len(tokenizer))
    template = resolve_template(config.template, tokenizer)
    context = config.max_length
    if context is None:
        lengths = [len(encode(row, tokenizer, template, CONTEXT[1]).input_ids) for row in rows]
        context = max(CONTEXT[0], *lengths)
    tokenizer.model_max_length = context
    scratch = small_llama(
        tokenizer,
        **shape,
        context=context,
        seed=config.seed,
    )
    fit_threads(scratch.num_parameters(), device.type)
    placed: Any = scratch.to(device)  # type: ignore[arg-type]
    base = LoadedModel(placed, RowEncoder(tokenizer, template, context, config.batch_size, device))
    return base, [encode(row, tokenizer, template, context) for row in rows]


def _texts(rows: Sequence[Example], pattern: str) -> list[str]:
    """What the vocabulary is learnt from: rows as the model will read them."""
    return [f"{row.prompt if row.raw_text else pattern.replace('{prompt}', row.prompt)} {row.answer}" for row in rows]


class _Batches(Dataset):  # type: ignore[type-arg]
    """All batches of a run in order; an item is one batch's rows. The order of an epoch is drawn when it is read."""

    def __init__(self, rows: Sequence[Encoded], batch_size: int, epochs: float, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.per_epoch = math.ceil(len(rows) / batch_size)
        self.steps = math.ceil(epochs * self.per_epoch)
        self._lengths = [len(row.input_ids) for row in rows]
        self._drawn: tuple[int, list[list[int]]] = (-1, [])  # number of an epoch, and its order

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, item: int) -> list[Encoded]:
        epoch, batch = divmod(item, self.per_epoch)
        if self._drawn[0] != epoch:
            draw = random.Random(f"finetune {self.seed} {epoch * self.per_epoch}")
            self._drawn = epoch, _one_epoch(self._lengths, self.batch_size, draw)
        return [self.rows[i] for i in self._drawn[1][batch]]


def _one_epoch(lengths: Sequence[int], batch_size: int, draw: random.Random) -> list[list[int]]:
    """Row numbers in batches, at random but for rows of similar length being together."""
    rows = list(range(len(lengths)))
    draw.shuffle(rows)
    pool = POOL * batch_size
    pools = [sorted(rows[i : i + pool], key=lambda row: lengths[row]) for i in range(0, len(rows), pool)]
    together = [row for one in pools for row in one]
    batches = [together[i : i + batch_size] for i in range(0, len(together), batch_size)]
    draw.shuffle(batches)
    return batches


class _AnswerTrainer(ResumableTrainer):
    """`transformers.Trainer` on answers only; batches come in the order that they were drawn in."""

    def __init__(self, *, pad_token_id: int, **kwargs: Any) -> None:
        super().__init__(data_collator=self._collate, **kwargs)
        self.pad = pad_token_id
        self.model_accepts_loss_kwargs = False

    def _collate(self, items: Sequence[Sequence[Encoded]]) -> dict[str, Any]:
        batch = collate([row for rows in items for row in rows], self.pad)
        return {**batch.model_inputs(), "labels": batch.labels_BT, "prompt_lengths": batch.prompt_lengths_B}

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """Cross-entropy of the batch's answer tokens.

        Raises:
            TrainingDiverged: if it is not finite, before any weight changes.
        """
        batch = Batch(*(inputs[k] for k in ("input_ids", "attention_mask", "labels", "prompt_lengths")))
        loss = side_signals(model, batch).mean_nll
        if not bool(torch.isfinite(loss)):
            raise TrainingDiverged(f"the loss is {float(loss.detach())} at step {self.state.global_step + 1}")
        return loss


class _StopAtLoss(TrainerCallback):
    """Stops once an epoch's mean loss, which is what is logged, is low enough."""

    def __init__(self, loss: float | None) -> None:
        self.loss = loss

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if self.loss is not None and logs and logs.get("loss", math.inf) < self.loss:
            control.should_training_stop = True


def _arguments(
    config: FinetuneConfig, model: PreTrainedModel, rows: Sequence[Encoded], run: RunDirectory
) -> tuple[_Batches, TrainingArguments]:
    """All batches, and the arguments of the trainer.

    Raises:
        UserError: for too many steps, or settings of the trainer that cannot work.
    """
    defaults = FROM_SCRATCH if config.model is None else PRETRAINED
    epochs = defaults["epochs"] if config.epochs is None else config.epochs
    rate = defaults["learning_rate"] if config.learning_rate is None else config.learning_rate
    batches = _Batches(rows, config.batch_size, epochs, config.seed)
    if len(batches) > MOST_STEPS:
        raise UserError(
            f"--epochs {epochs:,} over {len(rows):,} rows, --batch-size {config.batch_size}, are {len(batches):,} steps, "
            f"expected at most {MOST_STEPS:,}; lower --epochs."
        )
    arguments = training_arguments(
        run,
        model.device,
        config.trainer,
        max_steps=len(batches),
        per_device_train_batch_size=1,  # an item is a batch
        learning_rate=rate,
        weight_decay=config.weight_decay,
        adam_beta2=defaults["adam_beta2"],
        lr_scheduler_type="cosine",
        warmup_steps=max(1, len(batches) // 20),
        logging_steps=batches.per_epoch,
        save_steps=config.save_every,
        seed=config.seed,
    )
    arguments.max_steps = math.ceil(len(batches) / (arguments.gradient_accumulation_steps * world()))
    return batches, arguments


def _trainer(
    config: FinetuneConfig, model: PreTrainedModel, batches: _Batches, arguments: TrainingArguments, pad: int
) -> ResumableTrainer:
    callbacks = [StopCleanly(), _StopAtLoss(config.stop_loss), ProgressBar("finetune")]
    with naming_trainer(config.trainer):
        trainer = _AnswerTrainer(
            model=model, args=arguments, train_dataset=batches, pad_token_id=pad, callbacks=callbacks
        )
    return quiet_trainer(trainer)
