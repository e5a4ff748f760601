"""What transformers' trainer offers works: its settings, parts of a batch, early stopping, reporting, and the constraint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import UserError
from grun.core.storage.run_directory import RunDirectory
from grun.jobs.unlearn import unlearn
from grun.training.arguments import OWN_FLAGS, parsed_settings, training_arguments
from grun.training.loss.dual_variable import DualVariable
from support.material import Material, small_unlearning


@pytest.fixture
def config(memorised: Material, tmp_path: Path) -> UnlearnConfig:
    return small_unlearning(memorised, tmp_path / "run", objective="npo", steps=8, layers="1,3", preset="paper")


def weights(result: Path) -> dict[str, torch.Tensor]:
    return load_file(next(result.glob("*model.safetensors")))


def log(result: Path) -> list[dict[str, Any]]:
    return json.loads((result.parent / "log.json").read_text())


def gap(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Largest absolute and mean signed difference."""
    assert one.keys() == two.keys()
    finite = {name: value.isfinite() for name, value in one.items()}  # thresholds are minus infinity before calibration
    assert all(torch.equal(one[name][~kept], two[name][~kept]) for name, kept in finite.items())
    differences = torch.cat([(two[name] - one[name])[kept] for name, kept in finite.items()])
    return float(differences.abs().max()), float(differences.mean())


@pytest.mark.parametrize("objective", ["gd", "npo", "rmu", "ceu", "satimp"])
def test_parts_of_a_batch_learn_what_the_whole_learns(config: UnlearnConfig, objective: str) -> None:
    parts = {"gradient_accumulation_steps": "2"}
    whole = unlearn(replace(config, objective=objective, output=f"{config.output}-whole"))
    halves = unlearn(replace(config, objective=objective, batch_size=2, trainer=parts))
    largest, mean = gap(weights(whole), weights(halves))
    assert largest < 1e-5
    assert abs(mean) < 1e-6


@pytest.mark.parametrize("objective", ["npo", "rmu"])
@pytest.mark.parametrize("adapt", ["grun", "lora"])
def test_gradient_checkpointing_changes_nothing(config: UnlearnConfig, objective: str, adapt: str) -> None:
    config = replace(config, objective=objective, adapt=adapt, steps=4)
    config = config if adapt == "grun" else replace(config, layers=None, preset="default")
    plain = unlearn(
        replace(config, prefix_cache=False, output=f"{config.output}-plain")
    )  # the engine that both can use
    saving = unlearn(replace(config, trainer={"activation_checkpointing": "true"}))
    assert gap(weights(plain), weights(saving))[0] < 1e-6


def test_settings_reach_the_trainer(config: UnlearnConfig) -> None:
    seen: list[TrainingArguments] = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **_: Any) -> None:
            seen.append(args)

    given = {"bf16": "true", "optim": "adafactor", "lr_scheduler_type": "cosine", "warmup_steps": "2"}
    given |= {"lr_scheduler_kwargs": '{"num_cycles": 0.25}', "max_grad_norm": "0.5", "save_total_limit": "1"}
    result = unlearn(replace(config, trainer=given), callbacks=[Look()])
    args: Any = seen[0]
    assert (args.bf16, str(args.optim.value), args.warmup_steps, args.max_grad_norm) == (True, "adafactor", 2, 0.5)
    assert args.lr_scheduler_kwargs == {"num_cycles": 0.25}
    assert all(value.dtype == torch.float32 for value in weights(result).values())
    rates = [entry["learning_rate"] for entry in log(result) if "learning_rate" in entry]
    assert rates


def test_every_setting_that_grun_has_itself_is_pointed_to() -> None:
    known = TrainingArguments.__dataclass_fields__
    for name, instead in OWN_FLAGS.items():
        assert name in known
        with pytest.raises(UserError, match=r"use "):
            parsed_settings({name: "1"})
        assert instead


def test_settings_are_read_by_their_types() -> None:
    given = {"report_to": "tensorboard", "logging_steps": "0.5", "tf32": "false", "push_to_hub": "False"}
    assert parsed_settings(given | {"adam_beta1": "0.8"}) == {
        "report_to": ["tensorboard"] if isinstance(parsed_settings(given)["report_to"], list) else "tensorboard",
        "logging_steps": 0.5,
        "tf32": False,
        "push_to_hub": False,
        "adam_beta1": 0.8,
    }


def test_several_devices_in_one_process_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: getattr(self, "_n_gpu", 4) or 4))
    monkeypatch.setattr(TrainingArguments, "_setup_devices", torch.device("cpu"), raising=False)
    arguments = training_arguments(RunDirectory(tmp_path, {}, {}), torch.device("cpu"), {})
    assert arguments.n_gpu == 1


