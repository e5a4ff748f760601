"""Command-line options from the configuration dataclasses, which stay the only list of settings."""

from __future__ import annotations

__all__ = ["Stopped", "command_for", "read_config_file"]

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

import typer
import yaml

from grun.core.choices import declared
from grun.core.config.schema import flag, from_mapping, without_none
from grun.core.errors import UserError
from grun.core.process.environment import with_default_data

C = TypeVar("C")
METAVARS = {str: "TEXT", int: "INTEGER", float: "NUMBER", list: "TEXT", dict: "NAME=VALUE"}
CONFIG_HELP = "YAML or JSON file of settings (a run's settings.json, for instance); flags given here win over it."


class Stopped(Exception):
    """The user stopped a job; the option parser would swallow a `KeyboardInterrupt` and its message."""


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
        config = from_mapping(config_class, values, str(file))
        flags = {name: _value(name, value, hints[name]) for name, value in given.items() if value not in (None, [])}
        try:
            return job(with_default_data(dataclasses.replace(config, **flags)))  # type: ignore[type-var]
        except KeyboardInterrupt as error:  # an Interrupted has a message, a plain one has none
            raise Stopped(str(error) or "stopped.") from error

    shown = [f for f in _own_first(config_class) if f.name not in {*without, files}]
    parameters = [_parameter(f, hints[f.name]) for f in shown]
    if files is not None:
        described = next(f for f in _own_first(config_class) if f.name == files).metadata["help"]
        argument = typer.Argument(help=described, metavar="FILES")
        parameters.insert(0, _named(files, Annotated[list[str] | None, argument]))
    parameters.append(
        _named("config", Annotated[Path | None, typer.Option("--config", help=CONFIG_HELP, metavar="FILE")])
    )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def read_config_file(file: Path) -> Mapping[str, Any]:
    """The settings in a YAML (or JSON) file.

    Raises:
        UserError: if the file cannot be read or does not hold settings by name.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config '{file}' cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise UserError(f"--config '{file}' is not valid YAML{line}.") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"--config '{file}' holds {type(values).__name__}, expected settings as name: value.")
    return values


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
    pairs = {}
    for text in value:
        key, equals, content = text.partition("=")
        if not equals or not key:
            raise UserError(f"{flag(name)} is '{text}', expected name=value.")
        pairs[key] = content
    return pairs
