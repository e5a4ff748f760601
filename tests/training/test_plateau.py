"""Training ends when nothing gets better; a number of steps is kept to exactly; a kill changes no bit."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from grun.core.config.jobs import UnlearnConfig
from grun.jobs import unlearn as job
from grun.jobs.unlearn import unlearn
from grun.models.adaptations import adaptations, with_presets
from grun.training.loss.plateau import FEW, ForgetLoss
from support.material import Material, small_unlearning


@pytest.fixture
def config(memorised: Material, tmp_path: Path) -> UnlearnConfig:
    return small_unlearning(memorised, tmp_path / "run", layers="1,3", topic_layer="none")


def read(result: Path, name: str) -> Any:
    return json.loads((result.parent / name).read_text())


@pytest.mark.parametrize("objective", ["idk", "npo", "gd", "rmu"])
def test_a_run_without_a_number_of_steps_ends_when_it_is_done(config: UnlearnConfig, objective: str) -> None:
    """And it forgets as the full run of 200 steps does."""
    short = unlearn(replace(config, objective=objective))
    full = unlearn(replace(config, objective=objective, steps=200, output=f"{config.output}-full"))
    one, two = read(short, "metrics.json"), read(full, "metrics.json")
    assert 30 <= one["steps"] <= 120
    assert two["steps"] == 200
    assert one["validation"]["score"] > two["validation"]["score"] - 0.02
    evaluated = [entry for entry in read(short, "log.json") if "eval_quality" in entry]
    assert [entry["step"] for entry in evaluated] == list(range(10, one["steps"] + 1, 10))
    rates = {
        entry["learning_rate"] for entry in read(short, "log.json") if entry.get("step", 0) > 5 and "loss" in entry
    }
    assert len(rates) == 1, "constant after the warm-up"
    assert not any("eval_quality" in entry for entry in read(full, "log.json"))


@pytest.mark.parametrize("name", ["grun", "reft", "lora", "dora", "full"])
def test_a_number_of_steps_or_passes_is_kept_to(name: str) -> None:
    usual = with_presets(UnlearnConfig(adapt=name))
    assert (usual.patience, usual.evaluate_every, usual.steps) == (2, 10, 200)
    assert with_presets(usual) == usual
    for given in ({"steps": 200}, {"epochs": 3.0}):
        fixed = with_presets(UnlearnConfig(adapt=name, **given))
        assert (fixed.patience, fixed.evaluate_every) == (None, 25)
    both = with_presets(UnlearnConfig(adapt=name, steps=50, patience=4))
    assert (both.patience, both.steps) == (4, 50)
    if "paper" in adaptations.get(name).info["presets"]:
        published = with_presets(UnlearnConfig(adapt=name, preset="paper"))
        assert (published.patience, published.steps, published.epochs) == (None, None, 40.0)


def test_quality_is_the_score_minus_the_share_of_the_loss_that_is_left() -> None:
    window = ForgetLoss()
    for loss in (4.0, 2.0):
        window.observe(loss)
    assert window.quality(0.9) == pytest.approx(-0.1)
    window.observe(0.75)
    assert window.quality(0.9) == pytest.approx(0.65)
    window.observe(0.5)
    restored = ForgetLoss(**json.loads(json.dumps(window.state()["args"])))
    assert restored.quality(0.95) == window.quality(0.95)
    ascent = ForgetLoss()
    for loss in (-1.0, -9.0):
        ascent.observe(loss)
        assert ascent.quality(0.9) == 0.9, "it has no floor"
    alone = ForgetLoss(with_score=False)
    alone.observe(2.0)
    assert alone.quality(0.9) == -1.0


def test_with_few_rows_the_loss_decides_and_the_log_says_so(
    config: UnlearnConfig, memorised: Material, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(memorised.forget.read_text().splitlines(keepends=True)[:3]))
    caplog.set_level(logging.INFO, "grun")
    result = unlearn(replace(config, forget=[str(few)], objective="idk"))
    assert f"3 rows are too few to validate on ({FEW} are enough)" in caplog.text
    assert read(result, "metrics.json")["steps"] < 200
    assert all(entry["eval_quality"] <= 0 for entry in read(result, "log.json") if "eval_quality" in entry)


def test_a_run_that_is_killed_ends_with_the_same_bytes_at_the_same_step(
    config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two validations, with rows prepared a few steps at a time."""
    monkeypatch.setattr(job, "STRETCH", 7)
    config = replace(config, objective="idk", steps=60, patience=2, evaluate_every=5)

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **_: Any) -> None:
            if state.global_step == 18:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(config, callbacks=[Kill()])
    resumed = unlearn(config)
    whole = unlearn(replace(config, output=f"{config.output}-whole"))
    names = ("adapter_model.safetensors",)
    assert [(resumed / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]
    logs = [[e for e in read(result, "log.json") if "eval_quality" in e] for result in (resumed, whole)]
    assert logs[0] == logs[1]
