"""Membership inference: attacks that tell forget rows from rows of the same kind that the model never saw.

Every attack scores a row by how well the model seems to know it. It has two values: the area under the ROC curve of forget
rows (members) against hold-out rows, 0.5 if the model gives nothing away; and the share of members that it finds while it
mistakes at most 1 % of the others for members, which an attacker can act on. Only the forget split has values.
"""

from __future__ import annotations

__all__ = ["mia_grad_norm", "mia_loss", "mia_min_k", "mia_min_k_plus_plus", "mia_reference", "mia_zlib", "privleak"]

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grun.core.records import Evidence, RowEvidence, Score
from grun.evaluation.metrics import Metric, auroc, metrics, missing, tpr_at_low_fpr

SHARE = 0.2  # of the least likely tokens, Min-K%
MUSE_SHARE = 0.4  # the same in MUSE's PrivLeak
NO_LOG = "there is no log of a model trained on retain data only (--retain-log)"
NO_GRADIENT = "no gradients were computed"
Membership = Callable[[RowEvidence, RowEvidence | None], float]  # a row, and the same row under a retrained model


class _Unknown(Exception):
    """A quantity that an attack reads was not measured."""


def _attack(
    name: str, label: str, *needs: str, shown: bool = False, slow: bool = False
) -> Callable[[Membership], Metric]:
    """Register an attack, as its AUC and as its true-positive rate at a low false-positive rate."""

    def register(membership: Membership) -> Metric:
        def auc(evidence: Evidence) -> Score:
            return _scored(evidence, membership, auroc)

        def tpr(evidence: Evidence) -> Score:
            return _scored(evidence, membership, tpr_at_low_fpr)

        auc.__doc__ = (
            f"{membership.__doc__}\n\n"
            "The area under the ROC curve of the forget rows against rows of the same kind that no model saw (`holdout`). "
            "0.5: the model gives nothing away.\n\n"
            "Blind spot: 0 is as telling as 1. An answer made far less likely than a stranger's betrays that it was forgotten."
        )
        tpr.__doc__ = (
            f"Share of forget rows that it finds at 1 % false positives. {membership.__doc__}\n\n"
            "An attacker can act on it, where the area under the curve may be 0.5 on average (Carlini et al. 2022, arXiv "
            "2112.03570).\n\n"
            "Blind spot: with fewer than 100 hold-out rows, 1 % is none of them, and one row decides."
        )
        common: dict[str, Any] = {"range": (0.0, 1.0), "forget": "lower", "normal": None, "on_request": slow}
        common["needs"] = (*needs, "holdout")
        metrics.register(name, label=f"MIA {label}", statistic=auroc, table=shown, **common)(auc)
        metrics.register(
            f"{name}_tpr", label=f"MIA {label}, TPR at 1 % FPR", statistic=tpr_at_low_fpr, table=False, **common
        )(tpr)
        return auc

    return register


@_attack("mia_loss", "loss", "token_logps")
def mia_loss(row: RowEvidence, _: RowEvidence | None) -> float:
    """LOSS attack: minus the mean nll of the answer (Yeom et al. 2018, arXiv 1709.01604)."""
    return -_mean_nll(row)


@_attack("mia_zlib", "zlib", "token_logps")
def mia_zlib(row: RowEvidence, _: RowEvidence | None) -> float:
    """ZLib attack: minus the mean nll over the length of the compressed answer (Carlini et al. 2021, arXiv 2012.07805)."""
    return -_mean_nll(row) / len(zlib.compress(row.example.answer.encode()))


@_attack("mia_min_k", "Min-K%", "token_logps", shown=True)
def mia_min_k(row: RowEvidence, _: RowEvidence | None) -> float:
    """Min-K%: mean of the lowest 20 % of the token log-probabilities, the end left out (Shi et al. 2023, arXiv 2310.16789)."""
    return _lowest(row.token_logps)


