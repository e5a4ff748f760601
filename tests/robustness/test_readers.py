"""Readers of data meet damaged files of every kind with one line that names them, and read what can be read."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from grun.cli.main import main
from grun.core.errors import UserError
from grun.data import content as contents
from grun.data.examples import read_examples
from support.damaged_files import POINTER, as_bytes, damaged_bytes, damaged_values
from support.material import invented_rows, write_rows

ROWS: list[dict[str, Any]] = invented_rows("Lund", 6)
RICH = {
    **ROWS[0],
    "subject": "Ada",
    "paraphrased_question": ["Where?"],
    "paraphrased_answer": "There.",
    "perturbed_answer": ["Here."],
    "alternative_answer": "No.",
}
TALK = {"messages": [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]}
Said = Callable[[Sequence[str]], str]


def in_format(suffix: str) -> bytes:
    """The rows in a format."""
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
        return sink.getvalue().to_pybytes()
    if suffix == ".json":
        return as_bytes(ROWS)
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    sign = "," if suffix == ".csv" else "\t"
    return "\n".join([f"question{sign}answer", *(f"{r['question']}{sign}{r['answer']}" for r in ROWS)]).encode()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command that must be refused; returns the one line that it says."""

    def run(arguments: Sequence[str]) -> str:
        code = main([str(one) for one in arguments])
        shown = capsys.readouterr()
        lines = shown.err.splitlines()
        assert code == 2, f"exit code {code}: {shown.err}"
        assert "Traceback" not in shown.err
        assert all(line.startswith("grun: ") for line in lines)
        assert lines[-1].isprintable()
        assert len(lines[-1]) < 1500
        return lines[-1]

    return run


