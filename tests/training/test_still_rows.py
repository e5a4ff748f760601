"""Rows whose gates are shut for good: they never run, and losses and gradients are those of the plain engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.encoding.templates import resolve_template
from grun.models.forward import gates_of_last_call, side_signals
from grun.models.gates.features import gates_of
from grun.models.row_encoder import RowEncoder
from grun.training.forward_engines.prefix.engine import PrefixEngine
from support.adapter_kit import attach, make_rows
from support.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ENCODER = RowEncoder(TOKENIZER, resolve_template("qa", TOKENIZER), None, 4, torch.device("cpu"))
ROWS = [Encoded(tuple(ids.tolist()), prompt, 0) for ids, prompt in make_rows(6)]
NAMES = ("logps", "logits", "hidden")


def with_shut_gates(share: float) -> Any:
    """A model whose gate is frozen, and shut for a share of the rows."""
    model = attach(gate_layer=0).double()
    side_signals(model, collate(ROWS, 3), with_grad=False)
    found = gates_of_last_call(model)
    assert found is not None
    logits_B = found[0][:, 0].sort().values
    for _, gate in gates_of(model, "default"):
        gate.requires_grad_(False)
        at = round(share * len(ROWS))
        gate.threshold.fill_(float(logits_B[at - 1]) if at else -torch.inf)
    return model


def loss_and_gradients(model: nn.Module, quantities: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    parts = [value.double().tanh().sum() for name, value in quantities.items() if name != "targets"]
    loss = torch.stack(parts).sum()
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("names", [("logps",), ("hidden",), NAMES])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_losses_and_gradients_are_those_of_the_plain_engine(share: float, names: tuple[str, ...]) -> None:
    model = with_shut_gates(share)
    layer = model.base_model.runtime.layers[-1]
    engine = PrefixEngine(model, ENCODER, layer)
    engine.add(ROWS, own=names)
    assert engine.facts["prefix_cache"]["still"] == round(share * len(ROWS))
    expected = side_signals(model, collate(ROWS, 3), wanted=names, layer=layer)
    gates = gates_of_last_call(model)
    loss, gradients = loss_and_gradients(model, dict(expected.quantities))
    inputs = engine.batch(ROWS, [names] * len(ROWS))
    found = engine.signals(model, inputs, names)
    for name in ("targets", *names):
        torch.testing.assert_close(found.quantities[name], expected.quantities[name], atol=1e-5, rtol=1e-5)
    assert torch.equal(found.lengths_B, expected.lengths_B)
    after = gates_of_last_call(model)
    assert gates is not None
    assert after is not None
    torch.testing.assert_close(after[0], gates[0])
    other, others = loss_and_gradients(model, dict(found.quantities))
    assert other == pytest.approx(loss)
    assert others.keys() == gradients.keys()
    for name in gradients:
        torch.testing.assert_close(others[name], gradients[name], atol=1e-6, rtol=1e-5)


def test_rows_with_a_shut_gate_never_run_again() -> None:
    model = with_shut_gates(0.5)
    engine = PrefixEngine(model, ENCODER)
    engine.add(ROWS, own=("logps",))
    batch = engine.batch(ROWS, [("logps",)] * len(ROWS))["batch"]
    assert sum(len(part.ids_BC) for part in batch.parts) == 3
    assert len(batch.still.answer_BA) == 3
    assert sorted(batch.places) == list(range(len(ROWS)))


def test_rows_run_if_what_is_wanted_of_them_is_not_known_or_the_gate_is_trained() -> None:
    model = with_shut_gates(0.5)
    engine = PrefixEngine(model, ENCODER)
    engine.add(ROWS)
    assert engine.batch(ROWS, [("logps",)] * len(ROWS))["batch"].still is None
    for _, gate in gates_of(model, "default"):
        gate.requires_grad_(True)
    trained = PrefixEngine(model, ENCODER)
    trained.add(ROWS, own=("logps",))
    assert trained.facts["prefix_cache"]["still"] == 0


def test_sides_have_quantities_of_their_own() -> None:
    model = with_shut_gates(0.0)
    layer = model.base_model.runtime.layers[-1]
    engine = PrefixEngine(model, ENCODER, layer)
    engine.add(ROWS)
    wanted = [("logps",)] * 3 + [("hidden",)] * 3
    found = engine.signals(model, engine.batch(ROWS, wanted), ("logps", "hidden"))
    whole = engine.signals(model, engine.batch(ROWS), ("logps", "hidden"))
    first = int(whole.lengths_B[:3].sum())
    torch.testing.assert_close(found.logps_N, whole.logps_N[:first])
    torch.testing.assert_close(found.hidden_ND, whole.hidden_ND[first:])
