"""The user's own settings of `TrainingArguments`: read by their types, bounded, and tried out before anything is written."""

from __future__ import annotations

__all__ = ["OWN_FLAGS", "naming_trainer", "parsed_settings", "try_out"]

import argparse
import copy
import math
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments
from transformers.hf_argparser import string_to_bool

from grun.core.config.checks import LARGEST, MOST_SEED, MOST_STEPS, check_text, shown
from grun.core.errors import Interrupted, TrainingDiverged, UserError, nearest

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
UPLOADS = "grun uploads nothing; upload the result yourself: hf upload ..."
NO_LABELS = "grun computes its losses itself"
OWN_ORDER = "rows come in an order of grun's own"
REFUSED = {  # settings that may only be off, with the reason
    **dict.fromkeys(("push_to_hub", "hub_always_push", "hub_private_repo"), UPLOADS),
    **dict.fromkeys(("hub_token", "hub_model_id", "hub_strategy", "hub_revision"), UPLOADS),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), UPLOADS),
    **dict.fromkeys(("label_names", "label_smoothing_factor", "remove_unused_columns"), NO_LABELS),
    **dict.fromkeys(("train_sampling_strategy", "length_column_name"), OWN_ORDER),
    "local_rank": "start several processes with accelerate launch or torchrun",
    "debug": "it looks into every tensor, and grun's may be empty",
    "save_only_model": "a run could not be resumed from its checkpoints",
}
OFF = (False, 0.0, None, "")
Bounds = tuple[float, float]
BOUNDS: dict[str, Bounds] = {  # both values are allowed
    "adam_beta1": (0.0, 0.999_999_9),
    "adam_beta2": (0.0, 0.999_999_9),
    "adam_epsilon": (0.0, 1.0),
    "data_seed": (0, MOST_SEED),
    "dataloader_num_workers": (0, 256),
    "dataloader_prefetch_factor": (1, 1_000),
    "ddp_bucket_cap_mb": (1, 1_000_000),
    "ddp_timeout": (1, MOST_STEPS),
    "eval_accumulation_steps": (1, MOST_STEPS),
    "gradient_accumulation_steps": (1, 65_536),
    "logging_steps": (1e-6, MOST_STEPS),
    "max_grad_norm": (0.0, LARGEST),
    "per_device_eval_batch_size": (1, 65_536),
    "save_total_limit": (1, 10_000),
    "torch_empty_cache_steps": (1, MOST_STEPS),
}
USUAL: Bounds = (0, MOST_STEPS)  # of all other numbers


def parsed_settings(given: Mapping[str, str]) -> dict[str, Any]:
    """Settings of `TrainingArguments` from text, converted to the types that it declares.

    Raises:
        UserError: for an unknown setting, one that grun has a flag for or cannot grant, or a value of the wrong type or out
            of range.
    """
    if not given:
        return {}
    options = HfArgumentParser(TrainingArguments)._option_string_actions  # type: ignore[arg-type]
    names = {option.removeprefix("--") for option in options if option.startswith("--") and "-" not in option[2:]}
    parsed = {}
    for name, value in given.items():
        if name in OWN_FLAGS:
            raise UserError(
                f"--trainer {name}={shown(value)}: grun has a setting of its own for that; use {OWN_FLAGS[name]}."
            )
        if name not in names:
            hint = nearest(name, names)
            raise UserError(
                f"--trainer {shown(name)} is {shown(value)}, but transformers' TrainingArguments has no such setting.{hint}"
            )
        parsed[name] = _converted(name, value, options[f"--{name}"])
        if name in REFUSED and parsed[name] not in OFF:
            raise UserError(f"--trainer {name} is {shown(value)}, but {REFUSED[name]}; leave it out.")
    return parsed


def _converted(name: str, value: str, action: argparse.Action) -> Any:
    """The value of one setting, in its type.

    Raises:
        UserError: if it has another type, or is out of range.
    """
    check_text(value, f"--trainer {name}", "words")
    convert: Any = action.type or str
    try:
        many = action.nargs in ("*", "+")
        converted = [convert(v) for v in value.split(",")] if many else convert(value)
    except (ValueError, TypeError, KeyError, argparse.ArgumentTypeError) as error:
        wanted = {string_to_bool: "true or false"}.get(convert, getattr(convert, "__name__", "another value"))
        raise UserError(f"--trainer {name} is {shown(value)}, expected {wanted}.") from error
    if action.choices is not None and converted not in action.choices:
        choices = ", ".join(map(str, action.choices))
        raise UserError(f"--trainer {name} is {shown(value)}, expected one of {choices}.")
    if isinstance(converted, (int, float)) and not isinstance(converted, bool):
        low, high = BOUNDS.get(name, USUAL)
        if not (math.isfinite(converted) and low <= converted <= high):
            raise UserError(f"--trainer {name} is {shown(value)}, expected a number between {low:,} and {high:,}.")
    return converted


@contextmanager
def naming_trainer(given: Mapping[str, str]) -> Iterator[None]:
    """Inside, whatever transformers, accelerate or torch raise is put down to the user's settings, if there are any.

    What they have left in the environment is taken back: another run of the process would read it.

    Raises:
        UserError: naming the settings and the reason.
    """
    environment = dict(os.environ)
    try:
        yield
    except (UserError, Interrupted, TrainingDiverged):
        raise
    except Exception as error:
        os.environ.clear()
        os.environ.update(environment)
        _let_go(error)
        if not given:
            raise
        settings = ", ".join(f"{name}={value}" for name, value in given.items())
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = f"{type(error).__name__}: {reason}" if isinstance(error, (KeyError, NameError)) else reason
        raise UserError(f"--trainer {settings[:300]} cannot work here: {reason[:300]}") from error


def _let_go(error: BaseException) -> None:
    """Free what was half made when an error was raised, without the words that its destructor may have."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook


def try_out(arguments: TrainingArguments) -> None:
    """Train a toy model for a step, because many settings are only looked at then; nothing is kept or reported."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with tempfile.TemporaryDirectory(prefix="grun-") as folder:
            trainer = _toy_trainer(arguments, folder)
            trainer.train()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _toy_trainer(arguments: TrainingArguments, folder: str) -> Trainer:
    toy = copy.copy(arguments)
    toy.output_dir = folder
    toy.report_to, toy.disable_tqdm = [], True
    toy.max_steps, toy.per_device_train_batch_size = 1, 1
    toy.gradient_accumulation_steps = min(2, arguments.gradient_accumulation_steps)
    toy.eval_steps, toy.eval_delay = 1, 0
    toy.load_best_model_at_end, toy.metric_for_best_model = False, "eval_loss"
    toy.save_strategy = "no"
    row = {"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([1, 2])}
    rows: Any = [row] * 4
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, max_position_embeddings=8, **shape))  # type: ignore[arg-type]
    trainer = Trainer(model=model, args=toy, train_dataset=rows, eval_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    return trainer
