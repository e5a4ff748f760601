"""Forgetting running text (WMDP- and MUSE-like corpora): chunks, each with its beginning as the prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM

from grun.cli.main import main
from grun.core.records import Example
from grun.data.examples import read_examples, split_text
from grun.models.encoding.chunking import chunk_running_text
from grun.models.encoding.encode import encode
from grun.models.encoding.templates import resolve_template
from support.material import Material, write_rows
from support.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WORDS = st.lists(st.text("abcdefghij", min_size=1, max_size=12), min_size=5, max_size=80).map(" ".join)


def example(text: str) -> Example:
    prompt, answer = split_text(text)
    return Example(prompt, answer, raw_text=True, source="corpus.jsonl, row 1")


@settings(deadline=None, max_examples=60)
@given(WORDS, st.integers(24, 90))
def test_chunks_hold_every_word_once_and_fit(text: str, longest: int) -> None:
    chunks = chunk_running_text([example(text)], TOKENIZER, longest)
    assert " ".join(f"{c.prompt} {c.answer}" for c in chunks).split() == text.split()
    template = resolve_template("auto", TOKENIZER)
    for chunk in chunks:
        row = encode(chunk, TOKENIZER, template)
        most = max(len(TOKENIZER(word)["input_ids"]) for word in text.split())
        assert len(row.input_ids) <= longest + 2 * most, "a chunk may end a word or two late, never more"


def test_short_text_and_questions_stay_as_they_are() -> None:
    rows = [example("one two three four"), Example("Where? " * 100, "There.")]
    assert chunk_running_text(rows, TOKENIZER, 50) == rows
    assert chunk_running_text(rows, TOKENIZER, None) == rows


def test_chunks_say_where_they_come_from() -> None:
    chunks = chunk_running_text([example("the sea is near the house " * 20)], TOKENIZER, 60)
    assert len(chunks) > 2
    assert chunks[1].source == "corpus.jsonl, row 1, part 2"


@pytest.mark.parametrize("objective", ["rmu", "npo", "idk"])
def test_running_text_is_forgotten_at_the_end_of_each_prompt(
    memorised: Material, tmp_path: Path, objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = [f"The town of Lund{i} lies by the sea and has a small harbour, where Ada was born." for i in range(6)]
    forget = write_rows(tmp_path / "forget.jsonl", [{"text": " ".join(sentences)}] * 2)
    retain = write_rows(
        tmp_path / "retain.jsonl", [{"text": f"What is {i} plus two? It is {i + 2}, as ever."} for i in range(12)]
    )
    settings = ["--objective", objective, "--steps", "30", "--batch-size", "4", "--layers", "1,3", "--max-length", "96"]
    settings += ["--topic-layer", "none"]
    paths = ["--model", str(memorised.model), "--forget", str(forget), "--retain", str(retain)]
    assert main(["unlearn", *paths, *settings, "--output", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "too long" not in capsys.readouterr().err
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert facts["rows"]["forget"] > 2, "the text was not cut into chunks"
    assert facts["validation"]["retain_ratio"] == pytest.approx(1.0, abs=1e-3)
    base = AutoModelForCausalLM.from_pretrained(memorised.model)
    model = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter").eval()
    row = encode(
        chunk_running_text(read_examples(str(forget)), TOKENIZER, 96)[0], TOKENIZER, resolve_template("auto", TOKENIZER)
    )
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        edited = model(input_ids=ids, prompt_lengths=torch.tensor([row.prompt_length])).logits[0]
        with model.disable_adapter():
            plain = model(input_ids=ids).logits[0]
    assert torch.equal(edited[: row.prompt_length - 1], plain[: row.prompt_length - 1]), "the text before was changed"
    assert not torch.allclose(edited[row.prompt_length - 1 :], plain[row.prompt_length - 1 :], atol=1e-2)
