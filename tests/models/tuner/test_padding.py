"""Padding, batch order, batch size and the way in which the boundary is given never change a result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grun.core.errors import UserError
from support.adapter_kit import CONFIGS, Padded, attach, config_id, make_rows, pad, pad_one
from support.tiny_models import ARCHITECTURES, tiny_model

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
ROWS = make_rows(4)


def run(model: torch.nn.Module, batch: Padded, **replaced: object) -> list[torch.Tensor]:
    """Logits of each row, padding removed."""
    inputs = batch.inputs | {"position_ids": (batch.mask_BT.cumsum(1) - 1).clamp_min(0)} | replaced
    if "labels" in replaced:
        del inputs["prompt_lengths"]
    with torch.no_grad():
        logits_BTV = model(**inputs).logits
    return [batch.row(logits_BTV, i) for i in range(len(logits_BTV))]


@pytest.mark.parametrize("options", [CONFIGS[0], CONFIGS[-1]], ids=config_id)
@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_padded_rows_equal_batch_size_one(arch: str, side: str, options: dict) -> None:
    model = attach(arch, **options)
    alone = [run(model, pad_one(row))[0] for row in ROWS]
    base = tiny_model(arch)
    plain = [base(input_ids=ids_T[None]).logits[0] for ids_T, _ in ROWS]
    assert max((a - b).abs().max() for a, b in zip(alone, plain, strict=True)) > 1e-2
    for found, expected in zip(run(model, pad(ROWS, side, extra=2)), alone, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("options", CONFIGS, ids=config_id)
def test_batch_order_and_size_do_not_matter(options: dict) -> None:
    model = attach(**options)
    expected = run(model, pad(ROWS))
    for order in ([3, 1, 0, 2], [2, 3], [0, 0, 1]):
        found = run(model, pad([ROWS[i] for i in order]))
        for i, logits_TV in zip(order, found, strict=True):
            torch.testing.assert_close(logits_TV, expected[i], **CLOSE)


@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("options", CONFIGS, ids=config_id)
def test_labels_and_prompt_lengths_say_the_same(side: str, options: dict) -> None:
    model, batch = attach(**options), pad(ROWS, side)
    for by_length, by_label in zip(run(model, batch), run(model, batch, labels=batch.labels_BT), strict=True):
        assert torch.equal(by_length, by_label)


def test_the_gates_do_not_see_answers_or_padding() -> None:
    model, batch = attach(), pad(ROWS)
    run(model, batch)
    before_BG = model.base_model.last_gates["default"].logits_BG
    other = [(torch.cat([ids_T[:prompt], ids_T[prompt:].flip(0), ids_T[:3]]), prompt) for ids_T, prompt in ROWS]
    run(model, pad(other, "left", extra=3))
    torch.testing.assert_close(model.base_model.last_gates["default"].logits_BG, before_BG, **CLOSE)


def test_loss_does_not_depend_on_padding() -> None:
    model = attach()
    losses = []
    for batch in (pad(ROWS), pad(ROWS, "right", extra=5)):
        out = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=batch.labels_BT)
        losses.append(out.loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def test_without_a_boundary_a_forward_call_is_refused_and_the_model_stays_usable() -> None:
    model, batch = attach(), pad(ROWS)
    with pytest.raises(UserError, match="prompt_lengths.*labels"):
        model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT)
    with pytest.raises(UserError, match=r"prompt_lengths\[2\] is 99"):
        run(model, batch, prompt_lengths=torch.tensor([1, 1, 99, 1]))
    with pytest.raises(UserError, match="one per row"):
        run(model, batch, prompt_lengths=torch.tensor([1, 1]))
    with pytest.raises(UserError, match="two-dimensional"):
        run(model, batch, attention_mask=torch.ones(4, 1, batch.ids_BT.shape[1], batch.ids_BT.shape[1]))
    with pytest.raises(UserError, match="input_ids or inputs_embeds"):
        model(prompt_lengths=batch.prompt_lengths_B)
    run(model, batch)


def test_embeddings_instead_of_tokens() -> None:
    model, batch = attach(), pad(ROWS)
    embeds_BTD = model.get_input_embeddings()(batch.ids_BT)
    for a, b in zip(run(model, batch), run(model, batch, input_ids=None, inputs_embeds=embeds_BTD), strict=True):
        torch.testing.assert_close(a, b)
