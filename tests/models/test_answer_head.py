"""The vocabulary head on answer tokens only: the values and gradients of the head on every token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from grun.models import answer_head
from grun.models.answer_head import answer_logps, applies_nothing_after_head
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.forward import side_signals
from support.adapter_kit import make_rows
from support.tiny_models import ARCHITECTURES, tiny_model

BATCH = collate([Encoded(tuple(ids.tolist()), prompt, 0) for ids, prompt in make_rows(6)], 3)


@given(
    tokens=st.integers(0, 9),
    entries=st.integers(1, 400),
    sure=st.sampled_from([0.1, 1.0, 30.0]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_log_probabilities_and_gradients_are_those_of_whole_logits(
    tokens: int, entries: int, sure: float, bias: bool, dtype: torch.dtype
) -> None:
    """In chunks of any size, also where the model is nearly certain."""
    torch.manual_seed(tokens)
    head = nn.Linear(8, 50, bias=bias, dtype=dtype).requires_grad_(False)
    h_ND, targets_N, weights_N = torch.randn(tokens, 8, dtype=dtype), torch.randint(50, (tokens,)), torch.rand(tokens)
    one_ND, two_ND = ((h_ND * sure).requires_grad_() for _ in range(2))
    logits_NV = head(one_ND)
    plain_N = (logits_NV.gather(1, targets_N[:, None]).squeeze(1) - logits_NV.logsumexp(1)).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_head, "ENTRIES", entries)
        found_N = answer_logps(head, two_ND, targets_N)
    torch.testing.assert_close(found_N, plain_N, atol=1e-5, rtol=1e-5)
    for logps_N in (plain_N, found_N):
        (logps_N * weights_N).sum().backward()
    torch.testing.assert_close(two_ND.grad, one_ND.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_gives_the_same_with_and_without_logits(arch: str) -> None:
    model: Any = tiny_model(arch).requires_grad_(False)
    plain_N = side_signals(model, BATCH, with_grad=False).logps_N
    every_BTV = model(**BATCH.model_inputs()).logits.float()
    from_BT = nn.functional.pad(BATCH.labels_BT[:, 1:] != -100, (0, 1))
    expected_NV = every_BTV[from_BT]
    torch.testing.assert_close(side_signals(model, BATCH, wanted=("logits",)).logits_NV, expected_NV)
    if applies_nothing_after_head(model):
        fused_N = side_signals(model, BATCH, with_grad=False, fused=True).logps_N
        torch.testing.assert_close(fused_N, plain_N, atol=1e-5, rtol=1e-5)


def test_a_head_that_is_trained_or_whose_output_is_changed_is_not_replaced() -> None:
    assert applies_nothing_after_head(tiny_model("llama").requires_grad_(False))
    assert not applies_nothing_after_head(tiny_model("llama").requires_grad_(True))
    capped = tiny_model("gemma2", final_logit_softcapping=2.0).requires_grad_(False)
    assert not applies_nothing_after_head(capped)


def test_quantities_are_left_out_of_rows_that_do_not_want_them() -> None:
    model: Any = tiny_model("llama").requires_grad_(False)
    layer = model.model.layers[1]
    whole = side_signals(model, BATCH, wanted=("logps", "logits", "hidden"), layer=layer)
    lengths = whole.lengths_B.tolist()
    rows_of = {
        "logps": torch.arange(len(lengths)) % 2 == 0,
        "logits": torch.arange(len(lengths)) < 2,
        "hidden": torch.arange(len(lengths)) == 1,
    }
    some = side_signals(model, BATCH, wanted=("logps", "logits", "hidden"), layer=layer, rows_of=rows_of)
    for name, mask_B in rows_of.items():
        rows = whole.quantities[name].split(lengths)
        expected = torch.cat([row for row, kept in zip(rows, mask_B.tolist(), strict=True) if kept])
        torch.testing.assert_close(some.quantities[name], expected, atol=1e-5, rtol=1e-5)
    assert len(some.targets_N) == sum(lengths)


def test_the_head_is_not_run_where_nothing_reads_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("llama")
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].numel()))
    side_signals(model, BATCH, wanted=("hidden",), layer=model.model.layers[1])
    assert seen == [0]
