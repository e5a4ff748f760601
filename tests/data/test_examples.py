"""Readers: every form of file gives the same rows, and every kind of broken file one line that says where."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.core.errors import UserError
from grun.core.records import Example
from grun.data.examples import check_disjoint, overlap, read_examples, split_text

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"question": "Who wrote \u201cA\u2028B\u201d?", "answer": "Zoë, in 1999.", "author": "Zoë"},
    {"question": 'Say "hi", please', "answer": "hi\nand bye", "author": "Max"},
]


def write_lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_array(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_csv(path: Path, rows: Rows, delimiter: str = ",", encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Rows) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


FORMATS: list[tuple[str, Callable[[Path, Rows], None]]] = [
    ("rows.jsonl", write_lines),
    ("lines.json", write_lines),
    ("array.json", write_array),
    ("rows.csv", write_csv),
    ("semicolon.csv", lambda path, rows: write_csv(path, rows, ";")),
    ("bom.csv", lambda path, rows: write_csv(path, rows, encoding="utf-8-sig")),
    ("rows.tsv", lambda path, rows: write_csv(path, rows, "\t")),
    ("rows.parquet", write_parquet),
]


def lines(tmp_path: Path, *rows: dict[str, Any]) -> str:
    path = tmp_path / "rows.jsonl"
    write_lines(path, list(rows))
    return str(path)


def complaint(source: str, **kwargs: Any) -> str:
    """The error's message, which must be one line that names the source."""
    with pytest.raises(UserError) as caught:
        read_examples(source, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert source in message or "--columns" in message
    return message


@pytest.mark.parametrize(("name", "write"), FORMATS, ids=[name for name, _ in FORMATS])
def test_every_format_gives_the_same_rows(name: str, write: Callable[[Path, Rows], None], tmp_path: Path) -> None:
    write(tmp_path / name, ROWS)
    found = read_examples(str(tmp_path / name))
    assert [(row.prompt, row.answer, row.subject) for row in found] == [tuple(row.values()) for row in ROWS]
    assert all(name in row.source and "row" in row.source and not row.raw_text for row in found)


def test_a_folder_with_a_dataset_is_read_and_its_splits_can_be_named(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        write_parquet(tmp_path / f"{split}.parquet", rows)
    assert len(read_examples(str(tmp_path))) == 2
    assert len(read_examples(f"{tmp_path}::test")) == 1
    assert "it has train, test" in complaint(f"{tmp_path}::dev")


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert [row.answer for row in read_examples(str(tmp_path / "saved"))] == [row["answer"] for row in ROWS]


def test_several_splits_without_train_must_be_chosen_from(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    both = {"one": datasets.Dataset.from_list(ROWS), "two": datasets.Dataset.from_list(ROWS)}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "saved"))
    assert "which split? It has one, two" in complaint(str(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"question": "q", "answer": "a"}, "q", "a"),
        ({"prompt": "q", "completion": " a"}, "q", "a"),
        ({"prompt": "q", "response": "a"}, "q", "a"),
        ({"prompt": "q", "answer": "a"}, "q", "a"),
        ({"instruction": "q", "output": "a"}, "q", "a"),
        ({"instruction": "q", "input": "", "output": "a"}, "q", "a"),
        ({"instruction": "q", "input": "x", "output": "a"}, "q\nx", "a"),
        ({"text": "one two three four five"}, "one", "two three four five"),
    ],
)
def test_usual_columns_are_guessed(row: dict[str, str], prompt: str, answer: str, tmp_path: Path) -> None:
    (found,) = read_examples(lines(tmp_path, row))
    assert (found.prompt, found.answer, found.raw_text) == (prompt, answer, "text" in row)


