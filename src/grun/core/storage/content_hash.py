"""The cache of results between runs, and hashes that tell models and adapters apart by their content."""

from __future__ import annotations

__all__ = ["content_of_model", "content_of_path", "content_of_weights", "subject_folder"]

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from grun.core import CODE
from grun.core.process.environment import cache_directory
from grun.core.storage.atomic_files import read_json, sha256, write_json
from grun.core.storage.cache import keep

DIGESTS = "digests.json"


def content_of_model(model: PreTrainedModel) -> str | None:
    """Identity of a loaded model: a hash of its folder, or hub id and commit; None if neither is known."""
    if (known := content_of_path(str(model.name_or_path))) is not None:
        return known
    commit = getattr(model.config, "_commit_hash", None)
    return f"{model.name_or_path}@{commit}" if commit else None


def content_of_weights(model: nn.Module) -> str:
    """A hash of the weights that a model holds in memory, their names and shapes, and its configuration."""
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None:
        digest.update(config.to_json_string().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy())
    return f"weights {digest.hexdigest()}"


def content_of_path(path: str, files: Sequence[str] = ("*",)) -> str | None:
    """A hash of a file, of a folder, or of those files in it that match; None if there is neither (a hub id)."""
    where = Path(path)
    if where.is_file():
        return _digest_of_files([where])
    return _digest_of_files({file for pattern in files for file in where.glob(pattern)}) if where.is_dir() else None


def subject_folder(contents: Sequence[str | None], settings: Mapping[str, Any]) -> Path | None:
    """The folder of the cache for the measurements of a subject.

    Args:
        contents: of the model and the adapter.
        settings: everything else that the measurements depend on, besides the rows; the code of this package is added.

    Returns:
        None if a content is not known: it counts as different from any other.
    """
    if any(content is None for content in contents):
        return None
    text = json.dumps([list(contents), dict(settings), _digest_of_code()], sort_keys=True, default=str)
    return cache_directory() / "evidence" / hashlib.sha256(text.encode()).hexdigest()[:32]


def _digest_of_files(found: Collection[Path]) -> str:
    """Hash over files; a file that did not change since it was last read is not read again."""
    register = cache_directory() / DIGESTS
    kept = read_json(register)
    known = {k: v for k, v in kept.items() if isinstance(v, str)} if isinstance(kept, dict) else {}
    digest, fresh = hashlib.sha256(), {}
    for file in sorted(path for path in found if path.is_file() and not path.name.startswith(".")):
        state = file.stat()
        key = f"{file.resolve()} {state.st_size} {state.st_mtime_ns}"
        if key not in known:
            fresh[key] = sha256(file)
        digest.update(f"{file.name} {known.get(key) or fresh[key]}\n".encode())
    if fresh:
        keep(register, lambda file: write_json(file, known | fresh))
    return digest.hexdigest()


@cache
def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for file in sorted(CODE.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
