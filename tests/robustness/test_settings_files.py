"""Files for --config that hold something else than settings, and sweeps that make no sense: one line, nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from grun.cli.main import main

Refuse = Callable[[list[str]], str]
BOMB = 'a: &a ["x", "x", "x", "x", "x", "x", "x", "x", "x"]\n' + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefghi", "bcdefghij", strict=True)
)
# name: (content, words of the message)
FILES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "empty": ("", ("is empty",)),
    "only a comment": ("# nothing\n", ("is empty",)),
    "list": ("- steps", ("list of 1",)),
    "text": ("steps", ("'steps'", "name: value")),
    "doubled key": ("steps: 1\nseed: 2\nsteps: 3\n", ("line 3", "'steps' is given twice", "line 1")),
    "doubled key in a mapping": ("trainer:\n  bf16: true\n  bf16: false\n", ("line 3", "'bf16'")),
    "doubled key in JSON": ('{"steps": 1, "steps": 2}', ("'steps' is given twice",)),
    "doubled key in two spellings": ("batch-size: 1\nbatch_size: 2\n", ("'batch_size' is given twice",)),
    "number as a name": ("1: 2", ("setting called 1",)),
    "unknown name": ("stepz: 1", ("unknown setting 'stepz'", "Did you mean 'steps'")),
    "endless name": ('? "' + "s" * 50_000 + '"\n: 1', ("50,000 characters",)),
    "python object": ('why: !!python/object/apply:os.system ["true"]', ("line 1", "python/object")),
    "python name": ("why: !!python/name:os.system", ("python/name",)),
    "wrong tag": ("steps: !!int many", ("not valid YAML",)),
    "impossible date": ("steps: 2024-99-99", ("month",)),
    "timestamp tag": ("steps: !!timestamp now", ("not valid YAML",)),
    "date for a text": ("objective: 2024-01-01", ("'objective' is a date", "quotes")),
    "boolean for a text": ("objective: no", ("'objective' is false", "quotes")),
    "boolean for a number": ("steps: yes", ("'steps' is true, expected integer",)),
    "number for a text": ("objective: 5", ("quotes",)),
    "float for an integer": ("steps: 3.0", ("'steps' is 3.0, expected integer",)),
    "text for an integer": ("steps: 1e26", ("'1e26'",)),
    "endless integer": ("steps: " + "9" * 400, ("about 400 digits", "at most 10,000,000")),
    "integer beyond Python": ("steps: " + "9" * 5000, ("not valid YAML",)),
    "not a number": ("epochs: .nan", ("--epochs is nan", "finite")),
    "infinity": ("learning_rate: .inf", ("--learning-rate is inf", "finite")),
    "null": ("batch_size: null", ("'batch_size' is null",)),
    "list for a text": ("layers: [1, 3]", ("'layers' is a list of 2, expected text",)),
    "numbers in a list": ("forget: [1, 2]", ("'forget' holds 1",)),
    "lists in a list": ("forget: [[a]]", ("'forget' holds a list",)),
    "empty text in a list": ('forget: ["a", ""]', ("--forget is empty",)),
    "mapping for a number": ("steps: {a: 1}", ("'steps' is a mapping of 1",)),
    "text for a mapping": ("trainer: bf16=true", ("'trainer' is 'bf16=true'",)),
    "deep mapping": ("trainer: {a: {b: {c: 1}}}", ("'trainer' has 'a'",)),
    "set": ("trainer: !!set {a, b}", ("'trainer' is a set",)),
    "bytes": ("objective: !!binary aGVsbG8=", ("'objective' is a bytes",)),
    "cycle": ("forget: &a [*a]", ("'forget' holds a list",)),
    "cycle of mappings": ("trainer: &a {b: *a}", ("'trainer' has 'b'",)),
    "laughs": (BOMB + "forget: *j", ("unknown setting 'a'",)),
    "laughs in a setting": (BOMB.replace("a: &a", "forget: &a", 1), ("unknown setting 'b'",)),
    "deep list": ("forget: " + "[" * 5000 + "]" * 5000, ("nested too deeply",)),
    "deep JSON": ('{"trainer": ' * 5000, ("nested too deeply",)),
    "NUL in a text": ('topic: "a\\0b"', ("--topic", "character 2")),
    "escape sequence": ('topic: "\\x1b[31m"', ("--topic", "control")),
    "lone surrogate": ('topic: "\\ud800"', ("--topic", "UTF-8")),
    "blank text": ('output: " "', ("--output", "blank")),
    "long name": (f"output: {'a' * 256}", ("--output", "256 bytes", "255")),
    "two documents": ("steps: 1\n---\nsteps: 2\n", ("line 2",)),
    "broken": ("steps: [1", ("not valid YAML", "line")),
    "zeros": (bytes(100), ("not valid YAML",)),
    "another encoding": ("why: grün".encode("latin-1"), ("UTF-8",)),
    "UTF-16": ("steps: 1".encode("utf-16"), ("UTF-8",)),
    "noise": (bytes(range(128, 256)) * 50, ("UTF-8",)),
    "large": (b"#" * 2**21, ("1,048,576 bytes",)),
}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Runs a command that must be refused; returns its one line."""
    monkeypatch.chdir(tmp_path)

    def run(arguments: list[str]) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert said.startswith("grun: ")
        assert len(said) < 700
        assert sorted(tmp_path.rglob("*")) == before
        return said

    return run


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_something_else(name: str, refused: Refuse, tmp_path: Path) -> None:
    content, words = FILES[name]
    file = tmp_path / "wrong.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(["unlearn", "--config", str(file)])
    for word in ("wrong.yaml", *words):
        assert word in line