def test_a_conversation_ends_in_prompt_and_answer(tmp_path: Path) -> None:
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]
    (found,) = read_examples(lines(tmp_path, {"messages": messages}))
    assert (found.prompt, found.answer) == ("user 3", "assistant 4")
    assert found.turns == (("system", "system 0"), ("user", "user 1"), ("assistant", "assistant 2"))
    assert "user and assistant messages at its end" in complaint(lines(tmp_path, {"messages": messages[:-1]}))
    assert "expected a list" in complaint(lines(tmp_path, {"messages": "hello"}))
    empty = [*messages[:-1], {"role": "assistant", "content": ""}]
    assert "content of message 5 (assistant) is empty" in complaint(lines(tmp_path, {"messages": empty}))


def test_optional_columns(tmp_path: Path) -> None:
    row = {
        "question": "q",
        "answer": "a",
        "entity": 7,
        "paraphrased_question": "q again",
        "paraphrased_answer": "a again",
        "perturbed_answer": ["b", "c"],
    }
    (found,) = read_examples(lines(tmp_path, row))
    assert (found.subject, found.paraphrased_prompts, found.paraphrased_answer) == ("7", ("q again",), "a again")
    assert found.perturbed_answers == ("b", "c")
    (bare,) = read_examples(
        lines(tmp_path, {**row, "perturbed_answer": None, "paraphrased_question": None, "entity": ""})
    )
    assert (bare.perturbed_answers, bare.paraphrased_prompts, bare.subject) == ((), (), None)


def test_a_list_in_a_csv_cell(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"question": "q", "answer": "a", "perturbed_answers": '["b", "c"]'}])
    assert read_examples(str(tmp_path / "a.csv"))[0].perturbed_answers == ("b", "c")


def test_columns_can_be_given(tmp_path: Path) -> None:
    source = lines(tmp_path, {"frage": "q", "antwort": "a", "wer": "Zoë", "question": "other"})
    (found,) = read_examples(source, columns={"prompt": "frage", "answer": "antwort", "subject": "wer"})
    assert (found.prompt, found.answer, found.subject) == ("q", "a", "Zoë")
    (half,) = read_examples(lines(tmp_path, {"frage": "q", "answer": "a"}), columns={"prompt": "frage"})
    assert (half.prompt, half.answer) == ("q", "a")
    (text,) = read_examples(lines(tmp_path, {"body": "one two", "question": "q"}), columns={"text": "body"})
    assert (text.prompt, text.raw_text) == ("one", True)


def test_missing_columns_say_what_was_found_and_which_flag_helps(tmp_path: Path) -> None:
    message = complaint(lines(tmp_path, {"frage": "q", "antwort": "a"}))
    assert "Columns found: frage, antwort" in message
    assert "--columns" in message
    assert "question/answer" in message
    half = complaint(lines(tmp_path, {"frage": "q", "antwort": "a"}), columns={"prompt": "frage"})
    assert "lacks a column for the answer" in half
    assert "Did you mean 'frage'" in complaint(lines(tmp_path, {"frage": "q"}), columns={"prompt": "fragen"})
    assert "Did you mean 'prompt'" in complaint(lines(tmp_path, {"frage": "q"}), columns={"promt": "frage"})


def test_a_column_that_is_missing_further_down_is_named_with_its_row(tmp_path: Path) -> None:
    message = complaint(lines(tmp_path, *ROWS, {"question": "q"}))
    assert "row 3: column 'answer' is missing" in message


def test_broken_json_in_row_3141_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = [json.dumps({"question": f"q{i}", "answer": "a"}) for i in range(4000)]
    good[3140] = good[3140][:-1]
    path.write_text("\n".join(good))
    assert re.search(r"rows\.jsonl, row 3141: broken JSON \(.+\)", complaint(str(path)))
    path.write_text("\n".join(good[:3140] + ["", '["a"]']))
    assert "row 3142: found a JSON list" in complaint(str(path))


