"""`--quiet`, `--verbose` and `--json` on every command, and nothing of libraries on standard error, in a real process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import grun
from grun.cli.main import main
from support.material import Material, invented_rows, write_rows

TRAINING = ["--layers", "1,3", "--batch-size", "4", "--topic-layer", "none", "--steps", "2"]
SMALL = ["--epochs", "1", "--vocab-size", "300", "--hidden-size", "16", "--layers", "2", "--heads", "2"]
# Runs every command of a list in one process, each with files as standard output and standard error.
RUN = """
import json, os, sys
folder = sys.argv[1]
codes = []
kept = os.dup(1), os.dup(2)
for i, arguments in enumerate(json.loads(sys.argv[2])):
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{folder}/{i}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    from grun.cli.main import main
    try:
        codes.append(main(arguments))
    except SystemExit as error:
        codes.append(error.code)
    sys.stdout.flush()
    sys.stderr.flush()
os.dup2(kept[0], 1)
print(json.dumps(codes))
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def run_all(folder: Path, commands: dict[str, list[str]]) -> dict[str, Done]:
    folder.mkdir()
    unwanted = ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), json.dumps(list(commands.values()))],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=400,
        cwd=folder,
        stdin=subprocess.DEVNULL,
    )
    texts = [[(folder / f"{i}.{name}").read_text() for name in ("out", "err")] for i in range(len(commands))]
    codes = json.loads(done.stdout.splitlines()[-1])
    return {name: Done(code, *both) for name, code, both in zip(commands, codes, texts, strict=True)}


