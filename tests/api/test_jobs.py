"""The jobs from Python: models and rows in memory, errors that name parameters, models given back as they were."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import grun
from grun.core.config.jobs import EvaluateConfig, FinetuneConfig, UnlearnConfig
from support.material import Material

SMALL: dict[str, Any] = {"layers": [1, 3], "topic_layer": "none", "steps": 4, "batch_size": 4, "device": "cpu"}
IDS = torch.arange(5, 25)[None]


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def loaded(memorised: Material) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(memorised.model), AutoTokenizer.from_pretrained(memorised.model)


def state_of(model: Any) -> list[Any]:
    """Everything about a model that a job could leave changed."""
    return [
        [(name, type(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
         for name, module in model.named_modules()],
        [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        sorted(model.__dict__),
        {name: value.clone() for name, value in model.state_dict().items()},
    ]  # fmt: skip


def assert_unchanged(before: list[Any], model: Any) -> None:
    after = state_of(model)
    assert before[:3] == after[:3]
    assert all(torch.equal(before[3][name], value) for name, value in after[3].items())


@pytest.mark.parametrize("adapt", ["grun", "lora", "full"])
def test_a_loaded_model_is_given_back_as_it_was(loaded: Any, memorised: Material, adapt: str) -> None:
    model, tokenizer = loaded
    model.train()
    before, said = state_of(model), model(IDS).logits
    own: dict[str, Any] = {} if adapt != "grun" else {name: SMALL[name] for name in ("layers", "topic_layer")}
    small = {name: value for name, value in SMALL.items() if name not in ("layers", "topic_layer")}
    result = grun.unlearn((model, tokenizer), memorised.forget, memorised.retain, adapt=adapt, **own, **small)
    assert_unchanged(before, model)
    assert torch.equal(model(IDS).logits, said)
    assert (result.adapter / ("config.json" if adapt == "full" else "adapter_config.json")).is_file()


def test_objects_and_files_learn_the_same(loaded: Any, memorised: Material) -> None:
    forget, retain = rows(memorised.forget), rows(memorised.retain)
    given = {
        "files": (memorised.model, memorised.forget, str(memorised.retain)),
        "dicts": (loaded, forget, retain),
        "data set": (loaded[0], Dataset.from_list(forget), Dataset.from_list(retain)),
        "examples": (
            memorised.model,
            [grun.Example(r["question"], r["answer"]) for r in forget],
            tuple(grun.Example(r["question"], r["answer"]) for r in retain),
        ),
    }
    weights = []
    for i, (model, to_forget, to_keep) in enumerate(given.values()):
        result = grun.unlearn(model, to_forget, to_keep, objective="npo", output=Path(f"run{i}"), **SMALL)
        weights.append(load_file(result.adapter / "adapter_model.safetensors"))
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())


def test_a_data_frame_is_rows_and_an_empty_cell_is_none(memorised: Material) -> None:
    pandas = pytest.importorskip("pandas")
    forget = pandas.DataFrame(rows(memorised.forget))
    forget["subject"] = ["Lund", *[float("nan")] * (len(forget) - 1)]
    assert grun.unlearn(memorised.model, forget, memorised.retain, **SMALL).metrics["rows"]["forget"] == 8


def test_the_result_holds_paths_settings_metrics_and_renders_itself(loaded: Any, memorised: Material) -> None:
    result = grun.unlearn(memorised.model, memorised.forget, memorised.retain, output="<run>", **SMALL)
    assert result.path == Path("<run>")
    assert (result.settings["layers"], result.settings["steps"], result.metrics["steps"]) == ("1,3", 4, 4)
    assert result.record["complete"]
    page = result._repr_html_()
    assert "&lt;run&gt;" in page
    assert "<run>" not in page
    assert "forget probability after" in str(result)
    adapted = result.attach(loaded[0])
    assert isinstance(adapted, PeftModel)
    assert str(result) == str(
        grun.unlearn(memorised.model, memorised.forget, memorised.retain, output="<run>", **SMALL)
    )


def test_evaluate_takes_results_rows_and_adapted_models(loaded: Any, memorised: Material) -> None:
    model, tokenizer = loaded
    learnt = grun.unlearn(loaded, memorised.forget, memorised.retain, **{**SMALL, "steps": 30})
    data = {"forget": rows(memorised.forget), "normal": memorised.retain}
    settings: dict[str, Any] = {"max_new_tokens": 4, "figures": False, "device": "cpu"}
    by_result = grun.evaluate(loaded, data, adapter=learnt, output="one", **settings)
    by_name = grun.evaluate(memorised.model, data, adapter=learnt.adapter, output="two", **settings)
    adapted = learnt.attach(model)
    by_model = grun.evaluate((adapted, tokenizer), data, output="three", **settings)
    values: set[Any] = {run.value("probability") for run in (by_result, by_name, by_model)}
    assert len(values) == 1
    before = by_result.value("probability", subject="before")
    assert before is not None
    assert values.pop() < before / 2
    assert by_result.value("gate_auroc", "normal") == 1.0
    assert "| forget | 8 | before |" in str(by_result)
    assert "[" in by_result._repr_html_()
    compared = grun.compare([by_result, "two"], metrics=["probability"])
    assert [one.runs[1].change for one in compared.found] == [0.0, 0.0]
    assert "difference" in str(compared)
    assert "probability" in compared._repr_html_()


def test_evaluation_of_other_weights_is_never_taken_for_the_same(loaded: Any, memorised: Material) -> None:
    model, tokenizer = loaded
    settings: dict[str, Any] = {"max_new_tokens": 2, "figures": False, "metrics": ["probability"]}
    first = grun.evaluate((model, tokenizer), {"forget": memorised.forget}, output="one", **settings)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    second = grun.evaluate((model, tokenizer), {"forget": memorised.forget}, output="two", **settings)
    assert first.value("probability") != second.value("probability")
    with pytest.raises(grun.UserError, match="output 'one' holds another run .the content of its data differs"):
        grun.evaluate((model, tokenizer), {"forget": memorised.forget}, output="one", **settings)


def test_finetune_trains_a_copy(loaded: Any, memorised: Material) -> None:
    before = state_of(loaded[0])
    result = grun.finetune(loaded, rows(memorised.forget), epochs=4, output="tuned", device="cpu")
    assert_unchanged(before, loaded[0])
    trained = AutoModelForCausalLM.from_pretrained(result.model)
    assert not torch.equal(trained.lm_head.weight, loaded[0].lm_head.weight)
    assert "parameters" in str(result)


def test_calibrate_takes_a_result_and_rows_without_answers(loaded: Any, memorised: Material) -> None:
    learnt = grun.unlearn(memorised.model, memorised.forget, memorised.retain, **SMALL)
    normal = [{"question": f"What is {a} plus {b}?"} for a in range(6) for b in range(6)]
    result = grun.calibrate(loaded, learnt, normal, alpha=0.1, delta=0.1)
    assert result.metrics["normal_prompts"] == 36
    assert "normal prompts that open" in result._repr_html_()
    with pytest.raises(grun.UserError, match="normal has 4 prompts, too few for alpha 0.1 with delta 0.1"):
        grun.calibrate(loaded, learnt, normal[:4], alpha=0.1, delta=0.1, output="few")


def push_away(signals: grun.Signals, *, width: float = 2.0) -> Tensor:
    """Push forget answers `width` nats below the base model."""
    return (signals.forget.ref_nll_B + width - signals.forget.nll_B).clamp_min(0).mean()


def test_an_objective_may_be_a_function(memorised: Material) -> None:
    def learnt(objective: Any, output: str, **options: Any) -> dict[str, Tensor]:
        run = grun.unlearn(memorised.model, memorised.forget, memorised.retain, objective=objective, output=output,
                           objective_options=options, **{**SMALL, "steps": 25})  # fmt: skip
        assert run.settings["objective"] == objective.__name__
        return load_file(run.adapter / "adapter_model.safetensors")

    two, five = learnt(push_away, "two"), learnt(push_away, "five", width=0.5)
    assert any(not torch.equal(two[name], five[name]) for name in two)

    def changed(signals: grun.Signals, *, width: float = 3.0) -> Tensor:
        return (signals.forget.ref_nll_B + width - signals.forget.nll_B).clamp_min(0).mean()

    changed.__name__ = "push_away"
    with pytest.raises(grun.UserError, match="output 'two' holds another run"):
        learnt(changed, "two")


def npo(signals: grun.Signals) -> Tensor:
    return signals.forget.mean_nll


def blind(signals: grun.Signals) -> Tensor:
    return torch.zeros(())


def wide(signals: grun.Signals) -> Tensor:
    return signals.forget.nll_B


def broken(signals: grun.Signals) -> Tensor:
    return signals.forget.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, r"grun.unlearn: unknown setting 'stepz'. Did you mean 'steps'\?"),
        ({"steps": "many"}, "'steps' is 'many', expected int"),
        ({"batch_size": 0}, "^batch_size is 0, expected at least 1"),
        ({"objective": "npoo"}, "Did you mean 'npo'"),
        ({"objective": npo}, "called 'npo', which is the name of a registered objective; rename it"),
        ({"objective": blind}, "'blind' reads nothing"),
        ({"objective": wide}, r"'wide' returns a tensor of shape \(2,\), expected a scalar"),
        ({"objective": broken}, "'broken' fails on a random batch of 2 rows .AttributeError"),
        ({"objective": lambda signals: signals.forget.mean_nll}, "without a name"),
        ({"forget": None}, "^forget is missing: give a file of what to forget, or topic, or benchmark"),
        ({"forget": []}, "^forget is empty"),
        ({"forget": 3}, "^forget is of type int, expected a path"),
        ({"forget": [{"question": "Who?"}]}, "^forget lacks a column for the answer. Columns found: question"),
        ({"forget": [{"question": "Who?", "answer": ""}]}, "^forget, row 1: 'answer' is empty"),
        ({"forget": ["a.jsonl", {"question": "Who?"}]}, "forget, row 1: found str, expected a dict"),
        ({"forget": DatasetDict({"train": Dataset.from_list([{"text": "a b"}])})}, "forget is a DatasetDict with train"),
        ({"forget": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"model": 3}, "model is of type int, expected a hub id"),
        ({"model": "./nowhere"}, "^model './nowhere': there is no such folder"),
    ],
)  # fmt: skip
def test_errors_name_parameters(memorised: Material, changes: dict[str, Any], message: str) -> None:
    given = {"model": memorised.model, "forget": memorised.forget, "retain": memorised.retain, **SMALL, **changes}
    with pytest.raises(grun.UserError, match=message):
        grun.unlearn(**given)
    assert not Path("unlearned").exists()


def test_a_loaded_model_needs_its_tokenizer(loaded: Any, memorised: Material) -> None:
    model, tokenizer = loaded
    model.config._name_or_path = model.name_or_path = ""
    with pytest.raises(grun.UserError, match="tokenizer is missing"):
        grun.unlearn(model, memorised.forget, memorised.retain, **SMALL)
    result = grun.unlearn(model, memorised.forget, memorised.retain, tokenizer=tokenizer, **SMALL)
    assert json.loads((result.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] is None


@pytest.mark.parametrize(
    ("function", "config"),
    [(grun.unlearn, UnlearnConfig), (grun.evaluate, EvaluateConfig), (grun.finetune, FinetuneConfig)],
)
def test_every_setting_is_in_the_signature_and_explained(function: Any, config: type) -> None:
    parameters = inspect.signature(function).parameters
    for field in fields(config):
        assert field.name in parameters
        assert f"{field.name}: " in function.__doc__
