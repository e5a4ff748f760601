"""The demo with invented people from end to end, on a smaller scale: the same code, fewer people and steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grun.cli.main import main

OPTIONS = ["people=10", "facts=4", "phrasings=1"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    options = [part for option in OPTIONS for part in ("--benchmark-options", option)]
    output = tmp_path_factory.mktemp("demo") / "demo"
    return [
        "demo",
        "--fictional",
        "--output",
        str(output),
        "--epochs",
        "6",
        "--steps",
        "8",
        "--rows",
        "6",
        "--device",
        "cpu",
        "--objective",
        "npo",
        *options,
    ]


def test_the_demo_shows_what_was_forgotten_and_kept(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for words in ("1/4", "4/4", "retain_heldout", "paraphrased", "true answer", "npo, GRUN", "npo, LoRA", "It took"):
        assert words in shown
    output = Path(arguments[3])
    found = json.loads((output / "metrics.json").read_text())
    assert set(found["splits"]["forget"]["probability"]) == {"target", "npo, GRUN", "npo, LoRA"}
    assert found["training"]["grun"]["trainable_parameters"] > 0
    assert (output / "answers.md").read_text().count("\n") == 12  # a heading, its rule, ten answers
    assert "| forget |" in (output / "table.md").read_text()
    for part in ("target/model/model.safetensors", "grun/adapter/adapter_model.safetensors", "lora/adapter"):
        assert (output / part).exists()


def test_the_same_demo_again_trains_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(arguments[3]) / "target" / "model" / "model.safetensors"
    if not model.exists():
        assert main(arguments) == 0
    written = model.stat().st_mtime_ns
    assert main(arguments) == 0
    assert model.stat().st_mtime_ns == written
    assert main([*arguments, "--objective", "gd"]) == 2
    assert "--objective was npo, now gd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "smollm2"], "--model is smollm2, but it only works without --fictional"),
        (["--benchmark-options", "topic=volcanoes"], "topic"),
        (["--rows", "0"], "--rows is 0, expected at least 1"),
    ],
    ids=str,
)
def test_what_does_not_belong_to_it_is_refused(
    more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--fictional", "--output", str(tmp_path / "demo"), *more]) == 2
    line = capsys.readouterr().err.strip()
    assert words in line
    assert "\n" not in line
    assert not (tmp_path / "demo").exists()
