"""Drawn answers to plain questions: what a model gives away when it is asked often enough, at a temperature."""

from __future__ import annotations

__all__ = ["DRAWN", "drawn_evidence", "drawn_probes"]

import random
from contextlib import nullcontext
from dataclasses import replace

import torch

from grun.core.config.attacking import AttackConfig
from grun.core.distributed import is_main, wait
from grun.core.process.progress import Progress
from grun.core.records import Evidence, Example, RowEvidence
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.jobs.attacks.material import PLAIN, Asked, Prepared
from grun.models.encoding.encode import encode_prompt
from grun.models.forward import adapters_off, context_length, evaluating
from grun.models.generation import sampled

DRAWN = "sampling"


def drawn_probes(config: AttackConfig, asked: Prepared) -> Prepared:
    """The plain questions, each as often as settings say, beside what is asked; the best answer to each counts.

    After leak@k (arXiv 2511.04934).
    """
    probes = tuple(probe for probe in asked.asked[PLAIN].probes for _ in range(config.samples))
    return replace(asked, asked=asked.asked | {DRAWN: Asked(DRAWN, "leak", "prompt", probes, best=True)})


def drawn_evidence(subject: Subject, asked: Prepared, settings: MeasureSettings, config: AttackConfig) -> Evidence:
    """Answers of a subject to plain questions, drawn by the seed; from the store if it has them.

    Args:
        subject: the model.
        asked: with the drawn questions.
        settings: template and lengths.
        config: how often to draw, at which temperature, and the seed.
    """
    examples, how = asked.splits[DRAWN], f"drawn at {config.temperature} by {config.seed}"
    rows = None if subject.store is None else subject.store.read(DRAWN, examples, how)
    if rows is None:
        found: list[RowEvidence] = []
        with Progress(f"draw {subject.label}", len(examples), "answer", shown=is_main()) as progress:
            for i in range(0, len(examples), config.samples):
                texts = _drawn(subject, examples[i], settings, config, i)
                found += [RowEvidence(examples[i], (), generated=text) for text in texts]
                progress.update(config.samples)
        rows = tuple(found)
    if subject.store is not None and is_main():
        subject.store.write(DRAWN, rows, how)
    wait()
    return Evidence(DRAWN, rows)


def _drawn(subject: Subject, row: Example, settings: MeasureSettings, config: AttackConfig, number: int) -> list[str]:
    """Answers to one question; the state of chance outside is as it was."""
    model, ids = subject.model, encode_prompt(row, subject.tokenizer, settings.template, settings.max_length)
    context = context_length(model)
    limit = settings.max_new_tokens if context is None else min(settings.max_new_tokens, context - len(ids))
    with (
        torch.random.fork_rng(),
        evaluating(model),
        nullcontext() if subject.adapters else adapters_off(model),
    ):
        torch.manual_seed(random.Random(f"{config.seed} {number}").getrandbits(63))
        return sampled(model, subject.tokenizer, [ids], limit, config.samples, config.temperature)[0]
