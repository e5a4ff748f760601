"""Completion in shells: commands, flags and the names that settings may take; everything else is left to the shell's files."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import typer

from grun.cli.main import app, main
from grun.core.choices import declared
from grun.core.config.jobs import ChatConfig, DemoConfig, EvaluateConfig, FinetuneConfig, SweepConfig, UnlearnConfig
from grun.core.config.schema import flag

SHELLS = ("bash", "zsh", "fish")
CONFIGS = {
    "unlearn": UnlearnConfig,
    "evaluate": EvaluateConfig,
    "finetune": FinetuneConfig,
    "sweep": SweepConfig,
    "chat": ChatConfig,
    "demo": DemoConfig,
}
CHOICES = [
    (command, field.name, field.metadata["choices_from"])
    for command, config in CONFIGS.items()
    for field in dataclasses.fields(config)
    if field.metadata["choices_from"]
]


def shell(kind: str, line: str, **more: str) -> str:
    words = line.split(" ")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "_GRUN_COMPLETE": f"complete_{kind}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        **more,
    }
    command = [sys.executable, "-m", "grun"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("kind", SHELLS)
def test_shells_get_commands_and_names(kind: str) -> None:
    assert "unlearn" in shell(kind, "grun unl")
    names = shell(kind, "grun evaluate --metrics gate_")
    found = [name for name in declared("metrics") if name.startswith("gate_")]
    assert found
    assert all(name in names for name in found)
    assert "probability" not in names


@pytest.mark.parametrize(("command", "name", "registry"), CHOICES)
def test_every_setting_with_choices_offers_all_of_them(command: str, name: str, registry: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    option = next(one for one in commands[command].params if flag(name) in one.opts)
    context = commands[command].context_class(commands[command])
    offered = [item.value for item in option.shell_complete(context, "")]
    assert offered == list(declared(registry))


def test_paths_are_left_to_the_shell() -> None:
    assert shell("bash", "grun unlearn --model /").strip() == ""
    assert shell("bash", "grun unlearn --config x").strip() == ""


@pytest.mark.parametrize("kind", SHELLS)
def test_scripts_are_printed(kind: str) -> None:
    assert "grun" in shell(kind, "grun", _GRUN_COMPLETE=f"source_{kind}")


def test_the_help_names_both_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--install-completion" in shown
    assert "--show-completion" in shown
