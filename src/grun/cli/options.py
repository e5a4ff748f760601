"""Command-line options from the configuration dataclasses, which stay the only list of settings."""

from __future__ import annotations

__all__ = ["command_for"]

import dataclasses
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

import typer

from grun.cli.settings_file import read_config_file
from grun.core.choices import declared
from grun.core.config.checks import shown
from grun.core.config.schema import flag, from_mapping, without_none
from grun.core.errors import UserError
from grun.core.process.environment import with_default_data
from grun.core.storage.replacing import reading

C = TypeVar("C")
METAVARS = {str: "TEXT", int: "INTEGER", float: "NUMBER", list: "TEXT", dict: "NAME=VALUE"}
CONFIG_HELP = "YAML or JSON file of settings (a run's settings.json, for instance); flags given here win over it."


def command_for(
    config_class: type[C], job: Callable[[C], Any], *, without: Collection[str] = (), files: str | None = None
) -> Callable[..., Any]:
    """A function with one typer option per field of a configuration, which builds it and runs the job.

    Settings that are not given on the command line are taken from `--config`, then from the defaults of the class.

    Args:
        config_class: class whose fields are the options.
        job: function to run.
        without: fields that are no options of this command.
        files: field that is given as arguments, not as an option.
    """
    hints = get_type_hints(config_class)

    def command(**given: Any) -> Any:
        file = given.pop("config")
        values = read_config_file(file) if file is not None else {}
        config = from_mapping(config_class, values, f"--config '{file}'")
        flags = {name: _value(name, value, hints[name]) for name, value in given.items() if value not in (None, [])}
        with reading(file):
            return job(with_default_data(dataclasses.replace(config, **flags)))  # type: ignore[type-var]

    shown = [f for f in _own_first(config_class) if f.name not in {*without, files}]
    parameters = [_parameter(f, hints[f.name]) for f in shown]
    if files is not None:
        described = next(f for f in _own_first(config_class) if f.name == files).metadata["help"]
        argument = typer.Argument(help=described, metavar="FILES")
        parameters.insert(0, _named(files, Annotated[list[str] | None, argument]))
    parameters.append(
        _named("config", Annotated[str | None, typer.Option("--config", help=CONFIG_HELP, metavar="FILE")])
    )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _own_first(config_class: type) -> list[dataclasses.Field[Any]]:
    """The fields of a configuration: those that only this job has, before those that it shares with ever more others."""
    bases = [
        {f.name for f in dataclasses.fields(base)} for base in config_class.__mro__ if dataclasses.is_dataclass(base)
    ]
    return sorted(dataclasses.fields(config_class), key=lambda f: sum(f.name in names for names in bases))


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    """The option of one field. Its own default is None, which shows that it was not given."""
    kind = without_none(hint)
    repeatable = get_origin(kind) in (list, dict)
    names = (f"{flag(field.name)}/--no-{flag(field.name)[2:]}",) if kind is bool else (flag(field.name),)
    help = field.metadata["help"] + (" May be given several times." if repeatable else "")
    metavar = METAVARS.get(get_origin(kind) or kind)
    option = typer.Option(*names, help=help, metavar=metavar, autocompletion=_completion(field))
    wanted: Any = list[str] if repeatable else kind
    return _named(field.name, Annotated[wanted | None, option])


def _completion(field: dataclasses.Field[Any]) -> Callable[[str], list[str]] | None:
    """The names that a setting may take, for the shell; where there are none, shells offer files."""
    registry = field.metadata["choices_from"]
    if registry is None:
        return None

    def complete(incomplete: str) -> list[str]:
        return [name for name in declared(registry) if name.startswith(incomplete)]

    return complete


def _named(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _is_mapping(hint: Any) -> bool:
    return get_origin(without_none(hint)) is dict


def _value(name: str, value: Any, hint: Any) -> Any:
    """The value of a flag: `name=value` pairs become a mapping."""
    if not _is_mapping(hint):
        return value
    pairs: dict[str, str] = {}
    for text in value:
        key, equals, content = text.partition("=")
        if not equals or not key:
            raise UserError(f"{flag(name)} is {shown(text)}, expected name=value.")
        if key in pairs:
            raise UserError(
                f"{flag(name)} gives {shown(key)} twice: {shown(pairs[key])} and {shown(content)}; choose one."
            )
        pairs[key] = content
    return pairs
