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
from grun.jobs.attacks.figures import BEFORE, RECOGNITION
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
        measured: the models; the one before unlearning says how likely answers are, if it is among them.
        seed: of the halves of the rows.
    """
    base = next((pair for pair in measured if pair[0].label == BEFORE), None)
    found: dict[str, dict[str, dict[str, Groups]]] = {subject: {} for subject in evidence}
    for name, one in asked.asked.items():
        if one.measures != RECOGNITION or "features" not in attacks.get(name).info:
            continue
        features = attacks.get(name).info["features"]
        for subject, own in evidence.items():
            forgotten, unknown = own[PLAIN].rows, own[name].rows
            if min(len(forgotten), len(unknown)) >= LEAST:
                rows = [*forgotten, *unknown]
                likely = rows if base is None else _under(*base, rows)
                examples = [row.example for row in rows]
                split = len(forgotten)
                found[subject][name] = separated(features(likely), examples[:split], examples[split:], seed)
    return found


def _under(subject: Subject, settings: MeasureSettings, rows: Sequence[RowEvidence]) -> list[RowEvidence]:
    """Rows with the log-probabilities of their answers under a model."""
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
    return [replace(row, generated_base_logps=one.answers[0].logps) for row, one in zip(rows, scored, strict=True)]
