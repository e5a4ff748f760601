"""Settings as keyword arguments: built from Python values, and named as parameters in messages."""

from __future__ import annotations

__all__ = ["as_parameters", "from_python", "naming_flags", "naming_parameters"]

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from grun.core.config.attacking import AttackConfig
from grun.core.config.jobs import (
    ChatConfig,
    DemoConfig,
    EvaluateConfig,
    ExpandConfig,
    FinetuneConfig,
    SweepConfig,
    UnlearnConfig,
)
from grun.core.config.requests import (
    CalibrateConfig,
    CalibrateRequestsConfig,
    CompareConfig,
    ImportConfig,
    LedgerConfig,
    RequestConfig,
)
from grun.core.config.schema import from_mapping, text_of, without_none
from grun.core.errors import UserError
from grun.core.python_objects import PREFIX

_flags_are_named: ContextVar[bool] = ContextVar("flags_are_named", default=False)
C = TypeVar("C")
CONFIGS: tuple[type, ...] = (
    UnlearnConfig,
    EvaluateConfig,
    FinetuneConfig,
    CalibrateConfig,
    RequestConfig,
    CalibrateRequestsConfig,
    ImportConfig,
    SweepConfig,
    ChatConfig,
    DemoConfig,
    ExpandConfig,
    CompareConfig,
    LedgerConfig,
    AttackConfig,
)
NUMBERS = (int, float)
FLAG = re.compile(r"--(no-)?([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")
PARAMETERS = {f.name for config in CONFIGS for f in dataclasses.fields(config)} | {"runs", "tokenizer", "id", "scale"}


def from_python(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """Settings from keyword arguments; None stands for the default.

    Args:
        cls: a configuration.
        values: by name. Paths may be `Path`s, what is a list may be one value, numbers may stand where text is expected
            (`layers=[20, 25, 31]`, `objective_options={"beta": 0.1}`).
        where: the function, for messages.

    Raises:
        UserError: for an unknown name (with the nearest known one) or a value of the wrong type.
    """
    hints = get_type_hints(cls)
    typed = {name: _plain(value, hints.get(name)) for name, value in values.items() if value is not None}
    return from_mapping(cls, typed, where, says_where=False)


def _plain(value: Any, hint: Any) -> Any:
    """A value as a file of settings would hold it; one that has no such form is returned as it is, and refused."""
    kind = get_origin(without_none(hint)) or without_none(hint)
    value = _scalar(value)
    if kind is list:
        items = map(_scalar, value) if isinstance(value, (list, tuple)) else [value]
        return [text_of(one) if isinstance(one, NUMBERS) else one for one in items]
    if kind is str and isinstance(value, (list, tuple)):
        parts = [_scalar(one) for one in value]
        return ",".join(map(text_of, parts)) if all(isinstance(one, (str, *NUMBERS)) for one in parts) else value
    if kind is str and isinstance(value, NUMBERS) and not isinstance(value, bool):
        return text_of(value)
    if kind is dict and isinstance(value, Mapping):
        return {name: _scalar(one) for name, one in value.items()}
    return value


def _scalar(value: Any) -> Any:
    """A path as text, and a number of numpy or torch as Python's."""
    if isinstance(value, Path):
        return str(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def as_parameters(message: str) -> str:
    """A message in which settings are called as in Python: `--batch-size` is batch_size, `--overwrite` overwrite=True."""

    def name(found: re.Match[str]) -> str:
        parameter = found[2].replace("-", "_")
        if parameter not in PARAMETERS:
            return found[0]
        if found[1]:
            return f"{parameter}=False"
        return f"{parameter}=True" if parameter in SWITCHES else parameter

    return FLAG.sub(name, message).replace(PREFIX, "")


@contextmanager
def naming_parameters() -> Iterator[None]:
    """Inside, errors name the parameters of Python functions, unless the command line asked for its flags."""
    try:
        yield
    except UserError as error:
        named = str(error) if _flags_are_named.get() else as_parameters(str(error))
        if named == str(error):
            raise
        raise UserError(named) from error.__cause__


@contextmanager
def naming_flags() -> Iterator[None]:
    """Inside, errors name the flags of the command line."""
    token = _flags_are_named.set(True)
    try:
        yield
    finally:
        _flags_are_named.reset(token)


SWITCHES = {
    f.name
    for config in CONFIGS
    for f in dataclasses.fields(config)
    if without_none(get_type_hints(config)[f.name]) is bool
}
