"""`grun chat`: ask the model before and after, side by side, and see what the gates say."""

from __future__ import annotations

__all__ = ["chat"]

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

from peft import PeftModel

from grun.core.config.jobs import ChatConfig
from grun.core.errors import UserError
from grun.core.records import Example
from grun.evaluation.report.table import Answered, answers_table, plain_text, show_whole
from grun.evaluation.report.widths import console
from grun.models.encoding.encode import encode_prompt
from grun.models.forward import adapters_off, gates_of_last_call
from grun.models.generation import greedy
from grun.models.loading.loaded import load
from grun.models.loading.pretrained import load_adapter
from grun.models.row_encoder import RowEncoder


def chat(config: ChatConfig, answered: Callable[[Any], None] | None = None) -> None:
    """Answer every prompt with the base model and with the adapter; each prompt stands alone.

    Prompts come from `config.prompt`, else from standard input, one per line, until its end.

    Args:
        config: of the job.
        answered: called with each prompt, its answers and the values of its gates; None prints them.

    Raises:
        UserError: if a model or adapter cannot be loaded, or a prompt given as a setting is empty or too long.
    """
    if not config.adapter:
        raise UserError("--adapter is missing: give the directory of the adapter, or of the run that learnt it.")
    base = load(config.model, config, template=config.template)
    model = load_adapter(base.model, config.adapter)
    for prompt in config.prompt or _typed():
        if not prompt.strip():
            raise UserError("--prompt is empty, expected a question.")
        try:
            before, after, gates = _answers(model, base.encoder, prompt, config.max_new_tokens)
        except UserError as error:
            if config.prompt:
                raise
            if answered is not None:
                answered({"prompt": _shown(prompt), "error": str(error)})
                continue
            console().print(plain_text(str(error)), style="red")
            continue
        if answered is not None:
            answered({"prompt": prompt, "before": before, "after": after, "gates": gates})
            continue
        opened = "" if gates is None else " (gate " + ", ".join(f"{value:.2f}" for value in gates) + ")"
        show_whole(answers_table([Answered("", prompt, None, {"before": before, "after" + opened: after})]))


def _typed() -> Iterator[str]:
    """Lines that are not blank; asks for them if somebody is there."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text ends its question, not the conversation
    while True:
        if sys.stdin.isatty():
            sys.stdout.write("you> ")
            sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _shown(prompt: str) -> str:
    """A question, with a sign in place of each byte that is no text."""
    return prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _answers(
    model: PeftModel, encoder: RowEncoder, prompt: str, max_new_tokens: int
) -> tuple[str, str, list[float] | None]:
    """The answers before and after, and how far each gate is open; None for an adapter without gates."""
    if _shown(prompt) != prompt:
        raise UserError(f"the question '{_shown(prompt)[:40]}' is not valid UTF-8, expected text.")
    tokenizer = encoder.tokenizer
    ids = [encode_prompt(Example(prompt, "-"), tokenizer, encoder.template, encoder.max_length)]
    with adapters_off(model):
        before = greedy(model, tokenizer, ids, max_new_tokens, 1)[0]
    after = greedy(model, tokenizer, ids, max_new_tokens, 1)[0]
    said = gates_of_last_call(model)
    return before, after, None if said is None else said[1][0].tolist()
