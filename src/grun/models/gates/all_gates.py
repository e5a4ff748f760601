"""Fit of all gates of an adapter on the rows of a job, and their thresholds."""

from __future__ import annotations

__all__ = ["JobRows", "fit_all_gates"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grun.core.records import Example
from grun.data.shipped_prompts import clashing, shipped_prompts
from grun.models.encoding.encode import Encoded
from grun.models.gates.calibration import OpenShare
from grun.models.gates.features import (
    GateFeatures,
    concatenated,
    features_of_rows,
    gates_of,
    held_gates,
    load_features,
    readings_of_gates,
    thresholds_of,
)
from grun.models.gates.fitting import (
    ALONE,
    BESIDE_TOPICS,
    TEXT,
    TOPICS,
    GateFit,
    Place,
    chosen_thresholds,
    fit_gates,
    set_thresholds,
)
from grun.models.gates.recognition import Judged, Recognition
from grun.models.gates.text.fitting import fit_lexical_gate, texts_of
from grun.models.gates.topics.background import background
from grun.models.gates.topics.fitting import KeptPrompts, fit_topic_gate, withheld_logits
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.call.decision import is_open
from grun.models.tuner.readers.lexical import LexicalGate
from grun.models.tuner.readers.topic import TopicGate
from grun.models.tuner.readers.vocabulary import token_bytes

TOPICS_RATE = 4.0  # times the rate of ordinary prompts: many shipped topics are neighbours of what is to be forgotten
LEAST_RECALL = 0.5  # of withheld rows to forget; a gate for topics that recognises fewer opens by chance
NEIGHBOUR_RATE = 0.05  # share of withheld neighbouring prompts that may open a gate
LONGEST_TO_FIT = 512  # characters of a shipped prompt that gates for names are fitted on


@dataclass(frozen=True)
class JobRows:
    """Rows of one kind: as examples, and encoded."""

    examples: Sequence[Example]
    encoded: Sequence[Encoded]


@dataclass(frozen=True)
class _Prompts:
    """Prompts of one kind, as the gates read them.

    Attributes:
        texts: prompts that ship, and origins of rows ("forget.jsonl, row 12").
        names: features that each gate for names reads.
        topics: embeddings and groups, for the gate for topics; None without one.
    """

    texts: tuple[str, ...]
    names: list[GateFeatures]
    topics: KeptPrompts | None

    def at(self, numbers: Sequence[int]) -> _Prompts:
        """The prompts with these numbers."""
        topics = None if self.topics is None else self.topics.at(numbers)
        return _Prompts(tuple(self.texts[i] for i in numbers), [part.at(numbers) for part in self.names], topics)

    def halves(self) -> tuple[_Prompts, _Prompts]:
        """Every second prompt, and the others."""
        everything = range(len(self.texts))
        return self.at(everything[::2]), self.at(everything[1::2])


@dataclass
class _Fit:
    """A fit in progress.

    Attributes:
        model: PEFT model with a gated adapter.
        rows: encoder of prompts.
        names: positions of the gates for names.
        topic: position of the gate for topics; None without one.
        to_fit, to_judge: prompts by kind, for gates for names; the gate for topics compares with all of them.
        left_out: topics of shipped prompts that may be about what is to be forgotten.
    """

    model: Any
    rows: RowEncoder
    names: list[int]
    topic: int | None
    to_fit: dict[str, _Prompts] = field(default_factory=dict)
    to_judge: dict[str, _Prompts] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: Any, rows: RowEncoder) -> _Fit:
        """A fit of all gates of a model."""
        gates = [gate for _, gate in gates_of(model)]
        topic = next((i for i, gate in enumerate(gates) if isinstance(gate, TopicGate)), None)
        return cls(model, rows, [i for i in range(len(gates)) if i != topic], topic)

    @property
    def gates(self) -> list[Any]:
        """All gates."""
        return [gate for _, gate in gates_of(self.model)]

    def take_shipped(self, parts: Mapping[str, JobRows], content: str | None) -> None:
        """Give the gate for topics its head, and take shipped prompts over: not those about what is to be forgotten.

        Nor those that are rows of the job: prompts that thresholds are set on must not be prompts that gates are fitted on.
        """
        assert self.topic is not None
        (layer, _), gate = held_gates(self.model)[self.topic], self.gates[self.topic]
        known = background(self.model, self.rows, layer, len(gate.offset), content)
        gate.set_head(known.head)
        prompts = [shipped_prompts()[i] for i in known.numbers]
        forget, rows = parts["forget"].examples, {row.prompt for part in parts.values() for row in part.examples}
        dropped = clashing([prompt.text for prompt in prompts], [f"{row.prompt} {row.answer}" for row in forget])
        at = [i for i, prompt in enumerate(prompts) if i not in dropped and prompt.text not in rows]
        self.left_out = sorted({topic for i in dropped if (topic := prompts[i].topic) is not None})
        groups = tuple(f"topic {prompts[i].topic}" if prompts[i].topic else f"ordinary {i}" for i in at)
        texts = tuple(prompts[i].text for i in at)
        encoded = self.rows.encode([Example(text, "") for text in texts])
        names = features_of_rows(self.model, self.rows, encoded, only=self.names)
        shipped = _Prompts(texts, names, KeptPrompts(known.embedding_NK[at], groups))
        fitted = [k for k, i in enumerate(at) if not prompts[i].topic and len(texts[k]) <= LONGEST_TO_FIT][::2]
        self.to_fit["shipped"] = shipped.at(fitted)
        ordinary = [k for k, i in enumerate(at) if not prompts[i].topic]
        self.to_judge["ordinary"] = shipped.at(sorted(set(ordinary) - set(fitted)))
        self.to_judge["topics"] = shipped.at([k for k, i in enumerate(at) if prompts[i].topic])

    def read(self, kind: str, part: JobRows) -> _Prompts:
        """Rows as the gates read them; rows of one subject, if it is not the only one, are one group."""
        features = features_of_rows(self.model, self.rows, part.encoded)
        topics = None
        if self.topic is not None:
            several = len({row.subject for row in part.examples}) > 1
            groups = (row.subject if several and row.subject else f"row {i}" for i, row in enumerate(part.examples))
            topics = KeptPrompts(features[self.topic].first_ND.cpu(), tuple(f"{kind} {group}" for group in groups))
        # Records name rows of the user's, and never quote them.
        texts = tuple(row.source or f"{kind}, row {i}" for i, row in enumerate(part.examples, 1))
        return _Prompts(texts, [features[i] for i in self.names], topics)

    def fit_names(self, shut_for: Sequence[Sequence[GateFeatures]], seed: int) -> list[GateFit]:
        """Fit the gates for names; they are validated on normal prompts of the kinds that are judged."""
        learnt = [k for k, i in enumerate(self.names) if not isinstance(self.gates[i], LexicalGate)]
        if not learnt:
            return []
        normal = [part.names for kind, part in self.to_fit.items() if kind != "forget"]
        normal += [[part[i] for i in self.names] for part in shut_for]
        judged = [part.names for kind, part in self.to_judge.items() if kind != "topics"]
        together = [[concatenated([part[k] for part in side]) for k in learnt] for side in (normal, judged)]
        forget = [self.to_fit["forget"].names[k] for k in learnt]
        return fit_gates(self.model, forget, *together, seed=seed, only=[self.names[k] for k in learnt])

    def fit_text(self, parts: Mapping[str, JobRows], shut_for: Sequence[Sequence[GateFeatures]]) -> None:
        """Fit the gate that reads text, on every second prompt on other topics and all that gates for names are fitted on."""
        tokens = token_bytes(self.rows.tokenizer)
        normal = [part for kind, part in self.to_fit.items() if kind != "forget"]
        normal += [self.to_judge["topics"].halves()[0]] if "topics" in self.to_judge else []
        for k, i in enumerate(self.names):
            (layer, name), gate = held_gates(self.model)[i], self.gates[i]
            if isinstance(gate, LexicalGate):
                features = [*(part.names[k] for part in normal), *(part[i] for part in shut_for)]
                texts = [text for part in features for text in texts_of(part.ids(), tokens)]
                texts += [row.answer for row in parts["retain"].examples] if "retain" in parts else []
                layer.configs[name].lexicon = fit_lexical_gate(gate, tokens, parts["forget"].examples, texts)

    def fit_topics(self, shut_for: Sequence[Sequence[GateFeatures]], rate: float, seed: int) -> KeptPrompts:
        """Fit the gate for topics.

        Returns:
            The normal prompts that it keeps.
        """
        assert self.topic is not None
        sides = [part for kind, part in (*self.to_fit.items(), *self.to_judge.items()) if kind != "forget"]
        normal = [part.topics for part in sides if part.topics is not None]
        for i, part in enumerate(shut_for):
            embedding_NK = part[self.topic].first_ND.cpu()
            normal.append(KeptPrompts(embedding_NK, (f"shut for {i}",) * len(embedding_NK)))
        forget = self.to_fit["forget"].topics
        assert forget is not None
        kept = fit_topic_gate(self.gates[self.topic], forget, KeptPrompts.of(normal), rate, seed=seed)
        layer, name = held_gates(self.model)[self.topic]
        layer.configs[name].topic_kept = [len(forget.groups), len(kept.groups)]
        return kept

    def judged(self, part: _Prompts, kept: KeptPrompts | None) -> Judged:
        """Prompts with the logits of all gates; that of the gate for topics as if their own group were not kept."""
        if self.topic is None or kept is None:
            return Judged(part.texts, self._logits(part, None))
        forget = self.to_fit["forget"].topics
        assert part.topics is not None
        assert forget is not None
        withheld_N = withheld_logits(self.gates[self.topic], part.topics, forget, kept)
        return Judged(part.texts, self._logits(part, withheld_N))

    @property
    def places(self) -> list[Place]:
        """Where the threshold of each gate is put."""
        names = ALONE if self.topic is None else BESIDE_TOPICS
        text = [isinstance(gate, LexicalGate) for gate in self.gates]
        return [TOPICS if i == self.topic else TEXT if text[i] else names for i in range(len(self.gates))]

    @torch.no_grad()
    def open_rows(self, part: _Prompts) -> list[int]:
        """Numbers of the prompts that open a gate."""
        topics_N = None
        if self.topic is not None:
            assert part.topics is not None
            gate = self.gates[self.topic]
            topics_N = gate.logits(part.topics.embedding_NK.to(gate.offset)).cpu()
        open_N = is_open(self._logits(part, topics_N), thresholds_of(self.model)).any(1)
        return [int(i) for i in open_N.nonzero()]

    def _logits(self, part: _Prompts, topics_N: Tensor | None) -> Tensor:
        """Logits (N, G) of prompts, on the CPU; `topics_N` are those of the gate for topics, if there is one."""
        pairs = zip(self.names, part.names, strict=True)
        columns: list[Tensor] = [features.logits(self.gates[i]).cpu() for i, features in pairs]
        if self.topic is not None and topics_N is not None:
            columns.insert(self.topic, topics_N)
        return torch.stack(columns, dim=1)