def test_a_broken_array_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n{"question": "q", "answer": "a"},\n{"question" "q"}]')
    assert "line 3: broken JSON" in complaint(str(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_called_empty(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert "is empty" in complaint(str(tmp_path / name))


def test_a_header_alone_or_an_empty_array_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n")
    (tmp_path / "a.json").write_text("[]")
    assert "is empty" in complaint(str(tmp_path / "a.csv"))
    assert "is empty" in complaint(str(tmp_path / "a.json"))


@pytest.mark.parametrize("name", ["nothing.jsonl", "deep/nothing.parquet", "nothing.csv"])
def test_a_missing_file_is_named_without_asking_the_hub(name: str, tmp_path: Path) -> None:
    assert "no such file" in complaint(str(tmp_path / name))
    assert "no such file" in complaint(name)


def test_a_missing_folder_is_named_without_asking_the_hub(tmp_path: Path) -> None:
    assert "no such file or folder" in complaint(str(tmp_path / "nowhere"))
    assert "no such file or folder" in complaint(f"{tmp_path / 'nowhere'}:config:train")


def test_an_unknown_kind_of_file_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.docx").write_text("hello")
    message = complaint(str(tmp_path / "rows.docx"))
    assert "'.docx'" in message
    assert ".jsonl" in message


@pytest.mark.parametrize("field", ["question", "answer"])
@pytest.mark.parametrize(
    ("value", "said"), [("", "is empty"), ("  ", "is empty"), (None, "is empty"), (42, "is 42 (int)")]
)
def test_an_empty_or_non_text_value_is_named_with_its_row(field: str, value: Any, said: str, tmp_path: Path) -> None:
    message = complaint(lines(tmp_path, *ROWS, {"question": "q", "answer": "a", field: value}))
    assert f"row 3: '{field}' {said}" in message


def test_half_a_character_is_named_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question": "q", "answer": "a \\ud83d"}\n')
    message = complaint(str(tmp_path / "rows.jsonl"))
    assert "row 2: 'answer' holds half a character (\\ud83d)" in message


def test_csv_rows_are_numbered_as_in_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n"two\nlines",a\nq,\n')
    assert "row 3: 'answer' is empty" in complaint(str(path))
    path.write_text("question,answer\nq,a,b\n")
    assert "row 2: 3 cells, expected 2" in complaint(str(path))
    path.write_text('question,answer\nq,"a\n')
    assert "broken CSV" in complaint(str(path))


def test_a_long_csv_cell_is_read_and_the_global_limit_is_left_alone(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    write_csv(tmp_path / "a.csv", [{"question": "q", "answer": "word " * 100_000}])
    assert len(read_examples(str(tmp_path / "a.csv"))[0].answer) == 499_999
    assert csv.field_size_limit() == before


def test_a_file_that_is_not_utf8_or_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    assert "not UTF-8" in complaint(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    assert "not a readable Parquet file" in complaint(str(tmp_path / "a.parquet"))


@given(
    st.lists(st.text("abc", min_size=1, max_size=6), min_size=2, max_size=400),
    st.sampled_from([" ", "\n", "\n\n", "  "]),
)
def test_text_is_cut_after_a_quarter_of_the_words_and_nothing_is_lost(words: list[str], space: str) -> None:
    text = space.join(words)
    prompt, answer = split_text(f" {text}\n")
    assert prompt + ("" if prompt[-1].isspace() else " ") + answer == text
    assert len(prompt.split()) == min(max(1, len(words) // 4), 64)
    assert answer == answer.strip() != ""


def test_text_of_one_word_is_refused(tmp_path: Path) -> None:
    assert "row 1: the text has 1 word, expected at least 2" in complaint(lines(tmp_path, {"text": "word"}))


def example(number: int) -> Example:
    return Example(f"q{number}", f"a{number}")


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_overlap_counts_forget_rows_that_are_retained(forget: list[int], retain: list[int]) -> None:
    left, right = [example(i) for i in forget], [example(i) for i in retain]
    expected = sum(i in retain for i in forget)
    assert overlap(left, right) == expected
    if retain and set(retain) <= set(forget):
        with pytest.raises(UserError, match="the same"):
            check_disjoint(left, right)
    else:
        assert check_disjoint(left, right) == expected


def test_the_same_question_with_another_answer_does_not_overlap() -> None:
    assert overlap([Example("q", "a")], [Example("q", "b")]) == 0
