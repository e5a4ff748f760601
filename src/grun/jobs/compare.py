"""`grun compare`: evaluations of several models side by side, with the differences and what they may be by chance."""

from __future__ import annotations

__all__ = ["compare"]

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grun.core.errors import UserError
from grun.core.provenance import provenance
from grun.core.storage.atomic_files import read_json, write_json, write_text
from grun.core.storage.claims import claimed
from grun.core.storage.directories.layout import RECORD
from grun.core.storage.replacing import check_unchanged, open_list
from grun.evaluation.comparison import Compared, compare_runs, run_names
from grun.evaluation.report.comparison_table import comparison_table
from grun.evaluation.report.table import show_whole

JSON, TABLE = "comparison.json", "comparison.md"


def compare(
    runs: Sequence[Path],
    *,
    metrics: Sequence[str] = (),
    splits: Sequence[str] = (),
    output: Path | None = None,
    seed: int = 0,
    show: bool = True,
) -> list[Compared]:
    """Compare evaluations with the first of them, show the table, and write it.

    Args:
        runs: directories of evaluations.
        metrics: only these; none: those of the usual table, and the summaries.
        splits: only these; none: all that every run has.
        output: folder for `comparison.json` and `comparison.md`; None to write nothing.
        seed: of the bootstrap.
        show: print the table.

    Raises:
        UserError: for fewer than two runs, one that is not a complete evaluation, other rows in a split, or an output in which
            somebody else's files would be replaced.
    """
    with claimed(output, "compare") if output is not None else nullcontext():
        if output is not None:
            _check(output.expanduser())
        found = compare_runs(runs, metrics=metrics, splits=splits, seed=seed)
        markdown, table = comparison_table(found, run_names(runs))
        if show:
            show_whole(table)
        if output is not None:
            record = {"runs": [str(run) for run in runs], **provenance(), "found": [asdict(one) for one in found]}
            _write(output.expanduser(), record, markdown)
    return found


def _check(folder: Path) -> None:
    """Refuse to replace files that are not an earlier comparison as `compare` wrote it."""
    record = read_json(folder / JSON)
    is_earlier = isinstance(record, dict) and {"runs", "found"} <= record.keys()
    for file in (folder / JSON, folder / TABLE):
        if os.path.lexists(file) and not is_earlier:
            raise UserError(
                f"'{file}' is no comparison of grun and would be replaced; name another folder with --output."
            )
    check_unchanged(folder, (JSON, TABLE))


def _write(folder: Path, record: Mapping[str, Any], markdown: str) -> None:
    run = read_json(folder / RECORD)  # the folder may be that of a job
    open_list(folder, run.get("command", "") if isinstance(run, dict) else "compare", new=False)
    write_json(folder / JSON, record)
    write_text(folder / TABLE, markdown)
