"""How much faster an evaluation is that reads every prompt once, on TOFU: a ratio from one run.

    python benchmarks/evaluation.py --model runs/tofu/target/model --data-dir "$GRUN_TOFU_DIR"

The usual way, as evaluation code is written metric by metric: a pass over the data for every metric, one for every perturbed
answer, padded batches in the order of the rows, all logits, `generate` until the longest answer of a batch has ended. Both
measure the four evaluation sets of TOFU (forget05) with all metrics, the six membership attacks among them, and must find the
same values.
Writes `docs/results/evaluation.json` and `.md`.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import torch
from common import write_results
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from grun.core.records import Example
from grun.data.benchmarks import load_benchmark
from grun.evaluation.measuring.evidence_store import EvidenceStore
from grun.evaluation.measuring.measure import measure
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.metrics import metrics
from grun.evaluation.scores import needs_of_metrics, score
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded, encode
from grun.models.encoding.templates import Template, resolve_template
from grun.models.loading import load_model_and_tokenizer

SETS = ("forget", "retain", "real_authors", "world_facts")
NORMALISED = ("real_authors", "world_facts")


@dataclass
class UsualWay:
    """One model, asked again for every metric."""

    model: Any
    tokenizer: Any
    template: Template
    batch_size: int
    longest_answer: int
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` returns; its time is added to a part's."""
        start = time.monotonic()
        found = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
        return found

    def encoded(self, rows: Sequence[Example], answers: Sequence[str]) -> list[Encoded]:
        """Rows with other answers."""
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
        """Whether each token of the true answers, their ends left out, is the likeliest."""
        return [(z.argmax(1) == y)[:-1] for z, y in self.passed(rows, [row.answer for row in rows])]

    def truth_ratio(self, rows: Sequence[Example]) -> list[float]:
        """One pass for the right answers, one for every wrong one."""
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


def lowest(values: Tensor) -> float:
    """Mean of the lowest 20 % without the last."""
    tokens = values[:-1].sort().values
    return float(tokens[: max(1, int(0.2 * len(tokens)))].mean())


