"""Thresholds of the gates of a model from normal prompts, and the share of prompts that opens a gate."""

from __future__ import annotations

__all__ = ["calibrated", "learnt_places", "logits_of_prompts", "logits_of_rows", "share_open"]

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from grun.core.errors import UserError
from grun.core.records import Example
from grun.models.encoding.encode import Encoded
from grun.models.gates.features import features_of_rows, gate_logits, gates_of, held_gates, thresholds_of
from grun.models.gates.guarantee import Guarantee, guaranteed_thresholds, usual_place
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.edit import is_open


def learnt_places(model: Any) -> Tensor:
    """Where the gates (G,) open as they were learnt, also if they were calibrated since: that threshold is not independent.

    Raises:
        UserError: if an adapter says so of another number of gates than it has.
    """
    places: list[float] = []
    known: dict[str, Iterator[float]] = {}
    for (layer, part), threshold in zip(held_gates(model), thresholds_of(model).tolist(), strict=True):
        learnt = layer.configs[part].gate_places
        place = threshold if learnt is None else next(known.setdefault(part, iter(learnt)), None)
        if place is None:
            raise UserError(f"The adapter is damaged: its gate_places are {learnt}, fewer than it has gates.")
        places.append(place)
    return usual_place(torch.tensor(places, dtype=torch.float32))


def calibrated(
    model: Any,
    rows: RowEncoder,
    normal: Sequence[Example],
    place_G: Tensor,
    guarantee: Guarantee,
    *,
    lower: bool = False,
) -> tuple[Tensor, dict[str, Any]]:
    """Thresholds (G,) for the gates of a model, and what is written down about them.

    Every prompt is read in a batch and alone, since a deep gate's logit changes with the batch, in bfloat16 most of all: the
    larger reading counts, and thresholds are as far above it as any reading has moved. `place_G`, `lower`: see
    `guaranteed_thresholds`.

    Raises:
        UserError: if gates give no finite numbers.
    """
    encoded = rows.encode(normal)
    both = [logits_of_rows(model, rows, encoded, alone=alone) for alone in (False, True)]
    deviation_G = (both[0] - both[1]).abs().amax(0)
    normal_NG = torch.maximum(*both)
    try:
        threshold_G = guaranteed_thresholds(normal_NG, place_G, guarantee, deviation_G=deviation_G, lower=lower)
    except ValueError as error:
        raise UserError(f"Nothing can be promised: {error}.") from error
    return threshold_G, {
        "alpha": guarantee.alpha,
        "delta": guarantee.delta,
        "dtype": str(model.dtype).removeprefix("torch."),
        "normal_prompts": len(normal_NG),
        "normal_prompts_needed": guarantee.prompts_needed,
        "normal_prompts_allowed_open": guarantee.allowed(len(normal_NG)),
        "thresholds": threshold_G.tolist(),
        "places": place_G.tolist(),
        "deviations": deviation_G.tolist(),
        "normal_open": share_open(normal_NG, threshold_G),
    }


def logits_of_prompts(model: Any, rows: RowEncoder, examples: Sequence[Example]) -> Tensor:
    """What the gates of an adapter say of prompts (N, G), on the CPU, in the order of `gates_of`."""
    return logits_of_rows(model, rows, rows.encode(examples))


@torch.no_grad()
def logits_of_rows(model: Any, rows: RowEncoder, encoded: Sequence[Encoded], *, alone: bool = False) -> Tensor:
    """The same for rows that were encoded; `alone`: with every row in a batch of its own."""
    features = features_of_rows(model, rows, encoded, alone=alone)
    return gate_logits(features, [gate for _, gate in gates_of(model)]).cpu()


def share_open(logits_NG: Tensor, threshold_G: Tensor) -> dict[str, Any]:
    """How many prompts open any gate, with the exact (Clopper-Pearson) 95 % interval of the share."""
    count, prompts = int(is_open(logits_NG, threshold_G).any(1).sum()), len(logits_NG)
    interval = binomtest(count, prompts).proportion_ci()
    return {"open": count, "prompts": prompts, "share": count / prompts, "interval": [interval.low, interval.high]}
