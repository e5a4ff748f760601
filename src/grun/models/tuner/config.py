"""`GrunConfig`: the configuration of a GRUN adapter, checked at construction."""

from __future__ import annotations

__all__ = ["PAPER_DEPTHS", "GrunConfig", "is_member_name"]

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft.config import PeftConfig
from peft.utils import TaskType
from torch import nn

from grun.core.errors import UserError, nearest
from grun.models.tuner.base_model import MethodName, layer_index

PAPER_DEPTHS = (0.65, 0.8, 1.0)  # layers 20, 25 and 31 of 32 in the paper
DEFAULT_WINDOW = 4
MEMBER_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
LEXICON_SETTINGS = ("lexicon", "gate_scope")
TOPIC_SETTINGS = ("topic_layer", "topic_width", "topic_nearest", "topic_kept")
CHOICES = {
    "gate": ("linear", "mlp", "lexical", "none"),
    "gate_reads": ("last", "prompt"),
    "gate_scope": ("asked", "mentioned"),
    "edit_from": ("last_prompt_only", "last_prompt_on"),
}


@dataclass
class GrunConfig(PeftConfig):
    """Configuration of a GRUN adapter (arXiv 2502.17823); the defaults are ours, `GrunConfig.paper()` is the published one.

    Args:
        rank: rank of the edit at each layer.
        layers: decoder layers whose output is edited: indices (int, 0-based), or fractions of depth (float in (0, 1]).
        gate: `mlp`, `linear`, `lexical` for one that reads text (see `LexicalGate`), or `none` for a plain LoReFT without a
            gate (the ablation).
        gate_hidden: hidden sizes of an `mlp` gate.
        gate_reads: `last` reads the last prompt token (the paper), `prompt` every prompt token and takes the largest logit.
        gate_window: tokens over which an mlp gate that reads the prompt pools its detectors (see `Gate`); 1 reads every token
            alone. None: 4 for such a gate, 1 for any other.
        gate_layer: layer whose input one gate, shared by all edits, reads (0: the embedding output). None: a gate of its own
            at the output of every edited layer (the paper).
        topic_layer: layer whose input a second shared gate reads, which recognises topics (see `TopicGate`): an index, or a
            fraction of depth. An edit acts where either gate opens. None: no such gate. It is fitted before edits are trained.
        topic_width: size of the embedding that it compares.
        topic_nearest: number of nearest prompts that it looks at on either side.
        topic_kept: numbers of prompts to forget and of normal prompts that it keeps; filled in by the fit.
        gate_scope: `asked` opens a lexical gate for names that are asked about, `mentioned` for every mention of one.
        lexicon: numbers of spans, of tokens and of bytes of tokens that a lexical gate keeps; filled in by the fit.
        edit_from: `last_prompt_only` edits the last prompt token (the paper), `last_prompt_on` the tokens after it as well.
        dropout: dropout probability on the edit, in training.
        init_weights: start as the identity. False: random edit, as in the reference implementation.
        init_seed: seed of the initial weights, independent of the global random state.
        scale: factor of the edits.
        gate_places: logits at which the gates opened when they were learnt, in layer order; filled in by a calibration.
        members: settings of the members of a stack of adapters, by name; all other settings are then ignored.
        hidden_size, num_layers: shape of the base model; filled in when the adapter is attached, checked when it is loaded.
        base_weights: which weights the base model has (see `grun.core.storage.weights`); filled in and checked likewise.
        target_modules: names of the wrapped decoder layers; filled in.

    Raises:
        UserError: (a ValueError) for a value out of range, at construction.
    """

    rank: int = field(default=4, metadata={"help": "Rank of the edit."})
    layers: list[int | float] = field(
        default_factory=lambda: list(PAPER_DEPTHS), metadata={"help": "Edited layers: indices or fractions of depth."}
    )
    gate: str = field(default="mlp", metadata={"help": "linear, mlp, lexical or none."})
    gate_hidden: list[int] = field(default_factory=lambda: [64], metadata={"help": "Hidden sizes of an mlp gate."})
    gate_reads: str = field(default="prompt", metadata={"help": "last or prompt."})
    gate_window: int | None = field(default=None, metadata={"help": "Tokens over which detectors are pooled."})
    gate_layer: int | None = field(default=0, metadata={"help": "Layer whose input the shared gate reads, or None."})
    topic_layer: int | float | None = field(default=None, metadata={"help": "Layer that the gate for topics reads."})
    topic_width: int = field(default=128, metadata={"help": "Size of the embedding of a topic."})
    topic_nearest: int = field(default=3, metadata={"help": "Nearest prompts that the gate for topics looks at."})
    topic_kept: list[int] = field(default_factory=lambda: [0, 0], metadata={"help": "Prompts it keeps (filled in)."})
    lexicon: list[int] = field(default_factory=lambda: [0, 0, 0], metadata={"help": "Spans it keeps (filled in)."})
    gate_scope: str = field(default="asked", metadata={"help": "What opens a lexical gate: asked or mentioned."})
    edit_from: str = field(default="last_prompt_on", metadata={"help": "last_prompt_only or last_prompt_on."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the edit."})
    init_weights: bool = field(default=True, metadata={"help": "Start as the identity."})
    init_seed: int = field(default=0, metadata={"help": "Seed of the initial weights."})
    scale: float = field(default=1.0, metadata={"help": "Factor of the edits."})
    gate_places: list[float] | None = field(
        default=None, metadata={"help": "Logits at which gates opened as learnt (filled in)."}
    )
    members: dict[str, dict[str, Any]] | None = field(default=None, metadata={"help": "Adapters of a stack, by name."})
    hidden_size: int | None = field(default=None, metadata={"help": "Hidden size of the base model."})
    num_layers: int | None = field(default=None, metadata={"help": "Number of decoder layers of the base model."})
    base_weights: str | None = field(default=None, metadata={"help": "Weights of the base model (filled in)."})
    target_modules: list[str] | None = field(default=None, metadata={"help": "Wrapped decoder layers (filled in)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MethodName("GRUN")
        self.task_type = self.task_type or TaskType.CAUSAL_LM
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UserError(
                    f"{name} is {value!r}, expected one of {', '.join(choices)}.{nearest(str(value), choices)}"
                )
        if not isinstance(self.init_weights, bool):
            raise UserError(f"init_weights is {self.init_weights!r}, expected true or false.")
        for name, low, high in (("rank", 1, None), ("init_seed", 0, None), ("dropout", 0.0, 1.0), ("scale", 0.0, None)):
            self._check_number(name, low, high)
        for name, low in (("gate_layer", 0), ("hidden_size", 1), ("num_layers", 1)):
            if getattr(self, name) is not None:
                self._check_number(name, low, None)
        if self.base_weights is not None and len(str(self.base_weights).split(" ")) != 4:
            raise UserError(f"base_weights is {self.base_weights!r}, expected what an adapter was saved with.")
        self._check_topic_settings()
        self._check_lexicon()
        if self.gate_window is not None:
            self._check_number("gate_window", 1, None)
            if self.gate_window > 1 and (self.gate != "mlp" or self.gate_reads != "prompt"):
                raise UserError(
                    f"gate_window is {self.gate_window}, but only an mlp gate that reads the prompt has a window; "
                    f"this one is {self.gate} and reads {self.gate_reads}."
                )
        if self.gate_places is not None and not (
            isinstance(self.gate_places, Sequence) and all(_is_finite(value) for value in self.gate_places)
        ):
            raise UserError(f"gate_places is {self.gate_places!r}, expected finite numbers.")
        self.layers = self._checked_layers(self.layers)
        sizes = list(self.gate_hidden) if isinstance(self.gate_hidden, Sequence) else []
        if self.gate == "mlp" and (not sizes or any(not _is_int(n) or n < 1 for n in sizes)):
            raise UserError(
                f"gate_hidden is {self.gate_hidden}, expected one or more sizes of at least 1 for an mlp gate."
            )
        self.gate_hidden = sizes
        self._members = {name: self._checked_member(name, given) for name, given in (self.members or {}).items()}
        if self.members is not None and not self.members:
            raise UserError("members is empty, expected at least one adapter in a stack.")

    def _check_lexicon(self) -> None:
        sizes = self.lexicon
        if not isinstance(sizes, Sequence) or len(sizes) != 3 or not all(_is_int(n) and n >= 0 for n in sizes):
            raise UserError(f"lexicon is {sizes!r}, expected three numbers of at least 0.")
        self.lexicon = list(sizes)
        if self.gate == "lexical" and (self.gate_reads != "prompt" or self.gate_layer is None):
            found = f"gate_reads is {self.gate_reads} and gate_layer {self.gate_layer}; expected prompt and a layer."
            raise UserError(f"a lexical gate reads all tokens and serves all edits, but {found}")

    @property
    def parts(self) -> dict[str, GrunConfig]:
        """Configurations of the members of a stack by name; for any other adapter its own, under the empty name."""
        return self._members or {"": self}

    @classmethod
    def stack(cls, members: Mapping[str, GrunConfig], **common: Any) -> GrunConfig:
        """The configuration of a stack of adapters: each has gates and edits of its own, and the edits add up."""
        return cls(members={name: member.own_settings() for name, member in members.items()}, **common)

    def own_settings(self) -> dict[str, Any]:
        """The settings of this adapter, without those that PEFT adds to every adapter."""
        inherited = {f.name for f in dataclasses.fields(PeftConfig)} | {"members", "target_modules", "base_weights"}
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in inherited}
        return _without_idle(settings)

    def to_dict(self) -> dict[str, Any]:
        """The settings as PEFT saves them, members of a stack with their resolved layers."""
        members = {name: member.own_settings() for name, member in self._members.items()}
        settings = {**_without_idle(super().to_dict()), "members": members or None}
        if self.base_weights is None:
            del settings["base_weights"]  # an adapter that says nothing of them stays readable by older versions
        return settings

    @classmethod
    def paper(cls, **overrides: Any) -> GrunConfig:
        """The setting of arXiv 2502.17823: at each of three layers a gate and an edit of its own, on the last prompt token."""
        published: dict[str, Any] = {
            "gate_hidden": [256, 64],
            "gate_reads": "last",
            "gate_layer": None,
            "edit_from": "last_prompt_only",
            "init_weights": False,
        }
        return cls(**{**published, **overrides})

    @property
    def shared_gates(self) -> list[int]:
        """Layers whose input a gate reads that is shared by all edits, ascending; empty where each edit has its own gate."""
        layers = (self.gate_layer, self.topic_layer)
        return [int(layer) for layer in layers if layer is not None and self.gate != "none"]

    @property
    def reads_answers(self) -> bool:
        """Whether gates read the tokens after the prompt too, and edits act from where one opens."""
        return bool(self.shared_gates) and self.gate_reads == "prompt" and self.edit_from == "last_prompt_on"

    @property
    def hidden_sizes_of_gate(self) -> list[int]:
        """Hidden sizes of the gate network; empty for a linear one."""
        return self.gate_hidden if self.gate == "mlp" else []

    @property
    def window(self) -> int:
        """Tokens over which the gate's detectors are pooled."""
        if self.gate_window is not None:
            return self.gate_window
        return DEFAULT_WINDOW if self.gate == "mlp" and self.gate_reads == "prompt" else 1

    def resolved_layers(self, num_layers: int) -> list[int]:
        """Indices of the edited layers in a model of `num_layers` decoder layers, ascending.

        Raises:
            UserError: if an index is out of range, or the gate would read above the first edited layer.
        """
        indices = sorted({layer_index(value, num_layers) for value in self.layers})
        if indices[-1] >= num_layers or indices[0] < 0:
            wrong = indices[-1] if indices[-1] >= num_layers else indices[0]
            raise UserError(f"layers contains {wrong}, but the model has {num_layers} layers (0 to {num_layers - 1}).")
        if self.gate != "none" and self.gate_layer is not None and self.gate_layer > indices[0]:
            raise UserError(
                f"gate_layer is {self.gate_layer}, expected at most {indices[0]}, the first edited layer: "
                "the gate must be decided before the first edit."
            )
        return indices

    def resolved_topic_layer(self, num_layers: int) -> int | None:
        """Index of the layer that the gate for topics reads; a fraction of depth keeps clear of the other gate's layer.

        Raises:
            UserError: if it is not between the other gate's layer and the first edited one.
        """
        if self.topic_layer is None:
            return None
        assert self.gate_layer is not None
        first, index = self.resolved_layers(num_layers)[0], layer_index(self.topic_layer, num_layers)
        if isinstance(self.topic_layer, float):
            index = min(max(index, self.gate_layer + 1), first)
        if not self.gate_layer < index <= first:
            raise UserError(
                f"topic_layer is {self.topic_layer}, expected a layer above {self.gate_layer}, the other gate's, and at most "
                f"{first}, the first edited one; None (--topic-layer none) leaves the gate for topics out."
            )
        return index

    def _check_topic_settings(self) -> None:
        for name in ("topic_width", "topic_nearest"):
            self._check_number(name, 1, None)
        kept = self.topic_kept
        if not (isinstance(kept, Sequence) and len(kept) == 2 and all(_is_int(count) and count >= 0 for count in kept)):
            raise UserError(f"topic_kept is {kept!r}, expected two numbers of prompts.")
        if self.topic_layer is None:
            return
        if not _is_layer(self.topic_layer):
            raise UserError(
                f"topic_layer is {self.topic_layer!r}, expected an index (from 0), a fraction of depth (0 to 1) or None."
            )
        if self.gate == "none" or self.gate_layer is None:
            raise UserError(
                f"topic_layer is {self.topic_layer}, but topics are recognised beside a shared gate: set gate and gate_layer."
            )

    @staticmethod
    def _checked_member(name: str, given: Any) -> GrunConfig:
        if not is_member_name(name):
            raise UserError(
                f"members contains '{name}', expected names of letters, digits, - and _ (and not a reserved word)."
            )
        if not isinstance(given, Mapping) or given.get("members") is not None:
            found = "a stack itself" if isinstance(given, Mapping) else type(given).__name__
            raise UserError(f"members: '{name}' is {found}, expected the settings of a single adapter.")
        known = {f.name for f in dataclasses.fields(GrunConfig)}
        for setting in given:
            if setting not in known:
                raise UserError(f"members: '{name}' has an unknown setting '{setting}'.{nearest(setting, known)}")
        return GrunConfig(**given)

    def _check_number(self, name: str, low: float, high: float | None) -> None:
        value = getattr(self, name)
        ok = _is_int(value) if isinstance(low, int) else isinstance(value, (int, float)) and not isinstance(value, bool)
        if not ok or not low <= value < (math.inf if high is None else high):
            expected = f"at least {low}" if high is None else f"from {low} to below {high}"
            raise UserError(f"{name} is {value!r}, expected a number {expected}.")

    @staticmethod
    def _checked_layers(layers: Sequence[int | float]) -> list[int | float]:
        if isinstance(layers, (str, bytes)) or not isinstance(layers, Sequence) or not layers:
            raise UserError(f"layers is {layers!r}, expected one or more indices or fractions of depth.")
        for value in layers:
            if not _is_layer(value):
                raise UserError(
                    f"layers contains {value!r}, expected an index (int, from 0) or a fraction of depth (float, 0 to 1)."
                )
        return list(layers)


def is_member_name(name: str) -> bool:
    """Check whether a member of a stack may have this name: modules are registered under it."""
    free = not hasattr(nn.ModuleDict(), name) and "grun_" not in name  # PEFT cuts keys there
    return free and re.fullmatch(MEMBER_NAME, name) is not None


def _without_idle(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those of gates that are not there: older versions do not know them."""
    idle: tuple[str, ...] = TOPIC_SETTINGS if settings["topic_layer"] is None else ()
    idle += LEXICON_SETTINGS if settings["gate"] != "lexical" else ()
    return {name: value for name, value in settings.items() if name not in idle}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_layer(value: object) -> bool:
    return 0.0 < value <= 1.0 if isinstance(value, float) else _is_int(value) and value >= 0  # type: ignore[operator]


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
