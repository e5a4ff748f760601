"""The progress of training, in place of the trainer's own printing."""

from __future__ import annotations

__all__ = ["ProgressBar", "quiet_trainer"]

from typing import Any, TypeVar

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from grun.core.process.progress import Progress

T = TypeVar("T", bound=Trainer)


class ProgressBar(TrainerCallback):
    """Progress with the newest loss and validation score.

    Args:
        what: the work.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.progress: Progress | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        done, shown = state.global_step, state.is_world_process_zero
        self.progress = Progress(self.what, state.max_steps, "step", initial=done, shown=shown)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.progress is not None:
            self.progress.update(state.global_step - self.progress.done)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        names = {"loss": "loss", "eval_score": "score", "eval_forget_probability": "forget"}
        if self.progress is not None:
            self.progress.note(**{label: f"{logs[key]:.3f}" for key, label in names.items() if key in (logs or {})})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.progress is not None:
            self.progress.close()


def quiet_trainer(trainer: T) -> T:
    """The trainer without transformers' callbacks that print, which would interrupt the progress bar."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
