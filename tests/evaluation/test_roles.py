"""Splits have a role: more rows of what must be forgotten are never taken for rows to keep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from grun.core.errors import UserError
from grun.core.records import Evidence
from grun.evaluation.measuring.assembly import assembled
from grun.evaluation.metrics import auroc, metrics
from grun.jobs.evaluate import evaluate
from grun.jobs.inputs.evaluation import load_splits
from support.evaluation_kit import config
from support.evidence_kit import row


def gated(logit: float) -> object:
    return replace(row(), gate_logits=(logit,), gate_values=(float(logit > 0),))


def test_unseen_rows_to_forget_are_ranked_against_all_rows_to_keep() -> None:
    splits = {
        "forget": (gated(5.0), gated(6.0)),
        "unseen": (gated(1.0), gated(-1.0)),
        "unseen_paraphrased": (gated(0.5), gated(-2.0)),
        "near": (gated(0.0), gated(-3.0)),
        "far": (gated(-4.0),),
    }
    found = assembled(splits, dict.fromkeys(splits), "forget", ("unseen",))  # type: ignore[arg-type]
    assert {name: evidence.to_forget for name, evidence in found.items()} == {
        "forget": True,
        "unseen": True,
        "unseen_paraphrased": True,
        "near": False,
        "far": False,
    }
    measured = {name: metrics.get("gate_auroc").target(evidence) for name, evidence in found.items()}
    assert measured["unseen"].value == auroc([1.0, -1.0], [0.0, -3.0, -4.0])
    assert measured["unseen_paraphrased"].value == auroc([0.5, -2.0], [0.0, -3.0, -4.0])
    assert measured["near"].value == 1.0
    assert measured["forget"].value is None, "the gate was fitted on it"


def test_without_rows_to_keep_there_is_nothing_to_rank_against() -> None:
    found = assembled({"unseen": (row(),)}, {"unseen": None}, None, ("unseen",))
    assert isinstance(found["unseen"], Evidence)
    assert metrics.get("gate_auroc").target(found["unseen"]).value is None


def test_roles_reach_the_record_and_the_table(saved: Path, tmp_path: Path) -> None:
    forget, retain = saved / "forget.jsonl", saved / "retain.jsonl"
    data = [f"forget={forget}", f"forget:unseen={forget}", f"keep:near={retain}", f"far={retain}"]
    path = evaluate(config(saved, tmp_path / "out", data=data, figures=False), show=False)
    splits = json.loads((path / "metrics.json").read_text())["splits"]
    assert {name: one["role"] for name, one in splits.items()} == {
        "forget": "forget",
        "forget_paraphrased": "forget",
        "unseen": "forget",
        "unseen_paraphrased": "forget",
        "near": "keep",
        "far": "keep",
    }
    table = (path / "table.md").read_text()
    assert "| unseen (to forget) |" in table
    assert "| near |" in table
    assert splits["unseen"]["metrics"]["gate_auroc"]["after"]["value"] is not None


def test_an_unknown_role_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"the role 'forgot' is unknown\. Did you mean 'forget'\? Expected forget:a=file"
    ):
        load_splits(config(saved, tmp_path, data=[f"forgot:a={saved / 'forget.jsonl'}"]))
