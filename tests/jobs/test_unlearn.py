"""The unlearning job: every objective under every adaptation, what is saved, and what is left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grun.core.config.jobs import UnlearnConfig
from grun.jobs.inputs.unlearning import load_unlearning_rows
from grun.jobs.unlearn import unlearn
from grun.models.adaptations import adaptations, with_presets
from grun.training.objectives import objectives
from support.material import Material, invented_rows, small_unlearning, write_rows


@pytest.fixture
def config(material: Material, tmp_path: Path) -> UnlearnConfig:
    return small_unlearning(
        material, tmp_path / "run", objective="npo", steps=12, evaluate_every=4, withhold=0.25, topic_layer="none"
    )


def found(run: Path, name: str) -> dict:
    return json.loads((run / name).read_text())


@pytest.mark.parametrize("adapt", adaptations.names())
@pytest.mark.parametrize("objective", objectives.names())
def test_every_objective_lowers_its_loss_under_every_adaptation(
    config: UnlearnConfig, memorised: Material, objective: str, adapt: str
) -> None:
    """A batch holds all forget rows, so that the same rows are compared."""
    files: dict[str, Any] = {name: [str(getattr(memorised, name))] for name in ("forget", "retain")}
    layers = "1,3" if adapt in ("grun", "reft") else None
    config = replace(config, **files, model=str(memorised.model), objective=objective, adapt=adapt, layers=layers)
    config = replace(config, topic_layer="none" if adapt == "grun" else None)
    strong: dict[str, Any] = {"forget_weight": 1.0, "learning_rate": 2e-3 if adapt == "full" else None}
    result = unlearn(replace(config, **strong, batch_size=8, steps=20, trainer={"logging_steps": "1"}))
    losses = [entry["loss_forget"] for entry in found(result.parent, "log.json") if "loss" in entry]
    assert min(losses[-5:]) < losses[0]
    facts = found(result.parent, "metrics.json")
    assert facts["rows"] == {"forget": 8, "retain": 18, "validation": 6}
    assert facts["trainable_parameters"] > 0
    assert set(facts["validation"]) >= {"forget_probability", "forget_probability_before", "retain_ratio", "score"}
    assert (result.name == "model") == (adapt == "full")


def test_the_base_model_is_as_it_was_and_the_adapter_does_what_training_saw(
    config: UnlearnConfig, material: Material
) -> None:
    before = load_file(material.model / "model.safetensors")
    result = unlearn(replace(config, layers="1,3"))
    base = AutoModelForCausalLM.from_pretrained(material.model)
    model = PeftModel.from_pretrained(base, result).eval()
    after = {
        k.replace(".base_layer", ""): v for k, v in model.get_base_model().state_dict().items() if "grun_" not in k
    }
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert set(load_file(result / "adapter_model.safetensors")) == {
        *(f"base_model.model.model.layers.{i}.grun_edit.{p}" for i in (1, 3) for p in ("rotation", "weight", "bias")),
        *(f"base_model.model.model.layers.0.grun_gate.{p}" for p in ("keys", "weights", "token_bytes", "token_ends")),
        "base_model.model.model.layers.0.grun_gate.threshold",
    }


def test_the_gate_is_fitted_first_and_then_frozen(config: UnlearnConfig) -> None:
    states = []
    for steps in (4, 12):
        run = unlearn(replace(config, layers="1,3", steps=steps, output=f"{config.output}-{steps}"))
        states.append(load_file(run / "adapter_model.safetensors"))
    gate = [key for key in states[0] if ".grun_gate." in key]
    assert all(torch.equal(states[0][key], states[1][key]) for key in gate)
    assert not all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_paper_trains_gate_and_edit_together(config: UnlearnConfig) -> None:
    result = unlearn(replace(config, layers="1,3", preset="paper"))
    log = found(result.parent, "log.json")
    gate = [entry["loss_gate"] for entry in log if "loss_gate" in entry]
    assert gate[-1] < gate[0]
    assert {".1.", ".3."} == {
        key[key.index(".layers") + 7 :][:3]
        for key in load_file(result / "adapter_model.safetensors")
        if "grun_gate" in key
    }


def test_seeds_repeat_and_differ(config: UnlearnConfig) -> None:
    def weights(name: str, seed: int) -> bytes:
        run = unlearn(replace(config, layers="1,3", seed=seed, output=f"{config.output}-{name}"))
        return (run / "adapter_model.safetensors").read_bytes()

    assert weights("a", 0) == weights("b", 0) != weights("c", 1)


def test_forget_wins_over_retain_and_whole_subjects_are_withheld(
    config: UnlearnConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row | {"author": f"author {i // 3}"} for i, row in enumerate(invented_rows("Marl", 24))]
    shared = [row | {"author": "nobody"} for row in invented_rows("Lund", 2)]
    retain = write_rows(tmp_path / "retain.jsonl", [*shared, *rows])
    sides = load_unlearning_rows(replace(config, retain=[str(retain)]))
    assert "2 rows are in both" in caplog.text
    assert len(sides.forget) == 8
    assert len(sides.retain) + len(sides.validation) == 24
    assert not {row.subject for row in sides.retain} & {row.subject for row in sides.validation}


def test_a_benchmark_gives_both_sides() -> None:
    sides = load_unlearning_rows(UnlearnConfig(benchmark="fictional", benchmark_options={"people": "20"}))
    assert {row.subject for row in sides.forget}.isdisjoint(row.subject for row in sides.retain)
    assert sides.validation


def test_epochs_replace_steps() -> None:
    assert with_presets(UnlearnConfig(epochs=2.0)).steps is None


def test_the_card_of_an_adapter_says_what_it_does_not_protect_against(config: UnlearnConfig) -> None:
    card = (unlearn(replace(config, layers="1,3")) / "README.md").read_text()
    assert card.startswith("---\n")
    assert "does and does not protect against" in card
    assert "access control, not erasure" in card