def unlearn(forget: Path | str) -> list[str]:
    """A command whose only other fault is found once its rows were read."""
    return [
        "unlearn",
        "--model",
        "./no-such-model",
        "--topic-layer",
        "none",
        "--forget",
        str(forget),
        "--output",
        "never",
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_damaged_files_of_every_format(
    suffix: str, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, harmless = tmp_path / f"rows{suffix}", list[str]()
    for seed in range(2):
        for name, content in damaged_bytes(in_format(suffix), seed).items():
            file.write_bytes(content)
            line = said(unlearn(file))
            assert "no-such-model" in line or str(file) in line, f"{name}: {line}"
            assert "permission" not in line, f"{name}: {line}"
            if "no-such-model" in line:
                harmless.append(name)
    assert not [
        one for one in harmless if not one.startswith(("cut", "1 bytes", "8 bytes", "64 bytes", "twice", "Latin-1"))
    ]
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("row", [RICH, TALK], ids=["columns", "conversation"])
def test_rows_with_wrong_values(
    row: dict[str, Any], said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, refused = tmp_path / "rows.jsonl", 0
    for name, changed in damaged_values(row, depth=3):
        file.write_bytes(as_bytes(row) + b"\n" + as_bytes(changed) + b"\n" + as_bytes(row) * 0)
        line = said(unlearn(file))
        refused += "rows.jsonl, row 2" in line
        assert "rows.jsonl, row 2" in line or "no-such-model" in line or "--forget has" in line, f"{name}: {line}"
    assert refused >= 40


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "unlearn --forget": unlearn,
    "unlearn --retain": lambda file: [*unlearn("good.jsonl"), "--retain", file],
    "unlearn --neighbours": lambda file: [*unlearn("good.jsonl"), "--retain", "good2.jsonl", "--neighbours", file],
    "evaluate": lambda file: [
        "evaluate",
        "--model",
        "./no-such-model",
        "--output",
        "never",
        "--data",
        f"forget={file}",
    ],
    "finetune": lambda file: ["finetune", "--model", "./no-such-model", "--output", "never", "--data", file],
    "calibrate": lambda file: [
        *("calibrate", "--model", "./no-such-model", "--adapter", "./no-such-adapter", "--output", "never"),
        *("--normal", file),
    ],
    "request add": lambda file: ["request", "add", file, "--model", "./no-such-model", "--ledger", "never"],
    "refusals": lambda file: [*unlearn("good.jsonl"), "--objective", "idk", "--refusals", file],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_rows(
    command: str, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "good.jsonl", ROWS)
    write_rows(tmp_path / "good2.jsonl", invented_rows("Marl", 20))
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    contents = {
        "pointer": POINTER,
        "zeros": bytes(100),
        "UTF-16": "question".encode("utf-16"),
        "Latin-1": b"\xe9\n",
        "gzip": damaged_bytes(b"x")["gzip"],
        "empty": b"",
    }
    files = {
        "loop": "loop.jsonl",
        "folder": "folder.jsonl",
        "zero": "/dev/zero",
        "null": "/dev/null",
        "long": "x" * 300,
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.jsonl").write_bytes(content)
        files[name] = f"{name}.jsonl"
    files["evil"] = "evil\x1b[2J\u202e.jsonl"
    write_rows(tmp_path / files["evil"], ROWS)
    for name, file in files.items():
        line = said(COMMANDS[command](file))
        assert name in line or "at most 255" in line, f"{name}: {line}"
    assert "unpack" in said(COMMANDS[command](files["gzip"]))
    assert "git lfs pull" in said(COMMANDS[command](files["pointer"]))


def refusal(content: bytes | str, tmp_path: Path, name: str = "rows.jsonl") -> str:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        read_examples(str(file))
    assert str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.csv", "question,answer,answer\nq,a,b\n", "'answer' is there twice"),
        ("rows.jsonl", '{"question": "q", "answer": "a", "answer": "b"}', "row 1: the column 'answer' is there twice"),
        ("rows.json", '[{"question": "q", "question": "p", "answer": "a"}]', "'question' is there twice"),
        ("rows.jsonl", '{"question": "q", "answer": NaN}', "row 1: 'answer' is nan"),
        ("rows.jsonl", '{"question": "q", "answer": -Infinity}', "'answer' is -inf"),
        ("rows.jsonl", '{"question": "q", "answer": 1e999}', "'answer' is inf"),
        ("rows.jsonl", '{"question": "q", "answer": ' + "9" * 5000 + "}", "row 1: a number has too many digits"),
        ("rows.jsonl", '{"question": "q", "answer": ' + "[" * 9000 + "]" * 9000 + "}", "nested too deeply"),
        ("rows.json", "[" + '{"question": "q", "answer": "a"},' * 300_000 + "]", "rows.json, line 1: broken JSON"),
        ("rows.csv", in_format(".jsonl").decode(), "is JSON, expected CSV"),
        ("rows.parquet", in_format(".jsonl").decode(), "it holds JSON"),
        ("rows.jsonl", in_format(".parquet"), "is a Parquet file"),
        ("rows.jsonl", '{"question": "q", "answer": "a"}'.encode("utf-16-le"), "is zero, so this is no text"),
        ("rows.csv", 'question,answer\nq,a\nq,"a\n', "rows.csv, line 3: broken CSV"),
        ("rows.jsonl", '{"messages": [{"content": "a"}, {"role": "user", "content": "b"}]}', "role of message 1"),
        ("rows.parquet", in_format(".parquet")[:-20], "cut off, or is damaged"),
    ],
)
def test_what_is_wrong_is_said(name: str, content: bytes | str, words: str, tmp_path: Path) -> None:
    assert words in refusal(content, tmp_path, name)


def test_duplicate_columns_of_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table([["q"], ["a"], ["b"]], names=["question", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="'answer' is there twice"):
        read_examples(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mac.jsonl", '{"question": "q", "answer": "a"}\r{"question": "p", "answer": "b"}\r'),
        ("dos.jsonl", '{"question": "q", "answer": "a"}\r\n{"question": "p", "answer": "b"}\r\n'),
        ("mark.jsonl", '\ufeff{"question": "q", "answer": "a"}\n{"question": "p", "answer": "b"}'),
        ("mac.csv", "question,answer\rq,a\rp,b"),
        ("mark.csv", "\ufeffquestion;answer\nq;a\np;b"),
        ("index.csv", ",question,answer\n0,q,a\n1,p,b"),
        ("without_ending", '[{"question": "q", "answer": "a"}, {"question": "p", "answer": "b"}]'),
        ("without_ending", "question,answer\nq,a\np,b"),
        ("UPPER.JSONL", '{"question": "q", "answer": "a"}\n{"question": "p", "answer": "b"}'),
        ("with:colon.jsonl", '{"question": "q", "answer": "a"}\n{"question": "p", "answer": "b"}'),
    ],
)
def test_what_can_be_read_is_read(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    found = read_examples(str(tmp_path / name))
    assert [(row.prompt, row.answer, row.subject, row.paraphrased_prompts) for row in found] == [
        ("q", "a", None, ()),
        ("p", "b", None, ()),
    ]


def test_a_column_list_stays_short(tmp_path: Path) -> None:
    line = refusal(json.dumps({f"column {i} {'x' * 100}": "x" for i in range(5000)}), tmp_path)
    assert len(line) < 1500
    assert "and 4980 more" in line


def test_damaged_datasets_in_folders(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "good"))
    for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow"):
        content = (tmp_path / "good" / name).read_bytes()
        for rule, damaged in damaged_bytes(content).items():
            (tmp_path / "good" / name).write_bytes(damaged)
            line = said(unlearn("./good"))
            assert "./good" in line or "no-such-model" in line, f"{name}, {rule}: {line}"
        (tmp_path / "good" / name).write_bytes(content)
    (tmp_path / "hollow").mkdir()
    assert "./hollow" in said(unlearn("./hollow"))
    assert "no-such-model" in said(unlearn("./good"))


def test_a_folder_that_holds_much_else_is_not_searched(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a home or the root of a file system; the library would search it for minutes."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("grun.data.tables.MOST_ENTRIES", 5)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("the folder was searched"))
    (tmp_path / "home" / "deep").mkdir(parents=True)
    for number in range(5):
        (tmp_path / "home" / "deep" / f"{number}.txt").touch()
    assert "more than 5 files and folders" in said(unlearn(tmp_path / "home"))


@pytest.mark.parametrize("name", ["rows", "cais/wmpd", "./rows", "rows:config:train", "a b", "~nobody/rows", "x/y/z"])
def test_a_mistyped_folder_or_hub_id_is_said_at_once(
    name: str, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("grun.core.hub.reachable", lambda: False)
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("the hub was asked"))
    assert name in said(unlearn(name))


def test_pipes_are_read_once_and_kept(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows")
    content = in_format(".jsonl")
    writer = threading.Thread(target=(tmp_path / "rows").write_bytes, args=(content,))
    writer.start()
    first = read_examples(str(tmp_path / "rows"))
    writer.join()
    assert [row.prompt for row in first] == [row["question"] for row in ROWS]
    assert read_examples(str(tmp_path / "rows")) == first


def test_a_pipe_that_brings_nothing_is_given_up_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contents, "PATIENCE", 0.1)
    os.mkfifo(tmp_path / "rows.jsonl")
    assert "nobody writes to it" in said(unlearn(tmp_path / "rows.jsonl"))


def test_a_pipe_without_end_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MOST_PIPED", 1 << 20)
    read, write = os.pipe()

    def pour() -> None:
        with open(write, "wb", buffering=0) as stream, contextlib.suppress(BrokenPipeError):  # noqa: PTH123
            while True:
                stream.write(bytes(1 << 16))

    thread = threading.Thread(target=pour)
    thread.start()
    with pytest.raises(UserError, match="more than 1 MiB came through the pipe"):
        read_examples(f"/dev/fd/{read}")
    os.close(read)
    thread.join()


def test_a_file_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(UserError, match=r"rows.jsonl: has 4096.0 GiB"):
        read_examples(str(tmp_path / "rows.jsonl"))


def test_rows_from_a_shell(tmp_path: Path) -> None:
    """`<(command)` and standard input, in a process of their own; a run resumes though its pipe has another number."""
    write_rows(tmp_path / "rows.jsonl", ROWS)
    script = (
        "import sys; from grun.data.examples import read_examples as read;"
        "print([len(read(name)) for name in sys.argv[1:] * 2])"
    )
    lines = f"""
    "{sys.executable}" -c '{script}' <(cat rows.jsonl) <(head -2 rows.jsonl)
    cat rows.jsonl | "{sys.executable}" -c '{script}' -
    "{sys.executable}" -c '{script}' /dev/stdin - < rows.jsonl
    """
    done = subprocess.run(["bash", "-c", lines], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout.split("\n")[:3] == ["[6, 2, 6, 2]", "[6, 6]", "[6, 6, 6, 6]"], done.stderr
    from grun.core.config.jobs import UnlearnConfig
    from grun.core.storage.run_directory import settings_difference

    was = {"forget": ["/dev/fd/63"], "retain": ["a.jsonl"]}
    assert settings_difference(was, UnlearnConfig(forget=["/dev/fd/62"], retain=["a.jsonl"])) == ""
    assert "--retain" in settings_difference(was, UnlearnConfig(forget=["-"], retain=["b.jsonl"]))


@pytest.mark.parametrize("benchmark", ["tofu", "wmdp", "muse"])
def test_damaged_benchmark_folders(benchmark: str, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    question = {"question": "Where?", "choices": ["a", "b"], "answer": 1}
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {
        "tofu": {
            name: invented_rows(name, 40)
            for name in (
                *("forget05_perturbed", "retain95", "retain_perturbed"),
                *("real_authors_perturbed", "world_facts_perturbed"),
            )
        },
        "wmdp": {
            "bio": [question] * 3,
            "mmlu": [{**question, "subject": "law"}] * 3,
            **{
                f"bio-{side}-corpus": [{"text": f"{side} text of several words {i}"} for i in range(8)]
                for side in ("forget", "retain")
            },
        },
        "muse": {
            "raw/forget": [{"text": f"a text of several words {i}"} for i in range(8)],
            "raw/retain1": [{"text": f"another text of several words {i}"} for i in range(8)],
            "verbmem/forget": [{"prompt": "a text", "gt": "of several"}],
            **{f"knowmem/{s}_qa{icl}": invented_rows(s, 2) for s in ("forget", "retain") for icl in ("", "_icl")},
            **{f"privleak/{name}": [{"text": "some words here"}] for name in ("forget", "holdout")},
        },
    }
    folder = tmp_path / "data"
    for name, own in rows[benchmark].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(folder / f"{name}.json", own)
    commands = [
        [*job, "--model", "./no-such-model", "--benchmark", benchmark, "--data-dir", str(folder), "--output", "never"]
        for job in (["unlearn", "--topic-layer", "none"], ["evaluate"])
    ]
    for command in commands:
        assert "no-such-model" in said(command)
    for name, own in rows[benchmark].items():
        file, content = folder / f"{name}.json", (folder / f"{name}.json").read_bytes()
        changed = [as_bytes(value) for _, value in damaged_values(own[0], depth=2)]
        lines = [own_line + b"\n" + content for own_line in changed]
        rules = list(damaged_bytes(content).values())[::6]
        for damaged in [*lines[::6], *rules]:
            file.write_bytes(damaged)
            for command in commands:
                line = said(command)
                assert str(file) in line or "no-such-model" in line or "--retain" in line, line
        file.unlink()
        assert all(name.split("/")[-1] in line or "no-such-model" in line for line in map(said, commands))
        file.write_bytes(content)
