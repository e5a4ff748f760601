"""Progress: a bar on a terminal, a line about once a minute anywhere else, nothing where nothing is wanted."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grun.core.process import progress as module
from grun.core.process.progress import Progress, can_draw_bars, silence, tracked

ROOT = Path(module.__file__).parents[2]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test moves on."""
    now = [1000.0]
    monkeypatch.setattr("grun.core.process.progress.time.monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_about_once_a_minute(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "grun"), Progress("unlearn", 200, "step") as progress:
        for _ in range(200):
            clock[0] += 1.5
            progress.note(loss="0.123")
            progress.update()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "unlearn: step 40/200, loss 0.123, 0.67 steps/s, about 4 min left"
    assert len(lines) == 5


def test_short_work_says_nothing(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "grun"), Progress("measure", 10, "row") as progress:
        clock[0] += 59
        progress.update(10)
    assert not caplog.records


def test_a_resumed_run_counts_its_own_steps_only(clock: list[float]) -> None:
    progress = Progress("finetune", 300, "step", initial=100)
    clock[0] += 10
    progress.update(100)
    assert progress.line() == "finetune: step 200/300, 10 steps/s, about 10 s left"


def test_silence_and_other_processes(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "grun"):
        with silence(), Progress("a", 2, "row") as progress:
            clock[0] += 100
            progress.update()
        with Progress("b", 2, "row", shown=False) as progress:
            clock[0] += 100
            progress.update()
    assert not caplog.records


def test_tracked_parts_are_counted_by_their_size(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    found = []
    with caplog.at_level(logging.INFO, "grun"):
        for part in tracked([[1, 2], [3], [4, 5, 6]], "read prompts", 6, "prompt", len):
            clock[0] += 61
            found += part
    assert found == [1, 2, 3, 4, 5, 6]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert re.findall(r"prompt (\d)/6", said) == ["2", "3", "6"]


@pytest.mark.parametrize(
    ("terminal", "term", "drawn"), [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)]
)
def test_bars_need_a_terminal_that_can_move_its_cursor(
    terminal: bool, term: str, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", term)
    assert can_draw_bars() is drawn
    with Progress("unlearn", 2, "step") as progress:
        progress.update(2)
    assert ("unlearn: 100%" in stream.getvalue()) is drawn
    monkeypatch.setattr(sys, "stderr", None)
    assert not can_draw_bars()


def test_no_other_file_of_the_package_draws_bars() -> None:
    users = {str(file.relative_to(ROOT)) for file in ROOT.rglob("*.py") if "import tqdm" in file.read_text()}
    assert users == {"core/process/progress.py"}


def test_messages_do_not_break_a_bar_on_a_real_terminal() -> None:
    code = """
import logging
from grun.cli.output import MessageHandler
from grun.cli.process.messages import quiet
from grun.core.process.progress import Progress
quiet(MessageHandler())
with Progress("unlearn", 3, "step") as progress:
    progress.update()
    logging.getLogger("grun").warning("a message")
    progress.update(2)
"""
    reader, writer = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "NO_COLOR": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, stderr=writer, check=True, timeout=60)
    os.close(writer)
    shown = b""
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    text = shown.decode()
    assert "unlearn: 100%" in text
    assert re.search(r"\r[^%\r\n]*grun: a message\r\n", text), text
    assert "\x1b[3" not in text, "NO_COLOR"