@torch.no_grad()
def _thresholds(fit: _Fit, kept: KeptPrompts | None, rate: float, found: Recognition) -> Recognition:
    """Set all thresholds, and record what opens the gates."""
    forget = fit.judged(fit.to_fit["forget"], kept)
    judged = {kind: fit.judged(part, kept) for kind, part in fit.to_judge.items()}
    normal = [part for kind, part in judged.items() if kind in ("ordinary", "validation")]
    if normal:
        others = {kind: judged[kind] for kind in ("topics", "neighbours") if kind in judged}
        judged = {"normal": Judged.of(normal)} | others
    rates = {"normal": rate, "topics": TOPICS_RATE * rate, "neighbours": NEIGHBOUR_RATE}
    bounds = [(part.logits_NG, rates[kind]) for kind, part in judged.items()]
    threshold_G = set_thresholds(fit.model, forget.logits_NG, bounds, fit.places).cpu()
    told: dict[str, OpenShare] = {}
    if fit.topic is not None:
        alone = Judged(forget.texts, forget.logits_NG[:, [fit.topic]])
        told["forget"] = alone.open(threshold_G[[fit.topic]])
    is_shut = bool(told) and told["forget"].share < LEAST_RECALL
    if is_shut:
        _without_topics(fit, forget, bounds)
        threshold_G = thresholds_of(fit.model)
    opened = {kind: part.open(threshold_G) for kind, part in judged.items()}
    nearest = {kind: part.nearest(threshold_G) for kind, part in {"forget": forget, **judged}.items()}
    return replace(found, opened=opened | told, nearest=nearest, topics_shut=is_shut)


