"""Every kind of wrong input, given to the real command: one line that helps, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from grun.cli.main import main
from support.material import Material, invented_rows, write_rows
from support.tiny_models import tiny_model, tiny_tokenizer

Refuse = Callable[..., str]


@pytest.fixture
def unlearn(material: Material, tmp_path: Path) -> Callable[..., list[str]]:
    """A correct command line; settings given replace those of the same name."""

    def arguments(**changes: object) -> list[str]:
        settings = {
            "model": material.model,
            "forget": material.forget,
            "retain": material.retain,
            "output": tmp_path / "run",
            "objective": "npo",
            "layers": "1,3",
            "topic-layer": "none",
            "steps": 2,
            "batch-size": 4,
            "device": "cpu",
            **changes,
        }
        given = {name: value for name, value in settings.items() if value is not None}
        return ["unlearn", *[part for name, value in given.items() for part in (f"--{name}", str(value))]]

    return arguments


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """Runs a command that must be refused; returns its one line."""

    def run(arguments: Sequence[str], code: int = 2) -> str:
        assert main(arguments) == code
        shown = capsys.readouterr()
        lines = [line for line in shown.err.splitlines() if line.startswith("grun: ")]
        assert "Traceback" not in shown.err + shown.out
        assert not (tmp_path / "run").exists(), "a refused command must leave nothing behind"
        return lines[-1]

    return run


def test_a_correct_command_is_not_refused(unlearn: Callable[..., list[str]], tmp_path: Path) -> None:
    assert main(unlearn()) == 0
    assert sorted(p.name for p in (tmp_path / "run" / "adapter").iterdir() if p.name != "README.md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_missing_file(unlearn: Callable[..., list[str]], refused: Refuse, tmp_path: Path) -> None:
    assert "absent.jsonl" in refused(unlearn(forget=tmp_path / "absent.jsonl"))


def test_empty_file(unlearn: Callable[..., list[str]], refused: Refuse, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    line = refused(unlearn(forget=tmp_path / "empty.jsonl"))
    assert "empty.jsonl" in line
    assert "empty" in line.replace("empty.jsonl", "")


def test_broken_json_names_the_row(unlearn: Callable[..., list[str]], refused: Refuse, tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in invented_rows("Lund", 4000)]
    lines[3140] = '{"question": "Where'
    (tmp_path / "broken.jsonl").write_text("\n".join(lines))
    line = refused(unlearn(forget=tmp_path / "broken.jsonl"))
    assert "broken.jsonl" in line
    assert "3141" in line


def test_missing_column(unlearn: Callable[..., list[str]], refused: Refuse, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "other.jsonl", [{"frage": "Wo?", "antwort": "Dort."}])
    line = refused(unlearn(forget=file))
    assert "frage" in line
    assert "--columns" in line


def test_column_that_is_not_there(unlearn: Callable[..., list[str]], refused: Refuse) -> None:
    assert "frage" in refused([*unlearn(), "--columns", "prompt=frage"])
    assert "name=value" in refused([*unlearn(), "--columns", "frage"])


@pytest.mark.parametrize("prompt", ["", "   "])
def test_empty_prompt_names_the_row(
    unlearn: Callable[..., list[str]], refused: Refuse, tmp_path: Path, prompt: str
) -> None:
    rows = [*invented_rows("Lund", 2), {"question": prompt, "answer": "Yes."}]
    line = refused(unlearn(forget=write_rows(tmp_path / "rows.jsonl", rows)))
    assert "rows.jsonl" in line
    assert "3" in line


def test_prompt_longer_than_the_context(unlearn: Callable[..., list[str]], refused: Refuse, tmp_path: Path) -> None:
    rows = [*invented_rows("Lund", 2), {"question": "Where is the sea? " * 200, "answer": "There."}]
    line = refused(unlearn(forget=write_rows(tmp_path / "rows.jsonl", rows)))
    assert "rows.jsonl, row 3" in line
    assert "256" in line


def test_overlap_is_counted_and_identical_files_are_refused(
    unlearn: Callable[..., list[str]],
    refused: Refuse,
    material: Material,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "--retain" in refused(unlearn(retain=material.forget))
    both = write_rows(tmp_path / "both.jsonl", [*invented_rows("Lund", 3), *invented_rows("Marl", 20)])
    assert main(unlearn(retain=both)) == 0
    assert "3 rows are in both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": "1,9"}, ("9", "4")),
        ({"layers": "first"}, ("--layers", "first")),
        ({"layers": "1.5"}, ("1.5",)),
        ({"rank": 0}, ("--rank", "0", "at least 1")),
        ({"rank": 99}, ("rank", "99", "32")),
        ({"rank": "two"}, ("--rank", "valid integer")),
        ({"objective": "npoo"}, ("npoo", "Did you mean 'npo'", "gd")),
        ({"adapt": "grunn"}, ("grunn", "Did you mean 'grun'")),
        ({"preset": "papper"}, ("papper", "Did you mean 'paper'")),
        ({"gate": "deep"}, ("gate", "deep", "mlp")),
        ({"gate-reads": "first"}, ("gate_reads", "first", "prompt")),
        ({"edit-from": "start"}, ("edit_from", "start", "last_prompt_on")),
        ({"gate-layer": 7}, ("gate_layer", "7")),
        ({"steps": 0}, ("--steps", "at least 1")),
        ({"learning-rate": -1}, ("--learning-rate", "-1")),
        ({"false-positive-rate": 2}, ("--false-positive-rate", "2")),
        ({"withhold": 0.95}, ("--withhold", "0.95")),
        ({"batch-size": 0}, ("--batch-size",)),
        ({"dtype": "float8"}, ("--dtype", "float8")),
        ({"device": "warp"}, ("--device", "warp")),
        ({"template": "poem"}, ("poem", "{prompt}")),
        ({"objective-options": "beta=soft"}, ("beta", "soft")),
        ({"objective-options": "gamma=1"}, ("gamma", "beta")),
        ({"objective-options": "beta=0"}, ("beta", "npo", "above 0")),
        ({"objective": "altpo"}, ("altpo", "8 of 8", "alternative_answers", "forget.jsonl, row 1", "--alternatives")),
        ({"objective": "altpo", "alternatives": "perturbed"}, ("altpo", "perturbed_answers")),
        ({"alternatives": "invented"}, ("--alternatives", "invented", "perturbed")),
        ({"objective": "idk", "refusals": "absent.txt"}, ("--refusals", "absent.txt")),
        ({"objective": "dpo", "refusals": os.devnull}, ("--refusals", "empty")),
        ({"refusals": "absent.txt"}, ("--refusals", "npo", "idk")),
        ({"objective": "rmu", "hidden-layer": 4}, ("--hidden-layer", "4", "0 to 3")),
        ({"objective": "rmu", "hidden-layer": "top"}, ("--hidden-layer", "top", "index")),
        ({"objective": "rmu", "hidden-layer": 2}, ("--hidden-layer", "2", "--layers")),
        ({"hidden-layer": 1}, ("--hidden-layer", "npo", "rmu")),
        ({"retain-loss": "ke"}, ("retain loss", "ke", "kl")),
        ({"objective": "pdu", "retain-loss": "none"}, ("pdu", "--retain-loss")),
        ({"objective": "pdu", "retain-loss": "kl"}, ("--retain-bound", "kl")),
        ({"adapt": "lora", "topic-layer": None}, ("--layers", "lora", "grun")),
        ({"adapt": "lora", "layers": None, "topic-layer": None, "gate": "mlp"}, ("--gate", "lora", "grun")),
        ({"adapt": "reft", "gate": "linear"}, ("--gate", "reft", "grun")),
        ({"adapt": "full", "layers": None, "topic-layer": None, "rank": 4}, ("--rank", "full", "lora")),
        ({"trainer": "warmup=3"}, ("--trainer", "warmup", "warmup_")),
        ({"trainer": "bf16=maybe"}, ("--trainer", "bf16", "maybe", "true or false")),
        ({"trainer": "logging_steps=few"}, ("--trainer", "logging_steps", "few")),
        ({"trainer": "optim=adamm"}, ("--trainer", "optim", "adamm")),
        ({"trainer": "max_steps=9"}, ("--trainer", "max_steps", "--steps")),
        ({"trainer": "report_to=nowhere"}, ("--trainer", "nowhere")),
        ({"patience": 0}, ("--patience", "at least 1")),
        ({"benchmark": "fictional"}, ("--benchmark", "--forget")),
        ({"config": "absent.yaml"}, ("absent.yaml",)),
    ],
    ids=str,
)
def test_wrong_settings(
    unlearn: Callable[..., list[str]], refused: Refuse, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    line = refused(unlearn(**changes))
    for word in words:
        assert word in line


@pytest.mark.parametrize("missing", ["model", "forget"])
def test_missing_settings(unlearn: Callable[..., list[str]], refused: Refuse, missing: str) -> None:
    arguments = unlearn()
    at = arguments.index(f"--{missing}")
    assert f"--{missing}" in refused(arguments[:at] + arguments[at + 2 :])


def test_unknown_flag_and_unknown_command(refused: Refuse) -> None:
    assert "--forget" in refused(["unlearn", "--forgett", "x"])
    assert "unlern" in refused(["unlern"])


def test_models_that_are_none(unlearn: Callable[..., list[str]], refused: Refuse, tmp_path: Path) -> None:
    assert "no such folder" in refused(unlearn(model=tmp_path / "absent"))
    (tmp_path / "hollow").mkdir()
    assert "config.json" in refused(unlearn(model=tmp_path / "hollow"))


def test_adapter_for_another_base(material: Material, refused: Refuse, tmp_path: Path) -> None:
    from support.adapter_kit import attach

    attach().save_pretrained(tmp_path / "adapter")
    other = tiny_model("llama", num_hidden_layers=2)
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    data = ["--data", f"forget={material.forget}", "--output", str(tmp_path / "run"), "--device", "cpu"]
    line = refused(["evaluate", "--model", str(tmp_path / "other"), "--adapter", str(tmp_path / "adapter"), *data])
    assert "4" in line
    assert "2" in line


def test_output_that_holds_something_else(
    unlearn: Callable[..., list[str]], refused: Refuse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    for extra in ([], ["--overwrite"]):
        assert str(full) in refused([*unlearn(output=full), *extra])
    assert (full / "thesis.tex").read_text() == "years of work"
    assert "is a file" in refused(unlearn(output=full / "thesis.tex"))


def test_output_that_holds_another_run(
    unlearn: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(unlearn()) == 0
    before = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert main(unlearn(objective="gd")) == 2
    said = capsys.readouterr().err
    assert "--objective was npo, now gd" in said
    assert "--overwrite" in said
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert main([*unlearn(objective="gd"), "--overwrite"]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes() != before


def test_no_permission_to_write(unlearn: Callable[..., list[str]], refused: Refuse, tmp_path: Path) -> None:
    assert "/proc" in refused(unlearn(output="/proc/grun/run"))
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere, whatever a directory's mode says")
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "permission" in refused(unlearn(output=tmp_path / "locked" / "run"))


def test_a_model_that_computes_nan_is_refused(
    unlearn: Callable[..., list[str]], refused: Refuse, tmp_path: Path
) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)  # finite, but its states overflow
    model.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    line = refused(unlearn(model=tmp_path / "broken", objective="idk"))
    assert "it computes NaN" in line
    assert str(tmp_path / "broken") in line


def test_too_high_a_learning_rate_keeps_the_last_good_state(
    unlearn: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    code = main([*unlearn(objective="gd", steps=50), "--learning-rate", "1e30"])
    said = capsys.readouterr().err
    assert code == 3
    assert "at step" in said
    kept = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda p: int(p.name.rpartition("-")[2]))
    state = load_file(kept / "adapter_model.safetensors")
    assert all(not torch.isnan(value).any() for value in state.values())


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["calibrate", "--model", "m", "--adapter", "a"], "--normal is missing: give a file of normal prompts"),
        (["calibrate", "--model", "m"], "--adapter is missing"),
        (["unlearn", "--model", "m"], "--forget is missing"),
        (["evaluate", "--model", "m"], "--benchmark or --data: neither was given"),
        (["finetune"], "--benchmark and --data are both missing"),
        (["request", "add", "--ledger", "l", "--model", "m"], "FILES is missing"),
        (["request", "calibrate", "--ledger", "l", "--model", "m"], "--normal is missing"),
        (["request", "add", "rows.jsonl", "--model", "m"], "--ledger is missing"),
    ],
)
def test_what_was_not_given_is_named_by_its_flag(
    arguments: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert missing in capsys.readouterr().err
