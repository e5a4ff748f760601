"""From examples to batches of token ids: the only place that tokenises.

The prompt's ids in training are exactly its ids in generation. Two things would break that, and are handled here: a trailing
space of the prompt, which most tokenizers merge with the answer's first word (so it belongs to the answer), and merges across
the boundary (then prompt and answer are tokenised apart).
"""

from __future__ import annotations

__all__ = [
    "Encoded",
    "Template",
    "collate",
    "encode",
    "encode_prompt",
    "length_batches",
    "pad_token_id",
    "paired_order",
    "resolve_template",
    "stop_ids",
    "truncation_report",
]

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from grun.errors import UserError
from grun.records import Batch, Example

IGNORED = -100
QA = "Question: {prompt} \nAnswer: "  # the form that arXiv 2502.17823 uses for TOFU, spaces included
_MARK = "grunanswermark"


@dataclass(frozen=True)
class Encoded:
    """One tokenised row.

    Attributes:
        input_ids: prompt and answer; the answer's last token is the end of the sequence, unless it was truncated away.
        prompt_length: number of prompt tokens; the answer is `input_ids[prompt_length:]`.
        truncated: number of answer tokens that did not fit and were cut off.
    """

    input_ids: tuple[int, ...]
    prompt_length: int
    truncated: int


@dataclass(frozen=True)
class Template:
    """How a prompt is written for one tokenizer; see `resolve_template`.

    Attributes:
        name: "chat", "qa" or "text".
        pattern: text with `{prompt}` in it; None for the tokenizer's chat template.
        separator: what a chat template puts between its generation prompt and the answer (usually nothing).
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


def resolve_template(name: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    r"""The template called `name`: "auto", "chat", "qa", or a text of the user's own with `{prompt}` in it.

    The answer follows a text exactly as it is written: end it with a space if one is wanted. `\n` and `\t` stand for a line
    break and a tab. A chat prompt is tokenised as `apply_chat_template` does it, without a further BOS.

    Raises:
        UserError: if the text has no `{prompt}`, the tokenizer has no chat template, or it has no end-of-sequence token.
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


def encode(
    example: Example, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int | None = None
) -> Encoded:
    """Prompt and answer as token ids, cut from the end of the answer to at most `max_length` tokens.

    Raises:
        UserError: if the prompt leaves no room for an answer, or the chat template refuses the conversation.
    """
    prompt, separator = _prompt_text(example, tokenizer, template)
    prompt_ids = _prompt_ids(prompt, example, tokenizer, template, max_length)
    start = prompt_ids[: len(prompt_ids) - len(_plain_ids(tokenizer, prompt))]
    answer = separator + example.answer
    full = start + _plain_ids(tokenizer, prompt + answer)
    exact = full[: len(prompt_ids)] == prompt_ids
    answer_ids = full[len(prompt_ids) :] if exact else _answer_alone(tokenizer, answer)
    end_id = template.eos_id if example.raw_text else template.end_id
    while answer_ids and answer_ids[-1] in (end_id, template.eos_id):
        answer_ids.pop()
    ids = prompt_ids + answer_ids + [end_id]
    cut = max(0, len(ids) - max_length) if max_length is not None else 0
    return Encoded(tuple(ids[: len(ids) - cut]), len(prompt_ids), cut)


def encode_prompt(
    example: Example, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int | None = None
) -> list[int]:
    """The prompt as token ids for generation: exactly `encode(...).input_ids[:prompt_length]`.

    Raises:
        UserError: as `encode` does.
    """
    prompt, _ = _prompt_text(example, tokenizer, template)
    return _prompt_ids(prompt, example, tokenizer, template, max_length)


def collate(
    encoded: Sequence[Encoded], pad_token_id: int, padding_side: str = "right", pad_to: int | None = None
) -> Batch:
    """Rows padded to one width (the longest row's, or `pad_to`), labelled on answers only.

    Raises:
        ValueError: for no rows, a row longer than `pad_to`, or a padding side other than "left" and "right".
    """
    if not encoded:
        raise ValueError("a batch needs at least one row")
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side is {padding_side!r}, expected 'left' or 'right'")
    longest = max(len(row.input_ids) for row in encoded)
    width = longest if pad_to is None else pad_to
    if width < longest:
        raise ValueError(f"pad_to is {pad_to}, but the longest row has {longest} tokens")
    ids_BT = torch.full((len(encoded), width), pad_token_id, dtype=torch.long)
    mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, IGNORED)
    for i, row in enumerate(encoded):
        start = width - len(row.input_ids) if padding_side == "left" else 0
        end = start + len(row.input_ids)
        ids_BT[i, start:end] = torch.tensor(row.input_ids)
        mask_BT[i, start:end] = 1
        labels_BT[i, start + row.prompt_length : end] = ids_BT[i, start + row.prompt_length : end]
    return Batch(ids_BT, mask_BT, labels_BT, torch.tensor([row.prompt_length for row in encoded]))


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up: the padding token, or else the end-of-sequence token (it is masked in any case).

    Raises:
        UserError: if the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError("the tokenizer has neither a padding nor an end-of-sequence token: set one of them.")


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: end of sequence, and the end of a turn in the tokenizer's chat template."""
    eos_id = tokenizer.eos_token_id
    ends = set() if eos_id is None else {int(eos_id)}
    if tokenizer.chat_template and eos_id is not None:
        ends.add(_chat_ending(tokenizer, eos_id)[1])
    return ends


