"""What tells forgotten rows from unknown ones: numbers of the answers that were measured."""

from __future__ import annotations

__all__ = ["told_apart"]

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from grun.core.records import Evidence, RowEvidence
from grun.evaluation.attacks import LEAST, attacks
from grun.evaluation.attacks.separation import Groups, separated
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.jobs.attacks.figures import RECOGNITION
from grun.jobs.attacks.material import PLAIN, Prepared
from grun.models.encoding.batching import pad_token_id
from grun.models.encoding.encode import encode
from grun.models.forward import adapters_off, evaluating
from grun.models.scoring import Prompted, score_rows


def told_apart(
    asked: Prepared,
    evidence: Mapping[str, Mapping[str, Evidence]],
    measured: Sequence[tuple[Subject, MeasureSettings]],
    seed: int,
) -> dict[str, dict[str, dict[str, Groups]]]:
    """How alike forgotten rows each row is, by subject, attack and kind of feature, of attacks by answers.

    Args:
        asked: the probes of all attacks.
        evidence: the answers, by subject and attack.
        measured: the models; each says how likely its own answers are.
        seed: of the halves of the rows.
    """
    pairs = {subject.label: (subject, settings) for subject, settings in measured}
    found: dict[str, dict[str, dict[str, Groups]]] = {subject: {} for subject in evidence}
    for name, one in asked.asked.items():
        if one.measures != RECOGNITION or "features" not in attacks.get(name).info:
            continue
        features = attacks.get(name).info["features"]
        for subject, own in evidence.items():
            forgotten, unknown = own[PLAIN].rows, own[name].rows
            if min(len(forgotten), len(unknown)) >= LEAST:
                rows = [*forgotten, *unknown]
                logps = _own_logps(*pairs[subject], rows) if subject in pairs else None
                examples = [row.example for row in rows]
                split = len(forgotten)
                found[subject][name] = separated(features(rows, logps), examples[:split], examples[split:], seed)
    return found


def _own_logps(subject: Subject, settings: MeasureSettings, rows: Sequence[RowEvidence]) -> list[tuple[float, ...]]:
    """Log-probabilities of the answers to rows under the model that gave them."""
    prompted = []
    for row in rows:
        answered = replace(row.example, answer=row.generated or "")
        one = encode(answered, subject.tokenizer, settings.template, settings.max_length)
        prompted.append(Prompted(one.input_ids[: one.prompt_length], (one.input_ids[one.prompt_length :],)))
    model = subject.model
    with evaluating(model), nullcontext() if subject.adapters else adapters_off(model):
        scored = score_rows(
            model,
            prompted,
            pad_token_id=pad_token_id(subject.tokenizer),
            tokens_per_batch=settings.tokens_per_batch,
            with_gates=False,
        )
    return [one.answers[0].logps for one in scored]
