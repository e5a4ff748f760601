"""`grun compare`: differences between evaluations of the same rows, with intervals, and what cannot be compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grun
from grun.core.errors import UserError
from grun.evaluation.comparison import OVERALL, compare_runs
from grun.jobs.compare import compare
from grun.jobs.evaluate import evaluate
from support.adapter_kit import attach
from support.evaluation_kit import config
from support.tiny_models import tiny_model


@pytest.fixture(scope="module")
def runs(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Evaluations of two adapters and of the base model alone."""
    folder = tmp_path_factory.mktemp("runs")
    attach(tiny_model(), gate_layer=1, seed=5).save_pretrained(folder / "adapter")
    shared = {"figures": False, "max_new_tokens": 4}
    return [
        evaluate(config(saved, folder / "one", **shared)),
        evaluate(config(saved, folder / "two", adapter=str(folder / "adapter"), **shared)),
        evaluate(config(saved, folder / "base", adapter=None, **shared)),
    ]


def per_row(run: Path, split: str, metric: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    return [row["after" if "after" in row else "before"][metric] for row in rows if row["split"] == split]


def test_differences_are_taken_row_by_row(runs: list[Path]) -> None:
    found = {(one.split, one.metric): one.runs for one in compare_runs(runs)}
    for run, other in ((1, runs[1]), (2, runs[2])):
        ours, theirs = (np.asarray(per_row(path, "retain", "probability")) for path in (other, runs[0]))
        one = found["retain", "probability"][run]
        assert one.value == pytest.approx(ours.mean())
        assert one.change == pytest.approx((ours - theirs).mean())
        draws = np.random.default_rng(3).integers(len(ours), size=(4000, len(ours)))
        low, high = np.percentile((ours - theirs)[draws].mean(1), [2.5, 97.5])
        scale = np.ptp(ours - theirs)
        assert (one.low, one.high) == pytest.approx((low, high), abs=0.05 * scale)
    gate = found["retain", "gate_auroc"]
    assert gate[0].value is not None
    assert gate[1].low is not None
    assert (gate[2].value, gate[2].change) == (None, None), "the base model has no gate"


def test_a_run_does_not_differ_from_itself(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "copy")
    for one in compare_runs([runs[0], tmp_path / "copy"]):
        if one.runs[0].value is not None:
            assert one.runs[1].change == 0.0
            assert one.runs[1].low in (0.0, None)


def test_metrics_and_splits_can_be_chosen_and_the_result_is_written(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(runs, metrics=["probability"], splits=["forget"], output=tmp_path / "out")
    assert [(one.split, one.metric) for one in found] == [("forget", "probability")]
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["versions"]["grun"] == grun.__version__
    assert written["machine"]["cores"] > 0
    assert written["found"][0]["runs"][1]["change"] == pytest.approx(found[0].runs[1].change)
    assert "95 % interval" in (tmp_path / "out" / "comparison.md").read_text()
    assert "probability" in capsys.readouterr().out


def test_what_sums_all_splits_up_is_compared_too(saved: Path, tmp_path: Path) -> None:
    shared = {"data": [], "benchmark": "fictional", "max_rows": 6, "figures": False}
    attach(tiny_model(), gate_layer=1, seed=5).save_pretrained(tmp_path / "adapter")
    paths = [
        evaluate(config(saved, tmp_path / name, adapter=adapter, **shared))
        for name, adapter in (("one", str(saved / "run")), ("two", str(tmp_path / "adapter")))
    ]
    last = compare_runs(paths)[-1]
    assert (last.split, last.metric) == (OVERALL, "model_utility")
    other: Any = last.runs[1]
    assert other.low <= other.change <= other.high


def test_what_cannot_be_compared_is_refused_in_one_line(runs: list[Path], saved: Path, tmp_path: Path) -> None:
    fewer = evaluate(config(saved, tmp_path / "fewer", max_rows=2, figures=False))
    retain = [f"retain={saved / 'retain.jsonl'}"]
    other = evaluate(config(saved, tmp_path / "other", data=[f"general={saved / 'forget.jsonl'}"], figures=False))
    alone = evaluate(config(saved, tmp_path / "alone", data=retain, figures=False))
    for given, message in (
        ([runs[0]], "1 run was given; expected the directories of at least two"),
        ([runs[0], saved], "is not a complete evaluation: it has no metrics.json"),
        ([runs[0], fewer], "split 'forget' of one .* and of fewer .* has different rows, the first is row 3"),
        ([runs[0], other], "no split in common"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            compare_runs(given)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not all runs have 'forget'"):
        compare_runs([runs[0], alone], splits=["forget"])
    with pytest.raises(UserError, match="unknown metric 'probabilty'"):
        compare_runs(runs, metrics=["probabilty"])


def test_the_command(runs: list[Path]) -> None:
    command = [sys.executable, "-m", "grun", "compare", *map(str, runs), "--metrics", "probability"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "40"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "95 % interval" in done.stdout
    failed = subprocess.run(command[:5], capture_output=True, text=True, env=environment, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("grun: compare: 1 run was given")
