"""Stacks on disk: several adapter directories written as one, which PEFT loads like any other."""

from __future__ import annotations

__all__ = ["read_adapter", "write_stack"]

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

import grun.models.tuner  # noqa: F401  (makes PEFT know GRUN adapters)
from grun.core.errors import UserError
from grun.core.storage.weights import not_finite, other_weights
from grun.models.gates.guarantee import usual_place
from grun.models.loading.adapters import check_adapter_files
from grun.models.loading.reading import refusing
from grun.models.tuner.config import GrunConfig


def read_adapter(folder: Path) -> tuple[GrunConfig, dict[str, Tensor]]:
    """Configuration and tensors of a GRUN adapter, on the CPU.

    Raises:
        UserError: if the folder holds no GRUN adapter, or a damaged one.
    """
    said = f"adapter '{folder}'"
    check_adapter_files(folder, said)
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, GrunConfig):
        raise UserError(f"{said} is of type {config.peft_type}, expected GRUN.")
    with refusing(f"{said}: {folder / SAFETENSORS_WEIGHTS_NAME}"):
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    if (wrong := not_finite(tensors)) is not None:
        raise UserError(f"{said} cannot be used: its tensor {wrong} holds NaN or infinity; copy the adapter again.")
    return config, tensors


def write_stack(
    folders: Mapping[str, Path],
    target: Path,
    *,
    scale: float | None = None,
    thresholds: Mapping[str, Tensor] | None = None,
) -> None:
    """Write adapters as the members of one stack, which acts as all of them do when they are active together.

    Args:
        folders: adapter directories by the name of the member.
        target: directory to write `adapter_config.json` and `adapter_model.safetensors` to; it exists.
        scale: factor of all edits; None leaves each its own.
        thresholds: thresholds (G,) that replace those of a member's gates, in layer order, by its name.

    Raises:
        UserError: if an adapter cannot be read, is a stack itself, was made for another base model than the first, or has
            another number of gates than thresholds are given for it.
    """
    members: dict[str, GrunConfig] = {}
    tensors: dict[str, Tensor] = {}
    for name, folder in folders.items():
        config, own = read_adapter(folder)
        if config.members is not None:
            raise UserError(f"adapter '{folder}' is a stack itself; give its members instead.")
        if scale is not None:
            config.scale = scale
        members[name] = config
        given = _by_key(own, (thresholds or {}).get(name), folder)
        if given and config.gate_places is None:
            config.gate_places = [float(usual_place(own[key])) for key in given]
        for key in own:
            tensors[re.sub(r"\.(grun_edit|grun_gate)\.", rf".\1.{name}.", key)] = given.get(key, own[key])
    first = next(iter(members.values()))
    weights = [config.base_weights for config in members.values() if config.base_weights is not None]
    for name, config in members.items():
        differs = config.base_weights is not None and other_weights(weights[0], config.base_weights)
        if differs or (config.hidden_size, config.num_layers) != (first.hidden_size, first.num_layers):
            raise UserError(f"adapter '{folders[name]}' was made for another base model than '{next(iter(folders))}'.")
    common: dict[str, Any] = {"base_model_name_or_path": first.base_model_name_or_path, "inference_mode": True}
    common["base_weights"] = weights[0] if weights else None
    GrunConfig.stack(members, **common).save_pretrained(str(target))
    save_file(tensors, target / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def _by_key(own: Mapping[str, Tensor], thresholds: Tensor | None, folder: Path) -> dict[str, Tensor]:
    """Thresholds, given in layer order, by the key of the tensor that each replaces."""
    if thresholds is None:
        return {}
    keys = sorted((key for key in own if key.endswith(".threshold")), key=_layer_of)
    if len(keys) != len(thresholds):
        raise UserError(f"adapter '{folder}' has {len(keys)} gates, but {len(thresholds)} thresholds are given for it.")
    pairs = zip(keys, thresholds, strict=True)
    return {key: threshold.to(own[key]).reshape(own[key].shape).clone() for key, threshold in pairs}


def _layer_of(key: str) -> tuple[int, str]:
    number = re.search(r"\.(\d+)\.grun_", key)
    return (int(number.group(1)) if number else -1, key)
