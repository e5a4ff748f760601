"""Models that are damaged, incomplete or no decoders: every command refuses them in one line, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from grun.cli.main import main
from grun.core import hub
from support.adapter_kit import attach
from support.damage import MODEL_DAMAGE, edit_json
from support.gguf_files import write_gguf
from support.material import invented_rows, write_rows
from support.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

Refuse = Callable[..., str]
DEVICE = ["--device", "cpu"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, an adapter on it, and rows; nobody may change it."""
    folder = tmp_path_factory.mktemp("sound")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    attach().save_pretrained(folder / "adapter")
    write_rows(folder / "forget.jsonl", invented_rows("Lund", 4))
    write_rows(folder / "retain.jsonl", invented_rows("Marl", 8))
    write_rows(folder / "normal.jsonl", invented_rows("Kell", 40))
    write_gguf(folder / "model.gguf", tiny_model(), tiny_tokenizer())
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Runs a command that must be refused; returns its one line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(part) for part in arguments]) == 2
        shown = capsys.readouterr()
        lines = [line for line in shown.err.splitlines() if line.startswith("grun: ")]
        assert "Traceback" not in shown.err + shown.out
        assert not any(word in lines[-1] for word in ("weights_only", "trust_remote_code", "No such option"))
        assert len(lines[-1]) < 1000
        assert not (tmp_path / "out").exists(), "a refused command must leave nothing behind"
        assert not (tmp_path / "exploded").exists(), "code in a file was run"
        return lines[-1]

    return run


def evaluate(model: object, sound: Path, *more: object) -> list[object]:
    data = ["--data", f"forget={sound / 'forget.jsonl'}", "--output", "out", "--metrics", "probability"]
    return ["evaluate", "--model", model, *data, "--no-figures", *DEVICE, *more]


@pytest.mark.parametrize("kind", MODEL_DAMAGE)
def test_a_damaged_model_is_refused(sound: Path, refused: Refuse, tmp_path: Path, kind: str) -> None:
    shutil.copytree(sound / "model", tmp_path / "model")
    MODEL_DAMAGE[kind](tmp_path / "model")
    line = refused(*evaluate(tmp_path / "model", sound))
    assert str(tmp_path / "model") in line


@pytest.mark.parametrize(
    "template", ["{% for x in %}", 5, "{{ raise_exception('no') }}", "{{ range(10**9) }}", "{{ 1 / 0 }}"]
)
def test_a_chat_template_that_fails_is_named(sound: Path, refused: Refuse, tmp_path: Path, template: object) -> None:
    shutil.copytree(sound / "model", tmp_path / "model")
    edit_json("tokenizer_config.json", chat_template=template)(tmp_path / "model")
    assert "chat template refuses" in refused(*evaluate(tmp_path / "model", sound))


def commands(sound: Path, model: object) -> dict[str, list[object]]:
    """Every command that loads a base model."""
    rows = ["--forget", sound / "forget.jsonl", "--retain", sound / "retain.jsonl"]
    out = ["--output", "out", *DEVICE]
    adapter = ["--adapter", sound / "adapter"]
    return {
        "unlearn": ["unlearn", "--model", model, *rows, "--steps", 2, *out],
        "finetune": ["finetune", "--model", model, "--data", sound / "forget.jsonl", *out],
        "evaluate": evaluate(model, sound, *adapter),
        "evaluate a whole model": evaluate(sound / "model", sound, "--adapter", model),
        "calibrate": [
            "calibrate",
            "--model",
            model,
            *adapter,
            "--normal",
            sound / "normal.jsonl",
            "--alpha",
            0.5,
            *out,
        ],
        "chat": ["chat", "--model", model, *adapter, "--prompt", "Where?", *DEVICE],
        "expand": ["expand", "--model", model, "--topic", "The sea", *out],
        "demo": ["demo", "--model", model, *out],
        "add": ["request", "add", *rows[1:], "--model", model, "--steps", 2, "--ledger", "out", *DEVICE],
    }


