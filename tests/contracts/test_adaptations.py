"""The contract of every way of adapting: training changes the model, switching it off and saving it change nothing."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import UserError
from grun.core.python_objects import PREFIX
from grun.core.records import Batch
from grun.models.adaptations import SETTINGS, UNTIL_DONE, adaptations, with_presets
from grun.models.forward import accepts_prompt_lengths, adapters_off, side_signals
from support.adapter_kit import make_rows, pad
from support.tiny_models import tiny_model

STEPS = 5
ALL_PRESETS = [(entry.name, preset) for entry in adaptations for preset in entry.info["presets"]]
WHOLE = [entry.name for entry in adaptations if entry.info.get("whole_model")]
BESIDE = [name for name in adaptations.names() if name not in WHOLE]
TRAINING = ("learning_rate", "evaluate_every", "gate_weight", "fit_gate_first", "calibrate")
PADDED = pad(make_rows())
BATCH = Batch(PADDED.ids_BT, PADDED.mask_BT, PADDED.labels_BT, PADDED.prompt_lengths_B)


def config(name: str, preset: str = "default") -> UnlearnConfig:
    """Settings of a run, with layers that the tiny model has where there are layers to choose."""
    layers = "1,3" if "layers" in adaptations.get(name).info["settings"] else None
    return with_presets(UnlearnConfig(adapt=name, preset=preset, layers=layers, model=f"{PREFIX}tiny"))


def adapted(name: str, preset: str = "default") -> Any:
    torch.manual_seed(0)
    return adaptations.get(name).target(tiny_model(), config(name, preset)).eval()


def logits(model: Any) -> Tensor:
    given = PADDED.inputs if accepts_prompt_lengths(model) else BATCH.model_inputs()
    with torch.no_grad():
        return model(**given).logits[PADDED.mask_BT.bool()]


@cache
def trained(name: str, preset: str = "default") -> Any:
    """An adapted model after a few steps of gradient ascent. Nobody may change it."""
    model = adapted(name, preset)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = config(name, preset).learning_rate
    assert rate is not None
    optimizer = torch.optim.Adam(weights, lr=rate)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (-side_signals(model, BATCH).mean_nll).backward()
        optimizer.step()
    return model


@cache
def before() -> Tensor:
    return logits(tiny_model())


@pytest.mark.parametrize(("name", "preset"), ALL_PRESETS)
def test_training_changes_the_model_and_what_is_trained_is_a_part_or_all(name: str, preset: str) -> None:
    model = trained(name, preset)
    assert not torch.allclose(logits(model), before(), atol=1e-3)
    base, own = (sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (tiny_model(), model))
    assert own == base if name in WHOLE else 0 < own < base


@pytest.mark.parametrize(("name", "preset"), ALL_PRESETS)
def test_the_same_seed_begins_at_the_same_place(name: str, preset: str) -> None:
    one, two = (dict(adapted(name, preset).named_parameters()) for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(("name", "preset"), [pair for pair in ALL_PRESETS if pair[0] in BESIDE])
def test_switched_off_it_is_the_base_model_to_the_bit(name: str, preset: str) -> None:
    model = trained(name, preset)
    changed = logits(model)
    assert not torch.equal(changed, before())
    with adapters_off(model):
        assert torch.equal(logits(model), before())
    assert torch.equal(logits(model), changed), "and on again it is what it was"


@pytest.mark.parametrize("name", BESIDE)
def test_the_weights_of_the_base_model_stay(name: str) -> None:
    weights = {key.replace(".base_layer", ""): p for key, p in trained(name).get_base_model().state_dict().items()}
    assert all(torch.equal(weights[key], value) for key, value in tiny_model().state_dict().items())


@pytest.mark.parametrize(("name", "preset"), [pair for pair in ALL_PRESETS if pair[0] in BESIDE])
def test_a_saved_adapter_holds_what_was_learnt_and_nothing_else(name: str, preset: str, tmp_path: Path) -> None:
    model = trained(name, preset)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    learnt = {key: value for key, value in model.named_parameters() if value.requires_grad}
    gates = {key: value for key, value in model.named_buffers() if ".grun_gate." in key}
    expected = {file_key(key): value for key, value in (learnt | gates).items()}
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], value) for key, value in expected.items())
    again = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    with adapters_off(again):
        assert torch.equal(logits(again), before())


def file_key(name: str) -> str:
    """The key of a parameter in an adapter's file: PEFT leaves out the adapter's name."""
    return re.sub(r"(lora_magnitude_vector)\.default\.weight$", r"\1", name).replace(".default", "")


@pytest.mark.parametrize("name", WHOLE)
def test_a_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = trained(name)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == tiny_model().state_dict().keys()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(model))


@pytest.mark.parametrize(("name", "preset"), ALL_PRESETS)
def test_presets_are_complete(name: str, preset: str) -> None:
    entry, filled = adaptations.get(name), with_presets(UnlearnConfig(adapt=name, preset=preset))
    assert set(entry.info["settings"]) <= set(SETTINGS)
    given = entry.info["presets"][preset]
    settings = {field.name for field in dataclasses.fields(UnlearnConfig)}
    assert given.keys() - {UNTIL_DONE} | given.get(UNTIL_DONE, {}).keys() <= settings
    for setting in (*entry.info["settings"], *TRAINING):
        assert getattr(filled, setting) is not None, f"preset '{preset}' of '{name}' leaves {setting} open"
    assert (filled.steps is None) != (filled.epochs is None)


@pytest.mark.parametrize("name", adaptations.names())
def test_presets_fill_what_is_open_and_nothing_else(name: str) -> None:
    filled = with_presets(UnlearnConfig(adapt=name, learning_rate=0.5, steps=7))
    assert (filled.learning_rate, filled.steps, filled.epochs) == (0.5, 7, None)
    assert filled.evaluate_every is not None
    with pytest.raises(UserError, match="'papers' is unknown"):
        with_presets(UnlearnConfig(adapt=name, preset="papers"))


GIVEN: dict[str, Any] = {
    "rank": 3,
    "layers": "1",
    "gate": "linear",
    "gate_reads": "last",
    "gate_scope": "mentioned",
    "gate_layer": 1,
    "topic_layer": "2",
    "edit_from": "last_prompt_only",
    "fit_gate_first": True,
    "calibrate": True,
}


def test_every_setting_is_tried() -> None:
    assert GIVEN.keys() == set(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", adaptations.names())
def test_a_setting_that_an_adaptation_lacks_is_refused_and_any_other_is_taken(name: str, setting: str) -> None:
    asked = UnlearnConfig(adapt=name, **{setting: GIVEN[setting]})
    if setting in adaptations.get(name).info["settings"]:
        assert getattr(with_presets(asked), setting) == GIVEN[setting]
        return
    having = [entry.name for entry in adaptations if setting in entry.info["settings"]]
    with pytest.raises(UserError) as refused:
        with_presets(asked)
    assert f"--adapt {name} has no such setting" in str(refused.value)
    assert ", ".join(having) in str(refused.value)


@pytest.mark.parametrize("entry", [*adaptations], ids=lambda entry: entry.name)
def test_every_adaptation_says_what_it_is(entry: Any) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", entry.name)
    assert entry.target.__name__ == entry.name
    assert re.match(r"[A-Z].*\.$", entry.summary)
    assert "default" in entry.info["presets"]
    if not entry.info.get("whole_model"):
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}", entry.info["paper"])
