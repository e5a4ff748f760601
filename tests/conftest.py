"""Settings of the whole suite. This file also puts the folder on the import path, for `helpers` and `reference`."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["GRUN_CACHE_DIR"] = tempfile.mkdtemp(prefix="grun-tests-")  # of fixtures that serve several tests

import torch  # noqa: E402
from transformers import PreTrainedModel  # noqa: E402

from grun.batches import collate, encode  # noqa: E402
from grun.records import Example  # noqa: E402
from grun.signals import side_signals  # noqa: E402
from grun.templates import resolve_template  # noqa: E402
from helpers import tiny_model, tiny_tokenizer  # noqa: E402

torch.set_num_threads(1)  # models are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another one measured."""
    monkeypatch.setenv("GRUN_CACHE_DIR", str(tmp_path / "cache-of-the-test"))


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


@pytest.fixture(scope="session")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """The same with a model that knows all answers, and alternatives to those that are to be forgotten."""
    folder = tmp_path_factory.mktemp("memorised")
    forget, retain = invented_rows("Lund", 8), invented_rows("Marl", 24)
    memorise(forget + retain).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    files = {"retain": retain, "forget": [row | {"alternative_answer": "In a city by the sea."} for row in forget]}
    written = {name: write_rows(folder / f"{name}.jsonl", rows) for name, rows in files.items()}
    return Material(folder / "model", **written)


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """What every job needs, once for all tests of a process. Nobody may change it."""
    folder = tmp_path_factory.mktemp("material")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    forget = write_rows(folder / "forget.jsonl", invented_rows("Lund", 8))
    return Material(folder / "model", forget, write_rows(folder / "retain.jsonl", invented_rows("Marl", 24)))
