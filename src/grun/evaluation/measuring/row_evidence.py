"""Evidence of single rows: everything that metrics read, measured once per row."""

from __future__ import annotations

__all__ = ["measure_rows"]

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from torch import nn
from transformers import PreTrainedTokenizerBase

from grun.core.records import Example, RowEvidence
from grun.evaluation.measuring.gradient_norms import gradient_norms
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.models.encoding.batching import pad_token_id
from grun.models.encoding.encode import Encoded, encode
from grun.models.forward import adapters_off, context_length, evaluating
from grun.models.generation import stop_tokens
from grun.models.scoring import Prompted, RowScores, score_rows


def measure_rows(
    subject: Subject,
    examples: Sequence[Example],
    settings: MeasureSettings,
    progress: Callable[[int], object] = lambda rows: None,
) -> tuple[RowEvidence, ...]:
    """Evidence of rows, in their order; every prompt is read once, and batches make no difference.

    Args:
        subject: the model to measure; its store is not looked at.
        examples: the rows.
        settings: settings of the measurement; `max_new_tokens` holds for all rows.
        progress: called with the number of rows of every batch that is done.

    Raises:
        UserError: if a prompt alone is too long.
    """
    model, tokenizer, needs = subject.model, subject.tokenizer, settings.needs
    pad, limit = pad_token_id(tokenizer), settings.max_new_tokens
    encode_row = partial(encode, tokenizer=tokenizer, template=settings.template, max_length=settings.max_length)
    gold = [encode_row(row) for row in examples]
    rows = [_prompted(row, one, needs, encode_row) for row, one in zip(examples, gold, strict=True)]
    with evaluating(model), nullcontext() if subject.adapters else adapters_off(model):
        scored = score_rows(
            model,
            rows,
            pad_token_id=pad,
            tokens_per_batch=settings.tokens_per_batch,
            max_new_tokens=limit if "generated" in needs else 0,
            ends=stop_tokens(model, tokenizer),
            context=context_length(model),
            with_gates=subject.adapters,
            progress=progress,
        )
        norms = gradient_norms(model, gold, pad) if "gradient" in needs else None
    found = [
        _evidence(row, scores, one, tokenizer, settings)
        for row, scores, one in zip(examples, scored, gold, strict=True)
    ]
    if norms is not None:
        found = [replace(row, gradient_norm=norm) for row, norm in zip(found, norms, strict=True)]
    if "fluency" in needs and limit:
        base_logps = _under_base(subject.base or model, rows, scored, pad, settings.tokens_per_batch)
        found = [replace(row, generated_base_logps=logps) for row, logps in zip(found, base_logps, strict=True)]
    return tuple(found)


def _prompted(
    row: Example, gold: Encoded, needs: Collection[str], encode_row: Callable[[Example], Encoded]
) -> Prompted:
    """The prompt of a row, and as answers the true one, then all others that are scored."""
    others = [encode_row(replace(row, answer=answer)) for answer in _other_answers(row, needs)]
    return Prompted(gold.input_ids[: gold.prompt_length], tuple(_answer_of(one) for one in (gold, *others)))


def _under_base(
    base: nn.Module, rows: Sequence[Prompted], scored: Sequence[RowScores], pad: int, tokens_per_batch: int
) -> list[tuple[float, ...]]:
    """Log-probabilities of the greedy answers under the base model; none for empty answers."""
    answered = [
        Prompted(row.prompt, (tuple(scores.generated),) if scores.generated else ())
        for row, scores in zip(rows, scored, strict=True)
    ]
    with evaluating(base), adapters_off(base):
        found = score_rows(base, answered, pad_token_id=pad, tokens_per_batch=tokens_per_batch, with_gates=False)
    return [one.answers[0].logps if one.answers else () for one in found]


def _answer_of(row: Encoded) -> tuple[int, ...]:
    return row.input_ids[row.prompt_length :]


def _other_answers(row: Example, needs: Collection[str]) -> list[str]:
    """Answers to score besides the true one: the paraphrased one, then the perturbed ones."""
    paraphrased = [row.paraphrased_answer] if "paraphrased" in needs and row.paraphrased_answer else []
    return [*paraphrased, *(row.perturbed_answers if "perturbed" in needs else ())]


def _evidence(
    row: Example,
    scores: RowScores,
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    settings: MeasureSettings,
) -> RowEvidence:
    gold, *others = scores.answers
    paraphrased = others[: 1 if "paraphrased" in settings.needs and row.paraphrased_answer else 0]
    generated, gold_start = None, None
    if scores.generated is not None:
        generated = _up_to(row.stops, _text(tokenizer, scores.generated))
        gold_start = _text(tokenizer, _answer_of(encoded)[: settings.max_new_tokens])
    return RowEvidence(
        example=row,
        token_logps=gold.logps,
        generated=generated,
        gate_logits=scores.gate_logits,
        gate_values=scores.gate_values,
        truncated=bool(encoded.truncated),
        gold_start=gold_start,
        token_is_argmax=gold.is_argmax,
        token_z=gold.z,
        paraphrased_logps=paraphrased[0].logps if paraphrased else (),
        perturbed_logps=tuple(one.logps for one in others[len(paraphrased) :]),
        gate_thresholds=scores.gate_thresholds,
    )


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


def _up_to(stops: Sequence[str], text: str) -> str:
    """A text up to the first of the stops."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()
