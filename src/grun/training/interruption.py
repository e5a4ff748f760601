"""Stopping on request, divergence, and resuming from the newest checkpoint to what an uninterrupted run finds."""

from __future__ import annotations

__all__ = ["ResumableTrainer", "RunningLoss", "StopCleanly", "train_or_resume"]

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from grun.core.distributed import all_true, is_main, mean_over_processes, wait, world
from grun.core.errors import Interrupted, TrainingDiverged
from grun.core.process.stop_signals import on_signals
from grun.core.storage.atomic_files import open_to_others, write_json
from grun.core.storage.directories.layout import TRAINER_STATE
from grun.core.storage.run_directory import RunDirectory
from grun.core.storage.stored_records import CHECKSUMS, write_checksums

C = TypeVar("C")


class StopCleanly(TrainerCallback):
    """Finish the step, save and stop at the first Ctrl-C, SIGTERM or SIGHUP; a second one interrupts at once.

    Attributes:
        asked: number of the first signal; 0 before.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: Mapping[int, Any] = {}
        self._stopping = False

    def while_listening(self, train: Callable[[], object]) -> None:
        """Call a function during which signals are listened to."""
        with on_signals(self._ask) as self._before:
            train()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            before = self._before.get(number)
            if callable(before):
                before(number, frame)
            raise Interrupted(number=number)
        self.asked = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stopping = not all_true(not self.asked)
        if self._stopping:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Give the checkpoint the rights of other files, and checksums by which a damaged one is known; stop once it is saved.

        The state says whether training was at its end anyway.
        """
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            open_to_others(checkpoint)
        if world() == 1:  # several processes may still be writing
            write_checksums(checkpoint)
        if self._stopping:
            control.should_training_stop = True


class RunningLoss(TrainerCallback, ExportableState):
    """Means of the loss since the last entry of the log and since the beginning; checkpoints hold them.

    The trainer's own start anew when a run is resumed.
    """

    def __init__(self) -> None:
        self.sum = self.total = 0.0
        self.steps = self.all_steps = 0
        self._observed: list[float] = []

    def observe(self, loss: Tensor) -> None:
        """Add the loss of one part of a step, which counts once the step is done."""
        self._observed.append(float(loss))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for loss in self._observed:  # in single precision, as the trainer does
            self.sum = float(np.float32(self.sum) + np.float32(loss))
        self._observed.clear()
        self.steps += 1
        self.all_steps += 1

    def mean(self) -> float:
        """Mean since the last call of this function."""
        found = self.sum / max(self.steps, 1)
        self.total += self.sum
        self.sum, self.steps = 0.0, 0
        return found

    def mean_of_all(self) -> float:
        """Mean since the beginning."""
        return (self.total + self.sum) / max(self.all_steps, 1)

    def state(self) -> dict[str, Any]:
        """Content of a checkpoint."""
        kept = {"sum": self.sum, "total": self.total, "steps": self.steps, "all_steps": self.all_steps}
        return {"args": {}, "attributes": kept}


class ResumableTrainer(Trainer):
    """`transformers.Trainer` that logs the same and ends at the same step whether it was interrupted or not."""

    _at_its_end = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "callbacks": [RunningLoss(), *(kwargs.get("callbacks") or ())]})

    def callback(self, kind: type[C]) -> C | None:
        """The callback of a class, looked up each time because resuming replaces callbacks; None if there is none."""
        return next((c for c in self.callback_handler.callbacks if isinstance(c, kind)), None)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One step of gradients."""
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        self._running_loss.observe(loss)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log means of the loss that do not depend on interruptions."""
        if "loss" in logs:
            logs = {**logs, "loss": mean_over_processes(self._running_loss.mean())}
        if "train_loss" in logs:
            logs = {**logs, "train_loss": mean_over_processes(self._running_loss.mean_of_all())}
        super().log(logs, *args, **kwargs)

    @property
    def _running_loss(self) -> RunningLoss:
        found = self.callback(RunningLoss)
        assert found is not None
        return found

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """See whether the checkpoint is one at which a rule ended training; earlier versions did not record that."""
        found = super()._init_training_state(*args, **kwargs)
        kept: Any = self.state.stateful_callbacks
        self._at_its_end = self.control.should_training_stop and RunningLoss.__name__ in kept
        for own in self.callback_handler.callbacks:
            if isinstance(own, ExportableState):  # an earlier version may not have had it
                kept.setdefault(type(own).__name__, own.state())
        return found

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train, unless the run was at its end when it was interrupted; the trainer itself would take one more step."""
        if self._at_its_end:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)


def train_or_resume(trainer: ResumableTrainer, run: RunDirectory) -> None:
    """Train from the run's newest checkpoint, or from the beginning, and write `log.json`.

    Args:
        trainer: a `StopCleanly` is among its callbacks.
        run: directory of the run, with the trainer's checkpoints.

    Raises:
        TrainingDiverged: if a loss or gradient is not finite; the state before that step is kept.
        Interrupted: if the user stopped the run; its state is kept.
    """
    checkpoint = run.last_checkpoint() if is_main() else None
    if checkpoint is not None:
        _find_best(checkpoint)
    wait()
    checkpoint = checkpoint or run.last_checkpoint()
    stopper = trainer.callback(StopCleanly)
    assert stopper is not None
    try:
        stopper.while_listening(lambda: trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None))
    except TrainingDiverged as error:
        model: Any = trainer.model
        trainer._save_checkpoint(model, trial=None)  # no weight has changed in the failed step
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        raise TrainingDiverged(
            f"{error}; the state before it is kept in {run.last_checkpoint()}. Lower --learning-rate and start again "
            "with --overwrite."
        ) from error
    if stopper.asked:
        step = trainer.state.global_step
        raise Interrupted(
            f"stopped after step {step}; the state is kept in {run.path}. Run the same command to resume.",
            stopper.asked,
        )
    if is_main():
        run.write_json("log.json", trainer.state.log_history)


def _find_best(checkpoint: Path) -> None:
    """Name the best checkpoint where it lies now, because the run may have been moved, or be named in another way."""
    file = checkpoint / TRAINER_STATE
    state = json.loads(file.read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    here = checkpoint.parent / Path(best or "none").name
    if best and Path(best) != here and here.is_dir():
        write_json(file, state | {"best_model_checkpoint": str(here)})
        if (checkpoint / CHECKSUMS).exists():
            write_checksums(checkpoint)
