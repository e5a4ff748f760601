"""What the gates at one decoder layer read in a forward call, and what they say of it."""

from __future__ import annotations

__all__ = ["GateReading", "gate_of"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grun.core.errors import UserError
from grun.models.tuner.batched import GateStack
from grun.models.tuner.call.cache import LastRead
from grun.models.tuner.call.context import CallContext, Runtime
from grun.models.tuner.call.decision import GateLogits, any_open
from grun.models.tuner.call.prompt_position import NO_BOUNDARY, last_prompt_states
from grun.models.tuner.config import GrunConfig
from grun.models.tuner.edit import Gate
from grun.models.tuner.readers.lexical import LexicalGate
from grun.models.tuner.readers.topic import TopicGate, TopicStack


def gate_of(config: GrunConfig) -> Gate | LexicalGate:
    """A new gate for names."""
    if config.gate == "lexical":
        return LexicalGate(config.lexicon[0], config.lexicon[1:], config.gate_scope)
    assert config.hidden_size is not None, "known once the adapter is attached"
    return Gate(config.hidden_size, config.hidden_sizes_of_gate, config.window)


class GateReading:
    """The half of a wrapped layer that reads.

    Attributes:
        index: index of the layer.
        runtime: state that the wrapped layers of the model share.
        configs, gates: configurations and gates by the names of their parts.
    """

    index: int
    runtime: Runtime
    configs: dict[str, GrunConfig]
    gates: dict[str, Any]

    def _gate_reads(self, name: str, *, at_input: bool) -> bool:
        """Check whether a gate of this part reads the input of this layer, or its output."""
        return name in self.gates and (self.configs[name].gate_layer is not None) == at_input

    @torch.compiler.disable
    def _read_all(self, names: list[str], h_BTD: Tensor, call: CallContext) -> None:
        """Update the readings of gates that read the layer's input, with one product if their shapes allow it.

        Without gradients, adapters whose gates are shut for every row are skipped from here on.
        """
        trained = torch.is_grad_enabled()
        kinds: dict[type, list[str]] = {}
        for name in names:
            kinds.setdefault(type(self.gates[name]), []).append(name)
        for alike in kinds.values():
            if trained or not self._read_together(alike, h_BTD, call):
                for name in alike:
                    self._read(name, h_BTD, call)
        complete = [name for name in names if self.configs[name].shared_gates[-1] == self.index]
        if trained or not complete:
            return
        open_NB = torch.stack([any_open(self._gate_logits(name, call), h_BTD.device) for name in complete])
        shut = zip(complete, open_NB.any(1).tolist(), strict=True)
        call.shut.update(name for name, opens in shut if not opens)

    def _gate_logits(self, name: str, call: CallContext) -> list[GateLogits]:
        """Logits of the gates that open this layer's edit of a part.

        Raises:
            UserError: if they have not read the prompt.
        """
        found = []
        for source in self.configs[name].shared_gates or [self.index]:
            if (name, source) not in call.readings:
                raise UserError(NO_BOUNDARY)
            threshold = next(layer.gates[name] for layer in self.runtime.layers if layer.index == source).threshold
            found.append(GateLogits(call.logits((name, source), threshold), threshold))
        return found

    def _read_together(self, names: list[str], h_BTD: Tensor, call: CallContext) -> bool:
        """Read prompts with all gates in one product; returns False if there is one gate only, or their shapes differ."""
        before: list[Any] = [call.readings.get((name, self.index)) for name in names]
        topics = all(isinstance(self.gates[name], TopicGate) for name in names)
        lexical = any(isinstance(self.gates[name], LexicalGate) for name in names)
        alike = (
            len(names) > 1
            and not lexical
            and (topics or all(self.configs[name].gate_reads == "prompt" for name in names))
        )
        if not alike or any(one is None for one in before) != all(one is None for one in before):
            return False
        kind: Any = TopicStack if topics else GateStack
        stack = self._stack("gates", tuple(names), lambda: kind.of([self.gates[name] for name in names]))
        device = self.gates[names[0]].threshold.device  # the layer below may live on another one
        if stack is None or any((name, self.index) in call.complete for name in names):
            return False
        if len({self.configs[name].reads_answers for name in names}) > 1:
            return False
        width = h_BTD.shape[1]
        prompt_BT = call.prompt_on(device, width)
        later_BT = call.later_on(device, width) if self.configs[names[0]].reads_answers else None
        if prompt_BT is None and later_BT is None:
            return True
        earlier_NBS = None if before[0] is None else torch.stack(before).to(device)
        with torch.autocast(device.type, enabled=False):
            h_BTD = h_BTD.to(device)
            found_NBS, logit_NBT = stack.read(h_BTD, prompt_BT, later_BT, earlier_NBS)
        for name, before_BS, reading_BS, logit_BT in zip(names, before, found_NBS, logit_NBT, strict=True):
            part = LastRead(call.past, before_BS, h_BTD, prompt_BT, later_BT)
            self._take(name, reading_BS, logit_BT, part, call)
        return True

    def _take(self, name: str, reading_BS: Tensor, logit_BT: Tensor, part: LastRead, call: CallContext) -> None:
        """Take over what this layer's gate has read."""
        call.readings[name, self.index] = reading_BS
        if part.later_BT is None:
            return
        if not isinstance(self.gates[name], TopicGate):
            call.take_later((name, self.index), logit_BT)
        if call.last is not None:
            call.last[name, self.index] = part

    def _read(self, name: str, h_BTD: Tensor, call: CallContext) -> None:
        """Update the reading of this layer's gate with the tokens of this call that it reads."""
        gate = self.gates[name]
        device = gate.threshold.device  # the layer below may live on another one
        span, key, width = call.span_on(device), (name, self.index), h_BTD.shape[1]
        if key in call.complete:
            return
        prompt_BT = call.prompt_on(device, width)
        later_BT = call.later_on(device, width) if self.configs[name].reads_answers else None
        if prompt_BT is None and later_BT is None:
            return
        call.values.pop(key, None)
        before_BS = call.readings.get(key)
        before_BS = None if before_BS is None else before_BS.to(device)
        with torch.autocast(device.type, enabled=False):
            if self.configs[name].gate_reads == "last" and not isinstance(gate, TopicGate):
                assert span is not None, "the last prompt token is read in a prompt"
                h_B1D, here_B1 = last_prompt_states(h_BTD, span, call.past)
                reading_BS = gate(h_B1D.to(device), here_B1)
                call.readings[key] = reading_BS if before_BS is None else torch.where(here_B1, reading_BS, before_BS)
            else:
                read = call.ids_BT if isinstance(gate, LexicalGate) else h_BTD
                assert read is not None, "calls of such gates have token ids"
                part = LastRead(call.past, before_BS, read.to(device), prompt_BT, later_BT)
                reading_BS, logit_BT = gate.read(part.h_BTD, prompt_BT, later_BT, before_BS)
                self._take(name, reading_BS, logit_BT, part, call)

    def _stack(self, kind: str, names: tuple[Any, ...], build: Callable[[], Any]) -> Any:
        """The stack of this layer's gates or edits of several adapters, built once per `generate` call."""
        scope = self.runtime.generation
        return build() if scope is None else scope.once((kind, self.index, names), build)
