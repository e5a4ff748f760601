"""Help pages: the main settings first, the others by group, with the names that a setting may take; nothing is cut off."""

from __future__ import annotations

__all__ = ["EXIT_CODES", "CommandList", "SettingsCommand", "WIDEST", "settings_command"]

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from typer.core import TyperCommand, TyperGroup

from grun.core.choices import declared
from grun.core.config.schema import GROUPS
from grun.core.process.environment import VARIABLES, Variable

WIDEST = 120  # columns; a wider terminal does not make lines longer
MAIN, ARGUMENTS = "main settings", "arguments"
LAST_GROUP = GROUPS[-1]  # also of --config and --help, which are no settings
Row = tuple[str, str]
EXIT_CODES = {
    "0": "All went well.",
    "1": "Some of several parts failed (runs of a sweep, verified requests), a disk is full, or an unexpected error.",
    "2": "Wrong input: one line says what was found, what was expected and what to do.",
    "3": "Training diverged; the state before that step is kept.",
    "129, 130, 143": "Stopped: terminal closed, Ctrl-C, SIGTERM. The state is kept; the same command goes on.",
}


class CommandList(TyperGroup):
    """A group of commands whose help shows the whole description of each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.help or "") for name, command in found if command is not None and not command.hidden]
        _write_section(formatter, "commands", rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Without any argument, the help page is asked for."""
        return super().parse_args(ctx, args or ["--help"])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if ctx.parent is None:
            _write_section(formatter, "exit codes", EXIT_CODES.items())
            _write_section(formatter, "environment", _described(VARIABLES))


class SettingsCommand(TyperCommand):
    """A command whose options are the fields of a configuration; see `settings_command`."""

    config_class: type

    def format_options(self, ctx: Any, formatter: Any) -> None:
        settings: Mapping[str, Any] = {f.name: f for f in dataclasses.fields(self.config_class)}
        main: tuple[str, ...] = self.config_class.MAIN  # type: ignore[attr-defined]
        rows: dict[str, dict[str, Row]] = {group: {} for group in (ARGUMENTS, MAIN, *GROUPS)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            name, setting = str(parameter.name), settings.get(str(parameter.name))
            if parameter.param_type_name == "argument":
                group, record = ARGUMENTS, (str(parameter.metavar), record[1])
            elif name in main:
                group = MAIN
            else:
                group = LAST_GROUP if setting is None else setting.metadata["group"]
            rows[group][name] = record[0], record[1] + (_choices_and_default(setting) if setting else "")
        rows[MAIN] = {name: rows[MAIN][name] for name in main if name in rows[MAIN]}
        for group, found in rows.items():
            _write_section(formatter, group, found.values())

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        shown = {parameter.name for parameter in self.get_params(ctx)}
        _write_section(formatter, "environment", _described(one for one in VARIABLES if shown & {*one.settings}))


def settings_command(config_class: type) -> type[SettingsCommand]:
    """The class of a command whose options are the fields of a configuration."""
    return type("Command", (SettingsCommand,), {"config_class": config_class})


def _write_section(formatter: Any, name: str, rows: Iterable[Row]) -> None:
    if rows := list(rows):
        with formatter.section(name.capitalize()):
            formatter.write_dl(rows)


def _described(variables: Iterable[Variable]) -> list[Row]:
    return [(one.name, one.help) for one in variables]


def _choices_and_default(field: dataclasses.Field[Any]) -> str:
    """The rest of a setting's help: the names that it may take, and its default."""
    text = ""
    if registry := field.metadata["choices_from"]:
        text += f" One of: {', '.join(declared(registry))}."
    if isinstance(field.default, (str, int, float)) and field.default != "":
        default = ("on" if field.default else "off") if isinstance(field.default, bool) else field.default
        text += f" [default: {default}]"
    return text
