"""`Evidence` of every split, from measured rows."""

from __future__ import annotations

__all__ = ["assembled"]

from collections.abc import Mapping

from grun.core.records import Evidence, RowEvidence
from grun.data.paraphrases import PARAPHRASED
from grun.evaluation.measuring.plan import HOLDOUT

Rows = tuple[RowEvidence, ...]


def assembled(
    rows: Mapping[str, Rows], logs: Mapping[str, Rows | None], forget_split: str | None
) -> dict[str, Evidence]:
    """Evidence by split: forget splits with the hold-out rows, all others with the forget rows.

    Args:
        rows: measured rows by split, the hold-out rows among them.
        logs: the same rows under a model trained on retain data only; None for a split without such a log.
        forget_split: name of the split that is to be forgotten; None if it was not measured.
    """
    forget, paraphrased = rows.get(forget_split or ""), rows.get(f"{forget_split}{PARAPHRASED}")
    holdout, holdout_log = rows.get(HOLDOUT), logs.get(HOLDOUT)
    found = {}
    for name, own in rows.items():
        if name == HOLDOUT:
            continue
        if name in (forget_split, f"{forget_split}{PARAPHRASED}"):
            found[name] = Evidence(name, own, holdout=holdout, retain_log=logs[name], holdout_retain_log=holdout_log)
        else:
            found[name] = Evidence(name, own, forget, paraphrased, retain_log=logs[name])
    return found