@pytest.fixture(scope="module")
def commands(material: Material, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A command line of each command, in an order in which each finds what it needs."""
    folder = tmp_path_factory.mktemp("commands")
    rows = ["--forget", str(material.forget), "--retain", str(material.retain)]
    normal = str(write_rows(folder / "normal.jsonl", invented_rows("Nord", 24)))
    model, ledger = ["--model", str(material.model)], ["--ledger", str(folder / "ledger")]
    adapted = [*model, "--adapter", str(folder / "unlearned")]
    splits = ["--data", f"forget={material.forget}", "--data", f"retain={material.retain}", "--max-new-tokens", "3"]
    promise = ["--normal", normal, "--alpha", "0.2", "--delta", "0.2"]
    grid = [f"model={material.model}", f"forget={material.forget}", f"retain={material.retain}", "layers=1,3"]
    settings = [part for one in [*grid, "topic_layer=none", "steps=1"] for part in ("--set", one)]
    return {
        "finetune": ["finetune", "--data", str(material.retain), *SMALL, "--output", str(folder / "target")],
        "unlearn": ["unlearn", *model, *rows, *TRAINING, "--output", str(folder / "unlearned")],
        "evaluate": ["evaluate", *adapted, *splits, "--output", str(folder / "measured")],
        "calibrate": ["calibrate", *adapted, *promise, "--output", str(folder / "calibrated")],
        "chat": ["chat", *adapted, "--prompt", "Where was Ada born?", "--prompt", "Why?", "--max-new-tokens", "3"],
        "compare": ["compare", str(folder / "measured"), str(folder / "measured")],
        "list": ["list"],
        "request add": ["request", "add", str(material.forget), *rows[2:], *model, *ledger, *TRAINING],
        "request list": ["request", "list", *ledger],
        "request show": ["request", "show", "r0001", *ledger],
        "request calibrate": ["request", "calibrate", *model, *ledger, *promise],
        "request verify": ["request", "verify", *model, *ledger, "--data", f"r0001={material.forget}"],
        "request export": ["request", "export", str(folder / "exported"), *ledger],
        "request suspend": ["request", "suspend", "r0001", *ledger],
        "request resume": ["request", "resume", "r0001", *ledger],
        "sweep": ["sweep", "--vary", "objective=idk", *settings, "--output", str(folder / "sweep")],
    }


@pytest.fixture(scope="module")
def plain(commands: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    return run_all(tmp_path_factory.mktemp("plain") / "out", commands)


@pytest.fixture(scope="module")
def as_json(
    commands: dict[str, list[str]], plain: dict[str, Done], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Done]:
    """The same again, where everything is done already; `--json` stands before and after the command in turn."""
    asked = {name: ["--json", *line] if i % 2 else [*line, "--json"] for i, (name, line) in enumerate(commands.items())}
    return run_all(tmp_path_factory.mktemp("json") / "out", asked)


def test_commands_print_nothing_but_their_own_lines(plain: dict[str, Done]) -> None:
    for name, done in plain.items():
        assert done.code == 0, (name, done.err)
        strangers = [line for line in done.err.splitlines() if not line.startswith("grun: ")]
        assert not strangers, (name, strangers)
        assert "\r" not in done.err + done.out, name
        assert "\x1b" not in done.err + done.out, name
        assert done.out, name


def test_each_command_gives_one_document(as_json: dict[str, Done]) -> None:
    for name, done in as_json.items():
        if name == "chat":
            lines = [json.loads(line) for line in done.out.splitlines()]
            assert [line["prompt"] for line in lines] == ["Where was Ada born?", "Why?"]
            assert all({"before", "after", "gates"} <= line.keys() for line in lines)
            continue
        document = done.document
        assert all(line.startswith("grun: ") for line in done.err.splitlines() if not done.code), (name, done.err)
        if name == "request add":  # these rows have a request already
            assert done.code == 2
            assert document["error"]["exit_code"] == 2
            assert document["error"]["kind"] == "wrong input"
            assert document["error"]["message"] in done.err
        else:
            assert done.code == 0, (name, done.err)
            assert "error" not in document, name


def test_documents_hold_paths_and_figures(as_json: dict[str, Done]) -> None:
    found = {name: done.document for name, done in as_json.items() if name != "chat"}
    for name, path in {"finetune": "model", "unlearn": "adapter", "calibrate": "adapter", "sweep": "table"}.items():
        assert found[name]["command"] == name
        assert Path(found[name]["output"]).is_dir()
        assert Path(found[name][path]).exists()
    assert found["unlearn"]["steps"] == 2
    assert 0 <= found["unlearn"]["validation"]["forget_probability"] <= 1
    assert 0 <= found["evaluate"]["splits"]["forget"]["probability"]["after"] <= 1
    assert found["calibrate"]["normal_open"]["prompts"] == 24
    assert "npo" in found["list"]["objectives"]
    assert "wmdp" in found["list"]["benchmarks"]
    assert {one["metric"] for one in found["compare"]["found"]} >= {"probability"}
    assert [(one["id"], one["rows"]) for one in found["request list"]] == [("r0001", 8)]
    assert found["request show"]["id"] == "r0001"
    assert found["request verify"]["requests"][0]["ok"]
    assert found["request suspend"]["state"] == "suspended"
    assert found["request resume"]["state"] == "active"
    assert len(found["sweep"]["runs"]) == 2


def test_quiet_commands_print_answers_only(
    commands: dict[str, list[str]], plain: dict[str, Done], capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("unlearn", "evaluate", "finetune", "request suspend", "request resume"):
        assert main([*commands[name], "--quiet"]) == 0
        assert capfd.readouterr() == ("", ""), name
    for name in ("list", "request list", "request show", "compare"):
        assert main(["--quiet", *commands[name]]) == 0
        shown = capfd.readouterr()
        assert shown.out.splitlines()[0] == plain[name].out.splitlines()[0]
        assert shown.err == ""
    assert main(["unlearn", "--quiet"]) == 2
    assert capfd.readouterr().err.startswith("grun: ")


def test_verbose_commands_name_versions_and_times(
    commands: dict[str, list[str]], plain: dict[str, Done], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*commands["unlearn"], "--verbose"]) == 0
    said = capfd.readouterr().err
    assert "torch" in said
    assert "took" in said
    assert all(line.startswith("grun: ") for line in said.splitlines())
    assert main(commands["list"]) == 0
    assert capfd.readouterr().err == "", "the next command is not verbose"


@pytest.mark.parametrize(
    "arguments",
    [
        ["unlearn"],
        ["lst"],
        ["list", "--wrong"],
        ["unlearn", "--steps", "many"],
        ["unlearn", "--objective", "npx", "--model", "m"],
        ["request", "show"],
        ["request", "list", "--ledger", "absent"],
        ["evaluate", "--quiet", "--verbose"],
        ["compare", "absent", "missing"],
    ],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_failures_are_documents_too(
    arguments: list[str], place: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["--json", *arguments] if place == "before" else [*arguments, "--json"])
    shown = capfd.readouterr()
    error = json.loads(shown.out)["error"]
    assert code == error["exit_code"] == 2
    assert shown.err.strip() == f"grun: {error['message']}"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["unlearn", "--help"], ["request", "--help"], ["request", "add", "--help"], ["--version"]]
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_pages_are_documents_too(arguments: list[str], place: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", *arguments] if place == "before" else [*arguments, "--json"]) == 0
    shown = capfd.readouterr()
    document = json.loads(shown.out)
    assert document == {"version": grun.__version__} or "Usage: " in document["text"]
    assert shown.err == ""


def test_the_script_for_completion_is_a_document_too() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        "bash",
        "-c",
        f"{shlex.quote(sys.executable)} -m grun --json --show-completion; exit $?",
    ]  # for that shell
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert "grun" in json.loads(ended.stdout)["text"]


def test_a_question_that_fails_has_a_line_of_its_own(commands: dict[str, list[str]]) -> None:
    """And does not end the conversation, whatever bytes it is made of."""
    command = [word for word in commands["chat"] if word not in ("--prompt", "Where was Ada born?", "Why?")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    asked = b"\xff\xfe\n" + b"xy " * 100_000 + b"\nWho?\n"
    ended = subprocess.run(
        [sys.executable, "-m", "grun", *command, "--json"],
        env=environment,
        input=asked,
        capture_output=True,
        timeout=90,
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0
    assert ["error" in line for line in lines] == [True, True, False]
    assert "UTF-8" in lines[0]["error"]
    assert "longer than the model's context" in lines[1]["error"]


def test_an_unexpected_error_is_a_document_and_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("grun.cli.main.leaves_document", broken)
    with pytest.raises(ZeroDivisionError):
        main(["list", "--json"])
    assert json.loads(capfd.readouterr().out)["error"] == {
        "kind": "ZeroDivisionError",
        "message": "a bug",
        "exit_code": 1,
    }


def test_a_function_for_python_leaves_nothing_on_standard_error_and_settings_alone(
    material: Material, tmp_path: Path
) -> None:
    code = f"""
import logging, os, sys, warnings
before = list(warnings.filters), dict(os.environ)
import grun
assert (list(warnings.filters), dict(os.environ)) == before
import transformers
before = list(warnings.filters), logging.getLogger("transformers").level
rows = dict(forget={str(material.forget)!r}, retain={str(material.retain)!r}, output={str(tmp_path / "run")!r})
grun.unlearn({str(material.model)!r}, **rows, layers=[1, 3], steps=2, batch_size=4, topic_layer="none")
grun.evaluate(
    {str(material.model)!r}, {{"forget": rows["forget"]}}, adapter=rows["output"], output={str(tmp_path / "e")!r}
)
assert (list(warnings.filters), logging.getLogger("transformers").level) == before
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
