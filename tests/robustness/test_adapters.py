"""Adapters that are damaged or do not fit: refused in one line by every command, and the model is as it was before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from grun.cli.main import main
from grun.core.errors import UserError
from grun.models.loading.pretrained import load_adapter
from grun.models.tuner.readers.vocabulary import token_bytes
from grun.requests.stack_files import read_adapter, write_stack
from support.adapter_kit import attach
from support.damage import ADAPTER_DAMAGE, Bomb, Damage, content, edit_json, edit_tensors, first_value, pickled
from support.material import invented_rows, write_rows
from support.tiny_models import tiny_model, tiny_tokenizer

Refuse = Callable[[str], str]
S, A = "adapter_config.json", "adapter_model.safetensors"
LORA_DAMAGE: dict[str, Damage] = {
    "r of a billion": edit_json(S, r=10**9),
    "r of text": edit_json(S, r="abc"),
    "r below zero": edit_json(S, r=-1),
    "another r": edit_json(S, r=3),
    "no modules": edit_json(S, target_modules=["nowhere"]),
    "fewer modules": edit_json(S, target_modules=["q_proj"]),
    "more modules": edit_json(S, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    "modules are a number": edit_json(S, target_modules=3),
    "alpha is NaN": edit_json(S, lora_alpha=float("nan")),
    "another method": edit_json(S, peft_type="LOHA"),
    "a tensor is missing": edit_tensors(A, lambda t: {k: v for k, v in list(t.items())[1:]}),
    "a layer too many": edit_tensors(
        A, lambda t: t.update({k.replace("layers.0", "layers.9"): v.clone() for k, v in t.items() if "layers.0" in k})
    ),
    "NaN": edit_tensors(A, first_value("lora_A", float("nan"))),
    "infinity": edit_tensors(A, first_value("lora_B", float("inf"))),
    "cut off": content(A, lambda old: old[: len(old) // 2]),
    "code": pickled("adapter_model.bin", A, {"a": Bomb()}),
}


LEXICAL_DAMAGE = {
    "weights for whole numbers": edit_tensors(A, lambda t: {k: v.float() for k, v in t.items()}),
    "whole numbers for weights": edit_tensors(A, lambda t: {k: v.to(torch.int64) for k, v in t.items()}),
    "other sizes": edit_json(S, lexicon=[3, 2, 1]),
    "no sizes": edit_json(S, lexicon=[0, 0, 0]),
    "sizes without end": edit_json(S, lexicon=[10**12, 10**12, 10**12]),
    "NaN": edit_tensors(A, first_value("grun_gate.weights", float("nan"))),
    "no spans": edit_tensors(A, lambda t: {k: v for k, v in t.items() if not k.endswith(".keys")}),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two kinds of adapters on it, and rows; nobody may change it."""
    folder = tmp_path_factory.mktemp("sound")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    attach(topic_layer=1, topic_width=4).save_pretrained(folder / "grun")
    lexical = attach(gate="lexical", gate_layer=0)
    gate = lexical.base_model.runtime.layers[0].gates["default"]
    gate.keep({1: 1.0, 2: 0.5}, token_bytes(tiny_tokenizer()))
    lexical.peft_config["default"].lexicon = list(gate.sizes)
    lexical.save_pretrained(folder / "lexical")
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(tiny_model(), settings).save_pretrained(str(folder / "lora"))
    write_rows(folder / "rows.jsonl", invented_rows("Lund", 40))
    return folder


