"""GRUN and its ungated ablation as ways of adapting a model."""

from __future__ import annotations

__all__ = ["DEFAULT", "PAPER", "grun", "grun_config", "reft"]

from typing import Any

from peft import PeftModel, get_peft_model

from grun.core.config.jobs import UnlearnConfig
from grun.models.adaptations import NO_TOPICS, SETTINGS, STOPS_WHEN_DONE, UNTIL_DONE, adaptations, base_name
from grun.models.tuner.base_model import parsed_layer
from grun.models.tuner.config import GrunConfig

COMMON: dict[str, Any] = {
    "rank": 4,
    "layers": "0.65,0.8,1.0",
    "gate": "mlp",
    "gate_scope": "asked",
    "gate_weight": 10.0,
}
DEFAULT: dict[str, Any] = COMMON | {
    "gate": "lexical",
    "steps": 200,
    "learning_rate": 2e-2,
    "gate_reads": "prompt",
    "gate_layer": 0,
    "topic_layer": "0.4",
    "edit_from": "last_prompt_on",
    "fit_gate_first": True,
    "calibrate": True,
    "evaluate_every": 25,
    UNTIL_DONE: STOPS_WHEN_DONE,
}
PAPER: dict[str, Any] = COMMON | {
    "epochs": 40.0,
    "learning_rate": 4e-3,
    "gate_reads": "last",
    "gate_layer": -1,
    "topic_layer": NO_TOPICS,
    "edit_from": "last_prompt_only",
    "fit_gate_first": False,
    "calibrate": False,
    "evaluate_every": 50,
}
UNGATED: dict[str, Any] = {
    "gate": "none",
    "topic_layer": NO_TOPICS,
    "fit_gate_first": False,
    "calibrate": False,
    "gate_weight": 0.0,
}


def grun_config(config: UnlearnConfig) -> GrunConfig:
    """The adapter's configuration from that of the job (with presets filled in).

    Raises:
        UserError: for a layer that is neither an index nor a fraction, or any value that `GrunConfig` refuses.
    """
    make = GrunConfig.paper if config.preset == "paper" else GrunConfig
    settings: dict[str, Any] = {
        "rank": config.rank,
        "layers": [parsed_layer(text, "--layers") for text in str(config.layers).split(",")],
        "gate": config.gate,
        "gate_reads": config.gate_reads,
        "gate_scope": config.gate_scope,
        "gate_layer": None if config.gate_layer == -1 else config.gate_layer,
        "topic_layer": _topic_layer(config),
        "edit_from": config.edit_from,
    }
    return make(**settings, init_seed=config.seed, base_model_name_or_path=base_name(config))


def _topic_layer(config: UnlearnConfig) -> int | float | None:
    """The layer that a gate for topics reads; None without one."""
    if config.topic_layer in (None, NO_TOPICS):
        return None
    return parsed_layer(str(config.topic_layer), "--topic-layer")


@adaptations.register(
    "grun",
    paper="arXiv 2502.17823",
    edits=True,
    settings=SETTINGS,
    presets={"default": DEFAULT, "paper": PAPER},
    check=grun_config,
)
def grun(model: Any, config: UnlearnConfig) -> PeftModel:
    """Gated low-rank edits of hidden states; the weights stay frozen."""
    adapted: PeftModel = get_peft_model(model, grun_config(config))
    return adapted


@adaptations.register(
    "reft",
    paper="arXiv 2404.03592",
    edits=True,
    settings=("rank", "layers", "edit_from"),
    presets={"default": DEFAULT | UNGATED, "paper": PAPER | UNGATED},
    check=grun_config,
)
def reft(model: Any, config: UnlearnConfig) -> PeftModel:
    """Low-rank edits of hidden states without a gate (LoReFT): every prompt is edited."""
    adapted: PeftModel = get_peft_model(model, grun_config(config))
    return adapted
