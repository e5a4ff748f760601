"""A server of forked processes for the tests of stopping and killing, and what every job needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support.adapter_kit import attach
from support.forked import Forks
from support.job_commands import Places
from support.material import Material, invented_rows, write_rows


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="session")
def ready(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Material for every job; nobody may change it."""
    folder = tmp_path_factory.mktemp("ready")
    attach().save_pretrained(folder / "adapter")
    (folder / "reference").mkdir()
    generator = torch.Generator().manual_seed(3)
    for layer in (1, 3):
        shapes = {"weight": (2, 32), "bias": (2,), "gate_func.weight": (1, 32), "gate_func.bias": (1,)}
        state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        state["rotate_layer"] = torch.linalg.qr(torch.randn(32, 2, generator=generator))[0]
        torch.save(state, folder / "reference" / f"intkey_layer.{layer}.comp.block_output.unit.pos.nunit.1#0.bin")
    normal = write_rows(folder / "normal.jsonl", [{"prompt": row["question"]} for row in invented_rows("calm", 60)])
    return Places(folder, material, folder / "adapter", folder / "reference", normal)


@pytest.fixture
def places(ready: Places, tmp_path: Path) -> Places:
    """The same with a folder of the test's own."""
    return Places(tmp_path, ready.material, ready.adapter, ready.reference, ready.normal)
