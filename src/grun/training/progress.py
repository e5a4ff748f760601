"""A progress bar for training, in place of the trainer's own printing."""

from __future__ import annotations

__all__ = ["OpenCheckpoints", "ProgressBar", "quiet_trainer"]

from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from grun.core.storage.atomic_files import open_to_others

T = TypeVar("T", bound=Trainer)


class OpenCheckpoints(TrainerCallback):
    """Gives the files of a checkpoint the rights that the umask leaves."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and args.output_dir is not None:
            open_to_others(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class ProgressBar(TrainerCallback):
    """A bar on standard error with the newest loss and validation score.

    Args:
        what: label of the bar.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.bar: Any = None
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.what,
            unit="step",
            dynamic_ncols=True,
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        names = {"loss": "loss", "eval_score": "score", "eval_forget_probability": "forget"}
        self.shown |= {label: f"{logs[key]:.3f}" for key, label in names.items() if key in (logs or {})}
        if self.bar is not None:
            self.bar.set_postfix(self.shown)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()


def quiet_trainer(trainer: T) -> T:
    """The trainer without transformers' callbacks that print, which would interrupt the progress bar.

    Its checkpoints have the rights of other files.
    """
    trainer.add_callback(OpenCheckpoints())
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
