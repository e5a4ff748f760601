"""What commands print: `--quiet`, `--verbose` and `--json`, which every command has, and messages on standard error."""

from __future__ import annotations

__all__ = ["MessageHandler", "Output", "add_output_options", "current_output", "new_output", "say"]

import inspect
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from grun.core.errors import UserError
from grun.core.process.progress import silence
from grun.core.process.terminal import one_line

logger = logging.getLogger("grun")
LEVELS = ("TRANSFORMERS_VERBOSITY", "HF_DATASETS_VERBOSITY")  # of libraries that have one of their own
PAGES = {"--help", "--show-completion", "--install-completion"}  # options that print a text in place of any work
PASSED_ON = "lm-eval"  # its arguments are those of another program
OPTIONS = {
    "quiet": "Print warnings and errors only, and what a command is asked for.",
    "verbose": "Print more: what libraries say, how long each part took, and versions.",
    "json": "Print one JSON document to standard output, also for an error, and everything else to standard error.",
}


@dataclass
class Output:
    """How the command that runs prints.

    Attributes:
        modes: of `OPTIONS`, those that were given.
        kept: what is known already should the command fail; part of its JSON document.
    """

    modes: set[str] = field(default_factory=set)
    kept: dict[str, Any] = field(default_factory=dict)
    has_written: ClassVar[bool] = False  # a document, in this process
    _standard: Any = None
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def json(self) -> bool:
        """True if standard output is for one JSON document."""
        return "json" in self.modes

    @property
    def quiet(self) -> bool:
        """True if only warnings, errors and answers are printed."""
        return "quiet" in self.modes

    def set(self, mode: str) -> None:
        """Take one of `OPTIONS`.

        Raises:
            UserError: if it contradicts another one.
        """
        self.modes.add(mode)
        if {"quiet", "verbose"} <= self.modes:
            raise UserError("--quiet and --verbose were both given; choose one of them.")
        if mode == "json" and self._standard is None:
            self._standard = sys.stdout
            self._stack.enter_context(redirect_stdout(_Messages()))
        elif mode == "quiet":
            logger.setLevel(logging.WARNING)
            self._stack.enter_context(silence())
        elif mode == "verbose":
            self._stack.enter_context(_verbose())

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Inside, a job runs whose prints report what it did; with `--quiet` they are left out."""
        with redirect_stdout(io.StringIO()) if self.quiet else nullcontext():
            yield

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Inside, a command prints what it is asked for, for people; a JSON document takes its place."""
        with redirect_stdout(io.StringIO()) if self.json else nullcontext():
            yield

    @contextmanager
    def page(self, arguments: Sequence[str]) -> Iterator[None]:
        """Inside, a command runs; a text of `PAGES` becomes a JSON document, if one was asked for.

        Args:
            arguments: of the command line.
        """
        if not (self.json and PAGES & set(arguments)):
            yield
            return
        with redirect_stdout(io.StringIO()) as text:
            try:
                yield
            except (typer.Exit, SystemExit):  # of help, of completion
                if text.getvalue():
                    self.document({"text": text.getvalue()})
                raise

    def document(self, value: Any, *, one_of_several: bool = False) -> None:
        """Write a document to standard output; `one_of_several` (answers of `grun chat`) stand in a line each."""
        Output.has_written = True
        stream = self._standard or sys.stdout
        indent = None if one_of_several else 2
        stream.write(json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")
        stream.flush()

    def failure(self, kind: str, message: str, code: int) -> None:
        """Write the document of a command that failed, if one was asked for; `kept` is part of it."""
        if self.json:
            error = {"kind": kind, "message": " ".join(message.split()), "exit_code": code}
            self.document({"error": error, **self.kept})

    def close(self) -> None:
        """Set standard output and levels back."""
        self._stack.close()


class MessageHandler(logging.StreamHandler[Any]):
    """Writes messages to standard error; bars that are drawn there make way."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        with nullcontext() if tqdm is None else tqdm.tqdm.external_write_mode():
            super().emit(record)


class _Messages(io.TextIOBase):
    """Takes the place of standard output: what is printed becomes messages on standard error, a line each."""

    _rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                sys.stderr.write(f"grun: {line.rstrip()}\n")
        return len(text)


_current = Output()


def current_output() -> Output:
    """How the command that runs prints."""
    return _current


@contextmanager
def new_output(arguments: Sequence[str]) -> Iterator[Output]:
    """Inside, a command runs; its options may be wrong, so that `--json` is looked for among all arguments.

    Args:
        arguments: of the command line.
    """
    global _current
    before, _current = _current, Output()
    own = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    try:
        if "--json" in own and PASSED_ON not in own:
            _current.set("json")
        yield _current
    finally:
        _current.close()
        _current = before


def say(text: str) -> None:
    """Print a line about what was done, unless only answers are wanted; names in it are shown as text."""
    if not current_output().quiet:
        typer.echo(one_line(text))


def add_output_options(command: Any, name: str = "") -> None:
    """Give a command and all of its subcommands the options of `OPTIONS`, unless they have them or pass all arguments on."""
    if name == PASSED_ON or any(parameter.name in OPTIONS for parameter in command.params):
        return
    command.params += _options()
    for below, one in getattr(command, "commands", {}).items():
        add_output_options(one, below)


def _options() -> list[Any]:
    """The options; typer makes them of the parameters of a function."""

    def command(**_: bool) -> None:
        """Stands for any."""

    kinds = {mode: Annotated[bool, _flag(mode, help)] for mode, help in OPTIONS.items()}
    parameters = [
        inspect.Parameter(mode, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for mode, kind in kinds.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = dict(kinds)
    app = typer.Typer(add_completion=False)
    app.command()(command)
    options = list(typer.main.get_command(app).params)
    for option in options:
        option.expose_value = False  # the command itself does not know them
    return options


def _flag(mode: str, help: str) -> Any:
    def take(value: bool) -> None:
        if value:
            current_output().set(mode)

    return typer.Option(f"--{mode}", callback=take, help=help)


@contextmanager
def _verbose() -> Iterator[None]:
    """Inside, messages for developers are shown, also those of libraries."""
    from grun.core.provenance import provenance

    logger.setLevel(logging.DEBUG)
    handler = MessageHandler()
    handler.setFormatter(logging.Formatter("grun: %(name)s: %(message)s"))
    root, started = logging.getLogger(), time.monotonic()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    before = {name: os.environ.get(name) for name in LEVELS}
    os.environ.update(dict.fromkeys(LEVELS, "info"))
    versions = ", ".join(f"{name} {version}" for name, version in provenance()["versions"].items())
    logger.debug("%s", versions)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        root.removeHandler(handler)
        root.setLevel(level)
        logger.debug("all of it took %.1f s", time.monotonic() - started)


def _plain(value: Any) -> Any:
    """A value as JSON knows it; there is no number for what is not finite."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
