"""Thresholds of the gates of a model from calibration prompts, and the share of prompts that opens a gate."""

from __future__ import annotations

__all__ = [
    "Calibration",
    "OpenShare",
    "calibrated",
    "learnt_places",
    "logits_of_prompts",
    "logits_of_rows",
    "share_open",
]

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from grun.core.errors import UserError
from grun.core.records import Example
from grun.models.encoding.encode import Encoded
from grun.models.gates.features import features_of_rows, gate_logits, gates_of, held_gates, thresholds_of
from grun.models.gates.guarantee import Guarantee, guaranteed_thresholds, usual_place
from grun.models.gates.misses import MissedShare, Paraphrases, missed_share, thresholds_for_both
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.call.decision import is_open


@dataclass(frozen=True)
class OpenShare:
    """Prompts that open any gate.

    Attributes:
        open: number of prompts that do.
        prompts: number of prompts that were asked.
        share: `open / prompts`.
        interval: exact (Clopper-Pearson) 95 % interval of the share, low and high.
    """

    open: int
    prompts: int
    share: float
    interval: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """The record as it is written to `calibration.json` and `ledger.json`."""
        return {**dataclasses.asdict(self), "interval": list(self.interval)}


@dataclass(frozen=True)
class Calibration:
    """Thresholds of the gates of a model, the guarantee that they give, and the prompts behind it.

    Attributes:
        alpha, delta: the guarantee (see `Guarantee`).
        dtype: dtype of the model, such as `float32`; the guarantee holds in this dtype.
        normal_prompts: number of calibration prompts.
        normal_prompts_needed: fewest prompts for this guarantee.
        normal_prompts_allowed_open: largest number of them that may open a gate.
        thresholds: of the gates, in layer order, as logits.
        places: logits at which the gates were to open, if normal prompts allowed it.
        deviations: largest change of each gate's logit between a batch and a prompt alone.
        normal_open: calibration prompts that open a gate.
        forget_open: forget prompts that open a gate; None if none were given.
        miss_rate: largest share of prompts to forget in other words that may open no gate; None if none was asked for.
        paraphrases_set_on: number of such prompts that thresholds were set on; None likewise.
        paraphrases_allowed_missed: largest number of them that may open no gate; None likewise.
        paraphrases_missed: other such prompts that open no gate; None if none were given.
    """

    alpha: float
    delta: float
    dtype: str
    normal_prompts: int
    normal_prompts_needed: int
    normal_prompts_allowed_open: int
    thresholds: tuple[float, ...]
    places: tuple[float, ...]
    deviations: tuple[float, ...]
    normal_open: OpenShare
    forget_open: OpenShare | None = None
    miss_rate: float | None = None
    paraphrases_set_on: int | None = None
    paraphrases_allowed_missed: int | None = None
    paraphrases_missed: MissedShare | None = None

    @property
    def threshold_G(self) -> Tensor:
        """The thresholds as a float32 tensor, on the CPU."""
        return torch.tensor(self.thresholds, dtype=torch.float32)

    def with_forget(self, logits_NG: Tensor) -> Calibration:
        """The calibration with the share of forget prompts that open a gate, from their logits (N, G)."""
        return replace(self, forget_open=share_open(logits_NG, self.threshold_G))

    def as_json(self) -> dict[str, Any]:
        """The record as it is written to `calibration.json`, without what there were no prompts for."""
        found = dataclasses.asdict(self)
        found |= {name: list(found[name]) for name in ("thresholds", "places", "deviations")}
        shares = {"normal_open": self.normal_open, "forget_open": self.forget_open}
        found |= {name: share.as_json() for name, share in shares.items() if share is not None}
        return {name: value for name, value in found.items() if value is not None}


