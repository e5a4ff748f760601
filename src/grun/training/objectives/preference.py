"""Objectives in the form of a preference between answers, or between the trained model and the base model."""

from __future__ import annotations

__all__ = ["altpo", "dpo", "npo", "simnpo"]

from torch import Tensor
from torch.nn.functional import logsigmoid

from grun.core.records import SideSignals, Signals
from grun.training.objectives import objectives

PAIR = ("forget.logps", "forget.ref_logps")


@objectives.register(
    "npo", paper="Zhang et al. 2024 (arXiv 2404.05868), eq. 3", needs=PAIR, retain="ce", above={"beta": 0.0}
)
def npo(signals: Signals, *, beta: float = 0.1) -> Tensor:
    """Negative preference optimisation: like gradient ascent, but it fades out once the answers have become unlikely.

    `-(2 / beta) * mean_B log sigmoid(beta * (nll - nll_ref))`, with nll summed over the tokens of an answer. For the base
    model itself it is `(2 / beta) * log 2`; as beta tends to 0 its gradient tends to that of ascent on summed nll. It teaches
    no other answer: answers turn into noise, which tells everybody that something was removed.

    Args:
        signals: forget log-probabilities of the model and of the base model.
        beta: inverse temperature, above 0; small values behave like gradient ascent.
    """
    rise_B = signals.forget.nll_B - signals.forget.ref_nll_B
    return -(2.0 / beta) * logsigmoid(beta * rise_B).mean()


@objectives.register(
    "simnpo",
    paper="Fan et al. 2024 (arXiv 2410.07163), eq. 4",
    needs=("forget.logps",),
    retain="ce",
    forget_weight=0.125,
    above={"beta": 0.0},
)
def simnpo(signals: Signals, *, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """NPO without a reference: the mean nll of each answer counts, so that long answers do not dominate.

    `-(2 / beta) * mean_B log sigmoid(beta * (nll / n - delta))`, `n` the number of tokens of an answer.

    Args:
        signals: forget log-probabilities.
        beta: inverse temperature, above 0.
        delta: margin in nats per token; below it answers are pushed with nearly full strength.
    """
    mean_nll_B = signals.forget.nll_B / signals.forget.lengths_B
    return -(2.0 / beta) * logsigmoid(beta * (mean_nll_B - delta)).mean()


@objectives.register(
    "dpo",
    paper="TOFU (arXiv 2401.06121), section 4.1; Rafailov et al. 2023 (arXiv 2305.18290), eq. 7",
    needs=(*PAIR, "refusal.logps", "refusal.ref_logps"),
    retain="ce",
    above={"beta": 0.0},
)
def dpo(signals: Signals, *, beta: float = 0.1) -> Tensor:
    """Direct preference optimisation (IdkDPO): prefer a refusal to the answer.

    `-(2 / beta) * mean_B log sigmoid(beta * ((nll_ref - nll)(refusal) - (nll_ref - nll)(answer)))`, nll summed over tokens:
    DPO's loss times `2 / beta`. For the base model itself it is `(2 / beta) * log 2`. The refusals are those of `idk`.

    Args:
        signals: log-probabilities of answers and refusals under the model and under the base model.
        beta: inverse temperature, above 0.
    """
    return _preference(signals.refusal, signals.forget, beta)


@objectives.register(
    "altpo",
    paper="Mekala et al. 2024 (arXiv 2409.13474), section 3",
    needs=(*PAIR, "alternative.logps", "alternative.ref_logps"),
    retain="ce",
    above={"beta": 0.0},
)
def altpo(signals: Signals, *, beta: float = 0.1) -> Tensor:
    """Alternate preference optimisation: prefer another plausible answer to the true one.

    The form of `dpo`, with an alternative answer in place of the refusal.

    Args:
        signals: log-probabilities of answers and alternatives under the model and under the base model.
        beta: inverse temperature, above 0.
    """
    return _preference(signals.alternative, signals.forget, beta)


def _preference(wanted: SideSignals, unwanted: SideSignals, beta: float) -> Tensor:
    gain_B = (wanted.ref_nll_B - wanted.nll_B) - (unwanted.ref_nll_B - unwanted.nll_B)
    return -(2.0 / beta) * logsigmoid(beta * gain_B).mean()