def standardised(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """Log-probabilities in standard deviations above their mean."""
    logps_NV = logits_NV.log_softmax(1)
    mean_N = (logps_NV.exp() * logps_NV).sum(1)
    variance_N = ((logps_NV.exp() * logps_NV.square()).sum(1) - mean_N.square()).clamp_min(1e-6)
    return (logps_NV.gather(1, tokens_N[:, None])[:, 0] - mean_N) / variance_N.sqrt()


def usual_evaluation(
    way: UsualWay, other: UsualWay, sets: dict[str, list[Example]], holdout: list[Example]
) -> dict[str, dict[str, float]]:
    """Every metric of every set, each asked on its own."""
    found: dict[str, dict[str, float]] = {name: {} for name in sets}
    for name, rows in sets.items():
        gold, into = [row.answer for row in rows], found[name]
        right = partial(way.right_tokens, rows)
        into["probability"] = mean(way.timed("probability", lambda r=rows, g=gold: way.probability(r, g)))
        said = way.timed("generation", lambda r=rows: way.answers(r))
        scorers = {kind: RougeScorer([kind], use_stemmer=True) for kind in ("rougeL", "rouge1")}
        for kind, metric in (("rougeL", "rouge_l_recall"), ("rouge1", "rouge_1_recall")):
            values = [scorers[kind].score(a, b)[kind].recall for a, b in zip(gold, said, strict=True)]
            into[metric] = mean(values)
        into["exact_match"] = mean(
            [" ".join(a.split()) == " ".join(b.split()) for a, b in zip(gold, said, strict=True)]
        )
        ratios = way.timed("truth ratio", lambda r=rows: way.truth_ratio(r))
        if name == "forget":
            into["truth_ratio"] = mean([min(ratio, 1 / ratio) for ratio in ratios])
            theirs = way.timed("forget quality", lambda r=rows: other.truth_ratio(r))
            into["forget_quality"] = float(ks_2samp(ratios, theirs).pvalue)
        else:
            into["truth_ratio_utility"] = mean([max(0.0, 1 - ratio) for ratio in ratios])
        if name in NORMALISED:
            p = way.timed("normalised", lambda r=rows, g=gold: way.probability(r, g))
            wrong = [
                way.timed("normalised", lambda r=rows, k=k: way.probability(r, [row.perturbed_answers[k] for row in r]))
                for k in range(len(rows[0].perturbed_answers))
            ]
            total = [sum(one) for one in zip(*wrong, strict=True)]
            into["probability_normalised"] = mean([a / (a + b + 1e-10) for a, b in zip(p, total, strict=True)])
        hits = way.timed("exact memorisation", right)
        into["exact_memorization"] = mean([float(one.float().mean()) for one in hits])
        hits = way.timed("extraction strength", right)
        tails = [next((k for k in range(len(one) + 1) if bool(one[k:].all())), len(one)) for one in hits]
        into["extraction_strength"] = mean([1 - k / len(one) for k, one in zip(tails, hits, strict=True)])
    rows = [*sets["forget"], *holdout]
    gold = [row.answer for row in rows]
    labels = [1] * len(sets["forget"]) + [0] * len(holdout)

    def nll(asked: UsualWay = way) -> list[float]:
        return [-float(one.mean()) for one in asked.logps(rows, gold)]

    sizes = [len(zlib.compress(answer.encode())) for answer in gold]
    attacks: dict[str, Callable[[], list[float]]] = {
        "mia_loss": nll,
        "mia_zlib": lambda: [loss / size for loss, size in zip(nll(), sizes, strict=True)],
        "mia_min_k": lambda: [-lowest(one) for one in way.logps(rows, gold)],
        "mia_min_k_plus_plus": lambda: [-lowest(standardised(z, y)) for z, y in way.passed(rows, gold)],
        "mia_reference": lambda: [a - b for a, b in zip(nll(), nll(other), strict=True)],
        "mia_grad_norm": lambda: way.gradient_norms(rows),
    }
    for name, attack in attacks.items():
        found["forget"][name] = float(roc_auc_score(labels, [-v for v in way.timed(name, attack)]))
    return found


def our_evaluation(
    model: nn.Module,
    other: nn.Module,
    tokenizer: Any,
    template: Template,
    sets: dict[str, list[Example]],
    holdout: list[Example],
    longest: int,
) -> tuple[dict[str, dict[str, float | None]], dict[str, float]]:
    """The same by `measure`, with the seconds of its parts."""
    seconds: dict[str, float] = {}
    compared: dict[str, Any] = {"forget_split": "forget", "holdout": holdout}
    settings = MeasureSettings(template, needs_of_metrics(metrics.names()) - {"fluency"}, max_new_tokens=longest)
    with tempfile.TemporaryDirectory() as folder:
        log = EvidenceStore(Path(folder))
        start = time.monotonic()
        few = replace(settings, needs=settings.needs - {"generated", "gradient"})
        measure(Subject(other, tokenizer, store=log), {"forget": sets["forget"]}, few, **compared)
        seconds["the other model"] = time.monotonic() - start
        start = time.monotonic()
        evidence = measure(Subject(model, tokenizer), sets, settings, retain_log=log, **compared)
        seconds["the model"] = time.monotonic() - start
    start = time.monotonic()
    scores = score(evidence, metrics.names())
    seconds["metrics"] = time.monotonic() - start
    return {name: {m: one.value for m, one in by.items()} for name, by in scores.items()}, seconds


def largest_gap(usual: dict[str, dict[str, float]], ours: dict[str, dict[str, float | None]]) -> tuple[float, str]:
    """Largest difference of a value between the two ways, and where it is."""
    gaps = []
    for name, values in usual.items():
        for metric, value in values.items():
            own = ours[name][metric]
            gaps.append((math.inf if own is None else abs(own - value), f"{metric} of {name}"))
    return max(gaps)


def counted_tokens(*models: nn.Module) -> list[int]:
    """A list whose last number grows with every token position, padding included, that goes through one of the models."""
    counts = [0]

    def count(_: nn.Module, __: Any, given: dict[str, Any]) -> None:
        counts[-1] += given["input_ids"].numel()

    for model in models:
        model.register_forward_pre_hook(count, with_kwargs=True)
    return counts


def main() -> None:
    """Measure both ways and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model to measure")
    parser.add_argument("--other", help="the model of the retain log; without it the same one, disturbed")
    parser.add_argument("--data-dir")
    parser.add_argument("--rows", type=int, help="only the first rows of each set")
    parser.add_argument("--batch-size", type=int, default=16, help="of the usual way")
    parser.add_argument("--longest", type=int, default=200, help="longest greedy answer, in tokens")
    given = parser.parse_args()
    model, tokenizer = load_model_and_tokenizer(given.model, device="cpu")
    other = load_model_and_tokenizer(given.other or given.model, device="cpu")[0]
    if given.other is None:
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    data = load_benchmark(
        "tofu", data_dir=given.data_dir, seed=0, options={"retain_rows": "400", "withheld_share": "0"}
    )
    sets = {name: [replace(row, paraphrased_prompts=()) for row in data.splits[name][: given.rows]] for name in SETS}
    holdout = [replace(row, paraphrased_prompts=()) for row in data.splits["holdout"][: given.rows]]
    template = resolve_template("auto", tokenizer)
    few = {name: rows[:4] for name, rows in sets.items()}  # whatever happens once only, before the clock runs
    way, others = (UsualWay(m, tokenizer, template, given.batch_size, given.longest) for m in (model, other))
    our_evaluation(model, other, tokenizer, template, few, holdout[:4], given.longest)
    usual_evaluation(way, others, few, holdout[:4])
    way.seconds.clear()
    tokens = counted_tokens(model, other)
    start = time.monotonic()
    ours, our_parts = our_evaluation(model, other, tokenizer, template, sets, holdout, given.longest)
    our_seconds, our_tokens = time.monotonic() - start, tokens.pop()
    tokens.append(0)
    start = time.monotonic()
    usual = usual_evaluation(way, others, sets, holdout)
    usual_seconds, usual_tokens = time.monotonic() - start, tokens.pop()
    gap, where = largest_gap(usual, ours)
    found = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        "model": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "layers": model.config.num_hidden_layers,
            "hidden_size": model.config.hidden_size,
            "vocabulary": model.config.vocab_size,
        },
        "rows": {name: len(rows) for name, rows in {**sets, "holdout": holdout}.items()},
        "usual_batch_size": given.batch_size,
        "longest_answer": given.longest,
        "usual_seconds": usual_seconds,
        "our_seconds": our_seconds,
        "ratio": usual_seconds / our_seconds,
        "usual_tokens": usual_tokens,
        "our_tokens": our_tokens,
        "usual_parts": way.seconds,
        "our_parts": our_parts,
        "largest_gap": gap,
        "largest_gap_at": where,
    }
    lines = ["| part | usual way, s |", "| --- | ---: |"]
    lines += [f"| {name} | {seconds:.1f} |" for name, seconds in way.seconds.items()]
    lines += [f"| **all** | **{usual_seconds:.1f}** |", "", "| part | read once, s |", "| --- | ---: |"]
    lines += [f"| {name} | {seconds:.1f} |" for name, seconds in our_parts.items()]
    lines += [f"| **all** | **{our_seconds:.1f}** |", "", f"{usual_seconds / our_seconds:.1f} times as fast."]
    lines += [
        f"Token positions that go through the models: {usual_tokens:,} the usual way, {our_tokens:,} read once, "
        f"{usual_tokens / our_tokens:.1f} times fewer: what a machine that is busy with matrix products can gain.",
        "",
    ]
    lines += [f"Largest difference of a value: {gap:.1e} ({where})."]
    text = "\n".join(lines) + "\n"
    write_results("evaluation", found, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
