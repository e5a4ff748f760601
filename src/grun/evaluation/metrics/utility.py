"""Model utility: the usefulness of a model in one number over several splits."""

from __future__ import annotations

__all__ = ["model_utility"]

from collections.abc import Mapping
from statistics import harmonic_mean
from typing import Any

import numpy as np

from grun.core.records import Evidence, Score
from grun.evaluation.metrics import metrics, missing, summaries


def _harmonic_mean(*groups: Any) -> float:
    """Harmonic mean of the means of all columns of all groups of rows."""
    return float(harmonic_mean([float(mean) for rows_NK in groups for mean in np.mean(rows_NK, axis=0)]))


@summaries.register(
    "model_utility",
    label="model utility",
    range=(0.0, 1.0),
    needs=("token_logps", "generated", "paraphrased", "perturbed"),
    statistic=_harmonic_mean,
)
def model_utility(splits: Mapping[str, Evidence], *, utility: Mapping[str, bool]) -> Score:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio over the splits that stand for utility.

    TOFU, arXiv 2401.06121, section 2.2; there they are retain, real authors and world facts.

    Blind spot: one small part makes it small, whatever the others are.

    Args:
        splits: evidence by name of the split.
        utility: names of the splits that stand for utility; True where the probability is normalised over the perturbed
            answers.
    """
    if not utility:
        return missing("the data name no splits that stand for utility")
    groups = []
    for split, normalised in utility.items():
        if split not in splits:
            return missing(f"split '{split}' was not measured")
        names = ("probability_normalised" if normalised else "probability", "rouge_l_recall", "truth_ratio_utility")
        columns = []
        for name in names:
            found = metrics.get(name).target(splits[split])
            if found.value is None:
                return missing(f"{name} of split '{split}': {found.reason}", found.n)
            columns.append(found.per_row)
        groups.append(tuple(zip(*columns, strict=True)))
    return Score(_harmonic_mean(*groups), sum(map(len, groups)), groups=tuple(groups))
