"""The whole forward pass, its gate logits and its gradients equal an independent plain implementation."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from grun.models.tuner.edit import orthonormal
from support.adapter_kit import CONFIGS, attach, config_id, make_rows, pad, reference_state
from support.plain_grun import orthonormal_columns, plain_grun
from support.tiny_models import ARCHITECTURES, tiny_model

TOLERANCE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6}


def compare(arch: str, options: dict) -> None:
    model = attach(arch, **options).double()
    state, config = reference_state(model), model.peft_config["default"]
    rows = make_rows(3)
    batch = pad(rows)
    logits_BTV = model(**batch.inputs).logits
    gates = model.base_model.last_gates.get("default")
    base, losses, reference_losses, changes = tiny_model(arch).double(), [], [], []
    for i, (ids_T, prompt) in enumerate(rows):
        expected_TV, gate_logits = plain_grun(base, state, ids_T, prompt, config)
        found_TV = batch.row(logits_BTV, i)
        torch.testing.assert_close(found_TV, expected_TV, **TOLERANCE)
        if gates is not None:
            torch.testing.assert_close(gates.logits_BG[i], torch.stack(gate_logits), **TOLERANCE)
        losses.append(cross_entropy(found_TV[prompt - 1 : -1], ids_T[prompt:]))
        reference_losses.append(cross_entropy(expected_TV[prompt - 1 : -1], ids_T[prompt:]))
        changes.append((base(input_ids=ids_T[None]).logits[0] - found_TV).abs().max())
    assert max(changes) > 1e-2, "the adapter must do something for this to prove anything"
    torch.as_tensor(sum(losses)).backward()
    torch.as_tensor(sum(reference_losses)).backward()
    compare_gradients(model, state)


def compare_gradients(model: torch.nn.Module, state: dict) -> None:
    trained = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {key for key in state if not key.endswith("threshold")}
    for name, parameter in trained.items():
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad, state[name].grad, rtol=1e-5, atol=1e-6, msg=partial("{}: {}".format, name)
        )
        assert parameter.grad.abs().max() > 0, f"{name} has no gradient"
    assert all(p.grad is None for n, p in model.named_parameters() if ".grun_" not in n)


@pytest.mark.parametrize("options", CONFIGS, ids=config_id)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_forward_and_gradients_equal_the_plain_implementation(arch: str, options: dict) -> None:
    compare(arch, options)


@pytest.mark.parametrize(
    "options",
    [
        {"gate": "linear", "gate_layer": 0},
        {"gate": "linear", "gate_layer": None, "gate_reads": "last"},
        {"gate": "none"},
        {"gate": "none", "edit_from": "last_prompt_only"},
        {"gate_hidden": [16, 8], "layers": [0, 1, 2, 3], "gate_layer": 0, "rank": 5},
        {"layers": [2], "gate_layer": 2},
    ],
    ids=str,
)
def test_other_configurations(options: dict) -> None:
    compare("llama", options)


def test_float32_models_agree_to_float32_rounding() -> None:
    model, rows = attach("qwen2"), make_rows(3)
    batch, state = pad(rows), reference_state(model)
    logits_BTV = model(**batch.inputs).logits
    for i, (ids_T, prompt) in enumerate(rows):
        expected_TV, _ = plain_grun(tiny_model("qwen2"), state, ids_T, prompt, model.peft_config["default"])
        torch.testing.assert_close(batch.row(logits_BTV, i), expected_TV, rtol=1e-4, atol=1e-4)


def test_orthonormalisation_is_gram_schmidt() -> None:
    free_DR = torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthonormal(free_DR), orthonormal_columns(free_DR), rtol=1e-12, atol=1e-12)
