"""Alternative answers that the model makes up itself (AltPO, arXiv 2409.13474, section 3)."""

from __future__ import annotations

__all__ = ["made_up_alternatives"]

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from grun.core.errors import UserError
from grun.core.process.progress import tracked
from grun.core.records import Example
from grun.models.encoding.batching import length_batches
from grun.models.encoding.encode import encode_prompt
from grun.models.encoding.templates import Template
from grun.models.forward import evaluating
from grun.models.generation import sampled

ASK = (
    "{prompt}\n\nOne answer to this is:\n{answer}\n\nWrite another answer of the same form and length in which every fact is "
    "different. Write nothing but the answer."
)
PER_ROW = 3  # different answers, so that no single wrong fact is learnt in place of the right one
TRIES = 4  # rounds of sampling
TEMPERATURE = 1.0
SHOW = 60  # characters of a prompt in messages


def made_up_alternatives(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    template: Template,
    *,
    seed: int = 0,
    batch_size: int = 16,
    max_length: int | None = None,
) -> list[Example]:
    """The examples with alternative answers that the model was asked for, sampled at temperature 1.

    Answers that repeat the true one are dropped. Their quality depends on how well the model follows instructions, so they
    should be read before use.

    Args:
        model: the model before unlearning.
        tokenizer: tokenizer of the model.
        examples: rows to forget.
        template: form of the prompts.
        seed: seed of the sampling; the random state outside does not change.
        batch_size: rows at a time.
        max_length: most tokens of a prompt.

    Raises:
        UserError: for a row to which the model gave no answer but the true one.
    """
    found: list[list[str]] = [[] for _ in examples]
    asked = [replace(e, prompt=ASK.format(prompt=e.prompt, answer=e.answer), raw_text=False) for e in examples]
    prompts = [encode_prompt(example, tokenizer, template, max_length) for example in asked]
    room = [2 * len(tokenizer(e.answer)["input_ids"]) + 8 for e in examples]
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices), evaluating(model):
        torch.manual_seed(seed)
        for _ in range(TRIES):
            open_rows = [i for i, answers in enumerate(found) if len(answers) < PER_ROW]
            batches = length_batches([len(prompts[i]) for i in open_rows], batch_size)
            for index in tracked(batches, "make up answers", len(open_rows), "row", len):
                rows = [open_rows[i] for i in index]
                limit = max(room[i] for i in rows)
                made_up = sampled(model, tokenizer, [prompts[i] for i in rows], limit, PER_ROW, TEMPERATURE)
                for i, new in zip(rows, made_up, strict=True):
                    known = {"", examples[i].answer, *found[i]}
                    found[i] += [answer for answer in dict.fromkeys(new) if answer not in known]
    for example, answers in zip(examples, found, strict=True):
        if not answers:
            raise UserError(
                f"{example.source or example.prompt[:SHOW]}: the model made up no other answer than the true one; give "
                "alternative_answers in your file, or use --objective dpo, which needs none."
            )
    return [replace(e, alternative_answers=tuple(a[:PER_ROW])) for e, a in zip(examples, found, strict=True)]
