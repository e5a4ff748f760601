"""Every setting of every command has bounds, and wrong values of every kind are one line that names it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import grun.api.jobs
import grun.api.ledger
import grun.jobs.demos.chat
import grun.jobs.demos.demo
import grun.jobs.import_reference
import grun.jobs.sweep
from grun.api.settings import CONFIGS, from_python
from grun.cli.main import main
from grun.core.config.checks import FORMS
from grun.core.errors import UserError
from support.wrong_values import ALL, COMMANDS, WRONG_IN_FILES, Setting, anything, kind_of, settings_of, wrong_texts

JOBS = {
    grun.api.jobs: ("finetune", "unlearn", "expand", "evaluate", "attack", "calibrate"),
    grun.api.ledger.Ledger: ("add", "calibrate"),
    grun.jobs.sweep: ("sweep",),
    grun.jobs.demos.chat: ("chat",),
    grun.jobs.demos.demo: ("demo",),
    grun.jobs.import_reference: ("import_reference",),
}
PATHS = {
    "output", "model", "adapter", "data", "forget", "retain", "neighbours", "normal", "writer", "refusals", "shut_for",
    "retain_only",
    "cache_dir", "data_dir", "retain_log", "ledger", "checkpoint", "runs",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def nothing_runs() -> Iterator[None]:
    """Jobs do nothing: what is refused was refused before them, and what is not was accepted."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, names in JOBS.items():
            for name in names:
                patch.setattr(owner, name, _idle(getattr(owner, name), owner))
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


