"""The command line itself: help, version, what can be chosen, settings from files, chat."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import grun
from grun.cli.main import main
from grun.core.config.jobs import ChatConfig, DemoConfig, EvaluateConfig, FinetuneConfig, UnlearnConfig
from grun.core.config.schema import flag
from support.adapter_kit import attach
from support.material import Material

NO_TOPICS = ("--topic-layer", "none")
COMMANDS = {
    "finetune": FinetuneConfig,
    "unlearn": UnlearnConfig,
    "evaluate": EvaluateConfig,
    "chat": ChatConfig,
    "demo": DemoConfig,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_setting(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(COMMANDS[command]):
        assert flag(field.name) in shown
        assert field.metadata["help"].split()[0] in shown
    assert "--config" in shown


def test_help_and_version_do_not_wait_for_torch() -> None:
    code = "import sys; from grun.cli.main import main; main(['unlearn', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"grun {grun.__version__}"


def test_list_shows_what_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in ("npo", "idk", "gd", "grun", "lora", "full", "reft", "fictional", "tofu", "rouge_l_recall"):
        assert f"  {name} " in shown


def run(material: Material, output: Path, *more: str) -> int:
    paths = ("--forget", str(material.forget), "--retain", str(material.retain), "--output", str(output))
    return main(["unlearn", *paths, "--layers", "1,3", "--batch-size", "4", "--device", "cpu", *NO_TOPICS, *more])


def test_flags_win_over_the_file_and_the_file_over_defaults(material: Material, tmp_path: Path) -> None:
    settings = {"model": str(material.model), "steps": 3, "learning-rate": "1e-3", "objective": "gd"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
    assert run(material, tmp_path / "run", "--config", str(tmp_path / "job.yaml"), "--steps", "2") == 0
    used = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (used["steps"], used["learning_rate"], used["objective"], used["rank"]) == (2, 1e-3, "gd", 4)


def test_the_record_of_a_run_repeats_it(material: Material, tmp_path: Path) -> None:
    assert run(material, tmp_path / "one", "--model", str(material.model), "--steps", "2") == 0
    again = ["unlearn", "--config", str(tmp_path / "one" / "settings.json"), "--output", str(tmp_path / "two")]
    assert main(again) == 0
    one, two = (tmp_path / r / "adapter" / "adapter_model.safetensors" for r in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["complete"]
    assert record["versions"]["grun"] == grun.__version__
    assert "torch" in record["versions"]
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["validation"]["retain_ratio"] > 0


def test_a_complete_run_is_not_repeated(material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(material, tmp_path / "run", "--model", str(material.model), "--steps", "2") == 0
    started = time.time_ns()
    assert run(material, tmp_path / "run", "--model", str(material.model), "--steps", "2") == 0
    assert "complete already" in capsys.readouterr().err
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns < started


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("objectiv: npo", ("objectiv", "objective")),
        ("steps: many", ("steps", "many", "int")),
        ("- steps", ("list", "name: value")),
        ("steps: [1", ("line",)),
    ],
)
def test_wrong_files_of_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "job.yaml").write_text(content)
    assert main(["unlearn", "--config", str(tmp_path / "job.yaml")]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    for word in ("job.yaml", *words):
        assert word in line


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "adapter"
    attach().save_pretrained(folder)
    return folder


def test_chat_answers_side_by_side(material: Material, adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--model", str(material.model), "--adapter", str(adapter), "--device", "cpu", "--max-new-tokens", "5"]
    assert main(["chat", *models, "--prompt", "Where was Ada born?", "--prompt", "What is two plus three?"]) == 0
    shown = capsys.readouterr().out
    assert "Where was" in shown
    assert shown.count("before") == shown.count("gate") == 2


def test_chat_reads_piped_questions(
    material: Material, adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where was Ada born?\n\nWho wrote it?\n"))
    assert main(["chat", "--model", str(material.model), "--adapter", str(adapter), "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.count("before") == 2


def test_chat_needs_an_adapter_and_a_question(
    material: Material, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--model", str(material.model)]) == 2
    assert "--adapter is missing" in capsys.readouterr().err
    assert main(["chat", "--model", str(material.model), "--adapter", str(adapter), "--prompt", " "]) == 2
    assert "--prompt is ' ', which is blank" in capsys.readouterr().err
