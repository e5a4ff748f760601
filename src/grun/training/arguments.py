"""Arguments of a job's trainer, and the user's own settings of `TrainingArguments`."""

from __future__ import annotations

__all__ = ["parsed_settings", "training_arguments"]

import argparse
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    HfArgumentParser,
    TrainingArguments,
)
from transformers.hf_argparser import string_to_bool
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from grun.core.errors import UserError, nearest
from grun.core.storage.run_directory import CHECKPOINTS, RunDirectory

TENSORBOARD = "TENSORBOARD_LOGGING_DIR"
_named_by_us: set[str] = set()
OWN_FLAGS = {
    "output_dir": "--output",
    "resume_from_checkpoint": "the same command again, which resumes",
    "max_steps": "--steps",
    "num_train_epochs": "--epochs",
    "per_device_train_batch_size": "--batch-size",
    "learning_rate": "--learning-rate",
    "weight_decay": "--weight-decay",
    "seed": "--seed",
    "eval_steps": "--evaluate-every",
    "save_steps": "--evaluate-every (finetune: --save-every)",
    "use_cpu": "--device cpu",
}


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
    try:
        arguments = TrainingArguments(**{**defaults, **settings, **parsed_settings(given)})
        for reporter in get_reporting_integration_callbacks(arguments.report_to):
            reporter()  # raises if its package is missing
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"--trainer: {error}") from error
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several devices need several processes: nn.DataParallel copies the model in every step
    return arguments


def parsed_settings(given: Mapping[str, str]) -> dict[str, Any]:
    """Settings of `TrainingArguments` from text, converted to the types that it declares.

    Raises:
        UserError: for an unknown setting, one that grun has a flag for, or a value of the wrong type.
    """
    if not given:
        return {}
    options = HfArgumentParser(TrainingArguments)._option_string_actions  # type: ignore[arg-type]
    names = {option.removeprefix("--") for option in options if option.startswith("--") and "-" not in option[2:]}
    parsed = {}
    for name, value in given.items():
        if name in OWN_FLAGS:
            raise UserError(f"--trainer {name}={value}: grun has a setting of its own for that; use {OWN_FLAGS[name]}.")
        if name not in names:
            hint = nearest(name, names)
            raise UserError(f"--trainer {name}={value}: transformers' TrainingArguments has no '{name}'.{hint}")
        action = options[f"--{name}"]
        convert: Any = action.type or str
        try:
            many = action.nargs in ("*", "+")
            parsed[name] = [convert(v) for v in value.split(",")] if many else convert(value)
        except (ValueError, TypeError, KeyError, argparse.ArgumentTypeError) as error:
            wanted = {string_to_bool: "true or false"}.get(convert, getattr(convert, "__name__", "another value"))
            raise UserError(f"--trainer {name} is '{value}', expected {wanted}.") from error
        if action.choices is not None and parsed[name] not in action.choices:
            raise UserError(f"--trainer {name} is '{value}', expected one of {', '.join(map(str, action.choices))}.")
    return parsed
