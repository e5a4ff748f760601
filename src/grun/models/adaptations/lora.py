"""LoRA and DoRA on every linear layer, as ways of adapting a model."""

from __future__ import annotations

__all__ = ["dora", "lora"]

from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model

from grun.core.config.jobs import UnlearnConfig
from grun.models.adaptations import STOPS_WHEN_DONE, UNTIL_DONE, adaptations, base_name

PRESET: dict[str, Any] = {
    "rank": 8,
    "learning_rate": 1e-3,
    "steps": 200,
    "fit_gate_first": False,
    "calibrate": False,
    "gate_weight": 0.0,
    "evaluate_every": 25,
    UNTIL_DONE: STOPS_WHEN_DONE,
}


@adaptations.register("lora", paper="arXiv 2106.09685", settings=("rank",), presets={"default": PRESET})
def lora(model: Any, config: UnlearnConfig) -> PeftModel:
    """Low-rank updates of the weights of every linear layer (peft's LoRA, alpha twice the rank)."""
    return _adapted(model, config)


@adaptations.register("dora", paper="arXiv 2402.09353", settings=("rank",), presets={"default": PRESET})
def dora(model: Any, config: UnlearnConfig) -> PeftModel:
    """LoRA on the direction of the weights, their length trained apart (peft's DoRA)."""
    return _adapted(model, config, use_dora=True)


def _adapted(model: Any, config: UnlearnConfig, **settings: Any) -> PeftModel:
    assert config.rank is not None
    lora_config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=2 * config.rank,
        target_modules="all-linear",
        base_model_name_or_path=base_name(config),
        **settings,
    )
    adapted: PeftModel = get_peft_model(model, lora_config)
    own: Any = adapted.active_peft_config
    own.target_modules = sorted(own.target_modules)  # a set is written in another order by every process
    return adapted
