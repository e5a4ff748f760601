"""Arguments of a job's trainer, and the user's own settings of `TrainingArguments`."""

from __future__ import annotations

__all__ = ["OWN_FLAGS", "parsed_settings", "rows_per_step", "training_arguments", "unlearning_arguments"]

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from grun.core.config.checks import check_rows
from grun.core.config.jobs import UnlearnConfig
from grun.core.distributed import world
from grun.core.errors import UserError
from grun.core.storage.run_directory import CHECKPOINTS, RunDirectory
from grun.training.loss.plateau import QUALITY
from grun.training.trainer_settings import OWN_FLAGS, naming_trainer, parsed_settings, try_out
from grun.training.validation import VALIDATION_METRICS

DECAY: dict[str, Any] = {"lr_scheduler_type": "linear"}  # to zero at the last step, which must be known
CONSTANT: dict[str, Any] = {
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
}  # for runs that stop when they are done
TENSORBOARD = "TENSORBOARD_LOGGING_DIR"
_named_by_us: set[str] = set()


def training_arguments(
    run: RunDirectory, device: torch.device, given: Mapping[str, str], **settings: Any
) -> TrainingArguments:
    """Arguments of a job's trainer.

    Unless the user asks for it, two checkpoints are kept in the run's directory, nothing is reported to any service, and
    losses that are not finite appear in the log as they are.

    Args:
        run: directory of the run.
        device: device of the model.
        given: the user's settings, as `name=value`; they take precedence.
        **settings: the job's own settings.

    Raises:
        UserError: for a setting that transformers does not have, one that grun has a flag for, or a wrong value.
    """
    # TensorBoard would write beside the checkpoints, which are deleted
    if os.environ.get(TENSORBOARD) in (None, *_named_by_us):
        os.environ[TENSORBOARD] = str(run.path / "tensorboard")
        _named_by_us.add(os.environ[TENSORBOARD])
    defaults = {
        "output_dir": str(run.path / CHECKPOINTS),
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "report_to": "none",
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "restore_callback_states_from_checkpoint": True,
    }
    own = parsed_settings(given)
    with naming_trainer(given):
        arguments = TrainingArguments(**{**defaults, **settings, **own})
        for reporter in get_reporting_integration_callbacks(arguments.report_to):
            reporter()  # raises if its package is missing
        if own and world() == 1:
            try_out(arguments)
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several devices need several processes: nn.DataParallel copies the model in every step
    return arguments


def rows_per_step(arguments: TrainingArguments) -> int:
    """Rows of each side that one optimiser step sees, over all parts and processes."""
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * world()


def unlearning_arguments(
    config: UnlearnConfig, run: RunDirectory, forget_rows: int, device: torch.device
) -> TrainingArguments:
    """Arguments of an unlearning job's trainer; where passes were asked for, their steps depend on how many rows a step sees.

    Args:
        config: of the job, presets filled in. Without a patience the learning rate falls to zero at the last step; with one,
            the last step is not known in advance, so after a short warm-up it is constant and the best state is kept.
        run: directory of the run.
        forget_rows: number of rows to forget.
        device: device of the model.

    Raises:
        UserError: as of `training_arguments`, or for a metric that validation does not have.
    """
    arguments = training_arguments(
        run,
        device,
        config.trainer,
        max_steps=config.steps or 1,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        **(DECAY if config.patience is None else CONSTANT),
        logging_steps=5,
        eval_strategy="steps",
        eval_steps=config.evaluate_every,
        save_steps=config.evaluate_every,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score" if config.patience is None else QUALITY,
        greater_is_better=True,
        seed=config.seed,
    )
    metrics = [*(f"eval_{name}" for name in VALIDATION_METRICS), *([] if config.patience is None else [QUALITY])]
    if not {str(arguments.metric_for_best_model), f"eval_{arguments.metric_for_best_model}"} & set(metrics):
        known = ", ".join(metrics)
        raise UserError(
            f"--trainer metric_for_best_model is '{arguments.metric_for_best_model}', expected one of {known}."
        )
    if config.steps is None:
        assert config.epochs is not None
        arguments.max_steps = max(1, math.ceil(config.epochs * forget_rows / rows_per_step(arguments)))
    parts = {"gradient_accumulation_steps": arguments.gradient_accumulation_steps, "processes": world()}
    factors: dict[str, float] = {
        "--batch-size": config.batch_size,
        **{n: count for n, count in parts.items() if count > 1},
    }
    if config.steps is None:
        factors = {"--epochs": config.epochs or 0, "rows": forget_rows}
    else:
        factors = {"--steps": config.steps, **factors}
    check_rows(arguments.max_steps * rows_per_step(arguments), factors)
    return arguments