def truncation_report(encoded: Sequence[Encoded]) -> str | None:
    """One line on the rows that were truncated, or None if all of them fit."""
    cuts = [row.truncated for row in encoded if row.truncated]
    if not cuts:
        return None
    return f"{len(cuts)} of {len(encoded)} rows were too long: up to {max(cuts)} tokens were cut from the end of their answers."


def length_batches(lengths: Sequence[int], batch_size: int, token_budget: int | None = None) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first so that a lack of memory shows at once.

    Args:
        lengths: tokens of each row.
        batch_size: most rows of a batch.
        token_budget: most tokens of a batch, padding included; a row that is longer gets a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        last = batches[-1] if batches else []
        fits = token_budget is None or (last and lengths[last[0]] * (len(last) + 1) <= token_budget)
        if last and len(last) < batch_size and fits:
            last.append(i)
        else:
            batches.append([i])
    return batches


def paired_order(n_forget: int, n_retain: int, seed: int, epoch: int) -> list[tuple[int, int]]:
    """Order of one epoch: every forget row once, each beside a retain row.

    Retain rows are drawn without replacement, and over the end of an epoch, until all of them were used; then again.

    Raises:
        ValueError: if one side has no rows.
    """
    if n_forget < 1 or n_retain < 1:
        raise ValueError(f"pairing needs rows on both sides, got {n_forget} to forget and {n_retain} to retain")
    forget = _shuffled(n_forget, f"forget {seed} {epoch}")
    drawn = _draws(n_retain, seed, epoch * n_forget)
    return [(row, next(drawn)) for row in forget]


def _shuffled(n: int, seed: str) -> list[int]:
    rows = list(range(n))
    random.Random(seed).shuffle(rows)
    return rows


def _draws(n: int, seed: int, start: int) -> Iterator[int]:
    """An endless run of shuffles of `range(n)`, from its `start`-th entry."""
    lap, skip = divmod(start, n)
    while True:
        yield from _shuffled(n, f"retain {seed} {lap}")[skip:]
        lap, skip = lap + 1, 0


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts before a text; what some put behind it (EOS) would end the prompt too early."""
    plain, special = _plain_ids(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    at = next((i for i in range(len(special)) if special[i : i + len(plain)] == plain), 0)
    return tuple(special[:at])


def _prompt_text(example: Example, tokenizer: PreTrainedTokenizerBase, template: Template) -> tuple[str, str]:
    """The prompt without trailing spaces, and what stands between it and the answer."""
    if example.raw_text:
        text, separator = example.prompt, "" if example.prompt[-1:].isspace() else " "
    elif template.pattern is None:
        text, separator = _chat_text(example, tokenizer), template.separator
    else:
        text, separator = _pattern_text(example, template.pattern), ""
    stripped = text.rstrip(" ")
    return stripped, text[len(stripped) :] + separator


def _pattern_text(example: Example, pattern: str) -> str:
    forms = {"user": pattern, "assistant": "{prompt}\n"}
    earlier = [forms.get(role, "{prompt}\n\n").replace("{prompt}", content) for role, content in example.turns]
    return "".join(earlier) + pattern.replace("{prompt}", example.prompt)


def _chat_text(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    messages = [{"role": role, "content": content} for role, content in (*example.turns, ("user", example.prompt))]
    try:
        return _rendered(tokenizer, messages, add_generation_prompt=True)
    except TemplateError as error:
        where = example.source or "a row"
        raise UserError(f"{where}: the tokenizer's chat template refuses the conversation: {error}") from error


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **kwargs: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **kwargs))


def _chat_ending(tokenizer: PreTrainedTokenizerBase, eos_id: int) -> tuple[str, int]:
    """What a chat template puts before an answer, and the token that it ends a turn with (EOS if it has none)."""
    question = [{"role": "user", "content": "a"}]
    prompt = _rendered(tokenizer, question, add_generation_prompt=True)
    whole = _rendered(tokenizer, [*question, {"role": "assistant", "content": _MARK}])
    before, _, after = whole.partition(_MARK)
    between = before[len(prompt) :] if before.startswith(prompt) else ""
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    end_id = next((i for i in _plain_ids(tokenizer, after) if i in special), eos_id)
    return ("" if between.strip() else between), int(end_id)


def _prompt_ids(
    prompt: str, example: Example, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int | None
) -> list[int]:
    ids = _plain_ids(tokenizer, prompt)
    where = example.source or f"the row with the prompt '{example.prompt[:40]}'"
    if not ids:
        raise UserError(f"{where}: the prompt is empty after tokenisation; give it some text.")
    start = list(template.start_ids)
    is_chat = template.pattern is None and not example.raw_text
    if not is_chat and ids[: len(start)] != start:
        ids = start + ids
    if max_length is not None and len(ids) > max_length - 1:
        raise UserError(
            f"{where}: the prompt is longer than the model's context: {len(ids)} tokens, and {max_length} must hold it and at "
            "least one token of the answer. Shorten the prompt or split the row."
        )
    return ids


def _answer_alone(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Ids of an answer whose first letters would merge with the prompt's last ones.

    Tokenised behind a character that does not merge: some tokenizers mark the beginning of a text with a space of their own.
    """
    for anchor in ("\n", "."):
        before, both = _plain_ids(tokenizer, anchor), _plain_ids(tokenizer, anchor + answer)
        if both[: len(before)] == before:
            return both[len(before) :]
    return _plain_ids(tokenizer, answer)
