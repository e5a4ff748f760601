"""`Evidence` of every split, from measured rows."""

from __future__ import annotations

__all__ = ["assembled"]

from collections.abc import Collection, Mapping

from grun.core.records import Evidence, RowEvidence
from grun.data.paraphrases import PARAPHRASED
from grun.evaluation.measuring.plan import HOLDOUT

Rows = tuple[RowEvidence, ...]


def assembled(
    rows: Mapping[str, Rows],
    logs: Mapping[str, Rows | None],
    forget_split: str | None,
    unseen_forget: Collection[str] = (),
) -> dict[str, Evidence]:
    """Evidence by split, with the rows that it is compared with.

    The forget split comes with the hold-out rows, normal splits with the forget rows, and further splits of what must be
    forgotten with the normal rows.

    Args:
        rows: measured rows by split, the hold-out rows among them.
        logs: the same rows under a model trained on retain data only; None for a split without such a log.
        forget_split: name of the split that is to be forgotten; None if it was not measured.
        unseen_forget: names of further splits of what must be forgotten.
    """
    forget, paraphrased = rows.get(forget_split or ""), rows.get(f"{forget_split}{PARAPHRASED}")
    holdout, holdout_log = rows.get(HOLDOUT), logs.get(HOLDOUT)
    kept = {HOLDOUT, forget_split, *unseen_forget}
    normal = tuple(row for name, own in rows.items() if name.removesuffix(PARAPHRASED) not in kept for row in own)
    found = {}
    for name, own in rows.items():
        asked_as = name.removesuffix(PARAPHRASED)
        if name == HOLDOUT:
            continue
        if asked_as == forget_split:
            found[name] = Evidence(
                name, own, holdout=holdout, retain_log=logs[name], holdout_retain_log=holdout_log, to_forget=True
            )
        elif asked_as in unseen_forget:
            found[name] = Evidence(name, own, retain_log=logs[name], normal=normal, to_forget=True)
        else:
            found[name] = Evidence(name, own, forget, paraphrased, retain_log=logs[name])
    return found
