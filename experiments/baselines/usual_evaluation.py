"""An evaluation as it is usually written, metric by metric: the baseline of `experiments/evaluation.py`.

A pass over the data for every metric, one for every perturbed answer, padded batches in the order of the rows, all logits, and
`generate` until the longest answer of a batch has ended.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean as mean
from typing import Any, TypeVar

import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score
from torch import Tensor

from grun.core.records import Example
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded, encode
from grun.models.encoding.templates import Template

NORMALISED = ("real_authors", "world_facts")
T = TypeVar("T")


@dataclass
class UsualWay:
    """One model, asked again for every metric."""

    model: Any
    tokenizer: Any
    template: Template
    batch_size: int
    longest_answer: int
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, work: Callable[[], T]) -> T:
        """The result of `work`; the time it took is added to the part `name`."""
        start = time.monotonic()
        found = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
        return found

    def encoded(self, rows: Sequence[Example], answers: Sequence[str]) -> list[Encoded]:
        """The rows with other answers, encoded."""
        return [
            encode(Example(row.prompt, answer), self.tokenizer, self.template)
            for row, answer in zip(rows, answers, strict=True)
        ]

    @torch.no_grad()
    def passed(self, rows: Sequence[Example], answers: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Logits and tokens of each answer, from one pass over the rows."""
        found = []
        encoded = self.encoded(rows, answers)
        for start in range(0, len(encoded), self.batch_size):
            batch = collate(encoded[start : start + self.batch_size], self.tokenizer.pad_token_id)
            logits_BTV = self.model(**batch.model_inputs()).logits
            for logits_TV, labels_T in zip(logits_BTV[:, :-1], batch.labels_BT[:, 1:], strict=True):
                found.append((logits_TV[labels_T != -100].float(), labels_T[labels_T != -100]))
        return found

    def logps(self, rows: Sequence[Example], answers: Sequence[str]) -> list[Tensor]:
        """Log-probabilities of each answer's tokens."""
        return [z.log_softmax(1).gather(1, y[:, None])[:, 0] for z, y in self.passed(rows, answers)]

    def probability(self, rows: Sequence[Example], answers: Sequence[str]) -> list[float]:
        """`exp(-mean nll)` of each answer."""
        return [math.exp(float(one.mean())) for one in self.logps(rows, answers)]

    def right_tokens(self, rows: Sequence[Example]) -> list[Tensor]:
        """For each token of the true answers, their ends left out: true where it is the likeliest token."""
        return [(z.argmax(1) == y)[:-1] for z, y in self.passed(rows, [row.answer for row in rows])]

    def truth_ratio(self, rows: Sequence[Example]) -> list[float]:
        """Truth ratio of each row: one pass for the right answers, one for every wrong one."""
        right = self.probability(rows, [row.paraphrased_answer or row.answer for row in rows])
        count = len(rows[0].perturbed_answers)
        wrong = [self.logps(rows, [row.perturbed_answers[k] for row in rows]) for k in range(count)]
        means = [sum(float(one[i].mean()) for one in wrong) / count for i in range(len(rows))]
        return [math.exp(mean) / (p + 1e-10) for mean, p in zip(means, right, strict=True)]

    @torch.no_grad()
    def answers(self, rows: Sequence[Example]) -> list[str]:
        """Greedy answers."""
        texts = []
        encoded = self.encoded(rows, [row.answer for row in rows])
        prompts = [one.input_ids[: one.prompt_length] for one in encoded]
        pad = self.tokenizer.pad_token_id
        for start in range(0, len(prompts), self.batch_size):
            part = prompts[start : start + self.batch_size]
            width = max(map(len, part))
            ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in part])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
            limit = self.longest_answer
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=pad
            )
            texts += [str(t).strip() for t in self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]
        return texts

    def gradient_norms(self, rows: Sequence[Example]) -> list[float]:
        """Norm of the gradient of each row's loss, one row at a time."""
        norms = []
        for one in self.encoded(rows, [row.answer for row in rows]):
            batch = collate([one], self.tokenizer.pad_token_id)
            self.model.zero_grad()
            self.model(**batch.model_inputs(), labels=batch.labels_BT).loss.backward()
            norms.append(
                float(torch.stack([p.grad.norm() for p in self.model.parameters() if p.grad is not None]).mean())
            )
        self.model.zero_grad()
        return norms


def usual_evaluation(
    way: UsualWay, other: UsualWay, sets: dict[str, list[Example]], holdout: list[Example]
) -> dict[str, dict[str, float]]:
    """Every metric of every set, each measured on its own.

    Args:
        way: the model that is measured.
        other: the model of the retain log and of the reference attack.
        sets: rows by name; `forget` among them.
        holdout: rows that membership inference compares with the forget rows.
    """
    found = {name: metrics_of_set(way, other, name, rows) for name, rows in sets.items()}
    found["forget"] |= attacks(way, other, sets["forget"], holdout)
    return found