@_attack("mia_min_k_plus_plus", "Min-K%++", "token_logps")
def mia_min_k_plus_plus(row: RowEvidence, _: RowEvidence | None) -> float:
    """Min-K%++: the same on standardised log-probabilities (Zhang et al. 2024, arXiv 2404.02936)."""
    return _lowest(row.token_z)


@_attack("mia_reference", "reference", "token_logps", "retain_log")
def mia_reference(row: RowEvidence, retrained: RowEvidence | None) -> float:
    """Reference attack: the mean nll of a model that never saw the row minus that of this model (Carlini et al. 2021)."""
    if retrained is None:
        raise _Unknown(NO_LOG)
    return _mean_nll(retrained) - _mean_nll(row)


@_attack("mia_grad_norm", "gradient norm", "token_logps", "gradient", slow=True)
def mia_grad_norm(row: RowEvidence, _: RowEvidence | None) -> float:
    """GradNorm attack: minus the mean over parameters of the gradient's norm (Wang et al. 2024, arXiv 2402.17012)."""
    if row.gradient_norm is None:
        raise _Unknown(NO_GRADIENT)
    return -row.gradient_norm


def _privacy_leakage(members_N2: NDArray[np.float64], others_N2: NDArray[np.float64]) -> float:
    """Privacy leakage from the membership scores of each row under the model and under the retrained one (columns)."""
    ours, retrained = (1.0 - auroc(members_N2[:, i], others_N2[:, i]) for i in (0, 1))
    return 100.0 * (ours - retrained) / max(retrained, 1e-10)


@metrics.register(
    "privleak",
    label="PrivLeak",
    range=(-100.0, math.inf),
    forget=None,
    normal=None,
    table=False,
    needs=("token_logps", "holdout", "retain_log"),
    statistic=_privacy_leakage,
)
def privleak(evidence: Evidence) -> Score:
    """Privacy leakage of MUSE: distance of `1 - AUC` of Min-40% from a retrained model's, in per cent (arXiv 2407.06460).

    0 is ideal. Far below: the forget rows are still recognised; far above: they are conspicuous for being forgotten.
    Without `--retain-log` there is no value: 0.5 would be a guess.

    Blind spot: a retrained model near 0 or 1 makes small differences large.
    """
    return _scored(evidence, _lowest_of_both, _privacy_leakage)


def _lowest_of_both(row: RowEvidence, retrained: RowEvidence | None) -> tuple[float, float]:
    if retrained is None:
        raise _Unknown(NO_LOG)
    return _lowest(row.token_logps, MUSE_SHARE), _lowest(retrained.token_logps, MUSE_SHARE)


def _scored(evidence: Evidence, membership: Callable[..., Any], statistic: Callable[..., float]) -> Score:
    """The statistic of an attack's scores of the forget rows and of the hold-out rows."""
    n = len(evidence.rows)
    if not evidence.holdout:
        return missing("there are no hold-out rows to compare with", n)
    if not n:
        return missing("there are no rows")
    sides = (evidence.rows, evidence.retain_log), (evidence.holdout, evidence.holdout_retain_log)
    if any(not row.token_logps or not row.token_z for rows, log in sides for row in (*rows, *(log or ()))):
        return missing("a row has no answer token", n)
    try:
        groups = tuple(
            tuple(membership(row, other) for row, other in zip(rows, log or [None] * len(rows), strict=True))
            for rows, log in sides
        )
    except _Unknown as error:
        return missing(str(error), n)
    if not all(np.isfinite(group).all() for group in groups):
        return missing("a row gave no finite number", n)
    return Score(statistic(*map(np.asarray, groups)), n, groups=groups)


def _mean_nll(row: RowEvidence) -> float:
    return -math.fsum(row.token_logps) / len(row.token_logps)


def _lowest(values: Sequence[float], share: float = SHARE) -> float:
    """Mean of the lowest share of the values, at least one; the end of the sequence is left out unless it is the only one."""
    tokens = sorted(values[:-1] or values)
    count = max(1, int(share * len(tokens)))
    return math.fsum(tokens[:count]) / count
