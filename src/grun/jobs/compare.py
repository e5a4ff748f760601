"""`grun compare`: evaluations of several models side by side, with the differences and what they may be by chance."""

from __future__ import annotations

__all__ = ["compare"]

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from grun.core.provenance import provenance
from grun.core.storage.atomic_files import write_json, write_text
from grun.evaluation.comparison import Compared, compare_runs, run_names
from grun.evaluation.report.comparison_table import comparison_table
from grun.evaluation.report.table import show_whole


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
        UserError: for fewer than two runs, one that is not a complete evaluation, or other rows in a split.
    """
    found = compare_runs(runs, metrics=metrics, splits=splits, seed=seed)
    markdown, table = comparison_table(found, run_names(runs))
    if show:
        show_whole(table)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        record = {"runs": [str(run) for run in runs], **provenance(), "found": [asdict(one) for one in found]}
        write_json(output / "comparison.json", record)
        write_text(output / "comparison.md", markdown)
    return found
