"""A model that has room for examples to go on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from grun.core.config.jobs import ExpandConfig
from grun.models.loading.loaded import LoadedModel, load
from support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture
def roomy(tmp_path: Path) -> Path:
    """A tiny model whose context has room for examples to go on from."""
    tiny_model(max_position_embeddings=2048).save_pretrained(tmp_path / "roomy")
    tiny_tokenizer().save_pretrained(tmp_path / "roomy")
    return tmp_path / "roomy"


@pytest.fixture
def base(roomy: Path) -> LoadedModel:
    return load(str(roomy), ExpandConfig(device="cpu"))
