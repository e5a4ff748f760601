"""The header of a GGUF file, walked with every count and length bounded by what the file holds.

The reader of the package `gguf` trusts them: a damaged count lets it fill the memory. Format: version 2 and 3 of the
specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

__all__ = ["check_gguf"]

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
DEEPEST = 4  # arrays in arrays
# Bits of a weight by the type of its tensor; a type that is not listed needs at least one bit.
BITS = {0: 32.0, 1: 16.0, 2: 4.5, 3: 5.0, 6: 5.5, 7: 6.0, 8: 8.5, 30: 16.0}
SIZES = ("embedding_length", "feed_forward_length", "vocab_size", "attention.head_count")


@dataclass
class _Header:
    """What was read of a header.

    Attributes:
        values: numbers by key.
        shapes: of the tensors, by name.
    """

    values: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


class _Reader:
    """Values of a file in their order; each must lie in the file."""

    def __init__(self, file: Path) -> None:
        self._size = file.stat().st_size
        self._stream = file.open("rb")

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return self._size - self._stream.tell()

    def raw(self, length: int) -> bytes:
        """The next bytes."""
        if length > self.left:
            raise ValueError(f"at byte {self._stream.tell()} it promises {length} bytes, but {self.left} are left")
        return self._stream.read(length)

    def skip(self, length: int) -> None:
        """Pass over bytes."""
        if length > self.left:
            raise ValueError(f"at byte {self._stream.tell()} it promises {length} bytes, but {self.left} are left")
        self._stream.seek(length, 1)

    def number(self, code: str) -> Any:
        """The next number, of a code of `struct`."""
        return struct.unpack(f"<{code}", self.raw(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        """The next string, which has its length in front."""
        return self.raw(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """The next value: a number; None for a string or an array, which are passed over."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            self.skip(self.number("Q"))
            return None
        if kind != ARRAY or depth > DEEPEST:
            raise ValueError(f"at byte {self._stream.tell()} it has a value of the unknown kind {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            self.skip(count * struct.calcsize(f"<{SCALARS[inner]}"))
            return None
        if count * 8 > self.left:
            raise ValueError(f"at byte {self._stream.tell()} it promises {count} values, more than are left")
        for _ in range(count):
            self.value(inner, depth + 1)
        return None


def check_gguf(file: Path) -> None:
    """Check that all counts, lengths and sizes of a GGUF file agree with what it holds.

    Raises:
        ValueError: saying where they do not.
        OSError: if the file cannot be read.
    """
    with _Reader(file) as reader:
        header = _read(reader)
    _check_sizes(header)


def _read(reader: _Reader) -> _Header:
    header = _Header()
    if reader.raw(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as a GGUF file")
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"it is of version {version}, expected 2 or 3")
    tensors, values = reader.number("Q"), reader.number("Q")
    if (tensors + values) * 16 > reader.left:
        raise ValueError(f"it promises {tensors} tensors and {values} settings, more than it can hold")
    for _ in range(values):
        key = reader.text()
        header.values[key] = reader.value(reader.number("I"))
    ends = [0]
    for _ in range(tensors):
        name, dimensions = reader.text(), reader.number("I")
        if not 1 <= dimensions <= 8:
            raise ValueError(f"tensor '{name}' has {dimensions} dimensions")
        shape = tuple(reader.number("Q") for _ in range(dimensions))
        kind, start = reader.number("I"), reader.number("Q")
        header.shapes[name] = shape
        ends.append(start + _bytes(shape, kind))
    if len(header.shapes) != tensors:
        raise ValueError("two of its tensors have the same name")
    if max(ends) > reader.left:
        raise ValueError(f"its tensors end {max(ends) - reader.left} bytes behind the end of the file")
    return header


def _bytes(shape: tuple[int, ...], kind: int) -> int:
    """Bytes that a tensor needs at least."""
    count = 1
    for size in shape:
        count *= size
    return int(count * BITS.get(kind, 1.0) / 8)


def _check_sizes(header: _Header) -> None:
    """Check that the settings of the model are of the size of its tensors, before a library makes room for them."""
    largest = max((size for shape in header.shapes.values() for size in shape), default=0)
    blocks = {name.split(".")[1] for name in header.shapes if name.startswith("blk.")}
    for key, value in header.values.items():
        own = key.partition(".")[2]
        if own == "block_count" and value != len(blocks):
            raise ValueError(f"{key} is {value}, but it holds tensors of {len(blocks)} layers")
        if own in SIZES and isinstance(value, (int, float)) and value > largest:
            raise ValueError(f"{key} is {value}, but its largest tensor has {largest} rows or columns")
