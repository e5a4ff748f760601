"""Damaged files by rule: cut off, flipped, emptied, of another kind, or with other values in the places of their own."""

from __future__ import annotations

import bz2
import copy
import gzip
import json
import random
from collections.abc import Iterator
from typing import Any

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
DEEP = 100_000  # brackets


def damaged_bytes(content: bytes, seed: int = 0) -> dict[str, bytes]:
    """Damaged forms of a file, whatever it holds, by what was done to it."""
    size, chance = len(content), random.Random(seed)
    found = {f"cut at {part}/8": content[: size * part // 8] for part in range(1, 8)}
    found |= {"cut by a byte": content[:-1], "first byte": content[:1], "zeros": bytes(size), "empty": b""}
    for count in (1, 1, 1, 8, 64):
        flipped = bytearray(content)
        for place in chance.choices(range(size), k=count):
            flipped[place] ^= chance.choice((0x01, 0x20, 0x80, 0xFF))
        found[f"{count} bytes flipped, {len(found)}"] = bytes(flipped)
    half = size // 2
    found |= {
        "a hole": content[:half] + bytes(16) + content[half + 16 :],
        "noise": chance.randbytes(size),
        "twice": content + content,
        "pointer": POINTER,
        "gzip": gzip.compress(content),
        "bzip2": bz2.compress(content),
        "Parquet magic": b"PAR1" + content + b"PAR1",
        "UTF-16": b"\xff\xfe" + content.decode("latin-1").encode("utf-16-le"),
        "UTF-16 without a mark": content.decode("latin-1").encode("utf-16-le"),
        "Latin-1": b'{"question": "\xe9", "answer": "\xe9"}\n',
        "deep lists": b"[" * DEEP + b"]" * DEEP,
        "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "many digits": b"[" + b"9" * 6000 + b"]",
        "page": b"<!DOCTYPE html><html><body>404</body></html>",
    }
    return found | {
        f"JSON {value.decode()}": value for value in (b"null", b"[]", b"{}", b"3", b'"text"', b"NaN", b"1e999")
    }


def damaged_values(content: Any, depth: int = 2) -> Iterator[tuple[str, Any]]:
    """Damaged forms of a JSON document: each entry down to a depth left out, or with a value of another type."""
    for path in _paths(content, depth):
        name = "/".join(map(str, path))
        own = _at(content, path)
        for value in (None, [], {}, "x\x1b[2J", -1, 1e999, True, [[["a"]]], {"a": {"b": 1}}):
            if type(value) is not type(own) or value != own:
                yield f"{name} is {value!r}", _changed(content, path, value)
        yield f"{name} is left out", _changed(content, path, None, delete=True)


def _paths(content: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    places = (
        list(content) if isinstance(content, dict) else range(min(len(content), 2)) if isinstance(content, list) else ()
    )
    for place in places:
        yield (place,)
        if depth > 1:
            yield from ((place, *rest) for rest in _paths(content[place], depth - 1))


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for place in path:
        content = content[place]
    return content


def _changed(content: Any, path: tuple[Any, ...], value: Any, delete: bool = False) -> Any:
    found = copy.deepcopy(content)
    parent = _at(found, path[:-1])
    if delete:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return found


def as_bytes(content: Any) -> bytes:
    """A JSON document."""
    return json.dumps(content).encode()
