"""Hashes that tell data apart: of rows in order, and of prompts and answers in any order."""

from __future__ import annotations

__all__ = ["fingerprint", "fingerprint_of_rows"]

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping

from grun.core.records import Example


def fingerprint(parts: Mapping[str, Iterable[Example]]) -> str:
    """SHA-256 over everything in named lists of examples, in order, except their sources."""
    digest = hashlib.sha256()
    for name, rows in parts.items():
        content = [name, [dataclasses.asdict(dataclasses.replace(row, source="")) for row in rows]]
        digest.update(json.dumps(content, ensure_ascii=False).encode())
    return digest.hexdigest()


def fingerprint_of_rows(rows: Iterable[Example]) -> str:
    """SHA-256 over prompts and answers, independent of their order."""
    digests = sorted(fingerprint({"": [Example(row.prompt, row.answer, turns=row.turns)]}) for row in rows)
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