@pytest.mark.parametrize("path", ["/", "/dev/zero", "absent.yaml", "/dev/null", "a\0b", "x" * 300])
def test_a_path_that_is_no_file(path: str, refused: Refuse) -> None:
    assert "--config" in refused(["unlearn", "--config", path])


def test_a_flag_wins_over_the_file_but_a_wrong_file_is_refused(refused: Refuse, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("steps: 0")
    assert "--steps is 0" in refused(["unlearn", "--config", "wrong.yaml", "--steps", "5"])


GIVEN = ["--set", "model=m", "--set", "forget=f"]
SWEEPS: list[tuple[list[str], tuple[str, ...]]] = [
    ([], ("--vary is missing",)),
    (["--vary", "seed="], ("--vary seed is empty",)),
    (["--vary", "seed=,"], ("seed has no values",)),
    (["--vary", "seed=;"], ("seed has no values",)),
    (["--vary", "=1"], ("--vary",)),
    (["--vary", "seed=1,1"], ("seed", "'1' twice")),
    (["--vary", "seed=1,01"], ("'seed=1' and 'seed=01' are the same",)),
    (["--vary", "seed=1", "--vary", "seed=2"], ("'seed' twice",)),
    (["--vary", "batch-size=1", "--vary", "batch_size=2"], ("batch_size", "twice")),
    (["--vary", "seed=1,2", "--set", "seed=3"], ("seed", "twice")),
    (["--vary", "seed=" + ",".join(map(str, range(1001)))], ("1,001 runs", "1,000")),
    (["--vary", "seed=" + ",".join(map(str, range(90))), "--vary", "rank=1,2,3,4,5,6,7,8,9,10,11,12"], ("1,080 runs",)),
    (["--vary", "steps=0,-1"], ("run steps=0", "--steps is 0")),
    (["--vary", "steps=--5"], ("'--5'",)),
    (["--vary", "steps=²"], ("'²'",)),
    (["--vary", "epochs=nan,inf"], ("--epochs is nan",)),
    (["--vary", "layers=1;x"], ("layers=x", "'x'")),
    (["--vary", "gate=deep,none"], ("gate=deep", "deep")),
    (["--vary", "objective_options=beta=nan;beta=1"], ("beta", "nan")),
    (["--vary", "trainer=bf16=maybe;bf16=true"], ("bf16", "maybe")),
    (["--vary", "trainer=x;y"], ("'trainer' is 'x'",)),
    (["--vary", "output=a,b"], ("--output",)),
    (["--vary", "seed=0", "--evaluate", "metrics=nonsense"], ("--evaluate", "nonsense")),
    (["--vary", "seed=0", "--evaluate", "max_rows=1e26"], ("--evaluate", "max_rows")),
    (["--vary", "seed=0", "--set", "benchmark_options=people=1", "--set", "benchmark=nonsense"], ("nonsense",)),
]


@pytest.mark.parametrize(("arguments", "words"), SWEEPS, ids=lambda value: str(value)[:50])
def test_a_sweep_that_makes_no_sense(arguments: list[str], words: tuple[str, ...], refused: Refuse) -> None:
    line = refused(["sweep", *GIVEN, *arguments])
    for word in words:
        assert word in line


@pytest.mark.parametrize(("given", "word"), [([], "--model"), (["--set", "model=m"], "--forget")])
def test_a_sweep_without_what_every_run_needs(given: list[str], word: str, refused: Refuse) -> None:
    assert f"{word} is missing" in refused(["sweep", "--vary", "seed=0,1", *given])


WRONG_OPTIONS = [
    ("people=1e26", "a whole number"),
    ("people=" + "9" * 30, "a whole number of at most"),
    ("people=2", "3 to 400"),
    ("forget_share=nan", "finite"),
    ("forget_share=inf", "finite"),
    ("forget_share=-1", "forget_share"),
    ("people= ", "empty"),
    ("people=\0", "control"),
    ("seed=99999999999999999999", "at most"),
    ("nothing=1", "no option 'nothing'"),
]


@pytest.mark.parametrize(("option", "word"), WRONG_OPTIONS, ids=lambda value: str(value)[:40])
def test_options_of_a_benchmark(option: str, word: str, refused: Refuse) -> None:
    line = refused(["finetune", "--benchmark", "fictional", "--benchmark-options", option])
    assert word in line or option.partition("=")[0] in line


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "many", "", "1e999", "0", "9" * 5000])
def test_options_of_an_objective(value: str, refused: Refuse) -> None:
    given = ["--model", "m", "--forget", "f", "--objective", "npo", "--objective-options", f"beta={value}"]
    assert "beta" in refused(["unlearn", *given])


def test_a_model_from_scratch_that_does_not_fit(refused: Refuse) -> None:
    large = ["--hidden-size", "65536", "--layers", "1000", "--heads", "8"]
    line = refused(["finetune", "--benchmark", "fictional", *large])
    for word in ("--hidden-size 65536", "--layers 1000", "million parameters", "GiB are free"):
        assert word in line
