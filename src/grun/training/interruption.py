"""Stopping on request, divergence, and resuming from the newest checkpoint."""

from __future__ import annotations

__all__ = ["StopCleanly", "train_or_resume"]

import signal
from pathlib import Path
from typing import Any

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from grun.core.distributed import is_main, wait, world
from grun.core.errors import Interrupted, TrainingDiverged
from grun.core.storage.run_directory import RunDirectory
from grun.core.storage.stored_records import write_checksums


class StopCleanly(TrainerCallback):
    """Finish the step, save and stop at the first Ctrl-C or SIGTERM; a second one interrupts at once.

    Attributes:
        asked: True after the first one.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # signals reach the main thread only
                return

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write checksums, so that a damaged checkpoint is known for one; several processes may still be writing."""
        if world() == 1:
            write_checksums(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


def train_or_resume(trainer: Trainer, run: RunDirectory) -> None:
    """Train from the run's newest checkpoint, or from the beginning, and write `log.json`.

    Args:
        trainer: a `StopCleanly` is among its callbacks.
        run: directory of the run, with the trainer's checkpoints.

    Raises:
        TrainingDiverged: if a loss or gradient is not finite; the state before that step is kept.
        Interrupted: if the user stopped the run; its state is kept.
    """
    checkpoint = run.last_checkpoint() if is_main() else None
    wait()
    checkpoint = checkpoint or run.last_checkpoint()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except TrainingDiverged as error:
        model: Any = trainer.model
        trainer._save_checkpoint(model, trial=None)  # no weight has changed in the failed step
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        raise TrainingDiverged(
            f"{error}; the state before it is kept in {run.last_checkpoint()}. Lower --learning-rate and start again "
            "with --overwrite."
        ) from error
    stopper = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StopCleanly))
    if stopper.asked:
        step = trainer.state.global_step
        raise Interrupted(
            f"stopped after step {step}; the state is kept in {run.path}. Run the same command to resume."
        )
    if is_main():
        run.write_json("log.json", trainer.state.log_history)
