"""Prompt templates: the form of a question for a model, and the token that ends the answer."""

from __future__ import annotations

__all__ = ["Template", "plain_ids", "resolve_template", "stop_ids"]

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from grun.core.errors import UserError
from grun.core.records import Begun, Example

QA = "Question: {prompt} \nAnswer: "  # the form that arXiv 2502.17823 uses for TOFU, spaces included
_MARK = "grunanswermark"


@dataclass(frozen=True)
class Template:
    """The form of prompts for one tokenizer; see `resolve_template`.

    Attributes:
        name: "chat", "qa" or "text".
        pattern: text with `{prompt}` in it; None for the tokenizer's chat template.
        separator: text that a chat template puts between its generation prompt and the answer (usually none).
        start_ids: tokens that the tokenizer puts before every text (BOS); a chat template writes its own.
        end_id: token that ends an answer under this template.
        eos_id: token that ends running text.
    """

    name: str
    pattern: str | None
    separator: str
    start_ids: tuple[int, ...]
    end_id: int
    eos_id: int

    def write(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """The prompt without trailing spaces, and the text between it and the answer.

        Raises:
            UserError: if the tokenizer's chat template refuses the conversation.
        """
        if example.raw_text:
            text, separator = example.prompt, "" if example.prompt[-1:].isspace() else " "
        elif self.pattern is None:
            text, separator = _chat_text(example, tokenizer), self.separator
        else:
            text, separator = _pattern_text(example, self.pattern), ""
        if isinstance(example, Begun):
            text, separator = text + separator + example.begin, ""
        stripped = text.rstrip(" ")
        return stripped, text[len(stripped) :] + separator


def resolve_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    r"""The template called `name`: "auto", "chat", "qa", or a text of the user's own with `{prompt}` in it.

    The answer follows a text exactly as it is written: end the text with a space if one is wanted. `\n` and `\t` stand for a
    line break and a tab. A chat prompt is tokenised as by `apply_chat_template`, without a further BOS.

    Raises:
        UserError: if the text has no `{prompt}`, or the tokenizer has no chat template or no end-of-sequence token.
    """
    eos_id = tokenizer.eos_token_id
    if eos_id is None:
        raise UserError("the tokenizer has no end-of-sequence token, so no answer could end: set its eos_token.")
    if name == "auto":
        name = "chat" if tokenizer.chat_template else "qa"
    start_ids = _start_ids(tokenizer)
    if name == "chat":
        if not tokenizer.chat_template:
            raise UserError(
                "--template is 'chat', but the tokenizer has no chat template: use qa, or a text with {prompt} in it."
            )
        separator, end_id = _chat_ending(tokenizer, eos_id)
        return Template("chat", None, separator, start_ids, end_id, eos_id)
    pattern = QA if name == "qa" else name.replace("\\n", "\n").replace("\\t", "\t")
    if "{prompt}" not in pattern:
        raise UserError(f"--template is '{name}', expected auto, chat, qa, or a text with {{prompt}} in it.")
    return Template("qa" if name == "qa" else "text", pattern, "", start_ids, eos_id, eos_id)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: end of sequence, and the end of a turn in the tokenizer's chat template."""
    eos_id = tokenizer.eos_token_id
    ends = set() if eos_id is None else {int(eos_id)}
    if tokenizer.chat_template and eos_id is not None:
        ends.add(_chat_ending(tokenizer, eos_id)[1])
    return ends


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, without the special tokens that the tokenizer puts around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that the tokenizer puts before a text; those after it (EOS) are left out, as they would end the prompt."""
    plain, special = plain_ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    at = next((i for i in range(len(special)) if special[i : i + len(plain)] == plain), 0)
    return tuple(special[:at])


def _pattern_text(example: Example, pattern: str) -> str:
    forms = {"user": pattern, "assistant": "{prompt}\n"}
    earlier = [forms.get(role, "{prompt}\n\n").replace("{prompt}", content) for role, content in example.turns]
    return "".join(earlier) + pattern.replace("{prompt}", example.prompt)


def _chat_text(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    messages = [{"role": role, "content": content} for role, content in (*example.turns, ("user", example.prompt))]
    return _rendered(tokenizer, messages, example.source or "a row", add_generation_prompt=True)


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], where: str = "--template chat", **kwargs: Any
) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))
    except Exception as error:  # a template is a program of its own, and may raise anything
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        said = " ".join(str(error).split())
        raise UserError(f"{where}: the tokenizer's chat template refuses the conversation: {kind}{said}") from error


def _chat_ending(tokenizer: PreTrainedTokenizerBase, eos_id: int) -> tuple[str, int]:
    """Text that a chat template puts before an answer, and the token that ends a turn (EOS if it has none)."""
    question = [{"role": "user", "content": "a"}]
    prompt = _rendered(tokenizer, question, add_generation_prompt=True)
    whole = _rendered(tokenizer, [*question, {"role": "assistant", "content": _MARK}])
    before, _, after = whole.partition(_MARK)
    between = before[len(prompt) :] if before.startswith(prompt) else ""
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    end_id = next((i for i in plain_ids(tokenizer, after) if i in special), eos_id)
    return ("" if between.strip() else between), int(end_id)
