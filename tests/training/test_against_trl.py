"""Preference losses against trl's trainers, on the same model, reference model and token ids."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from grun.core.records import SideSignals, Signals
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.forward import side_signals
from grun.training.loss.terms import split_sides
from grun.training.objectives import objectives
from support.tiny_models import tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl", reason="trl is not installed")
BETA = 0.3
PROMPTS, CHOSEN, REJECTED = (5, 3, 7), (4, 2, 6), (3, 5, 1)


def rows(seed: int, lengths: tuple[int, ...]) -> list[Encoded]:
    """Rows with the same prompts whatever the answers."""
    prompts = [torch.randint(6, 300, (n,), generator=torch.Generator().manual_seed(i)) for i, n in enumerate(PROMPTS)]
    generator = torch.Generator().manual_seed(seed)
    answers = [torch.randint(6, 300, (n,), generator=generator) for n in lengths]
    return [Encoded((*p.tolist(), *a.tolist()), len(p), 0) for p, a in zip(prompts, answers, strict=True)]


def sides_of(model: torch.nn.Module, reference: torch.nn.Module) -> dict[str, SideSignals]:
    batch = collate(rows(10, REJECTED) + rows(11, CHOSEN), 3)
    base = side_signals(reference, batch, with_grad=False).logps_N
    counts = {"forget": sum(REJECTED), "refusal": sum(CHOSEN)}
    parts = dict(zip(counts, base.split(list(counts.values())), strict=True))
    return split_sides(side_signals(model, batch), list(counts), {side: {"logps": x} for side, x in parts.items()})


def other_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_dpo_is_trls_loss_times_two_over_beta_gradients_included(tmp_path: Path) -> None:
    model, reference = other_model(1), other_model(2)
    ours = objectives.get("dpo").target(Signals(sides_of(model, reference)), beta=BETA)
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.DPOTrainer(
            model=model,
            ref_model=reference,
            args=trl.DPOConfig(output_dir=str(tmp_path), beta=BETA, report_to="none", use_cpu=True, bf16=False),
            train_dataset=Dataset.from_list([{"prompt": "Where?", "chosen": " Here.", "rejected": " There."}] * 2),
            processing_class=tiny_tokenizer(),
        )
        model.eval()
        batch = collate(rows(11, CHOSEN) + rows(10, REJECTED), 3)  # trl has the preferred answers first
        theirs = trainer.compute_loss(
            model,
            {
                "input_ids": batch.input_ids_BT,
                "attention_mask": batch.attention_mask_BT,
                "completion_mask": (batch.labels_BT != -100).long(),
            },
        )
        theirs.backward()
    torch.testing.assert_close(ours.detach(), theirs.detach() * 2 / BETA, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad * 2 / BETA, rtol=1e-4, atol=1e-6, msg=name)
