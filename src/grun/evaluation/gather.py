"""Evidence: everything that metrics look at, measured once per row."""

from __future__ import annotations

__all__ = ["EVERYTHING", "gather"]

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from torch import nn
from transformers import PreTrainedTokenizerBase

from grun.core.records import Example, RowEvidence
from grun.evaluation.gradient_norms import gradient_norms
from grun.models.encoding.batching import pad_token_id
from grun.models.encoding.encode import Encoded, encode
from grun.models.encoding.templates import Template
from grun.models.forward import adapters_off, context_length, evaluating
from grun.models.generation import stop_tokens
from grun.models.scoring import TOKENS_PER_BATCH, Prompted, RowScores, score_rows

EVERYTHING = frozenset({"token_logps", "generated", "gates", "paraphrased", "perturbed"})


def gather(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    template: Template,
    needs: Collection[str] = EVERYTHING,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    max_new_tokens: int = 200,
    max_length: int | None = None,
    adapters: bool = True,
    base: nn.Module | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> tuple[RowEvidence, ...]:
    """What the model says about each row, each prompt read once; independent of how rows are batched.

    Args:
        needs: what metrics look at (see `grun.evaluation.metrics`); what nobody needs is not computed.
        tokens_per_batch: most tokens of a forward pass, padding included.
        max_new_tokens: longest greedy answer; 0 to generate none.
        max_length: longest row in tokens; the end of a longer answer is cut off for log-probabilities.
        adapters: False measures the base model of a PEFT model.
        base: the model before unlearning, where it is another one than this with adapters off.
        progress: called with the number of rows of every batch that is done.

    Raises:
        UserError: if a prompt alone is too long.
    """
    encode_row = partial(encode, tokenizer=tokenizer, template=template, max_length=max_length)
    gold = [encode_row(row) for row in examples]
    others = [_other_answers(row, needs) for row in examples]
    rows = [
        Prompted(
            one.input_ids[: one.prompt_length],
            tuple(_answer_of(e) for e in (one, *(encode_row(replace(row, answer=answer)) for answer in more))),
        )
        for row, one, more in zip(examples, gold, others, strict=True)
    ]
    with evaluating(model), nullcontext() if adapters else adapters_off(model):
        scored = score_rows(
            model,
            rows,
            pad_token_id=pad_token_id(tokenizer),
            tokens_per_batch=tokens_per_batch,
            max_new_tokens=max_new_tokens if "generated" in needs else 0,
            ends=stop_tokens(model, tokenizer),
            context=context_length(model),
            with_gates=adapters,
            progress=progress,
        )
        norms = gradient_norms(model, gold, pad_token_id(tokenizer)) if "gradient" in needs else None
    found = [
        _evidence(row, scores, one, tokenizer, needs, max_new_tokens)
        for row, scores, one in zip(examples, scored, gold, strict=True)
    ]
    if norms is not None:
        found = [replace(row, gradient_norm=norm) for row, norm in zip(found, norms, strict=True)]
    if "fluency" in needs and max_new_tokens:
        said = _under_base(base or model, rows, scored, pad_token_id(tokenizer), tokens_per_batch)
        found = [replace(row, generated_base_logps=logps) for row, logps in zip(found, said, strict=True)]
    return tuple(found)


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
    needs: Collection[str],
    max_new_tokens: int,
) -> RowEvidence:
    gold, *others = scores.answers
    paraphrased = others[: 1 if "paraphrased" in needs and row.paraphrased_answer else 0]
    said, gold_start = None, None
    if scores.generated is not None:
        said = _up_to(row.stops, _text(tokenizer, scores.generated))
        gold_start = _text(tokenizer, _answer_of(encoded)[:max_new_tokens])
    return RowEvidence(
        example=row,
        token_logps=gold.logps,
        generated=said,
        gate_logits=scores.gate_logits,
        gate_values=scores.gate_values,
        truncated=bool(encoded.truncated),
        gold_start=gold_start,
        token_is_argmax=gold.is_argmax,
        token_z=gold.z,
        paraphrased_logps=paraphrased[0].logps if paraphrased else (),
        perturbed_logps=tuple(one.logps for one in others[len(paraphrased) :]),
    )


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


def _up_to(stops: Sequence[str], text: str) -> str:
    """A text without the first of the stops and what follows."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()
