"""Checkpoints of the reference implementation give the logits that a plain computation from their tensors gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from grun.core.config.requests import ImportConfig
from grun.core.errors import UserError
from grun.jobs.import_reference import import_reference
from support.material import Material

LAYERS, RANK = (1, 3), 2


def name(layer: int) -> str:
    return f"intkey_layer.{layer}.comp.block_output.unit.pos.nunit.1#0.bin"


def state(width: int, kind: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Tensors as the reference implementation saves them."""
    sizes = {"linear": [width, 1], "mlp_3": [width, 16, 4, 1], "mlp_5": [width, 32, 16, 8, 4, 1]}[kind]
    found = {
        "weight": torch.randn(RANK, width, generator=generator),
        "bias": torch.randn(RANK, generator=generator),
        "rotate_layer": torch.linalg.qr(torch.randn(width, RANK, generator=generator))[0],
    }
    for i, (inner, outer) in enumerate(zip(sizes, sizes[1:], strict=False)):
        number = "" if kind == "linear" else f"{2 * i}."
        found[f"gate_func.{number}weight"] = torch.randn(outer, inner, generator=generator) * 0.3
        found[f"gate_func.{number}bias"] = torch.randn(outer, generator=generator)
    return found


@pytest.fixture
def config(material: Material, tmp_path: Path) -> ImportConfig:
    return ImportConfig(
        checkpoint=str(tmp_path / "checkpoint"),
        model=str(material.model),
        output=str(tmp_path / "run"),
        device="cpu",
    )


def write(config: ImportConfig, kind: str = "mlp_3", folder: str = "", width: int | None = None) -> dict[int, dict]:
    target = Path(config.checkpoint) / folder
    target.mkdir(parents=True, exist_ok=True)
    width = width or AutoModelForCausalLM.from_pretrained(config.model).config.hidden_size
    generator = torch.Generator().manual_seed(0)
    states = {layer: state(width, kind, generator) for layer in LAYERS}
    for layer, tensors in states.items():
        torch.save(tensors, target / name(layer))
    return states


def plain_gate(h: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    if "gate_func.weight" in tensors:
        return torch.sigmoid(tensors["gate_func.weight"] @ h + tensors["gate_func.bias"])
    numbers = sorted({int(key.split(".")[1]) for key in tensors if key.startswith("gate_func.")})
    for i in numbers:
        h = tensors[f"gate_func.{i}.weight"] @ h + tensors[f"gate_func.{i}.bias"]
        h = torch.relu(h) if i != numbers[-1] else h
    return torch.sigmoid(h)


@pytest.mark.parametrize("kind", ["linear", "mlp_3", "mlp_5"])
@pytest.mark.parametrize("folder", ["", "intervenable_model"])
def test_logits_are_those_of_the_checkpoint(config: ImportConfig, kind: str, folder: str) -> None:
    states = write(config, kind, folder)
    result = import_reference(config)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model), str(result)).eval()
    plain = AutoModelForCausalLM.from_pretrained(config.model).eval()
    ids, prompt = torch.randint(10, 60, (9,), generator=torch.Generator().manual_seed(1)), 6

    def edited(tensors: dict[str, Tensor]) -> Callable[..., object]:
        def hook(_: object, __: object, output: Any) -> object:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            h = hidden[0, prompt - 1]
            inner = tensors["weight"] @ h + tensors["bias"] - h @ tensors["rotate_layer"]
            hidden[0, prompt - 1] = h + plain_gate(h, tensors) * (tensors["rotate_layer"] @ inner)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    for layer, tensors in states.items():
        plain.model.layers[layer].register_forward_hook(edited(tensors))
    with torch.no_grad():
        expected = plain(input_ids=ids[None]).logits
        found = model(input_ids=ids[None], prompt_lengths=torch.tensor([prompt])).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_wrong_checkpoints_are_one_line(config: ImportConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such directory"):
        import_reference(config)
    Path(config.checkpoint).mkdir()
    with pytest.raises(UserError, match="holds no interventions"):
        import_reference(config)
    write(config)
    file = Path(config.checkpoint) / name(3)
    good = torch.load(file, weights_only=True)
    for lacking, words in (("bias", "has no bias"), ("rotate_layer", "has no rotate_layer")):
        torch.save({key: value for key, value in good.items() if key != lacking}, file)
        with pytest.raises(UserError, match=words):
            import_reference(config)
    torch.save({key: value for key, value in good.items() if not key.startswith("gate")}, file)
    with pytest.raises(UserError, match="plain ReFT"):
        import_reference(config)
    width = good["weight"].shape[1]
    wrong = {
        r"bias has shape \(5,\), expected \(2,\)": {"bias": torch.zeros(5)},
        r"bias has shape \(\), expected": {"bias": torch.tensor(1.0)},
        r"weight has shape \(8,\), expected \(rank, hidden size\)": {"weight": torch.zeros(8)},
        r"bias has shape \(2,\), expected \(1,\)": {"weight": torch.ones(1, width)},
        "rotate_layer has shape": {"rotate_layer": good["rotate_layer"].T.contiguous()},
        "rotate_layer has a rank below 2": {"rotate_layer": torch.zeros(width, RANK)},
        "weight holds no finite numbers": {"weight": torch.full((RANK, width), torch.nan)},
        "gate_func.0.bias holds no finite numbers": {"gate_func.0.bias": 7},
        "gate_func.2.weight has shape": {"gate_func.2.weight": torch.zeros(4, 3)},
        "gate_func.4.weight has shape": {"gate_func.4.weight": torch.zeros(2, 4)},
        "holds no gate that is a plain network": {"gate_func.9.running_mean": torch.zeros(4)},
    }
    for words, tensors in wrong.items():
        torch.save({**good, **tensors}, file)
        with pytest.raises(UserError, match=words):
            import_reference(config)
    torch.save({key: value for key, value in good.items() if key != "gate_func.2.bias"}, file)
    with pytest.raises(UserError, match="gate_func.2.bias is missing"):
        import_reference(config)
    torch.save(state(width, "mlp_5", torch.Generator()), file)
    with pytest.raises(UserError, match="other shapes"):
        import_reference(config)
    for content in (b"", b"hello world", b"\x80\x02}."):
        file.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as tensors|has no weight"):
            import_reference(config)
    torch.save({**good, "step": 7}, file)  # what else is there does not matter
    import_reference(replace(config, output=str(tmp_path / "more")))
    shutil.rmtree(config.checkpoint)
    write(config, width=8)
    with pytest.raises(UserError, match="hidden size of 8"):
        import_reference(replace(config, output=str(tmp_path / "other")))


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("run",)


def test_nothing_in_a_pickle_is_run(config: ImportConfig, capsys: pytest.CaptureFixture) -> None:
    write(config)
    torch.save({"weight": _Evil()}, Path(config.checkpoint) / name(1))
    with pytest.raises(UserError, match="cannot be read as tensors"):
        import_reference(config)
    assert "run" not in capsys.readouterr().out
