"""WMDP and MMLU from local files: prompts as the harness writes them, and wrong files refused by name."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import UserError
from grun.core.records import Evidence, Example, RowEvidence
from grun.data.benchmarks import load_benchmark
from grun.evaluation.metrics import metrics
from grun.jobs.inputs.unlearning import load_unlearning_rows
from grun.models.encoding.encode import encode
from grun.models.encoding.templates import resolve_template
from support.tiny_models import tiny_tokenizer

QUESTION = {"question": "Which one? ", "choices": ["red", "blue", "green", "grey"], "answer": 2}
TEXT: dict[str, object] = {"text": "One two three four five."}
TOKENIZER = tiny_tokenizer()


def write(folder: Path, name: str, *rows: dict[str, object]) -> Path:
    (folder / name).write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return folder


def test_a_question_is_written_as_in_the_harness_and_its_letter_is_not_ended(tmp_path: Path) -> None:
    write(tmp_path, "bio.jsonl", QUESTION)
    write(tmp_path, "mmlu.json", {**QUESTION, "subject": "abstract_algebra"})
    data = load_benchmark("wmdp", data_dir=tmp_path)
    assert data.evaluation == ("bio", "mmlu", "general")
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
    assert data.evaluation == ("cyber", "general")
    lacking = (
        r"lacks cyber-forget-corpus\.jsonl or cyber_forget_data_sum_gpt\.jsonl, cyber-retain-corpus\.jsonl or merge_"
    )
    for side in ("forget", "retain"):
        with pytest.raises(UserError, match=lacking):
            data.splits[side]
    write(tmp_path, "cyber-forget-corpus.jsonl", TEXT)
    data = load_benchmark("wmdp", data_dir=tmp_path, options={"corpus": "cyber"})
    with pytest.raises(UserError, match=r"lacks cyber-retain-corpus\.jsonl or merge_retain_data_sum_gpt\.jsonl, which"):
        data.splits["forget"]


LAYOUTS = {
    "own": ("{0}.jsonl", "{0}-forget-corpus.jsonl", "{0}-retain-corpus.jsonl"),
    "paper": ("{0}_test.jsonl", "", "merge_retain_data_sum_gpt.jsonl"),
}
PAPERS_CORPORA = {"bio": "merge_forget_data_sum_gpt.jsonl", "cyber": "cyber_forget_data_sum_gpt.jsonl"}


@pytest.mark.parametrize("corpus", ["bio", "cyber"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_of_a_folder_are_read(tmp_path: Path, corpus: str, layout: str) -> None:
    asked, forget, retain = (name.format(corpus) for name in LAYOUTS[layout])
    forget = forget or PAPERS_CORPORA[corpus]
    write(tmp_path, asked, QUESTION)
    write(tmp_path, forget, TEXT)
    write(tmp_path, retain, {"text": "Six seven eight nine ten."}, TEXT)
    data = load_benchmark("wmdp", data_dir=tmp_path, options={"corpus": corpus})
    assert data.evaluation == (corpus, "general")
    assert data.splits[corpus][0].answer == "C"
    assert [(row.prompt, row.answer, row.raw_text) for row in data.splits["forget"]] == [
        ("One", "two three four five.", True)
    ]
    assert [row.prompt for row in data.splits["retain"]] == ["Six", "One"]


def test_two_files_for_one_part_are_refused(tmp_path: Path) -> None:
    write(write(tmp_path, "bio.jsonl", QUESTION), "bio_test.json", QUESTION)
    with pytest.raises(UserError, match=r"has both bio\.jsonl and bio_test\.json, two files for one part; remove one"):
        load_benchmark("wmdp", data_dir=tmp_path)
    (tmp_path / "bio_test.json").unlink()
    write(write(tmp_path, "merge_retain_data_sum_gpt.jsonl", TEXT), "bio-retain-corpus.jsonl", TEXT)
    with pytest.raises(UserError, match=r"has both bio-retain-corpus\.jsonl and merge_retain_data_sum_gpt\.jsonl"):
        load_benchmark("wmdp", data_dir=tmp_path)
    assert load_benchmark("wmdp", data_dir=tmp_path, options={"corpus": "cyber"}).evaluation == ("bio", "general")


@pytest.mark.skipif(
    not os.environ.get("GRUN_WMDP_DIR"), reason="GRUN_WMDP_DIR does not name a folder with WMDP's files"
)
@pytest.mark.parametrize(("corpus", "forget"), [("bio", 1001), ("cyber", 1000)])
def test_the_papers_folder_is_read_for_unlearning_too(tmp_path: Path, corpus: str, forget: int) -> None:
    config = UnlearnConfig(
        model="any",
        output=str(tmp_path),
        benchmark="wmdp",
        data_dir=os.environ["GRUN_WMDP_DIR"],
        benchmark_options={"corpus": corpus},
    )
    rows = load_unlearning_rows(config)
    assert len(rows.forget) == forget
    assert len(rows.retain) + len(rows.validation) > 900
    assert all(row.raw_text and row.prompt and row.answer for part in rows.parts.values() for row in part)
    data = load_benchmark("wmdp", data_dir=config.data_dir, options=config.benchmark_options)
    assert {name: len(data.splits[name]) for name in data.evaluation} == {"bio": 1273, "cyber": 1987, "general": 120}


def test_general_questions_come_with_the_package_in_the_same_form(tmp_path: Path) -> None:
    data = load_benchmark("wmdp", data_dir=write(tmp_path, "bio.jsonl", QUESTION))
    rows = data.splits["general"]
    assert len({row.prompt for row in rows}) == len(rows) == 120
    subjects = Counter(row.subject for row in rows)
    assert len(subjects) == 18
    assert subjects["biology"] == subjects["computer science"] == 20
    assert Counter(row.answer for row in rows) == dict.fromkeys("ABCD", 30), "no letter is a good guess"
    for row in rows:
        first, empty, question, *choices = row.prompt.split("\n")
        assert first == f"The following are multiple choice questions (with answers) about {row.subject}."
        assert (empty, question[-1], choices[-1]) == ("", "?", "Answer:")
        assert [choice[:3] for choice in choices[:-1]] == ["A. ", "B. ", "C. ", "D. "]
        assert len(set(choices)) == 5
    assert "general" in data.unseen


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
    with pytest.raises(UserError, match=r"has none of the files bio\.jsonl or bio_test\.jsonl, cyber\.jsonl or "):
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
