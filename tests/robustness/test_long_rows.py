"""Rows of a megabyte, and many rows, take no more work than what is kept of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from grun.cli.main import main
from grun.core.records import Evidence, Example, RowEvidence
from grun.evaluation.metrics import metrics
from grun.jobs.inputs.unlearning import withhold
from grun.models.encoding.chunking import chunk_running_text
from grun.models.encoding.encode import encode
from grun.models.encoding.templates import plain_ids, resolve_template
from support.material import Material, invented_rows, write_rows
from support.tiny_models import tiny_tokenizer

LONG = {
    "words": "Where is the sea of Lund? " * 40_000,
    "one word": "a" * 1_000_000,
    "spaces": "x" + " " * 999_998 + "y",
    "no spaces": "海在哪里" * 250_000,
    "lines": "sea\n" * 250_000,
}
ROOM = 256


class Counting:
    """A tokenizer that counts the characters that it is given."""

    def __init__(self, kind: str) -> None:
        self.own = tiny_tokenizer(kind)
        self.characters = 0

    def __call__(self, text: str | list[str], **settings: object) -> object:
        self.characters += len(text) if isinstance(text, str) else sum(map(len, text))
        return self.own(text, **settings)

    def __getattr__(self, name: str) -> object:
        return getattr(self.own, name)


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@pytest.mark.parametrize("text", ["words", "one word", "no spaces", "lines"])
def test_of_a_long_answer_only_its_beginning_is_tokenised_and_the_row_is_the_same(text: str, kind: str) -> None:
    tokenizer = Counting(kind)
    template = resolve_template("qa", tokenizer.own)
    example = Example("Where is it?", LONG[text].strip())
    found = encode(example, tokenizer, template, ROOM)  # type: ignore[arg-type]
    assert tokenizer.characters < 100 * ROOM
    whole = encode(Example("Where is it?", LONG[text].strip()[:20_000]), tokenizer.own, template)
    assert found.input_ids == whole.input_ids[:ROOM]
    every = len(plain_ids(tokenizer.own, LONG[text]))
    assert found.truncated == pytest.approx(every, rel=0.1)


@pytest.mark.parametrize("text", list(LONG))
def test_a_long_prompt_is_refused_before_all_of_it_is_tokenised(text: str) -> None:
    tokenizer = Counting("bytes")
    template = resolve_template("qa", tokenizer.own)
    with pytest.raises(ValueError, match="the prompt is longer than the model's context"):
        encode(Example(LONG[text], "a"), tokenizer, template, ROOM)  # type: ignore[arg-type]
    assert tokenizer.characters < 100 * ROOM


def test_running_text_is_cut_with_work_in_proportion_to_its_length() -> None:
    text = LONG["words"]
    pieces = chunk_running_text([Example(text[:26], text[26:].strip(), raw_text=True)], tiny_tokenizer(), ROOM)
    assert len(pieces) > 1000
    assert "".join(f"{one.prompt} {one.answer}" for one in pieces).split()[:50] == text.split()[:50]
    assert sum(len((one.prompt + " " + one.answer).split()) for one in pieces) == len(text.split())


def test_rouge_is_that_of_the_package() -> None:
    words = ["running", "runs", "Sea", "the", "it's", "München", "42", "x-ray", "", "..."]
    chance, pairs = random.Random(0), []
    for _ in range(300):
        pairs.append([" ".join(chance.choices(words, k=chance.randint(1, 12))) + " a" for _ in range(2)])
    rows = tuple(RowEvidence(Example("q", gold), (), generated=said) for gold, said in pairs)
    package = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for name, kind, side in (
        ("rouge_l_recall", "rougeL", "recall"),
        ("rouge_1_recall", "rouge1", "recall"),
        ("rouge_l_f1", "rougeL", "fmeasure"),
    ):
        found = metrics.get(name).target(Evidence("forget", rows))
        expected = [getattr(package.score(gold, said)[kind], side) for gold, said in pairs]
        assert found.per_row == tuple(expected)


@pytest.fixture
def within(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str], float], tuple[int, str]]:
    """Runs a command, which may take so many seconds of the processor; gives its exit code and what it said."""

    def run(words: list[str], seconds: float) -> tuple[int, str]:
        started = time.process_time()
        code = main(words)
        assert time.process_time() - started < seconds
        return code, capsys.readouterr().err

    return run


def test_twenty_rows_of_a_megabyte(material: Material, within: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}?", "answer": f"{LONG[kind]} {i}"} for i, kind in enumerate(list(LONG) * 4)]
    file = write_rows(tmp_path / "rows.jsonl", [*invented_rows("Lund", 8), *rows])
    common = ["--model", str(material.model), "--device", "cpu"]
    learn = ["--retain", str(material.retain), "--layers", "1,3", "--topic-layer", "none", "--steps", "2"]
    code, said = within(["unlearn", *common, *learn, "--forget", str(file), "--output", str(tmp_path / "run")], 40)
    assert code == 0
    assert "20 of 28 rows were too long" in said
    look = ["--data", f"forget={file}", "--max-new-tokens", "4", "--no-figures", "--output", str(tmp_path / "looked")]
    assert within(["evaluate", *common, *look], 40)[0] == 0
    asked = write_rows(tmp_path / "asked.jsonl", [{"question": row["answer"], "answer": "a"} for row in rows])
    code, said = within(["unlearn", *common, *learn, "--forget", str(asked), "--output", str(tmp_path / "no")], 20)
    assert code == 2
    assert "asked.jsonl, row 1: the prompt is longer" in said


def test_many_short_rows_are_withheld_in_one_pass() -> None:
    rows = [Example(f"q{i}", f"a{i}") for i in range(200_000)]
    started = time.process_time()
    learn, kept = withhold(rows, 0.25, 0)
    assert time.process_time() - started < 20
    assert (len(learn), len(kept)) == (150_000, 50_000)
