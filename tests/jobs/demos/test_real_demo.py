"""The demo from end to end, with a tiny random model in the place of the real one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from grun.cli.main import main
from grun.core.config.jobs import DemoConfig, UnlearnConfig
from grun.data.benchmarks import load_benchmark
from grun.data.refusals import REFUSALS
from grun.evaluation.report.recognition_table import recognition_table, recognition_to_markdown
from grun.evaluation.report.table import show_whole
from grun.jobs.demos.asking import AnsweredPrompt, Questions, counted
from grun.jobs.demos.demo import demo
from grun.jobs.demos.real import KINDS
from grun.models.gates.calibration import share_open
from grun.models.gates.features import features_of_rows, gate_logits, gates_of, thresholds_of
from grun.models.loading.loaded import LoadedModel, load
from grun.models.loading.pretrained import load_adapter
from support.tiny_models import tiny_model, tiny_tokenizer

ROWS = 3
ADAPTER = Path("unlearned", "adapter", "adapter_model.safetensors")
WRITTEN = ("table.md", "answers.md")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(max_position_embeddings=4096).save_pretrained(folder)  # long enough for every ordinary prompt
    tiny_tokenizer().save_pretrained(folder)
    return folder


def arguments(model: Path, output: Path, *more: str) -> list[str]:
    small = ["--rows", str(ROWS), "--steps", "4", "--batch-size", "4", "--device", "cpu"]
    return ["demo", "--model", str(model), "--output", str(output), *small, "--benchmark-options", "retain=20", *more]


def start(given: list[str]) -> subprocess.Popen[str]:
    """The command line as a process of its own, as if few prompts shipped."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "support.few_prompts", *given]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(given: list[str]) -> str:
    process = start(given)
    shown, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return shown


