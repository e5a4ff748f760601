"""What both demos need."""

from __future__ import annotations

__all__ = ["say", "say_where", "spread", "training_facts"]

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from grun.core.storage.run_directory import RunDirectory
from grun.evaluation.report.table import plain_text

T = TypeVar("T")


def say(console: Console, line: str) -> None:
    """Print the heading of a part."""
    console.print(plain_text(f"\n{line}"), style="bold", highlight=False)


def say_where(console: Console, run: RunDirectory) -> None:
    """Print how long a complete demo took, and where everything is."""
    line = f"It took {run.record['seconds']:.0f} s; everything lies in {run.path}."
    console.print(plain_text(line), highlight=False, soft_wrap=True)


def spread(rows: Sequence[T], count: int) -> list[T]:
    """At most `count` rows, evenly spaced from the first on."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else list(rows)


def training_facts(run: Path) -> dict[str, Any]:
    """What an unlearning run found out about itself, and how many seconds it took."""
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return found | {"seconds": json.loads((run / "run.json").read_text(encoding="utf-8"))["seconds"]}
