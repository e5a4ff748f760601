"""What an interrupted run has kept about its gates."""

from __future__ import annotations

__all__ = ["GATES", "kept_gates"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grun.core.errors import UserError
from grun.core.storage.stored_records import mapping_in

GATES = "gates.json"


def kept_gates(run: Path, rows: Mapping[str, int]) -> dict[str, Any]:
    """The facts about gates that a run kept before it was interrupted.

    Args:
        run: directory of the run.
        rows: number of normal rows by kind.

    Raises:
        UserError: if the file is missing or damaged.
    """
    file = run / GATES
    advice = f"delete {run / 'checkpoints'} and run the same command: it begins anew"
    found = mapping_in(file, advice)
    # Earlier versions did not keep all of these.
    usable = {
        "gates": isinstance(found.get("gates"), list),
        "open_rows": "open_rows" not in found or _are_rows(found["open_rows"], rows),
        "topic_kept": _are_counts(found.get("topic_kept", {}), 2),
        "lexicon": _are_counts(found.get("lexicon", {}), 3),
        "recognition": isinstance(found.get("recognition", {}), dict),
    }
    for name, is_usable in usable.items():
        if not is_usable:
            raise UserError(f"'{file}' is damaged: its '{name}' is {found.get(name)!r:.40}; {advice}.")
    return found


def _are_rows(given: Any, rows: Mapping[str, int]) -> bool:
    if not isinstance(given, dict) or set(given) != set(rows) or not all(isinstance(v, list) for v in given.values()):
        return False
    return all(_is_count(one) and one < rows[kind] for kind, own in given.items() for one in own)


def _are_counts(given: Any, many: int) -> bool:
    if not isinstance(given, dict):
        return False
    return all(isinstance(own, list) and len(own) == many and all(map(_is_count, own)) for own in given.values())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
