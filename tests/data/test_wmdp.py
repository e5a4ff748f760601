"""WMDP and MMLU from local files: prompts as the harness writes them, and wrong files refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grun.core.errors import UserError
from grun.core.records import Evidence, Example, RowEvidence
from grun.data.benchmarks import load_benchmark
from grun.evaluation.metrics import metrics
from grun.models.encoding.encode import encode
from grun.models.encoding.templates import resolve_template
from support.tiny_models import tiny_tokenizer

QUESTION = {"question": "Which one? ", "choices": ["red", "blue", "green", "grey"], "answer": 2}
TOKENIZER = tiny_tokenizer()


def write(folder: Path, name: str, *rows: dict[str, object]) -> Path:
    (folder / name).write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return folder


def test_a_question_is_written_as_in_the_harness_and_its_letter_is_not_ended(tmp_path: Path) -> None:
    write(tmp_path, "bio.jsonl", QUESTION)
    write(tmp_path, "mmlu.json", {**QUESTION, "subject": "abstract_algebra"})
    data = load_benchmark("wmdp", data_dir=tmp_path)
    assert data.evaluation == ("bio", "mmlu")
    example = data.splits["bio"][0]
    head = "The following are multiple choice questions (with answers) about"
    assert example.prompt == f"{head} biology.\n\nWhich one?\nA. red\nB. blue\nC. green\nD. grey\nAnswer:"
    assert data.splits["mmlu"][0].prompt.startswith(f"{head} abstract algebra.\n\n")
    assert (example.answer, example.perturbed_answers) == ("C", ("A", "B", "D"))
    encoded = encode(example, TOKENIZER, resolve_template("auto", TOKENIZER))
    assert TOKENIZER.decode(list(encoded.input_ids[encoded.prompt_length :])) == " C"
    assert TOKENIZER.eos_token_id not in encoded.input_ids


def test_only_what_is_there_is_asked_and_a_corpus_only_read_to_unlearn(tmp_path: Path) -> None:
    data = load_benchmark("wmdp", data_dir=write(tmp_path, "cyber.jsonl", QUESTION), options={"corpus": "cyber"})
    assert data.evaluation == ("cyber",)
    with pytest.raises(UserError, match=r"has no file cyber-forget-corpus\.jsonl"):
        data.splits["forget"]
    write(tmp_path, "cyber-forget-corpus.jsonl", {"text": "One two three four five."})
    assert data.splits["forget"][0].raw_text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, "'answer' is 4, expected an index from 0 to 3"),
        ({"answer": "C"}, "'answer' is 'C'"),
        ({"answer": None}, "column 'answer' is missing or empty"),
        ({"answer": True}, "'answer' is True"),
        ({"choices": "red"}, "'choices' is 'red', expected a list"),
        ({"choices": ["red"]}, "expected a list of 2 to 10"),
        ({"question": None}, "column 'question' is missing"),
    ],
)
def test_a_wrong_question_is_named_with_its_row(tmp_path: Path, change: dict[str, object], message: str) -> None:
    data = load_benchmark("wmdp", data_dir=write(tmp_path, "bio.jsonl", QUESTION, {**QUESTION, **change}))
    with pytest.raises(UserError, match=r"bio\.jsonl, row 2: ") as caught:
        data.splits["bio"]
    assert message in str(caught.value)


def test_wrong_folders_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has none of the files bio\.jsonl"):
        load_benchmark("wmdp", data_dir=tmp_path)
    with pytest.raises(UserError, match="option 'corpus' is 'chem', expected one of bio, cyber"):
        load_benchmark("wmdp", data_dir=tmp_path, options={"corpus": "chem"})
    data = load_benchmark("wmdp", data_dir=write(tmp_path, "bio.jsonl"))
    with pytest.raises(UserError, match=r"bio\.jsonl is empty"):
        data.splits["bio"]


def choice(place: int, *logps: float) -> RowEvidence:
    letters = tuple("ABCD"[: len(logps)])
    others = letters[:place] + letters[place + 1 :]
    example = Example("Which?", letters[place], perturbed_answers=others, choices=letters)
    wrong = tuple((logp,) for i, logp in enumerate(logps) if i != place)
    return RowEvidence(example, (logps[place],), perturbed_logps=wrong)


def accuracy(*rows: RowEvidence) -> float | None:
    return metrics.get("accuracy").target(Evidence("bio", rows)).value


def test_the_likeliest_answer_counts_and_of_equal_ones_the_first() -> None:
    assert accuracy(choice(2, -3.0, -2.0, -1.0, -4.0), choice(0, -3.0, -2.0)) == 0.5
    assert accuracy(choice(0, -1.0, -1.0)) == 1.0
    assert accuracy(choice(1, -1.0, -1.0)) == 0.0
    assert accuracy(choice(1, -1.0, float("nan"))) is None
    plain = RowEvidence(Example("Who?", "Ada."), (-1.0,), perturbed_logps=((-2.0,),))
    assert "not multiple-choice" in str(metrics.get("accuracy").target(Evidence("forget", (plain,))).reason)
