"""Every objective once more, straight from its formula: one row and one token at a time, with nothing of the package.

A side is a list of rows; a row has logits (n, V) of the model and of its base, and the n answer tokens.
"""

from __future__ import annotations

__all__ = ["OBJECTIVES", "RETAIN", "Row"]

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Row:
    """One row: logits of the model and of its base (n, V), answer tokens, hidden states (n, D) of both."""

    logits: Tensor
    base_logits: Tensor
    tokens: list[int]
    hidden: Tensor
    base_hidden: Tensor


def nll(logits: Tensor, token: int) -> Tensor:
    return torch.log(torch.exp(logits).sum()) - logits[token]


def row_nll(row: Row, base: bool = False) -> Tensor:
    logits = row.base_logits if base else row.logits
    return torch.as_tensor(sum(nll(logits[t], y) for t, y in enumerate(row.tokens)))


def softmax(logits: Tensor) -> Tensor:
    return torch.exp(logits) / torch.exp(logits).sum()


def over_tokens(side: list[Row], value) -> Tensor:
    """Mean over all tokens of a side of `value(row, t)`."""
    values = [value(row, t) for row in side for t in range(len(row.tokens))]
    return sum(values) / len(values)


def over_rows(side: list[Row], value) -> Tensor:
    return sum(value(row) for row in side) / len(side)


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log(1 + torch.exp(-x))


def token_nll(row: Row, t: int) -> Tensor:
    return nll(row.logits[t], row.tokens[t])


def ga(s, o):
    return -over_tokens(s["forget"], token_nll)


def wga(s, o):
    def weighted(row, t):
        loss = token_nll(row, t)
        return -(torch.exp(-loss).detach() ** o.get("beta", 1.0)) * loss

    return over_tokens(s["forget"], weighted)


def satimp(s, o):
    def weighted(row, t):
        loss = token_nll(row, t)
        p = torch.exp(-loss).detach()
        return -(p ** o.get("beta1", 5.0)) * (1 - p) ** o.get("beta2", 1.0) * loss

    return over_tokens(s["forget"], weighted)


def npo(s, o):
    beta = o.get("beta", 0.1)
    return over_rows(s["forget"], lambda r: -2 / beta * log_sigmoid(beta * (row_nll(r) - row_nll(r, base=True))))


def simnpo(s, o):
    beta, delta = o.get("beta", 4.5), o.get("delta", 0.0)
    return over_rows(s["forget"], lambda r: -2 / beta * log_sigmoid(beta * (row_nll(r) / len(r.tokens) - delta)))


def preference(wanted, unwanted, beta):
    total = 0
    for yes, no in zip(wanted, unwanted, strict=True):
        log_ratio_yes = -row_nll(yes) + row_nll(yes, base=True)
        log_ratio_no = -row_nll(no) + row_nll(no, base=True)
        total = total - 2 / beta * log_sigmoid(beta * (log_ratio_yes - log_ratio_no))
    return total / len(wanted)


def dpo(s, o):
    return preference(s["refusal"], s["forget"], o.get("beta", 0.1))


def altpo(s, o):
    return preference(s["alternative"], s["forget"], o.get("beta", 0.1))


def idk(s, o):
    return over_tokens(s["refusal"], token_nll)


def idk_deep(s, o):
    margin, zero = o.get("margin", 5.0), torch.zeros((), dtype=torch.float64)
    lacking = over_tokens(s["forget"], lambda row, t: torch.maximum(zero, margin - token_nll(row, t)))
    return idk(s, o) + o.get("push", 0.3) * lacking


def untaught(s, o):
    margin, zero = o.get("margin", 3.0), torch.zeros((), dtype=torch.float64)
    lacking = over_rows(s["forget"], lambda r: torch.maximum(zero, margin - row_nll(r) / len(r.tokens)))
    return over_tokens(s["alternative"], token_nll) + o.get("push", 0.3) * lacking


def undial(s, o):
    def distance(row, t):
        target = row.base_logits[t].clone()
        target[row.tokens[t]] -= o.get("beta", 10.0)
        return -(softmax(target) * torch.log(softmax(row.logits[t]))).sum()

    return over_tokens(s["forget"], distance)


def ceu(s, o):
    values = []
    for row in s["forget"]:
        for t in range(1, len(row.tokens)):
            target = softmax(row.logits[t].detach()).clone()
            target[row.tokens[t]] = 0
            target = target / target.sum()
            values.append(-(target * torch.log(softmax(row.logits[t]))).sum())
    return sum(values) / len(values)


def me(s, o):
    def divergence(row, t):
        p = softmax(row.logits[t])
        uniform = 1 / len(p)
        return sum(uniform * (torch.log(torch.tensor(uniform, dtype=p.dtype)) - torch.log(q)) for q in p)

    return over_tokens(s["forget"], divergence)


def rmu(s, o):
    def distance(row, t):
        return ((row.hidden[t] - o.get("coefficient", 20.0) * s["steering"]) ** 2).sum() / len(s["steering"])

    return over_tokens(s["forget"], distance)


def pdu(s, o):
    return over_tokens(
        s["forget"], lambda row, t: (row.logits[t].max() - row.logits[t].sum() / row.logits.shape[1]) ** 2
    )


def ce(side):
    return over_tokens(side, token_nll)


def kl(side):
    def divergence(row, t):
        p, q = softmax(row.base_logits[t]), softmax(row.logits[t])
        return (p * (torch.log(p) - torch.log(q))).sum()

    return over_tokens(side, divergence)


def mse(side):
    return over_tokens(side, lambda r, t: ((r.hidden[t] - r.base_hidden[t]) ** 2).sum() / r.hidden.shape[1])


OBJECTIVES = {
    "ga": ga,
    "gd": ga,
    "wga": wga,
    "satimp": satimp,
    "npo": npo,
    "simnpo": simnpo,
    "dpo": dpo,
    "altpo": altpo,
    "idk": idk,
    "idk_deep": idk_deep,
    "undial": undial,
    "untaught": untaught,
    "ceu": ceu,
    "me": me,
    "rmu": rmu,
    "pdu": pdu,
}
RETAIN = {"ce": ce, "kl": kl, "mse": mse, "none": lambda side: torch.zeros(())}