@pytest.fixture
def refused(sound: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Runs a command on a damaged adapter; returns its one line."""
    monkeypatch.chdir(tmp_path)
    rows, out = sound / "rows.jsonl", ["--output", "out", "--device", "cpu"]
    given = ["--model", sound / "model", "--adapter", tmp_path / "adapter"]
    commands = {
        "evaluate": ["evaluate", *given, "--data", f"forget={rows}", "--no-figures", *out],
        "calibrate": ["calibrate", *given, "--normal", rows, "--alpha", 0.5, *out],
        "chat": ["chat", *given, "--prompt", "Where?", "--device", "cpu"],
    }

    def run(command: str) -> str:
        capsys.readouterr()
        assert main([str(part) for part in commands[command]]) == 2
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "exploded").exists()
        line = [line for line in shown.err.splitlines() if line.startswith("grun: ")][-1]
        assert str(tmp_path / "adapter") in line
        assert len(line) < 1000
        assert "weights_only" not in line
        return line

    return run


@pytest.mark.parametrize("kind", ADAPTER_DAMAGE)
def test_a_damaged_adapter_is_refused(sound: Path, refused: Refuse, tmp_path: Path, kind: str) -> None:
    shutil.copytree(sound / "grun", tmp_path / "adapter")
    ADAPTER_DAMAGE[kind](tmp_path / "adapter")
    refused("chat")


@pytest.mark.parametrize("kind", LEXICAL_DAMAGE)
def test_a_damaged_adapter_that_reads_text_is_refused(sound: Path, refused: Refuse, tmp_path: Path, kind: str) -> None:
    assert isinstance(load_adapter(tiny_model(), str(sound / "lexical")), PeftModel)
    shutil.copytree(sound / "lexical", tmp_path / "adapter")
    LEXICAL_DAMAGE[kind](tmp_path / "adapter")
    refused("chat")


@pytest.mark.parametrize("kind", LORA_DAMAGE)
def test_a_damaged_adapter_of_another_kind_is_refused(sound: Path, refused: Refuse, tmp_path: Path, kind: str) -> None:
    shutil.copytree(sound / "lora", tmp_path / "adapter")
    LORA_DAMAGE[kind](tmp_path / "adapter")
    refused("chat")


@pytest.mark.parametrize("kind", ["rank 3", "nan in threshold", "adapter_model.safetensors is cut off"])
def test_every_command_refuses_it(sound: Path, refused: Refuse, tmp_path: Path, kind: str) -> None:
    shutil.copytree(sound / "grun", tmp_path / "adapter")
    ADAPTER_DAMAGE[kind](tmp_path / "adapter")
    assert refused("evaluate") == refused("calibrate") == refused("chat")


@pytest.mark.parametrize("kind", ["grun", "lora"])
def test_a_model_that_refused_an_adapter_is_as_it_was(sound: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(sound / kind, tmp_path / "adapter")
    change: dict[str, object] = {"rank": 3} if kind == "grun" else {"r": 1}
    edit_json(S, **change)(tmp_path / "adapter")
    model = tiny_model()
    names, ids = [name for name, _ in model.named_modules()], torch.arange(5, 15)[None]
    before = model(ids).logits
    with pytest.raises(UserError):
        load_adapter(model, str(tmp_path / "adapter"))
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(model(ids).logits, before)
    assert isinstance(load_adapter(model, str(sound / kind)), PeftModel)


@pytest.mark.parametrize("kind", ["nan in threshold", "nan in rotation", "scale inf", "rank 1000000000"])
def test_numbers_that_are_not_finite_reach_no_stack(sound: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(sound / "grun", tmp_path / "adapter")
    ADAPTER_DAMAGE[kind](tmp_path / "adapter")
    with pytest.raises(UserError, match="adapter"):
        read_adapter(tmp_path / "adapter")
    (tmp_path / "stack").mkdir()
    with pytest.raises(UserError, match="adapter"):
        write_stack({"a": sound / "grun", "b": tmp_path / "adapter"}, tmp_path / "stack")
    assert not any((tmp_path / "stack").iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_peft_alone_refuses_numbers_that_are_not_finite(sound: Path, tmp_path: Path, value: float) -> None:
    shutil.copytree(sound / "grun", tmp_path / "adapter")
    edit_tensors(A, first_value("threshold", value))(tmp_path / "adapter")
    with pytest.raises(UserError, match="threshold"):
        PeftModel.from_pretrained(tiny_model(), str(tmp_path / "adapter"))


def test_a_gate_that_was_never_calibrated_has_an_infinite_threshold(sound: Path) -> None:
    thresholds = [value for name, value in load_file(sound / "grun" / A).items() if name.endswith("threshold")]
    assert all(value == -torch.inf for value in thresholds)
    load_adapter(tiny_model(), str(sound / "grun"))
