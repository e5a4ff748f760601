"""Loading: what is wrong with a path is said in one line; legacy weights are read safely."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from grun.core.errors import UserError
from grun.models.loading.pretrained import load_adapter, load_model_and_tokenizer, resolve_device
from support.adapter_kit import attach
from support.material import Material
from support.tiny_models import tiny_model, tiny_tokenizer


def test_a_folder_is_loaded_in_evaluation_mode(material: Material) -> None:
    model, tokenizer = load_model_and_tokenizer(str(material.model), device="cpu")
    assert not model.training
    assert len(tokenizer) == len(tiny_tokenizer())
    assert load_model_and_tokenizer(str(material.model), dtype="bfloat16", device="cpu")[0].dtype == torch.bfloat16


def test_the_run_that_made_a_model_stands_for_it(material: Material, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(material.model)
    assert load_model_and_tokenizer(str(tmp_path / "run"), device="cpu")[0].config.num_hidden_layers == 4


def legacy(folder: Path, content: object) -> str:
    tiny_model().config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    torch.save(content, folder / "pytorch_model.bin")
    return str(folder)


def test_legacy_weights_are_read(tmp_path: Path) -> None:
    model, _ = load_model_and_tokenizer(legacy(tmp_path, tiny_model().state_dict()), device="cpu")
    assert all(torch.equal(v, tiny_model().state_dict()[k]) for k, v in model.state_dict().items())


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def test_code_in_legacy_weights_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, pickle.UnpicklingError)):
        load_model_and_tokenizer(legacy(tmp_path / "model", {"bomb": Bomb()}), device="cpu")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("", "--model is missing"), ("./absent", "no such folder"), ("nobody/nothing-of-that-name", "cannot be loaded")],
)
def test_models_that_cannot_be_loaded(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        load_model_and_tokenizer(name)
    assert "\n" not in str(refused.value)


def test_adapters_are_found_in_their_run_and_refused_elsewhere(tmp_path: Path) -> None:
    attach().save_pretrained(tmp_path / "run" / "adapter")
    assert load_adapter(tiny_model(), str(tmp_path / "run")).peft_config["default"].peft_type == "GRUN"
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        load_adapter(tiny_model(), str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_adapter(tiny_model(), str(tmp_path / "absent"))


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    for wrong in ("warp", "cuda:99"):
        with pytest.raises(UserError, match="--device"):
            resolve_device(wrong)
