"""Settings and fixtures of the whole suite."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["GRUN_CACHE_DIR"] = tempfile.mkdtemp(prefix="grun-tests-")  # of fixtures that serve several tests

import torch  # noqa: E402

from support.material import Material, invented_rows, memorise, write_rows  # noqa: E402
from support.tiny_models import tiny_model, tiny_tokenizer  # noqa: E402

torch.set_num_threads(1)  # models are tiny: more threads only wait for each other


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another one measured."""
    monkeypatch.setenv("GRUN_CACHE_DIR", str(tmp_path / "cache-of-the-test"))


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