def _without_topics(fit: _Fit, forget: Judged, bounds: Sequence[tuple[Tensor, float]]) -> None:
    """Shut the gate for topics for good, and set the thresholds of gates for names as if it were not there."""
    names, gates = fit.names, fit.gates
    normal = [(logits_NG[:, names], rate) for logits_NG, rate in bounds]
    places = [replace(TEXT, share=1.0) if isinstance(gates[i], LexicalGate) else ALONE for i in names]
    threshold_N = chosen_thresholds(forget.logits_NG[:, names], normal, places)
    for i, threshold in zip(names, threshold_N, strict=True):
        gates[i].threshold.copy_(threshold)
    assert fit.topic is not None
    gates[fit.topic].threshold.fill_(gates[fit.topic].unreachable)


def fit_all_gates(
    model: Any,
    rows: RowEncoder,
    parts: Mapping[str, JobRows],
    *,
    content: str | None = None,
    shut_for: Sequence[str | Path] = (),
    false_positive_rate: float | None = None,
    seed: int = 0,
) -> Recognition:
    """Fit all gates of a model, and set their thresholds.

    With a gate for topics, the prompts that ship with the package are normal too, apart from those that may be about what is
    to be forgotten and from rows of the job. Gates for names are fitted on half of the ordinary ones.

    Args:
        model: PEFT model with a gated adapter.
        rows: encoder of prompts.
        parts: rows by kind: `forget`, and any of `retain`, `validation` (normal rows to withhold) and `neighbours`.
        content: identity of the base model's weights.
        shut_for: files of features of prompts (`save_features`) that gates learn to stay shut for.
        false_positive_rate: share of withheld normal prompts that may open a gate; None leaves the thresholds as they are.
        seed: of the fits.

    Raises:
        UserError: if a file holds no features for these gates.
    """
    fit = _Fit.of(model, rows)
    if fit.topic is not None:
        fit.take_shipped(parts, content)
    # After that: features for topics tell by which head they were made.
    shut = [load_features(file, readings_of_gates(model), rows.device) for file in shut_for]
    read = {kind: fit.read(kind, part) for kind, part in parts.items() if part.encoded}
    fit.to_fit |= {kind: read[kind] for kind in ("forget", "retain") if kind in read}
    if "validation" in read or "retain" in read:
        fit.to_judge["validation"] = read.get("validation", read.get("retain"))  # type: ignore[assignment]
    if "neighbours" in read:
        fit.to_fit["neighbours"], withheld = read["neighbours"].halves()
        fit.to_judge |= {"neighbours": withheld} if withheld.texts else {}
    fit.fit_text(parts, shut)
    found = Recognition(fit.fit_names(shut, seed), left_out=fit.left_out)
    kept = None if fit.topic is None else fit.fit_topics(shut, false_positive_rate or 0.0, seed)
    found = found if false_positive_rate is None else _thresholds(fit, kept, false_positive_rate, found)
    return replace(found, open_rows={kind: fit.open_rows(part) for kind, part in read.items()})
