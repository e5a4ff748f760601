"""Standard streams that cannot be written or read: one line, an exit code, never a traceback, and the work is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.material import Material

COMMANDS = {"list": ["list"], "help": ["--help"], "version": ["--version"], "help of a command": ["unlearn", "--help"]}


def shell(line: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell, in which "$@" is `grun` with arguments."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = ["bash", "-c", line, "bash", sys.executable, "-m", "grun", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", COMMANDS)
def test_output_that_cannot_be_written_is_one_line(name: str) -> None:
    for redirection, reason in ((">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
        ended = shell(f'"$@" {redirection}', *COMMANDS[name])
        assert ended.returncode == 1
        assert ended.stderr == f"grun: standard output cannot be written: {reason}.\n"


def test_a_reader_that_leaves_ends_a_command_quietly() -> None:
    ended = shell('"$@" | head -1; exit ${PIPESTATUS[0]}', "list")
    assert ended.stdout.splitlines() == ["objectives (--objective):"]
    assert ended.returncode in (0, 141)  # it may have been quicker
    ended = shell('(sleep 2; "$@"; echo code $? >&2) | true', "list")
    assert ended.stderr == "code 141\n"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_messages_that_cannot_be_written_are_lost_and_nothing_else(redirection: str) -> None:
    assert shell(f'"$@" {redirection}', "list").stdout == shell('"$@"', "list").stdout
    ended = shell(f'"$@" {redirection}', "lisst")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")


def test_a_job_whose_streams_fail_is_done_all_the_same(material: Material, tmp_path: Path) -> None:
    """And no message lands in a file that took the number of a closed stream."""
    data = ["--data", f"forget={material.forget}", "--metrics", "probability", "--device", "cpu"]
    arguments = ["evaluate", "--model", str(material.model), *data, "--output", str(tmp_path / "run")]
    ended = shell('"$@" <&- >/dev/full 2>&-', *arguments)
    assert ended.returncode == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["complete"]
