"""Ways of recognising prompts that `experiments/recognition.py` compares: gates on a language model, and a sentence embedder.

All ways are fitted on the same rows and the same shipped prompts, and calibrated for the same rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from baselines.sentence_gate import SentenceEmbedder, logits_of_sentence_gate
from peft import get_peft_model
from recognition_results import AUROC, SHARE
from torch import Tensor

from grun.core.config.jobs import UnlearnConfig
from grun.core.records import Example, Score
from grun.evaluation.intervals import interval
from grun.evaluation.metrics import auroc
from grun.models.adaptations import NO_TOPICS, with_presets
from grun.models.adaptations.grun import grun_config
from grun.models.gates.all_gates import JobRows, fit_all_gates
from grun.models.gates.calibration import share_open
from grun.models.gates.features import GateFeatures, features_of_rows, gate_logits, gates_of, thresholds_of
from grun.models.loading.loaded import LoadedModel
from grun.models.loading.restoring import Snapshot

Rows = Mapping[str, Sequence[Example]]
COMPARED = (  # kinds of prompts whose scores are ranked: those to recognise, and those that must not be
    ("unseen", "neighbours"),
    ("unseen", "ordinary"),
    ("questions", "encyclopaedia"),
    ("questions", "control"),
    ("questions", "school"),
)


@dataclass(frozen=True)
class Logits:
    """What a fitted way says about prompts.

    Attributes:
        by_kind: logits (N, G) of its G gates for the prompts of each kind.
        threshold_G: logits above which a gate is open.
    """

    by_kind: Mapping[str, Tensor]
    threshold_G: Tensor

    def as_json(self) -> dict[str, Any]:
        """Shares of prompts that open a gate, by kind, and areas under the ROC curve, by pair of kinds."""
        pairs = [pair for pair in COMPARED if set(pair) <= set(self.by_kind)]
        return {
            SHARE: {kind: self._share(kind) for kind in self.by_kind},
            AUROC: {f"{positive} / {negative}": self._auroc(positive, negative) for positive, negative in pairs},
        }

    def _share(self, kind: str) -> dict[str, Any]:
        found = share_open(self.by_kind[kind], self.threshold_G)
        return {"value": found.share, "interval": list(found.interval), "open": found.open, "prompts": found.prompts}

    def _auroc(self, positive: str, negative: str) -> dict[str, Any]:
        """Of the largest margin above a gate's threshold, with its 95 % bootstrap interval over prompts of both kinds."""
        sides = [(self.by_kind[kind] - self.threshold_G).amax(1).tolist() for kind in (positive, negative)]
        score = Score(auroc(*sides), sum(map(len, sides)), groups=tuple(map(tuple, sides)))
        reach = interval(score, {"statistic": auroc})
        assert reach is not None, "there are several prompts of each kind"
        return {"value": score.value, "interval": list(reach)}


@dataclass
class GatesOfModel:
    """Gates on a base model's states, fitted anew for every measurement.

    Attributes:
        base: the model.
        read: features of prompts that are asked, by the kind of gates and the prompts; seeds share them.
    """

    base: LoadedModel
    read: dict[tuple[bool, tuple[Example, ...]], list[GateFeatures]] = field(default_factory=dict)

    def logits(self, parts: Rows, asked: Rows, rate: float, seed: int, *, topics: bool) -> Logits:
        """Logits of prompts, by kind.

        Args:
            parts: rows to fit on: `forget`, `retain` and `validation`.
            asked: prompts of each kind.
            rate: share of withheld normal prompts that may open a gate.
            seed: of the gates and their fits.
            topics: with the gate for topics.
        """
        name = str(self.base.model.name_or_path)
        config = with_presets(UnlearnConfig(model=name, seed=seed, topic_layer=None if topics else NO_TOPICS))
        before = Snapshot(self.base.model)
        try:
            model = get_peft_model(self.base.model, grun_config(config))
            fit_all_gates(
                model,
                self.base.encoder,
                {kind: JobRows(part, self.base.encoder.encode(part)) for kind, part in parts.items()},
                content=self.base.content,
                false_positive_rate=rate,
                seed=seed,
            )
            gates, threshold_G = [gate for _, gate in gates_of(model)], thresholds_of(model)
            return Logits({kind: self._of(model, gates, part, topics) for kind, part in asked.items()}, threshold_G)
        finally:
            before.restore()

    @torch.no_grad()
    def _of(self, model: Any, gates: Sequence[Any], part: Sequence[Example], topics: bool) -> Tensor:
        """Logits (N, G) of prompts, read in batches by length the first time."""
        key = (topics, tuple(part))
        if key not in self.read:
            encoded = self.base.encoder.encode(part)
            order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].input_ids))
            found = features_of_rows(model, self.base.encoder, [encoded[i] for i in order])
            back = sorted(range(len(order)), key=order.__getitem__)
            self.read[key] = [features.at(back) for features in found]
        return gate_logits(self.read[key], gates).cpu()


@dataclass(frozen=True)
class Recognisers:
    """All ways of recognising prompts that are compared.

    Attributes:
        gates: on the states of a language model.
        embed: the sentence embedder.
    """

    gates: GatesOfModel
    embed: SentenceEmbedder

    def compared(self, parts: Rows, asked: Rows, rate: float, seed: int) -> dict[str, Any]:
        """Shares of prompts that open a gate and areas under ROC curves, by way, as JSON.

        Args:
            parts: rows to fit on, by kind.
            asked: prompts of each kind.
            rate: share of withheld normal prompts that may open a gate.
            seed: of the gates and their fits.
        """
        found = {
            "names and topics": self.gates.logits(parts, asked, rate, seed, topics=True),
            "names only": self.gates.logits(parts, asked, rate, seed, topics=False),
            "MiniLM": Logits(*logits_of_sentence_gate(self.embed, parts, asked, rate, seed)),
        }
        return {way: own.as_json() for way, own in found.items()}

    def from_name(self, parts: Rows, asked: Rows, rate: float, seed: int) -> dict[str, Any]:
        """The same of both gates, where the rows to forget were written from a name."""
        return {"names and topics, a name given": self.gates.logits(parts, asked, rate, seed, topics=True).as_json()}
