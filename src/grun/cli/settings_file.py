"""Files of settings for `--config`: YAML or JSON, read without running or expanding anything."""

from __future__ import annotations

__all__ = ["read_config_file"]

from collections.abc import Mapping
from typing import Any

import yaml

from grun.core.config.checks import check_text, shown
from grun.core.errors import UserError

MOST_BYTES = 2**20  # of a file; parsing takes a second at that size
TAG = "tag:yaml.org,2002:map"


def read_config_file(file: str) -> Mapping[str, Any]:
    """The settings in a YAML (or JSON) file.

    Raises:
        UserError: if the file cannot be read or does not hold settings by name, each once.
    """
    check_text(file, "--config", "path")
    where = f"--config '{file}'"
    text = _text(file, where)
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader)
    except UserError as error:
        raise UserError(f"{where}, {error}") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply; expected settings as name: value.") from error
    except Exception as error:  # the parser raises whatever a value of a declared type leads it to
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" in line {mark.line + 1}" if mark else ""
        reason = f": {' '.join(str(problem or error).split())}"
        raise UserError(f"{where} is not valid YAML{line}{reason[:200]}.") from error
    if values is None:
        raise UserError(f"{where} is empty, expected settings as name: value.")
    if not isinstance(values, dict):
        raise UserError(f"{where} holds {shown(values)}, expected settings as name: value.")
    for name in values:
        if not isinstance(name, str):
            raise UserError(f"{where} has a setting called {shown(name)}, expected a name.")
    return values


def _text(file: str, where: str) -> str:
    try:
        with open(file, "rb") as stream:  # a device may have no end
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"{where} has more than {MOST_BYTES:,} bytes, expected a file of settings.")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} cannot be read: it is not UTF-8 text (byte {error.start + 1}).") from error
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}.") from error


class _Loader(yaml.SafeLoader):
    """Plain values only, and every key once: YAML would keep the last one without a word."""

    def _settings(self, node: yaml.MappingNode) -> Any:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise UserError(
                    f"line {line}: {shown(key.value)} is given twice, first in line {seen[key.value]}; keep one of them."
                )
            seen[key.value] = line
        return self.construct_yaml_map(node)


_Loader.add_constructor(TAG, _Loader._settings)
