"""Environment variables that commands read, declared once: help pages and the guide show this list."""

from __future__ import annotations

__all__ = ["VARIABLES", "Variable", "cache_directory", "is_first_process", "with_default_data"]

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class Variable:
    """An environment variable.

    Attributes:
        name: of the variable.
        help: what it does.
        settings: settings whose default it changes; pages of commands that have one of them name it. Empty: of no setting.
    """

    name: str
    help: str
    settings: tuple[str, ...] = ()


DATA_FOLDERS = {"tofu": "GRUN_TOFU_DIR", "wmdp": "GRUN_WMDP_DIR", "muse": "GRUN_MUSE_DIR"}  # by benchmark
VARIABLES = (
    Variable("GRUN_CACHE_DIR", "Folder of what grun keeps between runs. Default: grun in XDG_CACHE_HOME.", ("model",)),
    Variable("XDG_CACHE_HOME", "Folder of caches, of grun and of other programs. Default: ~/.cache."),
    *(
        Variable(name, f"Default of --data-dir with --benchmark {benchmark}.", ("data_dir",))
        for benchmark, name in DATA_FOLDERS.items()
    ),
    Variable(
        "HF_HOME", "Folder of models and data sets of the hub. Default: ~/.cache/huggingface.", ("model", "data_dir")
    ),
    Variable("HF_HUB_OFFLINE", "1: take models and data sets from that folder only.", ("model", "data_dir")),
    Variable("GRUN_API_KEY", "Key for the server at --address.", ("served_model",)),
    Variable(
        "OMP_NUM_THREADS",
        "Threads on the processor. Default: one for a small model, else one per core.",
        ("device",),
    ),
    Variable("OMP_WAIT_POLICY", "active: threads that wait keep a core busy. Default: passive.", ("device",)),
    Variable("NO_COLOR", "Anything: no colours."),
    Variable("COLUMNS", "Width of tables and help pages. Default: the terminal's."),
    Variable("TERM", "dumb: a line about once a minute instead of a bar."),
)


def with_default_data(config: C) -> C:
    """Settings of a job, with the folder that the environment names for their benchmark if they name none."""
    variable = DATA_FOLDERS.get(getattr(config, "benchmark", None) or "")
    folder = os.environ.get(variable) if variable else None
    if not folder or getattr(config, "data_dir", None) is not None:
        return config
    return dataclasses.replace(config, data_dir=folder)  # type: ignore[type-var]


def is_first_process() -> bool:
    """True in the first process of `accelerate launch` or `torchrun`, and in a process without them; torch is not needed."""
    return os.environ.get("RANK", "0") == "0"


def cache_directory() -> Path:
    """The folder of what grun keeps between runs: `GRUN_CACHE_DIR`, or `grun` in the user's cache directory."""
    if given := os.environ.get("GRUN_CACHE_DIR"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "grun"
