"""Storage of cached prefixes: memory, or files that are mapped into it and shared between runs."""

from __future__ import annotations

__all__ = ["AS_TUPLE", "ENTERING", "KEYS_VALUES", "PartStore", "Parts"]

import fcntl
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grun.core.storage.atomic_files import atomic_file
from grun.models.encoding.encode import Encoded

# Tensors of one batch of rows: "<row>.<name>", "prompt <row>.<name>", or "<name>" for what holds for all rows
Parts = dict[str, Tensor]
AS_TUPLE = "as_tuple"  # bool, true if decoder layers of the model return tuples
ENTERING = "entering"  # output of the first edited layer, from the last prompt token on
KEYS_VALUES = "keys_values"  # of the prompt tokens before it, in the layers above


@dataclass(frozen=True)
class PartStore:
    """One file for every batch of rows, so that an interrupted build resumes; without a folder nothing is written.

    Attributes:
        folder: its name depends on everything besides the rows that the tensors depend on; None to stay in memory.
    """

    folder: Path | None = None

    @property
    def where(self) -> str:
        """Place in words, for messages."""
        return "in memory" if self.folder is None else f"in {self.folder}"

    @contextmanager
    def building(self) -> Iterator[None]:
        """Lock the folder while rows are built; other processes wait and then find the files."""
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self, rows: Sequence[Encoded], names: Collection[str]) -> Parts | None:
        """Stored tensors of a batch, mapped into memory; None if they are missing or damaged."""
        file = self._file(rows, names)
        if file is None or not file.is_file():
            return None
        try:
            return load_file(file)
        except (SafetensorError, OSError):
            return None

    def write(self, rows: Sequence[Encoded], names: Collection[str], parts: Parts) -> None:
        """Store the tensors of a batch atomically; without a folder nothing happens."""
        file = self._file(rows, names)
        if file is not None:
            with atomic_file(file) as temporary:
                save_file(parts, temporary)

    def _file(self, rows: Sequence[Encoded], names: Collection[str]) -> Path | None:
        if self.folder is None:
            return None
        content = json.dumps([[(row.input_ids, row.prompt_length) for row in rows], sorted(names)])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