@pytest.mark.parametrize("kind", ["a tensor is missing", "nan in norm.weight", "config.json is a list"])
def test_every_command_refuses_a_damaged_model(sound: Path, refused: Refuse, tmp_path: Path, kind: str) -> None:
    shutil.copytree(sound / "model", tmp_path / "model")
    MODEL_DAMAGE[kind](tmp_path / "model")
    said = {name: refused(*words) for name, words in commands(sound, tmp_path / "model").items()}
    assert all(str(tmp_path / "model") in line for line in said.values())
    assert len({line.partition(" can")[2] for line in said.values()}) == 1, "the same words in every command"


def test_a_sweep_says_the_same(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(sound / "model", tmp_path / "model")
    MODEL_DAMAGE["a tensor is missing"](tmp_path / "model")
    base = {
        "model": str(tmp_path / "model"),
        "forget": str(sound / "forget.jsonl"),
        "retain": str(sound / "retain.jsonl"),
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"grid": {"seed": [0]}, "settings": {**base, "device": "cpu"}}))
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "out")]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_the_harness_refuses_it_as_well(sound: Path, refused: Refuse, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    shutil.copytree(sound / "model", tmp_path / "model")
    MODEL_DAMAGE["a tensor is missing"](tmp_path / "model")
    given = f"pretrained={tmp_path / 'model'}"
    assert "tensors missing" in refused("lm-eval", "--model", "grun", "--model_args", given, "--tasks", "arc_easy")


def test_what_the_harness_itself_refuses_is_one_line() -> None:
    pytest.importorskip("lm_eval")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "grun", "lm-eval", "--tasks", "no-such-task"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "grun: lm-evaluation-harness stopped (ValueError): Tasks not found: no-such-task.\n" in ended.stderr


def mixture(tied: bool) -> Any:
    """A mixture of experts, whose files name every expert and whose model holds them together."""
    small = {**tiny_model().config.to_dict(), "num_local_experts": 4, "tie_word_embeddings": tied}
    own = {name: small[name] for name in transformers.MixtralConfig.__annotations__ if name in small}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**own))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mixtral"])
def test_sound_models_of_all_kinds_are_not_refused(architecture: str, tmp_path: Path) -> None:
    from grun.models.loading.pretrained import load_model_and_tokenizer

    for tied in (False, True):
        folder = tmp_path / str(tied)
        model = mixture(tied) if architecture == "mixtral" else tiny_model(architecture, tie_word_embeddings=tied)
        model.save_pretrained(folder, max_shard_size="100KB")
        tiny_tokenizer().save_pretrained(folder)
        for dtype in ("auto", "bfloat16"):
            load_model_and_tokenizer(str(folder), dtype=dtype, device="cpu")


@pytest.mark.parametrize(
    "kind", ["BertForMaskedLM", "BertLMHeadModel", "RobertaForCausalLM", "T5ForConditionalGeneration"]
)
def test_encoders_are_no_decoders(sound: Path, refused: Refuse, tmp_path: Path, kind: str) -> None:
    """Encoders, and models that have one."""
    name = kind.partition("For")[0].removesuffix("LMHeadModel")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "T5":
        sizes = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8}
    config = getattr(transformers, f"{name}Config")(vocab_size=320, pad_token_id=3, **sizes)
    getattr(transformers, kind)(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert "decoder" in refused(*evaluate(tmp_path / "model", sound))


def test_a_bert_that_was_made_a_decoder_is_one(tmp_path: Path) -> None:
    from grun.models.loading.pretrained import load_model_and_tokenizer

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.BertConfig(vocab_size=320, is_decoder=True, pad_token_id=3, **sizes)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    load_model_and_tokenizer(str(tmp_path), device="cpu")


def test_a_tokenizer_of_another_model_is_refused(sound: Path, refused: Refuse, tmp_path: Path) -> None:
    shutil.copytree(sound / "model", tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(30)])
    tokenizer.save_pretrained(tmp_path / "model")
    line = refused(*evaluate(tmp_path / "model", sound))
    assert "320" in line
    assert "tokenizer" in line


