"""Drawn answers: what a model gives away when it is asked often enough, at a temperature."""

from __future__ import annotations

__all__ = ["DRAWN", "drawn_evidence", "drawn_probes"]

import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby

import torch

from grun.core.config.attacking import AttackConfig
from grun.core.distributed import is_main
from grun.core.process.progress import Progress
from grun.core.records import Evidence, Example, RowEvidence
from grun.evaluation.attacks import Probe
from grun.evaluation.measuring.evidence_store import read_or_made
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.jobs.attacks.material import PLAIN, Asked, Prepared, spread
from grun.models.encoding.encode import encode_prompt
from grun.models.forward import adapters_off, context_length, evaluating
from grun.models.generation import sampled

DRAWN = "sampling"  # of plain questions; that of an attack has its name besides
DRAWN_ROWS = 10  # of every attack, at equal distances


def drawn_probes(config: AttackConfig, asked: Prepared) -> Prepared:
    """Questions that are asked as often as settings say, beside what is asked; the best answer to each row counts.

    All plain questions are, and some rows of every leak attack, whose forms take turns. After leak@k (arXiv 2511.04934).
    """
    drawn = {
        DRAWN: replace(asked.asked[PLAIN], name=DRAWN, probes=tuple(_repeated(asked.asked[PLAIN], config.samples)))
    }
    for name, one in asked.asked.items():
        if one.measures == "leak" and one.access != "calls" and name != PLAIN:
            rows = sorted({probe.row for probe in one.probes})
            chosen = {rows[i] for i in spread(len(rows), DRAWN_ROWS)}
            some = replace(one, probes=tuple(probe for probe in one.probes if probe.row in chosen))
            own = f"{DRAWN}_{name}"
            drawn[own] = replace(some, name=own, probes=tuple(_repeated(some, config.samples)), left_out=0)
    return replace(asked, asked=asked.asked | {name: replace(one, best=True) for name, one in drawn.items()})


def _repeated(asked: Asked, samples: int) -> Iterator[Probe]:
    """For every row so many probes: its forms in turn, from another one on in each row, the same ones together."""
    by_row = groupby(sorted(asked.probes, key=lambda probe: probe.row), lambda probe: probe.row)
    for number, (_, own) in enumerate(by_row):
        forms = list(own)
        for i in sorted((number + sample) % len(forms) for sample in range(samples)):
            yield forms[i]


def drawn_evidence(subject: Subject, asked: Asked, settings: MeasureSettings, config: AttackConfig) -> Evidence:
    """Answers of a subject that are drawn by the seed; from the store if it has them.

    Args:
        subject: the model.
        asked: the drawn questions, the same ones together.
        settings: template and lengths.
        config: how often to draw, at which temperature, and the seed.
    """
    name, how = asked.name, f"drawn at {config.temperature} by {config.seed}"
    examples = tuple(probe.example for probe in asked.probes)

    def drawn() -> Iterator[RowEvidence]:
        done = 0
        with Progress(f"draw {subject.label}", len(examples), "answer", shown=is_main()) as progress:
            for probe, same in groupby(asked.probes):
                row, count = probe.example, len(list(same))
                source = f"{config.seed} {done}" if name == DRAWN else f"{config.seed} {name} {done}"
                for text in _drawn(subject, row, settings, config, source, count):
                    yield RowEvidence(row, (), generated=text)
                progress.update(count)
                done += count

    return Evidence(name, read_or_made(subject.store, name, examples, how, drawn))


def _drawn(
    subject: Subject, row: Example, settings: MeasureSettings, config: AttackConfig, source: str, count: int
) -> list[str]:
    """Answers to one question; the state of chance outside is as it was."""
    model, ids = subject.model, encode_prompt(row, subject.tokenizer, settings.template, settings.max_length)
    context = context_length(model)
    limit = settings.max_new_tokens if context is None else min(settings.max_new_tokens, context - len(ids))
    with (
        torch.random.fork_rng(),
        evaluating(model),
        nullcontext() if subject.adapters else adapters_off(model),
    ):
        torch.manual_seed(random.Random(source).getrandbits(63))
        return sampled(model, subject.tokenizer, [ids], limit, count, config.temperature)[0]
