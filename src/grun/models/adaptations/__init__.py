"""Ways of adapting a model: GRUN as a PEFT method, and its baselines.

A way of adapting is a function `(model, UnlearnConfig) -> model`. It is registered with presets, which give the settings that
the user leaves open (`None` in the configuration), and with `settings`, the names in `SETTINGS` that apply to it.
A preset's `until_done` are further settings of runs for which the user gives no number of steps or passes: they stop early.
`whole_model=True` marks a way that trains the weights themselves (the whole model is saved), `edits=True` one that edits the
output of layers. `check` is a function of the configuration that refuses settings before a model is loaded.
"""

from __future__ import annotations

__all__ = ["NO_TOPICS", "SETTINGS", "STOPS_WHEN_DONE", "UNTIL_DONE", "adaptations", "base_name", "with_presets"]

import dataclasses
from collections.abc import Callable

from torch import nn

from grun.core.config.jobs import UnlearnConfig
from grun.core.config.schema import flag
from grun.core.errors import UserError, nearest
from grun.core.python_objects import PREFIX
from grun.core.registry import Registry

Adapt = Callable[[nn.Module, UnlearnConfig], nn.Module]
SETTINGS = (
    "rank",
    "layers",
    "gate",
    "gate_reads",
    "gate_scope",
    "gate_layer",
    "topic_layer",
    "edit_from",
    "fit_gate_first",
    "calibrate",
)
UNTIL_DONE = "until_done"  # key of a preset: its settings where no number of steps or passes is given
NO_TOPICS = "none"  # `topic_layer` of an adapter without a gate for topics
STOPS_WHEN_DONE = {"patience": 2, "evaluate_every": 10}
adaptations: Registry[Adapt] = Registry("adaptation", "grun.models.adaptations")


def base_name(config: UnlearnConfig) -> str | None:
    """The base model's name for an adapter's configuration; None for a model that only the process knows."""
    return None if config.model.startswith(PREFIX) else config.model


def with_presets(config: UnlearnConfig) -> UnlearnConfig:
    """The configuration, with every setting that was left open filled in from the preset.

    A preset's gate for topics is left out where other settings rule it out; a gate that reads text gives way to `mlp`.

    Raises:
        UserError: for an unknown way of adapting, an unknown preset, or a setting that this way does not have.
    """
    way = adaptations.get(config.adapt)
    presets = way.info["presets"]
    if config.preset not in presets:
        hint = nearest(config.preset, presets)
        raise UserError(
            f"--preset '{config.preset}' is unknown for --adapt {config.adapt}.{hint} It has: {', '.join(presets)}."
        )
    preset = {name: value for name, value in presets[config.preset].items() if name != UNTIL_DONE}
    for name in SETTINGS:
        value = getattr(config, name)
        if value is not None and value != preset.get(name) and name not in way.info.get("settings", ()):
            others = ", ".join(entry.name for entry in adaptations if name in entry.info.get("settings", ()))
            raise UserError(
                f"{flag(name)} is {value}, but --adapt {config.adapt} has no such setting (with it: {others})."
            )
    if config.steps is not None or config.epochs is not None:
        preset.update(steps=config.steps, epochs=config.epochs)
    else:
        preset.update(presets[config.preset].get(UNTIL_DONE, {}))
    missing = {name: value for name, value in preset.items() if getattr(config, name) is None}
    filled = dataclasses.replace(config, **missing)
    if config.gate is None and filled.gate == "lexical" and not _may_read_text(filled):
        filled = dataclasses.replace(filled, gate="mlp")
    if config.topic_layer is None and filled.topic_layer is not None and not _may_read_topics(filled):
        return dataclasses.replace(filled, topic_layer=NO_TOPICS)
    return filled


def _may_read_text(config: UnlearnConfig) -> bool:
    """Check whether there is a shared gate, fitted first, that reads all tokens."""
    return bool(config.fit_gate_first) and config.gate_reads == "prompt" and config.gate_layer != -1


def _may_read_topics(config: UnlearnConfig) -> bool:
    """Check whether there is a shared gate, fitted first, that a gate for topics may stand beside."""
    return bool(config.fit_gate_first) and config.gate != "none" and config.gate_layer != -1
