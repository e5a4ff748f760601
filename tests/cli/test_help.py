"""Help pages: the main settings first, every setting under its heading, nothing cut off, without waiting for torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grun.cli.main import main
from grun.core.choices import declared

PAGES = (
    "finetune",
    "unlearn",
    "evaluate",
    "expand",
    "calibrate",
    "import",
    "sweep",
    "chat",
    "demo",
    "compare",
    "list",
    "request",
    "request add",
    "request calibrate",
    "request export",
    "request verify",
)


@pytest.fixture(params=[80, 120])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def page(capsys: pytest.CaptureFixture[str], command: str) -> str:
    assert main([*command.split(), "--help"]) == 0
    return capsys.readouterr().out


def sections(text: str) -> dict[str, list[str]]:
    """The flags under each heading."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z][a-z ]+:", line):
            found[line[:-1]] = []
        elif flag := re.match(r"  (--[a-z-]+)", line):
            found[list(found)[-1]].append(flag[1])
    return found


@pytest.mark.parametrize("command", ["", *PAGES])
def test_pages_fit_the_terminal_and_are_plain_text(
    command: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = page(capsys, command)
    assert all(len(line) <= columns for line in shown.splitlines())
    assert "\x1b" not in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert page(capsys, command) == shown


def test_main_settings_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = sections(page(capsys, "unlearn"))
    assert list(found) == ["Main settings", "Method", "Gate", "Training", "Data", "Machine", "Run", "Environment"]
    assert found["Main settings"] == ["--model", "--forget", "--retain", "--objective", "--output"]
    assert found["Method"][:2] == ["--adapt", "--preset"]
    assert found["Run"] == ["--seed", "--overwrite", "--config", "--quiet", "--verbose", "--json", "--help"]


def test_own_settings_come_before_shared_ones(capsys: pytest.CaptureFixture[str]) -> None:
    unlearn, add = (sections(page(capsys, command)) for command in ("unlearn", "request add"))
    assert add["Main settings"] == ["--ledger", "--model", "--retain", "--objective", "--why"]
    assert add["Request"] == ["--id", "--keep-data"]
    assert add["Training"] == unlearn["Training"]
    assert unlearn["Training"][0] == "--steps"
    assert unlearn["Training"][-1] == "--trainer"


@pytest.mark.parametrize(
    ("command", "flag", "registry"),
    [
        ("unlearn", "--objective", "objectives"),
        ("unlearn", "--retain-loss", "retain_losses"),
        ("unlearn", "--adapt", "adaptations"),
        ("unlearn", "--benchmark", "benchmarks"),
        ("evaluate", "--metrics", "metrics"),
        ("sweep", "--engine", "engines"),
        ("demo", "--objective", "objectives"),
    ],
)
def test_settings_list_what_is_registered(
    command: str, flag: str, registry: str, columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = " ".join(page(capsys, command).split())
    described = shown.partition(f" {flag} ")[2]
    assert re.match(rf"[^-]*One of: {', '.join(declared(registry))}\.", described)


def test_descriptions_of_commands_are_not_cut(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    for group in ("", "request"):
        overview = page(capsys, group)
        listed = " ".join(overview.split())
        for command in re.findall(r"^  ([a-z-]+)  ", overview.partition("Commands:")[2], re.MULTILINE):
            if command != "lm-eval":  # passes --help on
                own = page(capsys, f"{group} {command}").split("\n\n")[1]
                assert " ".join(own.split()) in listed


def test_brackets_and_braces_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(page(capsys, "unlearn").split())
    for words in (
        "[default: idk_deep]",
        "[default: off]",
        "name=value (beta=0.1)",
        "{prompt}",
        "--overwrite / --no-overwrite",
    ):
        assert words in shown
    assert "--columns NAME=VALUE" in shown
    assert "FILES Files or hub ids" in " ".join(page(capsys, "request add").split())


def test_objectives_of_another_distribution_are_named_and_listed(tmp_path: Path) -> None:
    (tmp_path / "margin.py").write_text(
        "from grun.training.objectives import objectives\n"
        '@objectives.register("margin", paper="none", needs=("forget.logps",), retain="ce")\n'
        "def margin(signals):\n"
        '    """Keep a distance."""\n'
    )
    described = tmp_path / "margin-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: margin\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[grun.objectives]\nmargin = margin\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def shown(*arguments: str) -> str:
        command = [sys.executable, "-m", "grun", *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert "idk, idk_deep, margin, me," in " ".join(shown("unlearn", "--help").split())
    assert re.search(r"^  margin +Keep a distance\.$", shown("list"), re.MULTILINE)


def test_neither_help_nor_the_list_waits_for_torch() -> None:
    pages = [[], *([*command.split(), "--help"] for command in PAGES), ["list"]]
    code = (
        f"import sys; from grun.cli.main import main\nfor page in {pages}:\n"
        "    main(page)\n    assert not {'torch', 'transformers', 'scipy', 'numpy'} & sys.modules.keys(), page"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
