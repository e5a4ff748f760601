"""The contract of every metric and summary: what is missing never becomes a number, and better is the declared direction."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from grun.core.records import Evidence, Example, RowEvidence, Score
from grun.evaluation.metrics import metrics, summaries
from support.evidence_kit import compared, row

NEEDS = {
    *(
        "token_logps",
        "generated",
        "gates",
        "paraphrased",
        "perturbed",
        "gradient",
        "fluency",
        "holdout",
        "retain_log",
        "choices",
    ),
}
LOOKS_AT_MATCHES = ("exact_memorization", "extraction_strength", "extraction_strength_published")
FLUENCY = ("distinct_bigrams", "diversity", "perplexity_under_base", "whole_sentences", "word_entropy")
Rows = tuple[RowEvidence, ...]


def score(name: str, *rows: RowEvidence, **others: Any) -> Score:
    return metrics.get(name).target(Evidence("retain", rows, **others))


def every_metric() -> list[str]:
    return metrics.names()


@pytest.mark.parametrize("name", every_metric())
def test_every_metric_says_what_is_needed_to_read_it(name: str) -> None:
    info = metrics.get(name).info
    low, high = info["range"]
    assert low < high
    assert info["label"]
    assert metrics.get(name).summary
    assert {info["forget"], info["normal"]} <= {"lower", "higher", None}
    assert info["needs"]
    assert set(info["needs"]) <= NEEDS


def test_labels_tell_metrics_apart() -> None:
    labels = [entry.info["label"] for entry in (*metrics, *summaries)]
    assert len(set(labels)) == len(labels)
    assert set(metrics.names()).isdisjoint(summaries.names())


@pytest.mark.parametrize("name", every_metric())
def test_without_rows_or_measurements_there_is_a_reason_and_no_number(name: str) -> None:
    bare = RowEvidence(Example("Who?", "Ada."), ())
    for rows in ((), (bare,), (row(), bare)):
        found = score(name, *rows, **compared(*(bare for _ in rows)))
        assert found.value is None
        assert found.reason
        assert found.per_row == ()


@pytest.mark.parametrize("name", every_metric())
def test_values_are_in_range_with_one_number_per_row_where_there_are_any(name: str) -> None:
    rows = (row(), row((-3.0, -0.2), "One", "two", (-2.0, -3.0), (0.0, 0.0)))
    found = score(name, *rows, **compared(*rows))
    low, high = metrics.get(name).info["range"]
    assert found.value is not None
    assert low <= found.value <= high
    assert found.n == 2
    assert found.reason is None
    assert len(found.per_row) in (0, 2)
    if found.per_row:
        assert found.value == pytest.approx(float(np.mean(found.per_row)))


@pytest.mark.parametrize("name", every_metric())
def test_a_broken_number_is_never_averaged_in(name: str) -> None:
    broken = row((math.nan, -1.0), generated="Ada.", logits=(1.0, math.nan), values=(0.9, math.nan))
    found = score(name, row(), broken, **compared(row(), row()))
    if metrics.get(name).info["needs"] == ("generated",) or name in LOOKS_AT_MATCHES:
        assert found.value is not None
    else:
        assert found.value is None
        assert found.reason


def known(i: int = 0) -> RowEvidence:
    """A row that the model knows by heart and whose gates are shut."""
    answer = f"Ada wrote the {['one', 'two', 'red', 'sea', 'cat'][i % 5]} book by the harbour."
    sure = tuple(-0.01 * (1 + i + t) for t in range(4))
    return RowEvidence(
        Example(f"What did Ada write, {i}?", answer, perturbed_answers=("Bo did.", "Eve.")),
        sure,
        generated=answer,
        gate_logits=(-4.0 - i, -5.0),
        gate_values=(0.0, 0.0),
        token_is_argmax=(True,) * 4,
        token_z=tuple(2.0 + logp for logp in sure),
        paraphrased_logps=sure,
        perturbed_logps=((-5.0, -6.0), (-7.0 - 0.1 * i,)),
        generated_base_logps=sure,
        gradient_norm=0.1 + 0.01 * i,
    )


def unknown(i: int = 0) -> RowEvidence:
    """The same row, which the model does not know any more (or never did); it answers something else, its gates wide open."""
    unsure = tuple(-6.0 - 0.1 * (i + t) for t in range(4))
    return replace(
        known(i),
        token_logps=unsure,
        generated="They moved far away long ago.",
        gate_logits=(4.0 + i, 5.0),
        gate_values=(0.9, 1.0),
        token_is_argmax=(False,) * 4,
        token_z=tuple(4.0 + logp for logp in unsure),
        paraphrased_logps=unsure,
        perturbed_logps=((-6.0, -6.2), (-6.1,)),
        generated_base_logps=(-0.5, -1.0 - 0.1 * i),
        gradient_norm=7.0 + 0.1 * i,
    )


def garbled(i: int = 0) -> RowEvidence:
    """The same row with an answer that is no language."""
    return replace(unknown(i), generated="sea sea sea sea", generated_base_logps=(-9.0, -11.0 - i))


def several(kind: Callable[[int], RowEvidence]) -> Rows:
    return tuple(kind(i) for i in range(6))


def beside() -> dict[str, Any]:
    """What metrics compare with: other rows, and models that never saw any of them."""
    strangers = several(lambda i: unknown(i + 1))
    forgotten = {"forget": several(unknown), "forget_paraphrased": several(unknown)}
    return {**forgotten, "holdout": strangers, "retain_log": several(unknown), "holdout_retain_log": strangers}


def with_choices(rows: Rows) -> Rows:
    return tuple(
        replace(one, example=replace(one.example, choices=(one.example.answer, *one.example.perturbed_answers)))
        for one in rows
    )


def complete(name: str, kind: Callable[[int], RowEvidence]) -> Evidence:
    """Rows with everything that a metric needs; choices only where they are a need, since such answers have no end."""
    rows = several(kind)
    return Evidence("split", with_choices(rows) if "choices" in metrics.get(name).info["needs"] else rows, **beside())


def value_of(found: Score) -> float:
    assert found.value is not None, found.reason
    return found.value


DIRECTIONS = [(name, role) for name in every_metric() for role in ("forget", "normal") if metrics.get(name).info[role]]


@pytest.mark.parametrize(("name", "role"), DIRECTIONS)
def test_the_better_model_has_the_better_value(name: str, role: str) -> None:
    better, worse = (unknown, known) if role == "forget" else (known, unknown)
    if name in FLUENCY:
        better, worse = known, garbled
    roles: dict[str, Any] = {"to_forget": True, "normal": several(known)} if role == "forget" else {}
    split = [replace(complete(name, kind), **roles) for kind in (better, worse)]
    good, bad = (value_of(metrics.get(name).target(one)) for one in split)
    assert good < bad if metrics.get(name).info[role] == "lower" else good > bad
    low, high = metrics.get(name).info["range"]
    assert all(low <= value <= high for value in (good, bad))


STRIPPED: dict[str, dict[str, Any]] = {
    "token_logps": {"token_logps": (), "token_is_argmax": (), "token_z": ()},
    "generated": {"generated": None, "generated_base_logps": None},  # what is not there is not scored either
    "gates": {"gate_logits": None, "gate_values": None},
    "paraphrased": {"paraphrased_logps": ()},
    "perturbed": {"perturbed_logps": ()},
    "gradient": {"gradient_norm": None},
    "fluency": {"generated_base_logps": None},
}


def without(evidence: Evidence, need: str) -> Evidence:
    """The evidence of an evaluation that lacks one kind of measurement, of rows, or of column."""
    if need == "holdout":
        return replace(evidence, holdout=None, holdout_retain_log=None)
    if need == "retain_log":
        return replace(evidence, retain_log=None, holdout_retain_log=None)
    if need == "choices":
        return replace(
            evidence, rows=tuple(replace(one, example=replace(one.example, choices=())) for one in evidence.rows)
        )

    def stripped(rows: Rows | None) -> Rows | None:
        return None if rows is None else tuple(replace(one, **STRIPPED[need]) for one in rows)

    parts = ("forget", "forget_paraphrased", "holdout", "retain_log", "holdout_retain_log")
    others: dict[str, Any] = {part: stripped(getattr(evidence, part)) for part in parts}
    return replace(evidence, rows=stripped(evidence.rows) or (), **others)


@pytest.mark.parametrize("name", every_metric())
def test_needs_are_exactly_what_a_value_depends_on(name: str) -> None:
    """Two exceptions: token log-probabilities are always measured, and the true answer serves where no other wording is."""
    entry, evidence = metrics.get(name), complete(name, unknown)
    whole = entry.target(evidence)
    assert whole.value is not None
    for need in sorted(NEEDS):
        found = entry.target(without(evidence, need))
        if need == "paraphrased":
            assert found.value is not None
        elif need in entry.info["needs"]:
            assert found.value is None, f"without {need}"
            assert found.reason
            assert not found.per_row
            assert not found.groups
        elif need != "token_logps":
            assert found == whole, f"{name} depends on {need}"


@pytest.mark.parametrize("name", every_metric())
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    evidence = complete(name, lambda i: known(i) if i % 2 else unknown(i))
    order = random.Random(0).sample(range(6), 6)
    assert evidence.retain_log is not None
    moved = replace(
        evidence,
        rows=tuple(evidence.rows[i] for i in order),
        retain_log=tuple(evidence.retain_log[i] for i in order),
    )
    before, after = metrics.get(name).target(evidence), metrics.get(name).target(moved)
    assert before.value is not None
    assert after.value == pytest.approx(before.value, rel=1e-12)
    assert sorted(after.per_row) == pytest.approx(sorted(before.per_row))


@pytest.mark.parametrize("name", every_metric())
def test_a_value_is_the_statistic_of_its_groups_or_the_mean_over_its_rows(name: str) -> None:
    entry = metrics.get(name)
    found = entry.target(complete(name, lambda i: known(i) if i % 2 else unknown(i)))
    assert bool(found.groups) == ("statistic" in entry.info)
    assert found == entry.target(complete(name, lambda i: known(i) if i % 2 else unknown(i)))
    if found.groups:
        assert entry.info["statistic"](*map(np.asarray, found.groups)) == pytest.approx(found.value)
    else:
        assert float(np.mean(found.per_row)) == pytest.approx(found.value)


def summarised(name: str, kind: Callable[[int], RowEvidence], utility: dict[str, bool]) -> Score:
    splits = {split: Evidence(split, several(kind), **beside()) for split in ("retain", "general")}
    return summaries.get(name).target(splits, utility=utility)


@pytest.mark.parametrize("name", summaries.names())
def test_every_summary_is_in_range_and_says_why_it_has_no_value(name: str) -> None:
    info, both = summaries.get(name).info, {"retain": False, "general": True}
    assert info["label"]
    assert set(info["needs"]) <= NEEDS
    assert summaries.get(name).summary
    low, high = info["range"]
    assert all(low <= value_of(summarised(name, kind, both)) <= high for kind in (known, unknown))
    found = summarised(name, known, both)
    assert info["statistic"](*map(np.asarray, found.groups)) == pytest.approx(found.value)
    for utility in ({}, {"absent": True}):
        missing = summarised(name, known, utility)
        assert missing.value is None
        assert missing.reason
    bare = summarised(name, lambda _: RowEvidence(Example("Who?", "Ada."), ()), both)
    assert bare.value is None
    assert bare.reason


@pytest.mark.parametrize("name", summaries.names())
def test_a_summary_of_a_model_that_knows_more_is_higher(name: str) -> None:
    more, less = (value_of(summarised(name, kind, {"retain": False, "general": True})) for kind in (known, unknown))
    assert more > less