def metrics_of_set(way: UsualWay, other: UsualWay, name: str, rows: list[Example]) -> dict[str, float]:
    """All metrics of one set except the membership attacks."""
    gold = [row.answer for row in rows]
    found = {"probability": mean(way.timed("probability", partial(way.probability, rows, gold)))}
    found |= answer_metrics(gold, way.timed("generation", partial(way.answers, rows)))
    ratios = way.timed("truth ratio", partial(way.truth_ratio, rows))
    if name == "forget":
        found["truth_ratio"] = mean([min(ratio, 1 / ratio) for ratio in ratios])
        theirs = way.timed("forget quality", partial(other.truth_ratio, rows))
        found["forget_quality"] = float(ks_2samp(ratios, theirs).pvalue)
    else:
        found["truth_ratio_utility"] = mean([max(0.0, 1 - ratio) for ratio in ratios])
    if name in NORMALISED:
        answers = [gold, *([row.perturbed_answers[k] for row in rows] for k in range(len(rows[0].perturbed_answers)))]
        p, *wrong = (way.timed("normalised", partial(way.probability, rows, one)) for one in answers)
        total = [sum(one) for one in zip(*wrong, strict=True)]
        found["probability_normalised"] = mean([a / (a + b + 1e-10) for a, b in zip(p, total, strict=True)])
    hits = way.timed("exact memorisation", partial(way.right_tokens, rows))
    found["exact_memorization"] = mean([float(one.float().mean()) for one in hits])
    hits = way.timed("extraction strength", partial(way.right_tokens, rows))
    tails = [next((k for k in range(len(one) + 1) if bool(one[k:].all())), len(one)) for one in hits]
    found["extraction_strength"] = mean([1 - k / len(one) for k, one in zip(tails, hits, strict=True)])
    return found


def answer_metrics(gold: list[str], said: list[str]) -> dict[str, float]:
    """Metrics that compare greedy answers with the true ones."""
    found = {}
    for kind, metric in (("rougeL", "rouge_l_recall"), ("rouge1", "rouge_1_recall")):
        scorer = RougeScorer([kind], use_stemmer=True)
        found[metric] = mean([scorer.score(a, b)[kind].recall for a, b in zip(gold, said, strict=True)])
    found["exact_match"] = mean([" ".join(a.split()) == " ".join(b.split()) for a, b in zip(gold, said, strict=True)])
    return found


def attacks(way: UsualWay, other: UsualWay, forget: list[Example], holdout: list[Example]) -> dict[str, float]:
    """Area under the ROC curve of the six membership attacks."""
    rows = [*forget, *holdout]
    gold = [row.answer for row in rows]
    labels = [1] * len(forget) + [0] * len(holdout)

    def nll(asked: UsualWay = way) -> list[float]:
        return [-float(one.mean()) for one in asked.logps(rows, gold)]

    sizes = [len(zlib.compress(answer.encode())) for answer in gold]
    scores: dict[str, Callable[[], list[float]]] = {
        "mia_loss": nll,
        "mia_zlib": lambda: [loss / size for loss, size in zip(nll(), sizes, strict=True)],
        "mia_min_k": lambda: [-lowest(one) for one in way.logps(rows, gold)],
        "mia_min_k_plus_plus": lambda: [-lowest(standardised(z, y)) for z, y in way.passed(rows, gold)],
        "mia_reference": lambda: [a - b for a, b in zip(nll(), nll(other), strict=True)],
        "mia_grad_norm": lambda: way.gradient_norms(rows),
    }
    return {
        name: float(roc_auc_score(labels, [-v for v in way.timed(name, attack)])) for name, attack in scores.items()
    }


def lowest(values_N: Tensor) -> float:
    """Mean of the lowest 20 % of the values, the last left out."""
    tokens_N = values_N[:-1].sort().values
    return float(tokens_N[: max(1, int(0.2 * len(tokens_N)))].mean())


def standardised(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """Log-probability of each token, in standard deviations above the mean of the model's distribution."""
    logps_NV = logits_NV.log_softmax(1)
    mean_N = (logps_NV.exp() * logps_NV).sum(1)
    variance_N = ((logps_NV.exp() * logps_NV.square()).sum(1) - mean_N.square()).clamp_min(1e-6)
    return (logps_NV.gather(1, tokens_N[:, None])[:, 0] - mean_N) / variance_N.sqrt()
