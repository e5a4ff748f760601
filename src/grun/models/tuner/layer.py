"""The wrapper of a decoder layer: gates read its input or output, and edits change its output."""

from __future__ import annotations

__all__ = ["GrunLayer"]

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from grun.core.errors import UserError
from grun.models.tuner.batched import EditStack
from grun.models.tuner.call.context import CallContext, Runtime
from grun.models.tuner.call.decision import beside, compute_dtype, largest_value
from grun.models.tuner.call.prompt_position import NO_BOUNDARY
from grun.models.tuner.config import GrunConfig
from grun.models.tuner.edit import LowRankEdit
from grun.models.tuner.readers.topic import TopicGate
from grun.models.tuner.reading import GateReading, gate_of


class GrunLayer(GateReading, nn.Module, BaseTunerLayer):
    """Wraps one decoder layer and has all of its attributes; tensor and tuple outputs keep their form.

    A *part* is an adapter, or a member of an adapter that is a stack (`adapter/member`).

    Args:
        base_layer: the decoder layer.
        index: its 0-based index.
        runtime: state that the wrapped layers of the model share.

    Attributes:
        configs: configuration of every part, by its name.
        gates, edits: gates and edits at this layer, by the names of their parts.
    """

    adapter_layer_names = ("grun_edit", "grun_gate")

    def __init__(self, base_layer: nn.Module, index: int, runtime: Runtime) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.index = index
        self.runtime = runtime
        self.configs: dict[str, GrunConfig] = {}
        self.gates: dict[str, Any] = {}
        self.edits: dict[str, Any] = {}
        self._parts: dict[str, list[str]] = {}
        self.grun_edit = nn.ModuleDict()
        self.grun_gate = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """Look unknown attributes up in the wrapped layer: model loops read some off their layers (`attention_type`)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)

    def update_layer(self, adapter_name: str, config: GrunConfig) -> None:
        """Add the parts of an adapter that live at this layer: an edit, a gate, or both."""
        self._parts[adapter_name] = []
        for member, own in config.parts.items():
            assert own.hidden_size is not None
            part = f"{adapter_name}/{member}" if member else adapter_name
            self._parts[adapter_name].append(part)
            self.configs[part] = own
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.default_generator.manual_seed(own.init_seed * 100_003 + self.index)
                if self.index in own.layers:
                    self.edits[part] = LowRankEdit(own.hidden_size, own.rank, own.dropout, own.init_weights)
                    _hold(self.grun_edit, adapter_name, member, self.edits[part])
                gated = self.index in own.layers if own.gate_layer is None else self.index == own.gate_layer
                if own.gate != "none" and gated:
                    self.gates[part] = gate_of(own)
                    _hold(self.grun_gate, adapter_name, member, self.gates[part])
                if self.index == own.topic_layer:
                    self.gates[part] = TopicGate(own.hidden_size, own.topic_width, own.topic_kept, own.topic_nearest)
                    _hold(self.grun_gate, adapter_name, member, self.gates[part])
        self._move_to_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def _move_to_base_layer(self, adapter_name: str) -> None:
        device = next(self.base_layer.parameters()).device
        held = [parts[adapter_name] for parts in (self.grun_edit, self.grun_gate) if adapter_name in parts]
        for module in held:
            if device.type != "meta" and not any(p.is_meta for p in module.parameters()):
                module.to(device)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapters on or off. Unlike PEFT's own method it leaves frozen parts (a fitted gate) frozen."""
        self._disable_adapters = not enabled

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter from this layer."""
        super().delete_adapter(adapter_name)
        for part in self._parts.pop(adapter_name, ()):
            for held in (self.configs, self.gates, self.edits):
                held.pop(part, None)

    def active_here(self) -> list[str]:
        """Names of the parts of active adapters that may act at this layer in a forward call."""
        if self.disable_adapters:
            return []
        return [part for name in self.active_adapters for part in self._parts.get(name, ())]

    @torch.compiler.disable(recursive=False)  # the wrapped layer may be compiled; the rest depends on the call
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own output, with the edits of the active adapters where their gates are open."""
        names = [] if self.runtime.idle else self.active_here()
        if not names:
            return self.base_layer(*args, **kwargs)
        call = self.runtime.call
        if call is None:
            raise UserError(NO_BOUNDARY)
        h_in_BTD = args[0] if args else kwargs["hidden_states"]
        if call.span is not None or call.real_BT is not None:
            self._read_all([n for n in names if self._gate_reads(n, at_input=True)], h_in_BTD, call)
        output = self.base_layer(*args, **kwargs)
        h_BTD = output[0] if isinstance(output, tuple) else output
        edited_BTD = self._edit(h_BTD, names, call)
        if call.edited is not None:
            call.edited[self.index] = edited_BTD
        return (edited_BTD, *output[1:]) if isinstance(output, tuple) else edited_BTD

    @torch.compiler.disable
    def _edit(self, h_BTD: Tensor, names: list[str], call: CallContext) -> Tensor:
        out_BTD, configs, edits = h_BTD, self.configs, self.edits
        if call.span is not None:
            for name in names:
                if self._gate_reads(name, at_input=False):
                    self._read(name, h_BTD, call)
        names = [name for name in names if name in edits and name not in call.shut]
        together = [name for name in names if configs[name].edit_from == "last_prompt_on"]
        if together and not torch.is_grad_enabled() and not self.training:
            out_BTD = self._edit_together(h_BTD, together, call)
            names = [name for name in names if name not in together]
        for name in names:
            if configs[name].edit_from == "last_prompt_on":
                out_BTD = self._edit_from_last(out_BTD, h_BTD, name, call)
            else:
                out_BTD = self._edit_last_only(out_BTD, h_BTD, name, call)
        return out_BTD

    def _factor(self, name: str, call: CallContext, rows: int, device: torch.device) -> Tensor:
        """Factor (B, T or 1) of this layer's edit: the gate's value, 1 without a gate, times the adapter's scale."""
        config = self.configs[name]
        if config.gate == "none":
            return torch.full((rows, 1), config.scale, device=device)
        key = (name, (config.shared_gates or [self.index])[-1])
        if key not in call.values or torch.is_grad_enabled():
            call.values[key] = largest_value(self._gate_logits(name, call), float(config.scale), device)
        return call.values[key].to(device)

    def _edit_from_last(self, out_BTD: Tensor, h_BTD: Tensor, name: str, call: CallContext) -> Tensor:
        """Edit the last prompt token and every token after it."""
        rows, width, _ = h_BTD.shape
        value_BT = self._factor(name, call, rows, h_BTD.device).expand(rows, width)
        span = call.span_on(h_BTD.device)
        if span is not None:
            after_BT = call.columns(width, h_BTD.device) >= span.end_B[:, None]
            value_BT = torch.where(after_BT, value_BT, 0.0)
        return self._add(out_BTD, h_BTD, name, value_BT)

    def _edit_together(self, h_BTD: Tensor, names: list[str], call: CallContext) -> Tensor:
        """The edits of several adapters from the last prompt token on, as one product."""
        dtype, span = compute_dtype(h_BTD), call.span_on(h_BTD.device)
        stack = self._stack("edits", (dtype, *names), lambda: EditStack.of([self.edits[n] for n in names], dtype))
        values_BTN = self._values_together(names, call, h_BTD)
        if span is not None:
            after_BT = call.columns(h_BTD.shape[1], h_BTD.device) >= span.end_B[:, None]
            values_BTN = torch.where(after_BT[..., None], values_BTN, 0.0)
        with torch.autocast(h_BTD.device.type, enabled=False):
            sum_BTD = stack(h_BTD.to(dtype), values_BTN).to(h_BTD.dtype)
        return torch.where((values_BTN != 0).any(-1, keepdim=True), sum_BTD, h_BTD)

    def _values_together(self, names: list[str], call: CallContext, h_BTD: Tensor) -> Tensor:
        """Factors (B, T or 1, N) of several edits, each as `_factor`; computed once for all layers with shared gates."""
        configs = [self.configs[name] for name in names]
        shared = {tuple(config.shared_gates) for config in configs}
        sources = shared.pop() if len(shared) == 1 else ()
        key = (*(sources or (self.index,)), *names)
        if key not in call.values:
            if not sources:
                values = [self._factor(name, call, len(h_BTD), h_BTD.device) for name in names]
                call.values[key] = torch.stack(torch.broadcast_tensors(*values), dim=-1)
            else:
                gates = zip(*(self._gate_logits(name, call) for name in names), strict=True)
                scales = [float(config.scale) for config in configs]
                call.values[key] = largest_value([beside(alike) for alike in gates], scales, h_BTD.device)
        return call.values[key].to(h_BTD.device)

    def _edit_last_only(self, out_BTD: Tensor, h_BTD: Tensor, name: str, call: CallContext) -> Tensor:
        """Edit the last prompt token; rows whose last prompt token is outside this call do not change."""
        span = call.span_on(h_BTD.device)
        if span is None:
            return out_BTD
        rows, width, hidden = h_BTD.shape
        end_B = span.end_B - call.past
        value_B = self._factor(name, call, rows, h_BTD.device)[:, 0]
        value_B = torch.where((end_B >= 0) & (end_B < width), value_B, 0.0)
        at_B11 = end_B.clamp(0, width - 1)[:, None, None].expand(rows, 1, hidden)
        new_B1D = self._add(out_BTD.gather(1, at_B11), h_BTD.gather(1, at_B11), name, value_B[:, None])
        return out_BTD.scatter(1, at_B11, new_B1D)

    def _add(self, out_BTD: Tensor, h_BTD: Tensor, name: str, value_BT: Tensor) -> Tensor:
        """`out + value * phi(h)`; exactly `out`, bit for bit, where the value is 0."""
        with torch.autocast(h_BTD.device.type, enabled=False):
            edit_BTD = self.edits[name](h_BTD, self._rotation(name, compute_dtype(h_BTD)))
            sum_BTD = (out_BTD.to(edit_BTD.dtype) + value_BT[..., None] * edit_BTD).to(out_BTD.dtype)
        return torch.where(value_BT[..., None] != 0, sum_BTD, out_BTD)

    def _rotation(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """The rotation of an edit, computed once per `generate` call; None outside of one, or if it is trained."""
        edit, scope = self.edits[name], self.runtime.generation
        if scope is None or (torch.is_grad_enabled() and edit.rotation.requires_grad):
            return None
        rotation_DR: Tensor = scope.once(("rotation", self.index, name), lambda: edit.rotation_DR(dtype).detach())
        return rotation_DR


def _hold(modules: nn.ModuleDict, adapter: str, member: str, module: nn.Module) -> None:
    """Register a module under its adapter, and below that under its member if the adapter is a stack."""
    if not member:
        modules[adapter] = module
        return
    if adapter not in modules:
        modules[adapter] = nn.ModuleDict()
    members: Any = modules[adapter]
    members[member] = module