@pytest.fixture(scope="module")
def shown(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A complete demo and what it printed."""
    output = tmp_path_factory.mktemp("demo") / "demo"
    return output, finish(arguments(model, output))


def results(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_it_shows_a_table_and_answers_on_80_columns(shown: tuple[Path, str]) -> None:
    output, text = shown
    for words in (
        "1/3",
        "2/3  It forgets volcanoes from 60 questions",
        "3/3",
        "before",
        "after",
        "It took",
        "grun chat",
    ):
        assert words in text
    lines = text.partition("Ask it yourself")[0].splitlines()
    assert [line for line in lines if len(line.rstrip()) > 80 and str(output) not in line] == []
    for name in KINDS.values():
        assert re.search(rf"^ +{name} ", text, re.MULTILINE)
    assert f"everything lies in {output}" in text.replace("\n", "")


def test_every_table_counts_what_metrics_hold(shown: tuple[Path, str]) -> None:
    output, text = shown
    found, lines = results(output), (output / "table.md").read_text().splitlines()
    prompts = {"forget": 60, "unseen": 40, "described": 20, "neighbours": 60, "ordinary": 300}
    assert {kind: counts["prompts"] for kind, counts in found["kinds"].items()} == prompts
    for kind, line in zip(KINDS, lines[2:], strict=False):
        counts, answers = found["kinds"][kind], [AnsweredPrompt(**one) for one in found["answers"][kind]]
        numbers = [counts[name] for name in ("prompts", "open", "answered", "refusals", "as_before")]
        to_forget = "yes" if kind in ("forget", "unseen", "described") else "no"
        assert cells(line) == [KINDS[kind], to_forget, *map(str, numbers)]
        assert re.search(
            rf"^ *{KINDS[kind]} +{to_forget} +" + " +".join(map(str, numbers)) + r" *$", text, re.MULTILINE
        )
        assert counts["answered"] == len(answers) == ROWS
        assert counts["refusals"] == sum(one.after in {s for own in REFUSALS.values() for s in own} for one in answers)
        assert counts["as_before"] == sum(one.after == one.before for one in answers)
        assert counts["open"] >= sum(one.open for one in answers)
    first, second = (found["kinds"][kind]["open"] for kind in ("unseen", "described"))
    said = " ".join((output / "table.md").read_text().split())
    assert f"{first} of 40 unseen questions and {second} of 20 descriptions open the gate" in said


def test_answered_prompts_are_evenly_spaced_whatever_comes_out(shown: tuple[Path, str]) -> None:
    splits = load_benchmark("topics", options={"topic": "volcanoes", "retain": "20"}).splits
    for kind, answers in results(shown[0])["answers"].items():
        rows = splits[kind]
        assert [one["prompt"] for one in answers] == [rows[i * len(rows) // ROWS].prompt for i in range(ROWS)]
    listed = [cells(line)[0] for line in (shown[0] / "answers.md").read_text().splitlines()[2:]]
    assert Counter(name.split(",")[0] for name in listed) == dict.fromkeys(KINDS, ROWS)


def test_behind_a_shut_gate_answers_are_those_of_before(shown: tuple[Path, str]) -> None:
    answers = [AnsweredPrompt(**one) for kind in results(shown[0])["answers"].values() for one in kind]
    shut = [one for one in answers if not one.open]
    assert shut, "this demo shows nothing"
    assert all(one.is_as_before for one in shut)
    assert f"Of {len(shut)} answers behind a shut gate, {len(shut)} are bit for bit" in (
        shown[0] / "table.md"
    ).read_text().replace("\n", " ")


def test_gates_are_read_as_the_adapter_decides(shown: tuple[Path, str], model: Path) -> None:
    base = load(str(model), UnlearnConfig(device="cpu"))
    adapted = load_adapter(base.model, str(shown[0] / "unlearned"))
    rows = load_benchmark("topics", options={"topic": "volcanoes"}).splits
    for kind in ("unseen", "neighbours"):
        features = features_of_rows(adapted, base.encoder, base.encoder.encode(rows[kind]))
        logits_NG = gate_logits(features, [gate for _, gate in gates_of(adapted)])
        expected = share_open(logits_NG, thresholds_of(adapted)).open
        assert results(shown[0])["kinds"][kind]["open"] == expected


def test_a_complete_demo_is_only_shown_and_another_one_refused(
    shown: tuple[Path, str], model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("grun.jobs.demos.real.load", None)  # no model is loaded
    output, text = shown
    assert main(arguments(model, output)) == 0
    table = text.partition("What opens the gate")[2]
    assert capsys.readouterr().out.partition("What opens the gate")[2] == table
    assert main(arguments(model, output, "--objective", "gd")) == 2
    assert "--objective was idk_deep, now gd" in capsys.readouterr().err
    assert main(["demo", "--fictional", "--output", str(output)]) == 2
    assert "holds another run (--fictional was False, now True)" in capsys.readouterr().err


def test_a_killed_demo_ends_with_the_same_bytes(shown: tuple[Path, str], model: Path, tmp_path: Path) -> None:
    output = tmp_path / "demo"
    for part in ("unlearned/checkpoints", "unlearned/adapter"):
        process, deadline = start(arguments(model, output)), time.monotonic() + 120
        while not (output / part).exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert not (output / "metrics.json").exists()
    finish(arguments(model, output))
    for name in (*WRITTEN, ADAPTER):
        assert (output / name).read_bytes() == (shown[0] / name).read_bytes()
    one, two = (results(folder)["answers"] for folder in (output, shown[0]))
    assert one == two


def test_another_topic_and_overwriting(
    shown: tuple[Path, str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "demo"
    output.mkdir()
    for file in shown[0].iterdir():
        if file.is_file():
            (output / file.name).write_bytes(file.read_bytes())
    finish(arguments(model, output, "--benchmark-options", "topic=harry_potter", "--overwrite"))
    assert results(output)["topic"] == "harry potter"
    rows = load_benchmark("topics", options={"topic": "harry_potter"}).splits
    assert results(output)["answers"]["unseen"][0]["prompt"] == rows["unseen"][0].prompt


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--epochs", "3"], "--epochs is 3.0, but it only works with --fictional"),
        (["--benchmark-options", "topic=volcanos"], "Did you mean 'volcanoes'?"),
        (["--benchmark-options", "people=40"], "benchmark 'topics' has no option 'people'"),
        (["--objective", "forgetting"], "'forgetting'"),
        (["--rows", "0"], "--rows is 0, expected at least 1"),
        (["--model", "./nowhere"], "--model './nowhere': there is no such folder"),
        (["--device", "abacus"], "--device is 'abacus'"),
    ],
    ids=str,
)
def test_wrong_input_is_refused_before_anything_is_written(
    more: list[str], words: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    assert main(arguments(model, output, *more)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("grun: ")
    assert words in line
    assert not output.exists()


def test_a_prompt_that_is_too_long_for_the_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert main(arguments(tmp_path / "model", tmp_path / "demo")) == 2
    assert "ordinary.json, prompt" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(("fictional", "name"), [(False, "demo"), (True, "demo-fictional")])
def test_both_demos_have_a_directory_of_their_own(
    fictional: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for job in ("real_demo", "fictional_demo"):
        monkeypatch.setattr(f"grun.jobs.demos.demo.{job}", lambda config, run: run.start())
    assert demo(DemoConfig(fictional=fictional)) == Path(name)
    assert json.loads((tmp_path / name / "settings.json").read_text())["output"] == name


def test_what_counts() -> None:
    refusal = REFUSALS["en"][0]
    answers = [
        AnsweredPrompt("a", True, "Lava.", refusal),
        AnsweredPrompt("b", True, "Lava.", refusal + " Lava."),
        AnsweredPrompt("c", True, "Lava.", "Lava."),
        AnsweredPrompt("d", False, "Ash.", "Ash."),
        AnsweredPrompt("e", False, "Ash.", "Ashes."),
    ]
    found = counted("some", True, [one.open for one in answers] + [True, False], answers)
    assert (found.prompts, found.open, found.answered, found.answered_shut) == (7, 4, 5, 2)
    assert (found.refusals, found.as_before, found.shut_as_before) == (1, 2, 1)


def test_text_from_outside_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [counted("[b]some[/b]", True, [True], [])]
    show_whole(recognition_table(kinds, "After [red]model[/red]\x1b[2J forgot"))
    shown = capsys.readouterr().out
    assert "[b]some[/b]" in shown
    assert "After [red]model[/red]·[2J" in shown
    assert "| \\[b\\]some" in recognition_to_markdown(kinds)


def test_answers_do_not_depend_on_prompts_that_only_the_gate_reads(model: Path) -> None:
    base: LoadedModel = load(str(model), UnlearnConfig(device="cpu"))
    rows = load_benchmark("topics", options={"topic": "volcanoes"}).splits
    some = Questions(base, {"unseen": rows["unseen"][:2]}, 2)
    more = Questions(base, {"unseen": rows["unseen"][:2], "neighbours": rows["neighbours"][:9]}, 2)
    with torch.no_grad():
        one, two = some.answers(base.model, "some"), more.answers(base.model, "more")
    assert list(one) == list(two)[:2] == [("unseen", 0), ("unseen", 1)]
    assert all(one[place] == two[place] for place in one)
