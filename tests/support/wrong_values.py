"""Values that no setting allows, made from what its field declares."""

from __future__ import annotations

import dataclasses
import types
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

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
from grun.core.config.requests import CalibrateConfig, CalibrateRequestsConfig, ImportConfig, RequestConfig

# Commands that are made from a configuration, with what they need besides, and fields that are none of their options.
COMMANDS: dict[str, tuple[type, list[str], tuple[str, ...]]] = {
    "finetune": (FinetuneConfig, [], ()),
    "unlearn": (UnlearnConfig, [], ()),
    "expand": (ExpandConfig, [], ()),
    "evaluate": (EvaluateConfig, [], ()),
    "attack": (AttackConfig, [], ()),
    "calibrate": (CalibrateConfig, [], ()),
    "import": (ImportConfig, [], ()),
    "sweep": (SweepConfig, [], ()),
    "chat": (ChatConfig, [], ()),
    "demo": (DemoConfig, [], ()),
    "request add": (RequestConfig, ["--ledger", "l"], ("output", "overwrite", "adapt", "forget", "ledger")),
    "request calibrate": (
        CalibrateRequestsConfig,
        ["--ledger", "l"],
        ("adapter", "output", "overwrite", "ledger"),
    ),
}


@dataclass(frozen=True)
class Setting:
    """A setting of a command."""

    command: str
    field: dataclasses.Field[Any]
    kind: Any

    @property
    def flag(self) -> str:
        return "--" + self.field.name.replace("_", "-")


def kind_of(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(one for one in get_args(hint) if one is not type(None))
    return get_origin(hint) or hint


def settings_of(command: str) -> list[Setting]:
    """All settings that have a flag."""
    config, _, without = COMMANDS[command]
    hints = get_type_hints(config)
    return [Setting(command, f, kind_of(hints[f.name])) for f in dataclasses.fields(config) if f.name not in without]


ALL = [one for command in COMMANDS for one in settings_of(command)]
BAD_TEXTS = ["  ", "a\0b", "a\x1b[31mb", "\udc80", "x" * 200_000]
BAD_PATHS = [*BAD_TEXTS, "a" * 256, "x/" + "ü" * 128 + "/y", "a\nb", "d/" * 3000]


def wrong_texts(one: Setting) -> list[str]:
    """Texts for the command line that the setting must refuse."""
    if one.kind is bool:
        return ["=maybe"]
    if one.kind in (int, float):
        declared = one.field.metadata
        low = declared["above"] if declared["minimum"] is None else declared["minimum"] - 1
        near = [low, declared["maximum"] * 2 + 1]
        near = [int(value) if one.kind is int else float(value) for value in near]
        more = ["1.5", "1e26", "9" * 30, "9" * 5000] if one.kind is int else ["nan", "inf", "-inf", "1e999"]
        return [*map(repr, near), *more, "", " ", "many", "[1]", "٣٫٥", "0x10", "1,2", "None"]
    if one.kind is dict:
        return ["", "x", "=1", "a=", "a= ", "a=b\0c", "a b=1", "\x1b=1", "x" * 5000 + "=1", "a=" + "y" * 200_000]
    texts = BAD_PATHS if one.field.metadata["form"] in ("path", "split") else BAD_TEXTS
    texts = [f"name={text}" for text in texts if text.strip()] if one.field.metadata["form"] == "split" else texts
    empty = [""] if one.kind is list or one.field.default != "" else []
    listed = ["1nonsense"] if one.field.metadata["choices"] or one.field.metadata["pattern"] else []
    return [*texts, *empty, *listed]


WRONG_IN_FILES: dict[Any, list[Any]] = {
    bool: ["yes", 1, 0.0, [], {}, "true"],
    int: [True, 1.0, 1e26, 10**30, "5", [1], {"a": 1}, "", [[[]]]],
    float: [True, float("nan"), float("inf"), 10**400, "many", [1.0], {"a": 1}, ""],
    str: [True, 3, 1.5, ["a"], {"a": "b"}, "\0", " "],
    list: ["a", 5, {"a": 1}, [1], [None], [["a"]], [""], ["\0"], [{}]],
    dict: ["a=1", 5, ["a"], {"a": ""}, {"": "1"}, {"a b": 1}, {"a": {"b": {"c": 1}}}, {"a": [[1]]}, {"a": []}],
}


def anything(one: Setting) -> st.SearchStrategy[str]:
    """Texts of all kinds, right or wrong."""
    mixed = st.one_of(
        st.text(max_size=20),
        st.integers().map(str),
        st.floats().map(str),
        st.sampled_from(
            ["-", "--", "=", "{prompt}", "[bold]", "\u202e", "🙂" * 90, "../..", "~", "a\tb", "\r\n", "%s", "{}"]
        ),
    )
    return st.builds("a={}".format, mixed) if one.kind is dict else mixed
