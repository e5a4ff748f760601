"""`grun demo`: a real model forgets a topic, or a small one invented people."""

from __future__ import annotations

__all__ = ["demo"]

import dataclasses
from pathlib import Path

from grun.core.config.jobs import DemoConfig
from grun.core.config.schema import flag
from grun.core.errors import UserError
from grun.core.storage.claims import claimed
from grun.core.storage.run_directory import RunDirectory
from grun.jobs.demos.fictional import fictional_demo
from grun.jobs.demos.real import real_demo

ONLY_REAL, ONLY_FICTIONAL = ("model",), ("epochs",)
OUTPUT, FICTIONAL_OUTPUT = "demo", "demo-fictional"


def demo(config: DemoConfig) -> Path:
    """Show a model before and after it forgets; the same command resumes an interrupted demo.

    Returns:
        The directory with `table.md`, `answers.md` and `metrics.json`.

    Raises:
        UserError: for wrong input.
        Interrupted: if the user stopped it.
    """
    for name in ONLY_REAL if config.fictional else ONLY_FICTIONAL:
        if (value := getattr(config, name)) is not None:
            which = "without" if config.fictional else "with"
            raise UserError(f"{flag(name)} is {value}, but it only works {which} --fictional; leave one of them out.")
    output = config.output or (FICTIONAL_OUTPUT if config.fictional else OUTPUT)
    config = dataclasses.replace(config, output=output)
    shown = fictional_demo if config.fictional else real_demo
    with claimed(output):
        run = RunDirectory.open(output, config, "demo", config.overwrite)
        shown(config, run)
    return run.path
