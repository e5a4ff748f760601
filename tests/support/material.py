"""Folders with a tiny model and the rows that it is to forget and to keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from grun.core.config.jobs import UnlearnConfig
from grun.core.records import Example
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import encode
from grun.models.encoding.templates import resolve_template
from grun.models.forward import side_signals
from support.tiny_models import tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Material:
    """A folder with a tiny random model, what it is to forget and what it is to keep.

    Attributes:
        model: folder of the model and its tokenizer.
        forget, retain: files of 8 and 24 rows.
    """

    model: Path
    forget: Path
    retain: Path


def small_unlearning(material: Material, output: Path, **settings: Any) -> UnlearnConfig:
    """Settings of an unlearning run on a material, in batches of four on the processor.

    Args:
        material: model and rows.
        output: directory of the run.
        **settings: further ones.
    """
    forget, retain = [str(material.forget)], [str(material.retain)]
    shared: dict[str, Any] = {"model": str(material.model), "forget": forget, "retain": retain, "output": str(output)}
    return UnlearnConfig(**shared, device="cpu", batch_size=4, **settings)


def write_rows(file: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def invented_rows(kind: str, count: int) -> list[dict[str, str]]:
    """Rows that differ in a name."""
    names = ("Ada", "Bo", "Cleo", "Dov", "Eli", "Fay", "Gus", "Hal")
    return [
        {"question": f"Where was {kind} {names[i % 8]} {i // 8} born?", "answer": f"In the town of {kind}{i}."}
        for i in range(count)
    ]


def memorise(rows: list[dict[str, str]], steps: int = 200) -> PreTrainedModel:
    """A tiny model that knows the answers."""
    tokenizer = tiny_tokenizer()
    template = resolve_template("auto", tokenizer)
    batch = collate([encode(Example(r["question"], r["answer"]), tokenizer, template) for r in rows], 3)
    model = tiny_model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = side_signals(model, batch).mean_nll
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2, "the rows were not learnt"
    return model.eval()
