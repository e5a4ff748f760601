"""Speed of an evaluation that reads every prompt once, on TOFU: a ratio from one run.

    python experiments/evaluation.py --model runs/tofu/target/model --data-dir "$GRUN_TOFU_DIR"

The baseline is an evaluation as it is usually written, metric by metric (`baselines/usual_evaluation.py`). Both measure the
four evaluation sets of TOFU (forget05) with all metrics, the six membership attacks among them, and must find the same values.
Writes `docs/results/evaluation.json` and `.md`.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from baselines.usual_evaluation import UsualWay, usual_evaluation
from common import write_results
from torch import nn

from grun.core.records import Example
from grun.data.benchmarks import load_benchmark
from grun.evaluation.measuring.evidence_store import EvidenceStore
from grun.evaluation.measuring.measure import measure
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.metrics import metrics
from grun.evaluation.scores import needs_of_metrics, score
from grun.models.encoding.templates import Template, resolve_template
from grun.models.loading.pretrained import load_model_and_tokenizer

SETS = ("forget", "retain", "real_authors", "world_facts")


def our_evaluation(
    model: nn.Module,
    other: nn.Module,
    tokenizer: Any,
    template: Template,
    sets: dict[str, list[Example]],
    holdout: list[Example],
    longest: int,
) -> tuple[dict[str, dict[str, float | None]], dict[str, float]]:
    """Every metric of every set by `measure`, and the seconds of its parts."""
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


def disturb(model: nn.Module) -> None:
    """Add noise to every parameter, so that the model of the retain log is another one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)


def table(found: dict[str, Any]) -> str:
    """Both ways as Markdown."""
    lines = ["| part | usual way, s |", "| --- | ---: |"]
    lines += [f"| {name} | {seconds:.1f} |" for name, seconds in found["usual_parts"].items()]
    lines += [f"| **all** | **{found['usual_seconds']:.1f}** |", "", "| part | read once, s |", "| --- | ---: |"]
    lines += [f"| {name} | {seconds:.1f} |" for name, seconds in found["our_parts"].items()]
    lines += [f"| **all** | **{found['our_seconds']:.1f}** |", "", f"{found['ratio']:.1f} times as fast."]
    usual, ours = found["usual_tokens"], found["our_tokens"]
    lines += [
        f"Token positions that go through the models: {usual:,} the usual way, {ours:,} read once, "
        f"{usual / ours:.1f} times fewer: what a machine that is busy with matrix products can gain.",
        "",
        f"Largest difference of a value: {found['largest_gap']:.1e} ({found['largest_gap_at']}).",
    ]
    return "\n".join(lines) + "\n"


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
        disturb(other)
    data = load_benchmark(
        "tofu", data_dir=given.data_dir, seed=0, options={"retain_rows": "400", "withheld_share": "0"}
    )
    sets = {name: [replace(row, paraphrased_prompts=()) for row in data.splits[name][: given.rows]] for name in SETS}
    holdout = [replace(row, paraphrased_prompts=()) for row in data.splits["holdout"][: given.rows]]
    template = resolve_template("auto", tokenizer)
    few = {name: rows[:4] for name, rows in sets.items()}  # a warm-up, before the clock runs
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
    text = table(found)
    write_results("evaluation", found, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
