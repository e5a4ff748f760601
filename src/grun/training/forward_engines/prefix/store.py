"""Storage of cached prefixes: memory, or files that are mapped into it and shared between runs."""

from __future__ import annotations

__all__ = ["AS_TUPLE", "ENTERING", "KEYS_VALUES", "PartStore", "Parts"]

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from grun.core.storage.cache import keep, read_kept, say_unusable
from grun.core.storage.directories.locks import lock, unlock
from grun.models.encoding.encode import Encoded

logger = logging.getLogger("grun")
# Tensors of one batch of rows: "<row>.<name>", "prompt <row>.<name>", or "<name>" for what holds for all rows
Parts = dict[str, Tensor]
AS_TUPLE = "as_tuple"  # bool, true if decoder layers of the model return tuples
ENTERING = "entering"  # output of the first edited layer, from the last prompt token on
KEYS_VALUES = "keys_values"  # of the prompt tokens before it, in the layers above


BATCH = "batch"  # metadata of a file: the name that it has to have


def _parts_in(file: Path) -> Parts:
    """The tensors of a file, mapped into memory.

    Raises:
        ValueError: if it holds those of another batch; other errors if it is damaged.
    """
    with safe_open(file, framework="pt") as tensors:
        if (tensors.metadata() or {}).get(BATCH) != file.stem:
            raise ValueError(f"{file} holds something else")
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (it is no mapping)


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
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = lock(
                self.folder / "lock", lambda: logger.info("Waiting for another run that fills %s.", self.folder)
            )
        except OSError as error:  # a full disk, say: the tensors stay in memory
            say_unusable(self.folder, error)
            yield
            return
        try:
            yield
        finally:
            unlock(held)

    def read(self, rows: Sequence[Encoded], names: Collection[str]) -> Parts | None:
        """Stored tensors of a batch, mapped into memory; None if they are missing or damaged."""
        file = self._file(rows, names)
        return None if file is None else read_kept(file, _parts_in)

    def write(self, rows: Sequence[Encoded], names: Collection[str], parts: Parts) -> None:
        """Store the tensors of a batch atomically; without a folder, or on a full disk, nothing happens."""
        file = self._file(rows, names)
        if file is not None:
            metadata = {BATCH: file.stem}
            keep(file, lambda temporary: save_file(parts, temporary, metadata=metadata), self.folder)

    def _file(self, rows: Sequence[Encoded], names: Collection[str]) -> Path | None:
        if self.folder is None:
            return None
        content = json.dumps([[(row.input_ids, row.prompt_length) for row in rows], sorted(names)])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
