"""What the evaluation tests share: rows, a gated model, and the settings of a job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn

from grun.core.config.jobs import EvaluateConfig
from grun.core.records import Example, RowEvidence
from grun.evaluation.measuring.row_evidence import measure_rows
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.models.encoding.templates import resolve_template
from grun.models.tuner.config import GrunConfig
from support.tiny_models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


TEMPLATE = resolve_template("qa", TOKENIZER)


ANSWERS = ("Ada wrote it.", "No", "She was born in the red house by the sea.", "Five", "Blue and green.", "Ten", "Oslo")


ROWS = tuple(
    Example(f"What about number {i}{'?' * (3 * i % 5)}", answer, source=f"rows.jsonl, row {i + 1}")
    for i, answer in enumerate(ANSWERS)
)


FORGET = tuple(replace(row, paraphrased_prompts=(f"Tell me: {row.prompt}", "unused")) for row in ROWS[:4])


def grun_model(seed: int = 1) -> Any:
    """A model with an adapter that does something, and gates on both sides of their thresholds."""
    model = get_peft_model(tiny_model(), GrunConfig())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def evidence(
    model: nn.Module, rows: tuple[Example, ...] = ROWS, *, adapters: bool = True, **settings: Any
) -> tuple[RowEvidence, ...]:
    asked = MeasureSettings(TEMPLATE, **{"max_new_tokens": 5, **settings})
    return measure_rows(Subject(model, TOKENIZER, adapters=adapters), rows, asked)


def config(saved: Path, output: Path, **changes: Any) -> EvaluateConfig:
    data = [f"forget={saved / 'forget.jsonl'}", f"retain={saved / 'retain.jsonl'}"]
    given: dict[str, Any] = {
        "model": str(saved / "target"),
        "adapter": str(saved / "run"),
        "output": str(output),
        "data": data,
    }
    return EvaluateConfig(**{**given, "device": "cpu", "max_new_tokens": 4, **changes})