def learnt_places(model: Any) -> Tensor:
    """Places (G,) of the gates: the logits at which they opened when they were learnt, float32.

    The threshold of a gate that was calibrated since is not used: it depends on calibration prompts.

    Raises:
        UserError: if the configuration of an adapter has fewer places than the adapter has gates.
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
    paraphrases: Paraphrases | None = None,
) -> Calibration:
    """Thresholds for the gates of a model that keep a guarantee for normal prompts, and one on misses if it is asked for.

    Every prompt is read in a batch and alone, since a deep gate's logit changes with the batch, in bfloat16 most of all. Of a
    normal prompt the larger logit counts, of a prompt to forget the smaller one, and thresholds lie above (or below) it by the
    largest change of any logit.

    Args:
        model: PEFT model with a gated adapter.
        rows: encoder of the prompts.
        normal: calibration prompts, which no gate was fitted on.
        place_G: see `guaranteed_thresholds`.
        guarantee: the guarantee to give.
        lower: see `guaranteed_thresholds`.
        paraphrases: prompts to forget in other words; None for no bound on misses.

    Raises:
        UserError: if a logit is not a finite number, or both bounds cannot be kept.
    """
    given = paraphrases or Paraphrases([])
    misses, (set_on, apart) = given.promised(guarantee.delta), given.halves()
    normal_NG, _, deviation_G = _readings(model, rows, normal)
    if misses:
        _, forget_NG, more_G = _readings(model, rows, set_on)
        deviation_G = torch.maximum(deviation_G, more_G)
    try:
        threshold_G = guaranteed_thresholds(normal_NG, place_G, guarantee, deviation_G=deviation_G, lower=lower)
        if misses:
            both = (normal_NG, forget_NG, place_G, guarantee, misses)
            threshold_G = thresholds_for_both(*both, usual_G=threshold_G, deviation_G=deviation_G)
    except UserError:  # says all
        raise
    except ValueError as error:
        raise UserError(f"Nothing can be promised: {error}.") from error
    return Calibration(
        alpha=guarantee.alpha,
        delta=guarantee.delta,
        dtype=str(model.dtype).removeprefix("torch."),
        normal_prompts=len(normal_NG),
        normal_prompts_needed=guarantee.prompts_needed,
        normal_prompts_allowed_open=guarantee.allowed(len(normal_NG)),
        thresholds=tuple(threshold_G.tolist()),
        places=tuple(place_G.tolist()),
        deviations=tuple(deviation_G.tolist()),
        normal_open=share_open(normal_NG, threshold_G),
        miss_rate=given.miss_rate,
        paraphrases_set_on=len(set_on) if misses else None,
        paraphrases_allowed_missed=misses.allowed(len(set_on)) if misses else None,
        paraphrases_missed=missed_share(_readings(model, rows, apart)[1], threshold_G, guarantee.delta)
        if apart
        else None,
    )


def _readings(model: Any, rows: RowEncoder, prompts: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Larger and smaller logits (N, G) of prompts read in a batch and alone, and each gate's largest difference (G,)."""
    encoded = rows.encode(prompts)
    both = [logits_of_rows(model, rows, encoded, alone=alone) for alone in (False, True)]
    return torch.maximum(*both), torch.minimum(*both), (both[0] - both[1]).abs().amax(0)


def logits_of_prompts(model: Any, rows: RowEncoder, examples: Sequence[Example]) -> Tensor:
    """Logits (N, G) of an adapter's gates for prompts, on the CPU, gates in the order of `gates_of`."""
    return logits_of_rows(model, rows, rows.encode(examples))


@torch.no_grad()
def logits_of_rows(model: Any, rows: RowEncoder, encoded: Sequence[Encoded], *, alone: bool = False) -> Tensor:
    """Logits (N, G) of an adapter's gates for encoded rows; with `alone`, every row is read in a batch of its own."""
    features = features_of_rows(model, rows, encoded, alone=alone)
    return gate_logits(features, [gate for _, gate in gates_of(model)]).cpu()


def share_open(logits_NG: Tensor, threshold_G: Tensor) -> OpenShare:
    """Number and share of prompts that open any gate."""
    count, prompts = int(is_open(logits_NG, threshold_G).any(1).sum()), len(logits_NG)
    interval = binomtest(count, prompts).proportion_ci()
    return OpenShare(count, prompts, count / prompts, (float(interval.low), float(interval.high)))