def _idle(job: Any, owner: Any) -> Any:
    """A function with the parameters of a job that returns at once: a directory, or what functions for Python return."""
    request = dict.fromkeys(("state", "since", "objective", "rows", "why"), "")
    request |= dict.fromkeys(("forget_probability_before", "forget_probability"), "")
    found = SimpleNamespace(id="r0001", path=Path("p"), model="m", adapter="a", record={}, **request)

    @functools.wraps(job)
    def idle(*_: Any, **__: Any) -> Any:
        return Path("p") if owner.__name__.startswith("grun.jobs") else found

    return idle


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must be refused."""
    code, said = run(arguments, capsys)
    assert code == 2, f"accepted: {arguments!r:.300}"
    return said


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(arguments)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 1, said
    assert len(said) < 1000, "a message is to be read"
    return code, said


def written(one: Setting, value: str) -> list[str]:
    flagged = [f"{one.flag}{value}"] if value.startswith("=") and one.kind is bool else [one.flag, value]
    return [*one.command.split(), *COMMANDS[one.command][1], *flagged]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted_without_any_setting(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), *COMMANDS[command][1]]) == 0


@pytest.mark.parametrize("config", CONFIGS)
def test_every_setting_declares_what_is_checked(config: type) -> None:
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        declared = field.metadata
        if kind_of(hints[field.name]) in (int, float):
            assert declared["maximum"] is not None, f"{field.name} has no upper bound"
            assert (declared["minimum"] is None) != (declared["above"] is None), f"{field.name} has no lower bound"
        if field.name in PATHS:
            assert declared["form"] in ("path", "split"), f"{field.name} names a path or a hub id"
        assert declared["form"] in FORMS


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_values_on_the_command_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for one in settings_of(command):
        for value in wrong_texts(one):
            assert one.flag in refusal(written(one, value), capsys), (one.flag, value[:50])


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_values_in_a_file(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.json"
    for one in settings_of(command):
        for value in WRONG_IN_FILES[one.kind]:
            if value == "" and one.field.default == "":
                continue
            file.write_text(json.dumps({one.field.name: value}))
            line = refusal([*command.split(), *COMMANDS[command][1], "--config", str(file)], capsys)
            assert one.flag in line or one.field.name in line, (one.flag, value)
            assert "settings.json" in line


@pytest.mark.parametrize("config", CONFIGS)
def test_wrong_values_in_python(config: type) -> None:
    for one in (one for one in ALL if one.field in dataclasses.fields(config)):
        wrong = [object(), b"bytes", {1: 2}, [[["deep"]]], lambda: None]
        for value in wrong + ([float("nan"), 10**400, "x"] if one.kind in (int, float) else []):
            with pytest.raises(UserError):
                from_python(config, {one.field.name: value}, "here")


@settings(max_examples=300, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_text_is_accepted_or_refused_with_one_line(data: st.DataObject, capsys: pytest.CaptureFixture[str]) -> None:
    one = data.draw(st.sampled_from(ALL))
    code, said = run(written(one, data.draw(anything(one))), capsys)
    assert code in (0, 2)
    assert code == 0 or said.startswith("grun: ")


MUST_BE_REFUSED = [
    (["unlearn", "--steps", "1e26"], "--steps"),
    (["unlearn", "--steps", "10000000", "--batch-size", "65536"], "655,360,000,000 rows of training"),
    (["unlearn", "--batch-size", "1e26"], "--batch-size"),
    (["unlearn", "--seed", "4294967296"], "--seed"),
    (["unlearn", "--seed", "-1"], "--seed"),
    (["unlearn", "--output", ""], "--output"),
    (["unlearn", "--model", " "], "--model"),
    (["unlearn", "--device", "meta"], "--device"),
    (["unlearn", "--trainer", "optim=sgd", "--trainer", "optim=adamw"], "--trainer gives 'optim' twice"),
    (["unlearn", "--steps="], "--steps"),
    (["unlearn", "-"], "(-)"),
    (["unlearn", "--schritte", "2"], "--schritte"),
    (["unlearn", "--größe", "2"], "--größe"),
    (["unlearn", "--config", ""], "--config"),
    (["unlearn", "--config", "a\0b"], "--config"),
    (["unlearn", "--config", "x" * 300], "--config"),
    (["finetune", "--layers", "100000"], "--layers"),
    (["finetune", "--epochs", "1e26"], "--epochs"),
    (["finetune", "--vocab-size", "9999999999"], "--vocab-size"),
    (["sweep", "--jobs", "1000000000"], "--jobs"),
    (["sweep", "--memory", "nan"], "--memory"),
    (["sweep", "--memory", "0"], "--memory"),
    (["evaluate", "--max-rows", "0"], "--max-rows"),
    (["evaluate", "--tokens-per-batch", "99999999999"], "--tokens-per-batch"),
    (["compare", "a", "b", "--seed", "-1"], "--seed"),
    (["compare", "a", "b", "--seed", "4294967296"], "--seed"),
    (["compare", "a", "b", "--output", ""], "--output"),
    (["compare", "a", "b", "--metrics", " "], "--metrics"),
    (["compare", "a", ""], "runs"),
    (["request", "list", "--ledger", ""], "--ledger"),
    (["request", "show", "a\0", "--ledger", "l"], "id"),
    (["request", "suspend", " ", "--ledger", "l"], "id"),
    (["request", "resume", "a" * 5000, "--ledger", "l"], "id"),
    (["request", "withdraw", "", "--ledger", "l"], "id"),
    (["request", "withdraw", "x", "--ledger", "l" * 300], "ledger"),
    (["request", "export", "", "--ledger", "l"], "output"),
    (["request", "export", "a" * 300, "--ledger", "l"], "output"),
    (["request", "export", "o", "--ledger", "l", "--scale", "nan"], "--scale"),
    (["request", "export", "o", "--ledger", "l", "--scale", "-1"], "--scale"),
    (["request", "verify", "--ledger", "l", "--device", "meta"], "--device"),
    (["request", "verify", "--ledger", "l", "--data", "a"], "--data"),
    (["request", "verify", "--ledger", "l", "--data", "a=\0"], "--data"),
    (["request", "verify", "--ledger", "l\n"], "--ledger"),
    (["request", "erase"], "erase"),
    (["vergiss"], "vergiss"),
]


@pytest.mark.parametrize(("arguments", "word"), MUST_BE_REFUSED, ids=lambda value: str(value)[:60])
def test_named_cases(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert word in refusal(arguments, capsys)
