"""Measuring a model on every split; an interrupted measurement resumes with the first unfinished split."""

from __future__ import annotations

__all__ = ["measure"]

from collections.abc import Callable, Collection, Sequence

from grun.core.distributed import gathered, is_main, wait
from grun.core.process.progress import Progress
from grun.core.records import Evidence, Example, RowEvidence
from grun.data.paraphrases import Splits
from grun.evaluation.measuring.assembly import assembled
from grun.evaluation.measuring.evidence_store import EvidenceStore
from grun.evaluation.measuring.plan import PlannedSplit, plan_splits
from grun.evaluation.measuring.row_evidence import measure_rows
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.measuring.sharding import joined_shares, own_share


def measure(
    subject: Subject,
    splits: Splits,
    settings: MeasureSettings,
    *,
    forget_split: str | None,
    unseen_forget: Collection[str] = (),
    holdout: Sequence[Example] = (),
    retain_log: EvidenceStore | None = None,
) -> dict[str, Evidence]:
    """Evidence of every split of `with_paraphrases(splits)`, and its progress.

    Args:
        subject: the model to measure.
        splits: rows by split.
        settings: settings of the measurement.
        forget_split: name of the split that is to be forgotten; others are compared with it. None if there is none.
        unseen_forget: names of further splits of what must be forgotten, which unlearning never saw.
        holdout: rows like those of the forget split that no model was trained on.
        retain_log: evidence of a model trained on retain data only, of the same rows.

    Raises:
        UserError: for an empty split, a `forget_split` that is not among them, or a store or retain log with other rows.
    """
    plan = plan_splits(splits, settings, forget_split, holdout)
    logs = {split.name: retain_log.read(split.name, split.examples) if retain_log else None for split in plan}
    rows: dict[str, tuple[RowEvidence, ...]] = {}
    total = sum(len(own_share(split.examples)) for split in plan)
    with Progress(f"measure {subject.label}", total, "row", shown=is_main()) as progress:
        for split in plan:
            rows[split.name] = _evidence_of(subject, split, progress.update)
    return assembled(rows, logs, forget_split, unseen_forget)


def _evidence_of(subject: Subject, split: PlannedSplit, progress: Callable[[int], object]) -> tuple[RowEvidence, ...]:
    """Rows of a split from the store, or measured by all processes together; in the store afterwards.

    The store is looked up when the split's turn comes, since an earlier split may have had the same rows.
    """
    store, own = subject.store, own_share(split.examples)
    found = None if store is None else store.read(split.name, split.examples, split.asked)
    if found is None:
        shares = gathered(measure_rows(subject, own, split.settings, progress))
        found = joined_shares(shares, len(split.examples))
    else:
        progress(len(own))
    if store is not None and is_main():
        store.write(split.name, found, split.asked)
    wait()
    return found
