"""Adapters know the weights they were made for: other ones of the same shape are refused, the same ones never."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model

from grun.cli.main import main
from grun.core.errors import UserError
from grun.core.storage.weights import WRITTEN_OUT, base_weights, other_weights
from grun.models.loading.adapters import save_adapter
from grun.models.loading.pretrained import load_adapter, load_model_and_tokenizer
from grun.models.tuner.config import GrunConfig
from grun.requests.stack_files import write_stack
from support.adapter_kit import attach
from support.gguf_files import write_gguf
from support.material import Material, invented_rows, write_rows
from support.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

MADE_FOR = "was made for the weights of"


def unlearn(material: Material, output: Path, *more: str) -> None:
    rows = ["--forget", str(material.forget), "--retain", str(material.retain), "--output", str(output)]
    assert main(["unlearn", "--model", str(material.model), *rows, "--steps", "1", "--device", "cpu", *more]) == 0


@pytest.fixture(scope="module")
def runs(material: Material, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of every way of adapting."""
    folder = tmp_path_factory.mktemp("runs")
    layers = ["--layers", "1,3", "--topic-layer", "none"]
    unlearn(material, folder / "grun", *layers)
    unlearn(material, folder / "lora", "--adapt", "lora")
    unlearn(material, folder / "dora", "--adapt", "dora")
    return {name: folder / name for name in ("grun", "lora", "dora")}


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("way", ["grun", "lora", "dora"])
def test_another_base_of_the_same_shape_is_refused(
    runs: dict[str, Path], material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    other = saved(tmp_path / "other", tiny_model(seed=1))
    rows = ["--data", f"forget={material.forget}", "--device", "cpu", "--max-new-tokens", "2", "--no-figures"]
    rows += ["--metrics", "probability", "--output", str(tmp_path / "out"), "--adapter", str(runs[way])]
    capsys.readouterr()
    assert main(["evaluate", "--model", str(other), *rows]) == 2
    said = capsys.readouterr().err
    assert MADE_FOR in said
    assert str(material.model) in said
    assert str(other) in said
    assert main(["evaluate", "--model", str(material.model), *rows]) == 0


@pytest.mark.parametrize("changed", ["embed_tokens", "layers.2.mlp.up_proj", "lm_head", "model.norm"])
def test_one_tensor_is_enough(runs: dict[str, Path], tmp_path: Path, changed: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if changed in name).mul_(1.1)
    for way in ("grun", "lora"):
        with pytest.raises(UserError, match=MADE_FOR):
            load_adapter(model, str(runs[way]))
    with pytest.raises(UserError, match=MADE_FOR):
        PeftModel.from_pretrained(model, str(runs["grun"] / "adapter"))


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_the_same_base_is_known_in_every_precision(runs: dict[str, Path], material: Material, dtype: str) -> None:
    for way in ("grun", "lora", "dora"):
        model, _ = load_model_and_tokenizer(str(material.model), dtype=dtype, device="cpu")
        load_adapter(model, str(runs[way]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_and_bfloat16_agree_and_adapters_do_not_matter(architecture: str) -> None:
    model = tiny_model(architecture)
    found = base_weights(model)
    assert found is not None
    assert found != base_weights(tiny_model(architecture, seed=1))
    assert base_weights(tiny_model(architecture).to(torch.bfloat16)) == found
    assert base_weights(get_peft_model(model, GrunConfig(rank=2, layers=[1]))) is not None
    assert base_weights(model) == found


def test_what_cannot_be_compared_is_not_refused(runs: dict[str, Path], material: Material) -> None:
    found = base_weights(tiny_model())
    assert found is not None
    half = base_weights(tiny_model().half())
    written_out = tiny_model()
    setattr(written_out, WRITTEN_OUT, True)
    for other in (half, base_weights(written_out)):
        assert other is not None
        assert not other_weights(found, other)
    kind, _, structure, values = found.split(" ")
    assert not other_weights(found, f"{kind} 5.20 {structure[::-1]} {values[::-1]}"), "names differ between versions"
    assert other_weights(found, f"{kind} 5.20 {structure} {values[::-1]}"), "the same names, so values can be compared"
    assert base_weights(tiny_model().to("meta")) is None


def test_adapters_of_earlier_versions_are_loaded_as_before(runs: dict[str, Path], tmp_path: Path) -> None:
    attach().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings.pop("base_weights")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    load_adapter(tiny_model(seed=1), str(tmp_path))


def test_a_second_adapter_and_a_stack_are_of_the_same_base(tmp_path: Path) -> None:
    model = attach()
    model.add_adapter("second", GrunConfig(rank=2, layers=[2]))
    model.save_pretrained(tmp_path)
    first, second = (PeftConfig.from_pretrained(str(tmp_path / name)) for name in ("", "second"))
    assert first.base_weights == second.base_weights == base_weights(tiny_model())
    (tmp_path / "stack").mkdir()
    write_stack({"a": tmp_path, "b": tmp_path / "second"}, tmp_path / "stack")
    load_adapter(tiny_model(), str(tmp_path / "stack"))
    with pytest.raises(UserError, match=MADE_FOR):
        load_adapter(tiny_model(seed=1), str(tmp_path / "stack"))
    attach(tiny_model(seed=1)).save_pretrained(tmp_path / "foreign")
    (tmp_path / "mixed").mkdir()
    with pytest.raises(UserError, match="another base model"):
        write_stack({"a": tmp_path, "b": tmp_path / "foreign"}, tmp_path / "mixed")


def test_the_caller_s_own_configuration_stays_fit_for_other_models() -> None:
    config = GrunConfig(rank=2, layers=[1])
    get_peft_model(tiny_model(), config)
    assert config.base_weights is None
    get_peft_model(tiny_model(seed=1), config)


def test_a_gguf_base_is_known_and_another_one_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_gguf(tmp_path / f"{seed}.gguf", tiny_model(seed=seed), tiny_tokenizer())
    model, _ = load_model_and_tokenizer(str(tmp_path / "0.gguf"), device="cpu")
    (tmp_path / "adapter").mkdir()
    save_adapter(attach(model), tmp_path / "adapter")
    load_adapter(load_model_and_tokenizer(str(tmp_path / "0.gguf"), device="cpu")[0], str(tmp_path / "adapter"))
    load_adapter(tiny_model(), str(tmp_path / "adapter"))  # of another kind: not compared
    with pytest.raises(UserError, match=MADE_FOR):
        load_adapter(load_model_and_tokenizer(str(tmp_path / "1.gguf"), device="cpu")[0], str(tmp_path / "adapter"))


def test_a_calibration_keeps_what_is_recorded(runs: dict[str, Path], material: Material, tmp_path: Path) -> None:
    given = ["--model", str(material.model), "--adapter", str(runs["grun"]), "--device", "cpu"]
    rows = write_rows(tmp_path / "normal.jsonl", invented_rows("Kell", 40))
    normal = ["--normal", str(rows), "--alpha", "0.5", "--output", str(tmp_path / "calibrated")]
    assert main(["calibrate", *given, *normal]) == 0
    kept, before = (
        json.loads((run / "adapter" / "adapter_config.json").read_text())["base_weights"]
        for run in (tmp_path / "calibrated", runs["grun"])
    )
    assert kept == before
