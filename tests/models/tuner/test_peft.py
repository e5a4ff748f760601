"""GRUN as a PEFT method: what users of PEFT expect of any adapter, on an unmodified Hugging Face model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grun import GrunConfig, GrunModel
from grun.core.errors import UserError
from support.adapter_kit import CONFIGS, attach, config_id, make_rows, pad, randomise
from support.tiny_models import ARCHITECTURES, tiny_model

BATCH = pad(make_rows())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    given = (
        BATCH.inputs
        if isinstance(model, PeftModel)
        else {k: v for k, v in BATCH.inputs.items() if k != "prompt_lengths"}
    )
    return model(**given).logits


@pytest.mark.parametrize("options", [*CONFIGS, {"gate": "none"}, {"gate": "linear"}], ids=config_id)
def test_saving_and_loading_is_exact(options: dict, tmp_path: Path) -> None:
    model = attach(**options)
    for layer in model.base_model.runtime.layers:
        for gate in layer.grun_gate.values():
            gate.threshold.fill_(-0.3)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} - {"README.md"} == {"adapter_config.json", "adapter_model.safetensors"}
    again = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(str(tmp_path / "again"))
    saved, resaved = (load_file(p / "adapter_model.safetensors") for p in (tmp_path, tmp_path / "again"))
    assert saved.keys() == resaved.keys()
    assert all(torch.equal(saved[key], resaved[key]) and saved[key].dtype == torch.float32 for key in saved)
    assert isinstance(PeftConfig.from_pretrained(str(tmp_path)), GrunConfig)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "GRUN"
    assert written["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_disabling_and_unloading_give_the_base_model_to_the_bit(arch: str) -> None:
    base = logits(tiny_model(arch))
    model = attach(arch)
    assert not torch.equal(logits(model), base), "the adapter must do something for this to prove anything"
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert not torch.equal(logits(model), base)
    bare = model.unload()
    assert torch.equal(logits(bare), base)
    assert not any("grun" in name for name, _ in bare.named_modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in bare.modules())


def test_a_shut_gate_gives_the_base_model_to_the_bit() -> None:
    model = attach()
    for layer in model.base_model.runtime.layers:
        for gate in layer.grun_gate.values():
            gate.threshold.fill_(torch.inf)
    assert torch.equal(logits(model), logits(tiny_model()))


def test_a_fresh_adapter_is_the_identity() -> None:
    model = get_peft_model(tiny_model(), GrunConfig(layers=[1, 3])).eval()
    torch.testing.assert_close(logits(model), logits(tiny_model()), rtol=1e-5, atol=1e-5)


def test_several_adapters_are_switched_like_loras() -> None:
    model = attach()
    one = logits(model)
    model.add_adapter("other", GrunConfig(rank=3, layers=[2], gate_hidden=[4]))
    randomise(model, seed=5, adapter="other")
    assert torch.equal(logits(model), one)
    model.set_adapter("other")
    other = logits(model)
    assert not torch.equal(one, other)
    assert all(p.requires_grad == (".other." in name) for name, p in model.named_parameters() if ".grun_" in name)
    model.set_adapter("default")
    assert torch.equal(logits(model), one)
    model.delete_adapter("other")
    assert torch.equal(logits(model), one)
    assert not any(".other." in name for name, _ in model.named_parameters())


def test_only_the_adapter_is_trainable_and_it_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    model = get_peft_model(tiny_model(), GrunConfig(rank=2, layers=[1, 3], gate_hidden=[8]))
    assert all(p.requires_grad == (".grun_" in name) for name, p in model.named_parameters())
    model.print_trainable_parameters()
    edits, gate = 2 * (32 * 2 + 2 * 32 + 2), (32 * 8 + 8) + (8 + 1)
    assert f"trainable params: {edits + gate}" in capsys.readouterr().out


def test_merging_is_refused() -> None:
    with pytest.raises((UserError, ValueError), match="merge"):
        attach().merge_and_unload()


def test_another_base_is_refused(tmp_path: Path) -> None:
    attach(layers=[1, 3]).save_pretrained(tmp_path)
    for changes, words in (({"num_hidden_layers": 3}, ("4", "3")), ({"hidden_size": 64}, ("32", "64"))):
        with pytest.raises(UserError) as refused:
            PeftModel.from_pretrained(tiny_model("llama", **changes), tmp_path)
        assert all(word in str(refused.value) for word in words)


def test_a_model_that_is_no_language_model_is_refused() -> None:
    with pytest.raises((UserError, ValueError)):
        GrunModel(torch.nn.Linear(2, 2), GrunConfig(), "default")


def test_bfloat16_bases_keep_float32_adapters(tmp_path: Path) -> None:
    model = attach(tiny_model().bfloat16())
    assert {p.dtype for n, p in model.named_parameters() if ".grun_" in n} == {torch.float32}
    found = logits(model)
    assert found.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    assert {v.dtype for v in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    again = PeftModel.from_pretrained(tiny_model().bfloat16(), tmp_path).eval()
    assert torch.equal(logits(again), found)


def test_a_gate_is_never_rounded() -> None:
    model = attach(layers=[1])
    randomise(model)
    gate = model.base_model.runtime.layers[0].gates["default"]
    gate.threshold.fill_(1.7912)
    before = {name: tensor.clone() for name, tensor in gate.state_dict().items()}
    for other in (model.to(torch.bfloat16), model.half()):
        assert next(other.base_model.model.parameters()).dtype in (torch.bfloat16, torch.float16)
        assert all(torch.equal(tensor, before[name]) for name, tensor in gate.state_dict().items())
    assert {tensor.dtype for tensor in model.double() and gate.state_dict().values()} == {torch.float64}


def test_a_device_map_places_the_adapter_with_its_layers(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    attach().save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", device_map={"": "cpu"})
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(model), logits(attach()), rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = attach().train()
        if checkpointing:
            base = model.get_base_model()
            newer = getattr(base, "activation_checkpointing_enable", None)  # the name that transformers 6 will keep
            (newer or base.gradient_checkpointing_enable)({"use_reentrant": False})
            model.enable_input_require_grads()
        model(**BATCH.inputs, labels=BATCH.labels_BT).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, saved = gradients(False), gradients(True)
    assert plain.keys() == saved.keys() != set()
    for name, gradient in plain.items():
        torch.testing.assert_close(saved[name], gradient, rtol=1e-5, atol=1e-6)


def test_autocast_stays_near_float32() -> None:
    model = attach()
    exact = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16), model.disable_adapter():
        rounding = (logits(model) - logits(tiny_model())).abs().max()
    assert (found.float() - exact).abs().max() < 20 * max(float(rounding), 1e-2)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("rate", [4e-3, 0.5])
def test_the_rotation_stays_orthonormal_and_the_loss_falls(weight_decay: float, rate: float) -> None:
    model: Any = get_peft_model(tiny_model(), GrunConfig(layers=[1, 3])).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
    losses = []
    for _ in range(30):
        loss = model(**BATCH.inputs, labels=BATCH.labels_BT).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0] - 0.05
    for layer in model.base_model.runtime.layers:
        for edit in layer.grun_edit.values():
            r_DR = edit.rotation_DR(torch.float32)
            torch.testing.assert_close(r_DR.T @ r_DR, torch.eye(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": -1}, "rank is -1"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"rank": True}, "rank is True"),
        ({"layers": []}, "layers"),
        ({"layers": [-1]}, "-1"),
        ({"layers": [1.5]}, "1.5"),
        ({"layers": ["last"]}, "last"),
        ({"layers": 3}, "layers"),
        ({"gate": "mpl"}, "Did you mean 'mlp'"),
        ({"gate_reads": "all"}, "gate_reads is 'all'"),
        ({"edit_from": "start"}, "edit_from is 'start'"),
        ({"gate_hidden": []}, "gate_hidden"),
        ({"gate_hidden": [0]}, "gate_hidden"),
        ({"gate_layer": -1}, "gate_layer is -1"),
        ({"gate_window": 0}, "gate_window is 0"),
        ({"gate_window": 2, "gate": "linear"}, "gate_window is 2"),
        ({"gate_window": 2, "gate_reads": "last"}, "gate_window is 2"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"init_seed": -1}, "init_seed is -1"),
        ({"init_weights": "yes"}, "init_weights is 'yes'"),
    ],
    ids=str,
)
def test_bad_values_raise_at_construction(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        GrunConfig(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"layers": [9]}, ("9", "4")), ({"rank": 33}, ("33", "32")), ({"layers": [1], "gate_layer": 2}, ("2", "1"))],
)
def test_what_does_not_fit_the_model_raises_when_it_is_attached(options: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        get_peft_model(tiny_model(), GrunConfig(**options))
    assert all(word in str(refused.value) for word in words)


def test_fractions_are_the_papers_layers() -> None:
    assert GrunConfig().resolved_layers(32) == [20, 25, 31]
    paper = GrunConfig.paper()
    assert (paper.rank, paper.gate, paper.gate_hidden, paper.gate_reads) == (4, "mlp", [256, 64], "last")
    assert (paper.gate_layer, paper.edit_from) == (None, "last_prompt_only")
    assert GrunConfig.paper(rank=8).rank == 8


def test_dropout_acts_in_training_only() -> None:
    model = attach(dropout=0.5)
    assert torch.equal(logits(model), logits(model))
    model.train()
    torch.manual_seed(0)
    first = logits(model)
    assert not torch.equal(first, logits(model))


def test_seeds_decide_the_initial_weights() -> None:
    def start(seed: int) -> torch.Tensor:
        model = get_peft_model(tiny_model(), GrunConfig(layers=[1], init_seed=seed))
        return next(p for n, p in model.named_parameters() if "rotation" in n).detach()

    torch.manual_seed(1)
    one = start(0)
    torch.manual_seed(2)
    assert torch.equal(one, start(0))
    assert not torch.equal(one, start(1))


def test_lora_and_grun_live_in_one_process() -> None:
    lora = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model = attach()
    assert logits(model).shape == lora(**{k: v for k, v in BATCH.inputs.items() if k != "prompt_lengths"}).logits.shape


def test_quantised_bases(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: quantised base models are not tested")
    from transformers import BitsAndBytesConfig

    tiny_model().save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    assert torch.isfinite(logits(attach(base))).all()
