"""Settings of the whole suite. This file also puts the folder on the import path, for `helpers` and `reference`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402

from helpers import tiny_model, tiny_tokenizer  # noqa: E402

torch.set_num_threads(1)  # models are tiny: more threads only wait for each other


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


def write_rows(file: Path, rows: list[dict[str, str]]) -> Path:
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


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """What every job needs, once for all tests of a process. Nobody may change it."""
    folder = tmp_path_factory.mktemp("material")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    forget = write_rows(folder / "forget.jsonl", invented_rows("Lund", 8))
    return Material(folder / "model", forget, write_rows(folder / "retain.jsonl", invented_rows("Marl", 24)))
