"""Measuring models: everything is measured once per row, then every metric reads it."""

from __future__ import annotations

__all__ = ["Results", "evaluate_model", "gather", "interval", "measure", "score", "with_paraphrases"]

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from grun.batches import collate, encode, encode_prompt, length_batches, pad_token_id
from grun.errors import UserError
from grun.metrics import metrics as registry
from grun.records import Evidence, Example, RowEvidence, Score
from grun.signals import adapters_off, evaluating, gates_of_last_call, greedy, side_signals
from grun.templates import Template

PARAPHRASED = "_paraphrased"
RESAMPLES = 1000
Splits = Mapping[str, Sequence[Example]]
Results = Mapping[str, Mapping[str, Score]]  # scores by split and metric


def with_paraphrases(splits: Splits) -> dict[str, tuple[Example, ...]]:
    """The splits, and after each in which every row has another phrasing, `<split>_paraphrased`, asked with the first.

    Raises:
        UserError: for a split without rows.
    """
    found: dict[str, tuple[Example, ...]] = {}
    for name, rows in splits.items():
        if not rows:
            raise UserError(f"split '{name}' is empty: there is nothing to measure; leave it out or give it rows.")
        found[name] = tuple(rows)
        if name + PARAPHRASED not in splits and all(row.paraphrased_prompts for row in rows):
            found[name + PARAPHRASED] = tuple(row.rephrased(0) for row in rows)
    return found


def gather(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    template: Template,
    batch_size: int = 16,
    max_new_tokens: int = 200,
    max_length: int | None = None,
    adapters: bool = True,
    progress: Callable[[int], object] = lambda rows: None,
) -> tuple[RowEvidence, ...]:
    """What the model says about each row: log-probabilities, greedy answer, gates. Independent of the batch size.

    Args:
        batch_size: rows at a time.
        max_new_tokens: longest greedy answer; 0 to generate none.
        max_length: longest row in tokens; the end of a longer answer is cut off for log-probabilities.
        adapters: False measures the base model of a PEFT model.
        progress: called with a number of rows whenever they were scored, and again when they were answered.

    Raises:
        UserError: if a prompt alone is too long.
    """
    encoded = [encode(row, tokenizer, template, max_length) for row in examples]
    logps: list[tuple[float, ...]] = [()] * len(encoded)
    no_gates: tuple[tuple[float, ...] | None, tuple[float, ...] | None] = (None, None)
    gates = [no_gates] * len(encoded)
    answers: list[str] | list[None] = [None] * len(encoded)
    device, pad = next(model.parameters()).device, pad_token_id(tokenizer)
    with evaluating(model), nullcontext() if adapters else adapters_off(model):
        for index in length_batches([len(row.input_ids) for row in encoded], batch_size):
            side = side_signals(model, collate([encoded[i] for i in index], pad).to(device), with_grad=False)
            said = gates_of_last_call(model) if adapters else None
            for b, (i, own_N) in enumerate(zip(index, side.logps_N.split(side.lengths_B.tolist()), strict=True)):
                logps[i] = tuple(own_N.tolist())
                gates[i] = no_gates if said is None else (tuple(said[0][b].tolist()), tuple(said[1][b].tolist()))
            progress(len(index))
        if max_new_tokens:
            prompts = [encode_prompt(row, tokenizer, template, max_length) for row in examples]
            answers = greedy(model, tokenizer, prompts, max_new_tokens, batch_size, progress)
    return tuple(
        RowEvidence(example, logps[i], answers[i], gates[i][0], gates[i][1], bool(encoded[i].truncated))
        for i, example in enumerate(examples)
    )


def measure(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    *,
    forget_split: str | None,
    template: Template,
    batch_size: int = 16,
    max_new_tokens: int = 200,
    max_length: int | None = None,
    adapters: bool = True,
    label: str = "evaluate",
) -> dict[str, Evidence]:
    """Evidence of every split of `with_paraphrases(splits)`, with a progress bar on standard error.

    Args:
        forget_split: name of the split that is to be forgotten; others are compared with it.
        label: of the progress bar.

    Raises:
        UserError: for an empty split, or a `forget_split` that is not among them.
    """
    every = with_paraphrases(splits)
    if forget_split is not None and forget_split not in every:
        raise UserError(f"the forget split '{forget_split}' is not among the splits {', '.join(every)}.")
    rows: dict[str, tuple[RowEvidence, ...]] = {}
    total = sum(map(len, every.values())) * (2 if max_new_tokens else 1)
    with tqdm(total=total, desc=label, unit="row", disable=None, dynamic_ncols=True) as bar:
        for name, examples in every.items():
            rows[name] = gather(
                model,
                tokenizer,
                examples,
                template=template,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                max_length=max_length,
                adapters=adapters,
                progress=bar.update,
            )
    forget = rows.get(forget_split or "")
    paraphrased = rows.get(f"{forget_split}{PARAPHRASED}")
    forgotten = (forget_split, f"{forget_split}{PARAPHRASED}")
    return {
        name: Evidence(name, found) if name in forgotten else Evidence(name, found, forget, paraphrased)
        for name, found in rows.items()
    }


def score(evidence: Mapping[str, Evidence], metrics: Sequence[str] | None = None) -> dict[str, dict[str, Score]]:
    """Scores by split and metric: of the metrics named, or of all.

    Raises:
        UserError: for an unknown metric.
    """
    entries = [registry.get(name) for name in metrics] if metrics else list(registry)
    return {split: {entry.name: entry.target(found) for entry in entries} for split, found in evidence.items()}


def evaluate_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    *,
    forget_split: str | None,
    template: Template,
    metrics: Sequence[str] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 200,
    max_length: int | None = None,
    adapters: bool = True,
    label: str = "evaluate",
) -> dict[str, dict[str, Score]]:
    """Scores of a model by split and metric. Nothing is generated if no metric reads greedy answers.

    Raises:
        UserError: for an empty split, an unknown metric, or a `forget_split` that is not among the splits.
    """
    entries = [registry.get(name) for name in metrics] if metrics else list(registry)
    generate = any("generated" in entry.info["needs"] for entry in entries)
    evidence = measure(
        model,
        tokenizer,
        splits,
        forget_split=forget_split,
        template=template,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens if generate else 0,
        max_length=max_length,
        adapters=adapters,
        label=label,
    )
    return score(evidence, metrics)


def interval(found: Score, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the mean over rows by the percentile bootstrap; None for a score without per-row values."""
    if not found.per_row:
        return None
    values_N = np.asarray(found.per_row)
    draw = np.random.default_rng(seed)
    means = [float(draw.choice(values_N, len(values_N)).mean()) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