def test_special_tokens_that_no_text_needs_may_lie_outside(sound: Path, tmp_path: Path) -> None:
    """As in Gemma 3, whose token for images has no vector in models of text alone."""
    from grun.models.loading.pretrained import load_model_and_tokenizer

    shutil.copytree(sound / "model", tmp_path / "model")
    tokenizer = tiny_tokenizer()
    count = tiny_model().config.vocab_size - len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<image{i}>" for i in range(count + 2)]})
    tokenizer.save_pretrained(tmp_path / "model")
    load_model_and_tokenizer(str(tmp_path / "model"), device="cpu")


@pytest.mark.parametrize("at", range(0, 480, 24))
def test_gguf_files_with_damaged_counts_are_refused_at_once(sound: Path, tmp_path: Path, at: int) -> None:
    """Eight bytes of the header are the largest number, wherever they are: refused, or harmless, but never a crash."""
    from grun.core.errors import UserError
    from grun.models.loading.gguf_header import check_gguf
    from grun.models.loading.pretrained import load_model_and_tokenizer

    content = bytearray((sound / "model.gguf").read_bytes())
    content[8 + at : 16 + at] = b"\xff" * 8
    (tmp_path / "model.gguf").write_bytes(content)
    started = time.monotonic()
    with suppress(UserError):
        load_model_and_tokenizer(str(tmp_path / "model.gguf"), device="cpu")
    assert time.monotonic() - started < 20
    check_gguf(sound / "model.gguf")


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.999])
def test_gguf_files_that_are_cut_off_are_refused(sound: Path, refused: Refuse, tmp_path: Path, share: float) -> None:
    content = (sound / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(content[: max(6, int(len(content) * share))])
    assert "truncated or damaged" in refused(*evaluate(tmp_path / "model.gguf", sound))


def test_a_gguf_file_with_more_layers_than_tensors_is_refused(sound: Path, refused: Refuse, tmp_path: Path) -> None:
    content = bytearray((sound / "model.gguf").read_bytes())
    at = content.index(b"llama.block_count") + len(b"llama.block_count") + 4
    content[at : at + 4] = (10**9).to_bytes(4, "little")
    (tmp_path / "model.gguf").write_bytes(content)
    assert "block_count" in refused(*evaluate(tmp_path / "model.gguf", sound))


@pytest.mark.parametrize(
    ("given", "hint"),
    [("modls/tiny", "models/tiny"), ("smolm2", "smollm2"), ("models/tni", "models/tiny"), ("Qwen/NoSuchModel-9", "")],
)
def test_a_mistyped_name_is_refused_at_once(
    sound: Path, refused: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, hint: str
) -> None:
    """Also where no setting says that there is no network: the hub is asked once."""
    asked: list[str] = []

    def silent(endpoint: str, timeout: float) -> bool:
        asked.append(endpoint)
        return False

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_answers", silent)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    line = refused(*evaluate(given, sound))
    assert "no such folder" in line
    assert (f"Did you mean '{hint}'" in line) == bool(hint)
    assert len(asked) == 1
    adapter = refused(*evaluate(sound / "model", sound, "--adapter", given))
    assert "--adapter" in adapter
    assert "no such folder" in adapter
    ledger = refused("request", "list", "--ledger", "typo/x")
    assert "typo/x" in ledger


def test_a_repository_in_the_cache_is_read_without_a_network(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's client leaves it: a snapshot that the name of a branch points to."""
    from grun.models.loading.pretrained import load_model_and_tokenizer

    kept = tmp_path / "hub" / "models--nobody--tiny"
    shutil.copytree(sound / "model", kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    model, _ = load_model_and_tokenizer("nobody/tiny", device="cpu")
    assert model.config.num_hidden_layers == 4


def test_models_given_in_python_are_checked_too(sound: Path) -> None:
    import grun

    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[3] = torch.inf
    data = {"forget": str(sound / "forget.jsonl")}
    with pytest.raises(grun.UserError, match=r"model\.norm\.weight"):
        grun.evaluate(model, tokenizer=tiny_tokenizer(), data=data, output="unused", metrics=["probability"])


def test_no_library_speaks_while_a_model_is_refused(
    sound: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sound / "model", tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 6}))
    capfd.readouterr()
    assert main([str(part) for part in evaluate(tmp_path / "model", sound)]) == 2
    shown = capfd.readouterr()
    assert "REPORT" not in shown.err + shown.out
    assert "newly initialized" not in shown.err + shown.out
