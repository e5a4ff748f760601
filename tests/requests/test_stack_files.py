"""One adapter that is a stack does what its members do when all of them are active, and is saved and loaded like any other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from grun.core.errors import UserError
from grun.core.records import Batch
from grun.models.gates.features import gate_features
from grun.models.tuner.config import GrunConfig
from grun.requests.stack_files import write_stack
from support.adapter_kit import make_rows, pad, randomise
from support.tiny_models import tiny_model

SETTINGS: dict[str, dict[str, Any]] = {
    "first": {"rank": 2, "layers": [1, 3], "gate_hidden": [8], "gate_layer": 1},
    "second": {"rank": 3, "layers": [2], "gate_hidden": [6, 4], "gate_layer": 0},
    "third": {"rank": 2, "layers": [1, 3], "gate": "linear", "gate_layer": None, "gate_reads": "last"},
    "fourth": {"rank": 2, "layers": [3], "gate": "linear", "gate_reads": "last", "edit_from": "last_prompt_only"},
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Directories of adapters that differ in shape, gate and place."""
    found = {}
    for seed, (name, settings) in enumerate(SETTINGS.items()):
        model = get_peft_model(tiny_model(), GrunConfig(**settings))
        randomise(model, seed)
        for key, buffer in model.named_buffers():
            if key.endswith("threshold"):
                buffer.fill_(-0.5 + 0.1 * seed)
        model.save_pretrained(str(tmp_path / name))
        found[name] = tmp_path / name
    return found


def side_by_side(folders: dict[str, Path]) -> Any:
    names = list(folders)
    model: Any = PeftModel.from_pretrained(tiny_model(), str(folders[names[0]]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(folders[name]), adapter_name=name)
    model.base_model.set_adapter(names)
    return model.eval()


def stacked(folders: dict[str, Path], target: Path, **options: Any) -> Any:
    target.mkdir(exist_ok=True)
    write_stack(folders, target, **options)
    return PeftModel.from_pretrained(tiny_model(), str(target)).eval()


@pytest.mark.parametrize("grad", [True, False])
def test_a_stack_answers_as_its_members_do_side_by_side(folders: dict[str, Path], tmp_path: Path, grad: bool) -> None:
    apart, together = side_by_side(folders), stacked(folders, tmp_path / "stack")
    batch = pad(make_rows())
    with torch.set_grad_enabled(grad):
        expected, found = apart(**batch.inputs).logits, together(**batch.inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    base = tiny_model()(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
    assert (found - base).abs().max() > 0.01
    gates = together.base_model.last_gates
    assert set(gates) == {f"default/{name}" for name in SETTINGS}
    for name, expected_gates in apart.base_model.last_gates.items():
        torch.testing.assert_close(gates[f"default/{name}"].values_BG, expected_gates.values_BG)
    ids = torch.tensor([[20, 30, 40, 50], [21, 31, 41, 51]])
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(together.generate(ids, **settings), apart.generate(ids, **settings))


def test_a_stack_survives_saving_copying_and_deleting(folders: dict[str, Path], tmp_path: Path) -> None:
    model, batch = stacked(folders, tmp_path / "stack"), pad(make_rows())
    with torch.no_grad():
        expected = model(**batch.inputs).logits
        model.save_pretrained(str(tmp_path / "again"))
        again = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "again")).eval()
        assert torch.equal(again(**batch.inputs).logits, expected)
        assert torch.equal(copy.deepcopy(model)(**batch.inputs).logits, expected)
        model.load_adapter(str(folders["first"]), adapter_name="alone")
        model.base_model.set_adapter(["alone"])
        model.delete_adapter("default")
        assert not any(layer.gates.keys() - {"alone"} for layer in model.base_model.runtime.layers)
        alone = PeftModel.from_pretrained(tiny_model(), str(folders["first"])).eval()
        torch.testing.assert_close(model(**batch.inputs).logits, alone(**batch.inputs).logits)


def test_the_scale_multiplies_every_edit(folders: dict[str, Path], tmp_path: Path) -> None:
    """Against one adapter of the stack whose edits are scaled by hand: only `W h + b - R h` may grow."""
    one = {"second": folders["second"]}
    plain, batch = stacked(one, tmp_path / "plain"), pad(make_rows())
    scaled = stacked(one, tmp_path / "scaled", scale=1.8)
    states: dict[str, list[torch.Tensor]] = {"plain": [], "scaled": [], "base": []}
    for name, model in (("plain", plain), ("scaled", scaled)):
        layer = next(x for x in model.base_model.runtime.layers if x.index == 2)
        layer.register_forward_hook(lambda _, __, out, kept=states[name]: kept.append(out))
        layer.base_layer.register_forward_hook(lambda _, __, out, kept=states["base"]: kept.append(out))
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                model(**batch.inputs)
    for i in range(2):
        plain_edit = states["plain"][i] - states["base"][i]
        torch.testing.assert_close(states["scaled"][i] - states["base"][i], 1.8 * plain_edit, atol=1e-5, rtol=1e-4)
        assert plain_edit.abs().max() > 0.01


def test_thresholds_can_be_replaced_and_features_are_those_of_each_gate(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    given = {"third": torch.tensor([0.25, -0.75])}
    model = stacked(folders, tmp_path / "stack", thresholds=given)
    runtime, batch = model.base_model.runtime, pad(make_rows())
    assert [
        float(layer.gates["default/third"].threshold) for layer in runtime.layers if "default/third" in layer.gates
    ] == [
        0.25,
        -0.75,
    ]
    rows = Batch(batch.ids_BT, batch.mask_BT, batch.labels_BT, batch.prompt_lengths_B)
    found = gate_features(model, [rows])
    assert len(found) == sum(len(layer.gates) for layer in runtime.layers) == 5
    with torch.no_grad():
        model(**batch.inputs)
    logits = [float(x[0]) for x in runtime.last_logits.values()]
    for part, gate in zip(found, (layer.gates[p] for layer in runtime.layers for p in layer.gates), strict=True):
        said = float(part.logits(gate)[0])
        if gate is not runtime.layers[-1].gates["default/third"]:  # that one reads what others have edited
            assert min(abs(said - one) for one in logits) < 1e-5


def test_what_cannot_be_stacked_is_refused_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    stack = tmp_path / "stack"
    stacked(folders, stack)
    with pytest.raises(UserError, match="is a stack itself"):
        write_stack({"a": stack}, tmp_path)
    with pytest.raises(UserError, match=r"members contains 'a\.b'"):
        write_stack({"a.b": folders["first"]}, tmp_path)
    with pytest.raises(UserError, match="members contains 'keys'"):
        write_stack({"keys": folders["first"]}, tmp_path)
    with pytest.raises(UserError, match="members is empty"):
        GrunConfig(members={})
    with pytest.raises(UserError, match="unknown setting 'rnak'"):
        GrunConfig(members={"a": {"rnak": 3}})
    config = json.loads((folders["second"] / "adapter_config.json").read_text())
    (folders["second"] / "adapter_config.json").write_text(json.dumps({**config, "num_layers": 9}))
    with pytest.raises(UserError, match="another base model"):
        write_stack(folders, tmp_path)
    (folders["first"] / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        write_stack(folders, tmp_path)
