"""Content of a prefix cache: rows that are computed once and looked up in every step."""

from __future__ import annotations

__all__ = ["CachedRow", "KnownRows"]

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from grun.models.encoding.encode import Encoded
from grun.training.forward_engines.prefix.store import AS_TUPLE, ENTERING, KEYS_VALUES, Parts, PartStore


@dataclass(frozen=True)
class CachedRow:
    """One row, on the CPU.

    Attributes:
        hidden_CD: output of the first edited layer in the base model, from the last prompt token on.
        keys_values_LHPK: keys, then values, of every layer above it, for the prompt tokens before the last.
        references: quantities (answer tokens, ...) of the base model by name.
    """

    hidden_CD: Tensor
    keys_values_LHPK: Tensor
    references: Mapping[str, Tensor]


class KnownRows:
    """All rows computed so far; rows with the same prompt share its keys and values.

    Args:
        compute: pass of the base model over some rows that returns the named quantities (see `base_model_parts`).
        store: storage of the tensors.
        chunk: most rows of a pass.

    Attributes:
        as_tuple: True if decoder layers of the model return tuples; set by the first row.
        bytes: size of all tensors.
    """

    def __init__(
        self, compute: Callable[[Sequence[Encoded], Collection[str]], Parts], store: PartStore, chunk: int
    ) -> None:
        self._compute = compute
        self._store = store
        self._chunk = chunk
        self._rows: dict[Encoded, CachedRow] = {}
        self._prefixes: dict[tuple[int, ...], Tensor] = {}
        self.as_tuple = False
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Encoded) -> CachedRow:
        return self._rows[row]

    def missing(self, rows: Iterable[Encoded], names: Collection[str]) -> list[Encoded]:
        """Rows, each once, that are not known yet or lack one of the named quantities."""
        return [row for row in dict.fromkeys(rows) if not self._knows(row, names)]

    def add(self, rows: Sequence[Encoded], names: Collection[str]) -> None:
        """Read rows from the store, or compute and store them."""
        with self._store.building():
            for chunk in _in_chunks(rows, self._chunk):
                parts = self._store.read(chunk, names)
                if parts is None:
                    parts = self._compute(chunk, names)
                    self._store.write(chunk, names, parts)
                self._keep(chunk, names, parts)

    def _knows(self, row: Encoded, names: Collection[str]) -> bool:
        return row in self._rows and self._rows[row].references.keys() >= set(names)

    def _keep(self, rows: Sequence[Encoded], names: Collection[str], parts: Parts) -> None:
        self.as_tuple = bool(parts[AS_TUPLE])
        for i, row in enumerate(rows):
            before = self._rows[row].references if row in self._rows else {}
            prefix = row.input_ids[: row.prompt_length - 1]
            if (keys_values := parts.get(f"prompt {i}.{KEYS_VALUES}")) is not None:
                self._prefixes.setdefault(prefix, keys_values)
            references = {**before, **{name: parts[f"{i}.{name}"] for name in names}}
            self._rows[row] = CachedRow(parts[f"{i}.{ENTERING}"], self._prefixes[prefix], references)
        self.bytes += sum(value.numel() * value.element_size() for value in parts.values())


def _in_chunks(rows: Sequence[Encoded], size: int) -> list[list[Encoded]]:
    """Rows in chunks of at most `size`, those with the same prompt next to each other, long prompts first."""
    order = sorted(rows, key=lambda row: (-row.prompt_length, row.input_ids))
    return [order[start : start + size] for start in range(0, len(order), size)]
