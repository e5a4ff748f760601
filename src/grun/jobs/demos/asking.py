"""Prompts of several kinds: which of them open a gate, and what a model answers to some."""

from __future__ import annotations

__all__ = ["AnsweredPrompt", "Questions", "counted"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grun.core.process.progress import Progress
from grun.core.records import Example
from grun.data.refusals import REFUSALS
from grun.evaluation.report.recognition_table import KindOfPrompts
from grun.jobs.demos.parts import spread
from grun.models.encoding.batching import length_batches
from grun.models.encoding.encode import Encoded
from grun.models.gates.calibration import logits_of_rows
from grun.models.gates.features import thresholds_of
from grun.models.generation import greedy
from grun.models.loading.loaded import LoadedModel
from grun.models.scoring import TOKENS_PER_BATCH
from grun.models.tuner.call.decision import is_open

LONGEST_ANSWER = 32  # tokens
READ_AT_ONCE = 64  # prompts that the gate reads, at most
ANSWERED_AT_ONCE = 32  # prompts, of similar length
SENTENCES = frozenset(sentence for language in REFUSALS.values() for sentence in language)


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt with its answers.

    Attributes:
        prompt: the text.
        open: the prompt opens the gate.
        before, after: greedy answers of the model without and with its adapter.
    """

    prompt: str
    open: bool
    before: str
    after: str

    @property
    def is_refused(self) -> bool:
        """True if the answer after is a refusal and nothing else."""
        return self.after in SENTENCES

    @property
    def is_as_before(self) -> bool:
        """True if both answers are the same."""
        return self.after == self.before


class Questions:
    """Prompts of several kinds, encoded for one model; the gate reads all of them, and some of each kind are answered.

    Args:
        base: the model, which may get adapters later.
        kinds: prompts by kind.
        answered: number of prompts of each kind to answer; they are evenly spaced.

    Raises:
        UserError: if a prompt is too long for the model.
    """

    def __init__(self, base: LoadedModel, kinds: Mapping[str, Sequence[Example]], answered: int) -> None:
        self._base = base
        self._places = [(kind, i) for kind, rows in kinds.items() for i in range(len(rows))]
        self._encoded: list[Encoded] = base.encoder.encode([row for rows in kinds.values() for row in rows])
        chosen = {(kind, i) for kind, rows in kinds.items() for i in spread(range(len(rows)), answered)}
        self.to_answer = [place for place in self._places if place in chosen]

    def opened(self, model: Any) -> dict[str, list[bool]]:
        """Whether each prompt opens a gate of a model with an adapter, by kind."""
        threshold_G, found = thresholds_of(model), [False] * len(self._encoded)
        with Progress("gate", len(found), "prompt") as progress:
            for index in length_batches([len(row.input_ids) for row in self._encoded], READ_AT_ONCE, TOKENS_PER_BATCH):
                logits_NG = logits_of_rows(model, self._base.encoder, [self._encoded[i] for i in index])
                for i, opens in zip(index, is_open(logits_NG, threshold_G).any(1).tolist(), strict=True):
                    found[i] = opens
                progress.update(len(index))
        by_kind: dict[str, list[bool]] = {}
        for (kind, _), opens in zip(self._places, found, strict=True):
            by_kind.setdefault(kind, []).append(opens)
        return by_kind

    def answers(self, model: Any, label: str) -> dict[tuple[str, int], str]:
        """Greedy answers to the chosen prompts, by kind and place in it; batches are the same for every model.

        Args:
            model: with or without adapters.
            label: shown beside the progress.
        """
        rows = dict(zip(self._places, self._encoded, strict=True))
        prompts = [rows[place].input_ids[: rows[place].prompt_length] for place in self.to_answer]
        with Progress(f"answers {label}", len(prompts), "answer") as progress:
            found = greedy(model, self._base.tokenizer, prompts, LONGEST_ANSWER, ANSWERED_AT_ONCE, progress.update)
        return dict(zip(self.to_answer, found, strict=True))


def counted(name: str, to_forget: bool, opened: Sequence[bool], answered: Sequence[AnsweredPrompt]) -> KindOfPrompts:
    """Counts of one kind of prompts.

    Args:
        name: of the kind.
        to_forget: the prompts belong to what must be forgotten.
        opened: whether each prompt opens the gate.
        answered: those that were answered.
    """
    shut = [one for one in answered if not one.open]
    return KindOfPrompts(
        name,
        to_forget,
        prompts=len(opened),
        open=sum(opened),
        answered=len(answered),
        answered_shut=len(shut),
        refusals=sum(one.is_refused for one in answered),
        as_before=sum(one.is_as_before for one in answered),
        shut_as_before=sum(one.is_as_before for one in shut),
    )
