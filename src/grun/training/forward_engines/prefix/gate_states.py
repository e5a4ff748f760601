"""States that gates read on cached prompts, and the logits of gates that do not change."""

from __future__ import annotations

__all__ = ["GateStates"]

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grun.models.encoding.encode import Encoded
from grun.models.gates.features import gate_features, held_gates, logit_of_prompt
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.call.context import GateKey

Prompt = tuple[int, ...]  # token ids


class GateStates:
    """Gate inputs of prompts, each prompt read once in the base model.

    Args:
        model: PEFT model with GRUN or ReFT adapters.
        adapter: name of the adapter that is trained.
        encoder: makes batches.
    """

    def __init__(self, model: Any, adapter: str, encoder: RowEncoder) -> None:
        self._model = model
        self._adapter = adapter
        self._encoder = encoder
        self._held = held_gates(model, adapter)
        self._states: dict[Prompt, dict[GateKey, Tensor]] = {}
        self._logits: dict[Prompt, dict[GateKey, Tensor]] = {}
        self._versions: dict[GateKey, int] = {}

    def read(self, prompts: Collection[Prompt]) -> None:
        """Keep the states that gates read on some prompts, except those that only exist in a step."""
        configs = [layer.configs[part] for layer, part in self._held]
        if all(config.gate_layer is None and config.gate_reads == "last" for config in configs):
            return  # they read only the last prompt token, at edited layers
        todo = [Encoded(prompt, len(prompt), 0) for prompt in sorted(prompts) if prompt not in self._states]
        for chunk, batch in self._encoder.batches(todo):
            features = gate_features(self._model, [batch], adapter=self._adapter)
            for (layer, part), config, found in zip(self._held, configs, features, strict=True):
                # edits of lower layers change the last prompt token before a gate at an edited layer reads it
                left = 1 if config.gate_layer is None else 0
                for row, i in enumerate(chunk):
                    h_PD = found.row(row).cpu()
                    self._states.setdefault(todo[i].input_ids, {})[part, layer.index] = h_PD[: len(h_PD) - left]

    def of(self, prompts: Sequence[Prompt]) -> tuple[Mapping[GateKey, tuple[Tensor, Tensor]], Mapping[GateKey, Tensor]]:
        """Padded states with masks, and logits of gates that are frozen and read no edited layer (see `PrefixBatch`).

        Args:
            prompts: prompts of a batch, all of them passed to `read` before.
        """
        states: dict[GateKey, tuple[Tensor, Tensor]] = {}
        logits: dict[GateKey, Tensor] = {}
        for layer, part in self._held:
            key, gate = (part, layer.index), layer.gates[part]
            if key not in self._states.get(prompts[0], {}):
                continue
            trained = any(parameter.requires_grad for parameter in gate.parameters())
            if trained or layer.configs[part].gate_layer is None:
                states[key] = _padded([self._states[prompt][key] for prompt in prompts])
            else:
                logits[key] = torch.stack([self._logit(gate, key, prompt) for prompt in prompts])
        return states, logits

    def shut(self, prompts: Sequence[Prompt]) -> list[bool]:
        """By prompt, True if all gates are frozen and shut for it, so that no edit changes anything after it."""
        logits = self.of(prompts)[1] if self._all_fixed else {}
        if not logits or any(prompt not in self._states for prompt in prompts):
            return [False] * len(prompts)
        shut = [logits[part, layer.index] <= layer.gates[part].threshold.cpu() for layer, part in self._held]
        return [bool(one) for one in torch.stack(shut).all(0)]

    @property
    def _all_fixed(self) -> bool:
        """True if no gate is trained, and all of them read states that no edit changes."""
        return bool(self._held) and all(
            layer.configs[part].gate_layer is not None
            and not any(p.requires_grad for p in layer.gates[part].parameters())
            for layer, part in self._held
        )

    @torch.no_grad()
    def _logit(self, gate: Any, key: GateKey, prompt: Prompt) -> Tensor:
        """Logit of a frozen gate, computed again after its weights were changed, as by loading a checkpoint."""
        version = sum(tensor._version for tensor in (*gate.parameters(), *gate.buffers()))
        if self._versions.get(key) != version:
            self._versions[key] = version
            self._logits.clear()
        known = self._logits.setdefault(prompt, {})
        if key not in known:
            known[key] = logit_of_prompt(gate, self._states[prompt][key].to(gate.threshold.device)).cpu()
        return known[key]


def _padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States (B, P, D) padded on the left, and a mask of the real ones."""
    width = max(len(one) for one in states)
    h_BPD = states[0].new_zeros(len(states), width, states[0].shape[1])
    for i, one in enumerate(states):
        h_BPD[i, width - len(one) :] = one
    return h_BPD, torch.arange(width) >= width - torch.tensor([len(one) for one in states])[:, None]
