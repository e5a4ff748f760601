"""The boundary between prompt and answer, for several kinds of tokenizer, templates and rows."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grun.core.errors import UserError
from grun.core.records import Example
from grun.models.encoding.batching import collate, length_batches, pad_token_id
from grun.models.encoding.encode import Encoded, encode, encode_prompt, truncation_report
from grun.models.encoding.templates import resolve_template, stop_ids
from grun.training.pairs import paired_order
from support.tiny_models import tiny_tokenizer

KINDS = ("bytes", "metaspace", "legacy")
TOKENIZERS = {
    (kind, chat, eos): tiny_tokenizer(kind, chat=chat, eos=eos)
    for kind, chat, eos in product(KINDS, (False, True), (False, True))
}
TEMPLATES = ("qa", "{prompt}", "Q: {prompt}\\nA: ", "[{prompt}]")
words = st.text(st.sampled_from("abehiost WQ?.,'3é\n"), min_size=1, max_size=30).filter(lambda text: text.strip())
answers = words.map(str.strip)


def templates(key: tuple[str, bool, bool]) -> tuple[str, ...]:
    return (*TEMPLATES, "chat") if key[1] else TEMPLATES


@given(prompt=words, answer=answers, raw=st.booleans())
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("key", TOKENIZERS, ids=str)
def test_a_prompt_has_the_same_ids_in_training_and_in_generation(
    key: tuple[str, bool, bool], prompt: str, answer: str, raw: bool
) -> None:
    tokenizer = TOKENIZERS[key]
    for name in templates(key):
        template = resolve_template(name, tokenizer)
        example = Example(prompt, answer, raw_text=raw)
        row = encode(example, tokenizer, template)
        end = template.eos_id if raw else template.end_id
        assert list(row.input_ids[: row.prompt_length]) == encode_prompt(example, tokenizer, template)
        assert row.input_ids[-1] == end
        assert list(row.input_ids[row.prompt_length :]).count(end) == 1
        assert row.truncated == 0


@given(prompt=words, answer=answers)
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_text_is_lost_at_the_boundary(kind: str, prompt: str, answer: str) -> None:
    tokenizer = TOKENIZERS[kind, False, False]
    for name, form in (("qa", "Question: {} \nAnswer: "), ("{prompt}", "{}"), ("[{prompt}]", "[{}]")):
        row = encode(Example(prompt, answer), tokenizer, resolve_template(name, tokenizer))
        text = str(tokenizer.decode(list(row.input_ids), skip_special_tokens=True))
        assert text.lstrip(" ") == (form.format(prompt) + answer).lstrip(" ")


@pytest.mark.parametrize("kind", KINDS)
def test_the_edited_token_ends_the_word_answer_and_the_space_belongs_to_the_answer(kind: str) -> None:
    tokenizer = TOKENIZERS[kind, False, False]
    row = encode(Example("Who wrote it?", "Ada."), tokenizer, resolve_template("qa", tokenizer))
    prompt, answer = row.input_ids[: row.prompt_length], row.input_ids[row.prompt_length : -1]
    assert str(tokenizer.decode(list(prompt), skip_special_tokens=True)).endswith("Who wrote it? \nAnswer:")
    assert "".join(tokenizer.convert_ids_to_tokens(list(answer))).replace("Ġ", "▁") == "▁Ada."


def test_an_answer_that_merges_with_the_prompt_is_tokenised_apart() -> None:
    tokenizer = TOKENIZERS["bytes", False, False]
    template = resolve_template("{prompt}", tokenizer)
    together = tokenizer("Question")["input_ids"]
    row = encode(Example("Quest", "ion"), tokenizer, template)
    assert len(together) == 1
    assert list(row.input_ids[: row.prompt_length]) == tokenizer("Quest")["input_ids"]
    assert tokenizer.decode(list(row.input_ids[:-1])) == "Question"


@pytest.mark.parametrize("kind", KINDS)
def test_bos_appears_once_as_the_tokenizer_puts_it_and_never_with_a_chat_template(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind, bos=True, chat=True)
    for name, count in (("qa", 1), ("<s>[{prompt}]", 1), ("chat", 0)):
        row = encode(Example("Who?", "Ada."), tokenizer, resolve_template(name, tokenizer))
        assert row.input_ids.count(tokenizer.bos_token_id) == count
        assert (row.input_ids[0] == tokenizer.bos_token_id) is bool(count)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_prompt_is_what_the_tokenizer_itself_makes_of_the_conversation(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind, chat=True)
    turns = (("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"))
    example = Example("Who?", "Ada.", turns=turns)
    template = resolve_template("auto", tokenizer)
    messages = [{"role": r, "content": c} for r, c in (*turns, ("user", "Who?"))]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(example, tokenizer, template) == expected
    assert encode(example, tokenizer, template).input_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_ids(tokenizer) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_what_a_chat_template_puts_before_the_answer_belongs_to_the_answer() -> None:
    tokenizer = tiny_tokenizer("bytes")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    )
    row = encode(Example("Who?", "Ada."), tokenizer, resolve_template("chat", tokenizer))
    assert tokenizer.decode(list(row.input_ids[: row.prompt_length])) == "[INST] Who? [/INST]"
    assert tokenizer.decode(list(row.input_ids[row.prompt_length :])) == " Ada.</s>"


def test_earlier_turns_are_written_out_where_there_is_no_chat_template() -> None:
    tokenizer = TOKENIZERS["bytes", False, False]
    turns = (("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"))
    ids = encode_prompt(
        Example("Who?", "Ada.", turns=turns), tokenizer, resolve_template("Q: {prompt}\\nA: ", tokenizer)
    )
    assert tokenizer.decode(ids) == "Be brief.\n\nQ: Hello\nA: Hi\nQ: Who?\nA:"


@pytest.mark.parametrize("longest", range(3, 14))
def test_truncation_cuts_the_end_of_the_answer_and_is_counted(longest: int) -> None:
    tokenizer = TOKENIZERS["bytes", False, False]
    template = resolve_template("{prompt} ", tokenizer)
    example = Example("Qx", "zebra", source="forget.jsonl, row 7")
    whole = encode(example, tokenizer, template)
    if longest < whole.prompt_length + 1:
        with pytest.raises(UserError, match=f"forget.jsonl, row 7.*{whole.prompt_length} tokens, and {longest} must"):
            encode(example, tokenizer, template, longest)
        return
    row = encode(example, tokenizer, template, longest)
    assert row.input_ids == whole.input_ids[:longest]
    assert row.prompt_length == whole.prompt_length
    assert row.truncated == max(0, len(whole.input_ids) - longest)
    assert (truncation_report([row, whole]) is None) is (row.truncated == 0)


def test_the_truncation_report_counts_rows() -> None:
    rows = [Encoded((1, 2), 1, 3), Encoded((1, 2), 1, 0), Encoded((1, 2), 1, 5)]
    assert truncation_report(rows) == (
        "2 of 3 rows were too long: up to 5 tokens were cut from the end of their answers."
    )


def test_a_prompt_without_room_for_an_answer_is_refused_in_generation_too() -> None:
    tokenizer = TOKENIZERS["bytes", False, False]
    with pytest.raises(UserError, match="the prompt is longer than the model's context"):
        encode_prompt(Example("Qx" * 50, "z"), tokenizer, resolve_template("qa", tokenizer), 20)


@pytest.mark.parametrize("name", ["question", "chat", "{promt}"])
def test_unknown_templates_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--template is"):
        resolve_template(name, TOKENIZERS["bytes", False, False])


def test_a_conversation_that_the_chat_template_refuses_names_the_row() -> None:
    tokenizer = tiny_tokenizer("bytes")
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}a</s>"
    )
    template = resolve_template("chat", tokenizer)
    with pytest.raises(UserError, match="chats.jsonl, row 2.*no system"):
        encode(Example("Who?", "Ada.", turns=(("system", "x"),), source="chats.jsonl, row 2"), tokenizer, template)


def test_a_tokenizer_without_end_or_padding_is_refused() -> None:
    tokenizer = tiny_tokenizer("bytes")
    assert pad_token_id(tokenizer) == 3
    tokenizer.pad_token = None
    assert pad_token_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a padding nor"):
        pad_token_id(tokenizer)
    with pytest.raises(UserError, match="no end-of-sequence"):
        resolve_template("qa", tokenizer)


rows = st.lists(
    st.tuples(
        st.lists(st.integers(5, 99), min_size=1, max_size=6), st.lists(st.integers(5, 99), min_size=1, max_size=6)
    ),
    min_size=1,
    max_size=5,
).map(lambda pairs: [Encoded(tuple(p + a), len(p), 0) for p, a in pairs])


@given(rows=rows, side=st.sampled_from(["left", "right"]), extra=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_padding_never_changes_what_a_row_says(rows: list[Encoded], side: str, extra: int) -> None:
    width = max(len(row.input_ids) for row in rows) + extra
    batch = collate(rows, 0, side, width)
    assert batch.input_ids_BT.shape == (len(rows), width)
    for i, row in enumerate(rows):
        real = batch.attention_mask_BT[i].bool()
        labels = batch.labels_BT[i]
        assert tuple(batch.input_ids_BT[i][real].tolist()) == row.input_ids
        assert tuple(labels[labels != -100].tolist()) == row.input_ids[row.prompt_length :]
        assert torch.equal(labels[labels != -100], batch.input_ids_BT[i][labels != -100])
        assert int(batch.prompt_lengths_B[i]) == row.prompt_length
        assert bool(real[-1 if side == "left" else 0])
        assert set(batch.input_ids_BT[i][~real].tolist()) <= {0}
        assert (labels[~real] == -100).all()


def test_wrong_calls_of_collate_raise() -> None:
    row = Encoded((5, 6, 7), 1, 0)
    wrong: tuple[Any, ...] = (([], "left", None, "rows?"), ([row], "both", None, "both"), ([row], "left", 2, "2"))
    for rows_, side, width, said in wrong:
        with pytest.raises(ValueError, match=said):
            collate(rows_, 0, side, width)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 7), st.none() | st.integers(1, 120))
def test_length_batches_hold_every_row_once_and_keep_to_the_limits(
    lengths: list[int], size: int, budget: int | None
) -> None:
    batches = length_batches(lengths, size, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert budget is None or len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 3))
def test_pairs_use_every_forget_row_once_an_epoch_and_retain_rows_evenly(forget: int, retain: int, seed: int) -> None:
    epochs = [paired_order(forget, retain, seed, epoch) for epoch in range(4)]
    for pairs in epochs:
        assert sorted(f for f, _ in pairs) == list(range(forget))
    drawn = [r for pairs in epochs for _, r in pairs]
    for start in range(0, len(drawn), retain):
        lap = drawn[start : start + retain]
        assert len(set(lap)) == len(lap)
        assert set(lap) <= set(range(retain))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    assert paired_order(50, 60, 1, 2) == paired_order(50, 60, 1, 2)
    assert len({str(paired_order(50, 60, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    with pytest.raises(ValueError, match="rows on both sides"):
        paired_order(3, 0, 0, 0)
