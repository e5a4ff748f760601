"""A straightforward evaluation: one row, one answer, one forward call at a time; no cache, no batch, nothing of the package.

Every metric asks the model anew, as the formulas are written.
"""

from __future__ import annotations

__all__ = ["METRICS", "PlainRow"]

import math
import zlib
from dataclasses import dataclass

import torch
from rouge_score import rouge_scorer
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score


@dataclass
class PlainRow:
    """Token ids of a prompt and its answers, each with its end, and the text of the true one."""

    prompt: list[int]
    gold: list[int]
    paraphrased: list[int] | None
    perturbed: list[list[int]]
    text: str


class Plain:
    """Asks one model about single rows."""

    def __init__(self, model, tokenizer, max_new_tokens: int) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens

    def logits(self, prompt: list[int], answer: list[int]) -> torch.Tensor:
        more = {"prompt_lengths": torch.tensor([len(prompt)])} if hasattr(self.model, "peft_config") else {}
        with torch.no_grad():
            out = self.model(input_ids=torch.tensor([prompt + answer]), **more).logits[0]
        return out[len(prompt) - 1 : -1].double()

    def logps(self, prompt: list[int], answer: list[int]) -> list[float]:
        rows = self.logits(prompt, answer).log_softmax(1)
        return [float(row[token]) for row, token in zip(rows, answer, strict=True)]

    def mean_nll(self, prompt: list[int], answer: list[int]) -> float:
        logps = self.logps(prompt, answer)
        return -sum(logps) / len(logps)

    def says(self, row: PlainRow) -> str:
        ids: list[int] = []
        while len(ids) < self.max_new_tokens:
            token = int(self.logits(row.prompt, [*ids, 0])[-1].argmax())
            if token == self.tokenizer.eos_token_id:
                break
            ids.append(token)
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def right(self, row: PlainRow) -> list[bool]:
        rows = self.logits(row.prompt, row.gold)
        return [int(z.argmax()) == token for z, token in zip(rows, row.gold, strict=True)][:-1]

    def truth_ratio(self, row: PlainRow) -> float:
        wrong = [self.mean_nll(row.prompt, answer) for answer in row.perturbed]
        correct = math.exp(-self.mean_nll(row.prompt, row.paraphrased or row.gold))
        return math.exp(-sum(wrong) / len(wrong)) / (correct + 1e-10)

    def min_k(self, row: PlainRow, standardised: bool) -> float:
        values = []
        for z, token in zip(self.logits(row.prompt, row.gold)[:-1], row.gold[:-1], strict=True):
            logp = z.log_softmax(0)
            mean = float((logp.exp() * logp).sum())
            variance = max(float((logp.exp() * logp**2).sum()) - mean**2, 1e-6)
            values.append((float(logp[token]) - mean) / math.sqrt(variance) if standardised else float(logp[token]))
        lowest = sorted(values)[: max(1, int(0.2 * len(values)))]
        return sum(lowest) / len(lowest)

    def gradient_norm(self, row: PlainRow) -> float:
        more = {"prompt_lengths": torch.tensor([len(row.prompt)])} if hasattr(self.model, "peft_config") else {}
        before = {name: p.requires_grad for name, p in self.model.named_parameters()}
        self.model.requires_grad_(True)
        self.model.zero_grad()
        labels = torch.tensor([[-100] * len(row.prompt) + row.gold])
        self.model(input_ids=torch.tensor([row.prompt + row.gold]), labels=labels, **more).loss.backward()
        norms = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
        self.model.zero_grad()
        for name, p in self.model.named_parameters():
            p.requires_grad = before[name]
        return float(torch.stack(norms).mean())


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def rouge(kind: str):
    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=True)
    return lambda m, rows, **_: mean(scorer.score(row.text, m.says(row))[kind].recall for row in rows)


def normalised(m: Plain, rows, **_) -> float:
    values = []
    for row in rows:
        right = math.exp(-m.mean_nll(row.prompt, row.gold))
        wrong = sum(math.exp(-m.mean_nll(row.prompt, answer)) for answer in row.perturbed)
        values.append(right / (right + wrong + 1e-10))
    return mean(values)


def strength(right: list[bool]) -> float:
    for k in range(len(right) + 1):
        if all(right[k:]):
            return 1 - k / len(right)
    raise AssertionError


def attack(score):
    """Area under the ROC curve of a score that is high for rows that the model does not know: members are the low ones."""

    def area(m, rows, holdout, **others) -> float:
        values = [score(m, row, **others) for row in (*rows, *holdout)]
        return float(roc_auc_score([1] * len(rows) + [0] * len(holdout), [-v for v in values]))

    return area


METRICS = {
    "probability": lambda m, rows, **_: mean(math.exp(-m.mean_nll(r.prompt, r.gold)) for r in rows),
    "probability_normalised": normalised,
    "rouge_l_recall": rouge("rougeL"),
    "rouge_1_recall": rouge("rouge1"),
    "exact_match": lambda m, rows, **_: mean(" ".join(m.says(r).split()) == " ".join(r.text.split()) for r in rows),
    "truth_ratio": lambda m, rows, **_: mean(min(m.truth_ratio(r), 1 / m.truth_ratio(r)) for r in rows),
    "truth_ratio_utility": lambda m, rows, **_: mean(max(0, 1 - m.truth_ratio(r)) for r in rows),
    "forget_quality": lambda m, rows, other, **_: float(
        ks_2samp([m.truth_ratio(r) for r in rows], [other.truth_ratio(r) for r in rows]).pvalue
    ),
    "exact_memorization": lambda m, rows, **_: mean(mean(m.right(r)) for r in rows),
    "extraction_strength": lambda m, rows, **_: mean(strength(m.right(r)) for r in rows),
    "mia_loss": attack(lambda m, r, **_: m.mean_nll(r.prompt, r.gold)),
    "mia_zlib": attack(lambda m, r, **_: m.mean_nll(r.prompt, r.gold) / len(zlib.compress(r.text.encode()))),
    "mia_min_k": attack(lambda m, r, **_: -m.min_k(r, standardised=False)),
    "mia_min_k_plus_plus": attack(lambda m, r, **_: -m.min_k(r, standardised=True)),
    "mia_reference": attack(lambda m, r, other: m.mean_nll(r.prompt, r.gold) - other.mean_nll(r.prompt, r.gold)),
    "mia_grad_norm": attack(lambda m, r, **_: m.gradient_norm(r)),
}