def test_losses_are_reported_to_tensorboard(config: UnlearnConfig) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = unlearn(replace(config, trainer={"report_to": "tensorboard", "logging_steps": "2"}, evaluate_every=4))
    events = loading.EventAccumulator(str(result.parent / "tensorboard"))
    events.Reload()
    assert {"train/loss_forget", "train/loss_retain", "train/loss_gate", "eval/score"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss_forget")] == [2, 4, 6, 8]


def test_training_stops_when_patience_is_over_and_keeps_the_best_state(config: UnlearnConfig) -> None:
    """A learning rate of 0 never gets better, whatever the metric."""
    chosen = {"metric_for_best_model": "eval_retain_ratio", "greater_is_better": "true"}
    config = replace(config, learning_rate=0.0, evaluate_every=2, patience=2, steps=40, trainer=chosen)
    result = unlearn(config)
    steps = [entry["step"] for entry in log(result) if "eval_score" in entry]
    assert steps == [2, 4, 6]
    assert json.loads((result.parent / "metrics.json").read_text())["steps"] == 6


def test_an_unknown_metric_for_the_best_state_is_refused(config: UnlearnConfig) -> None:
    with pytest.raises(UserError, match=r"metric_for_best_model.*eval_goodness.*eval_score"):
        unlearn(replace(config, trainer={"metric_for_best_model": "eval_goodness"}))
    assert not Path(config.output).exists()


def test_the_dual_variable_grows_while_the_retain_loss_is_too_large() -> None:
    dual: Any = DualVariable(weight=1.0, bound=0.5, step_size=2.0, warmup=1)
    seen = []
    for step, losses in enumerate(([9.0], [0.7, 0.9], [0.1], [0.0], [0.0]), 1):
        for loss in losses:
            dual.observe(loss)
        dual.on_step_end(None, type("State", (), {"global_step": step}), None)
        seen.append(round(dual.weight, 6))
    assert seen == [1.0, 1.6, 0.8, 0.0, 0.0]
    restored = DualVariable(**dual.state()["args"])
    assert vars(restored) == vars(dual)


def test_the_constraint_is_on_the_retain_loss_of_any_objective(config: UnlearnConfig) -> None:
    config = replace(
        config, objective="npo", adapt="lora", layers=None, preset="default", trainer={"logging_steps": "1"}
    )
    bounded = unlearn(replace(config, retain_bound=0.0, dual_step=0.5, dual_warmup=1.0))
    found = [entry for entry in log(bounded) if "loss_retain_weight" in entry]
    weight, retain = [entry["loss_retain_weight"] for entry in found], [entry["loss_retain"] for entry in found]
    assert weight[:3] == [1.0, 1.0, 1.0], "two steps are one pass over the eight forget rows: no move before the third"
    for before, after, loss in zip(weight[2:], weight[3:], retain[2:], strict=False):
        assert after == pytest.approx(before + 0.5 * loss)


def test_the_gate_learns_first_while_the_rest_warms_up(config: UnlearnConfig) -> None:
    """With as many warm-up steps as steps, the total is the ramp times the terms, plus the gate's."""
    result = unlearn(replace(config, gate_warmup=8, gate_class_weight=2.0, trainer={"logging_steps": "1"}))
    for entry in (entry for entry in log(result) if "loss_gate" in entry):
        ramp = entry["step"] / 8
        expected = ramp * (entry["loss_forget"] + entry["loss_retain"]) + 10.0 * entry["loss_gate"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("retain_loss", ["ce", "kl", "mse", "none"])
@pytest.mark.parametrize("objective", ["npo", "rmu", "undial"])
def test_any_retain_loss_goes_with_any_objective(config: UnlearnConfig, objective: str, retain_loss: str) -> None:
    result = unlearn(
        replace(config, objective=objective, retain_loss=retain_loss, steps=4, trainer={"logging_steps": "1"})
    )
    found = [entry["loss_retain"] for entry in log(result) if "loss_retain" in entry]
    assert len(found) == 4
    if retain_loss == "none":
        assert found == [0.0] * 4
    if retain_loss in ("kl", "mse"):  # the paper's edit starts at random, so the model is not quite the base model
        assert all(value >= 0 for value in found)


def test_alternatives_are_made_up_kept_and_not_the_true_answer(config: UnlearnConfig, memorised: Material) -> None:
    config = replace(config, objective="altpo", alternatives="generate", steps=4)
    result = unlearn(config)
    made_up = json.loads((result.parent / "alternatives.json").read_text())
    true = [json.loads(line)["answer"] for line in memorised.forget.read_text().splitlines()]
    assert len(made_up) == len(true)
    for answers, answer in zip(made_up, true, strict=True):
        assert 1 <= len(answers) <= 3
        assert len(set(answers)) == len(answers)
        assert answer not in answers
    again = unlearn(replace(config, output=f"{config.output}-again"))
    assert json.loads((again.parent / "alternatives.json").read_text()) == made_up
    assert gap(weights(result), weights(again)) == (0.0, 0.0)


def test_own_refusals_are_used(config: UnlearnConfig, tmp_path: Path) -> None:
    (tmp_path / "refusals.txt").write_text("The town is not known.\n\n")
    config = replace(config, objective="idk", adapt="full", layers=None, preset="default", steps=60, batch_size=8)
    config = replace(config, learning_rate=5e-3)
    result = unlearn(replace(config, refusals=str(tmp_path / "refusals.txt")))
    losses = [entry["loss_forget"] for entry in log(result) if "loss_forget" in entry]
    assert losses[-1] < 0.1 < losses[0], "one sentence is soon known by heart"
