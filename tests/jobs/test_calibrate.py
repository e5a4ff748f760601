"""`grun calibrate`: the promise is kept on the prompts given, thresholds reach the adapter, wrong input is one line."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import grun
from grun.cli.main import main
from grun.core.config.jobs import UnlearnConfig
from grun.core.config.requests import CalibrateConfig
from grun.core.errors import UserError
from grun.data.examples import read_examples
from grun.jobs.calibrate import calibrate
from grun.jobs.unlearn import unlearn
from grun.models.encoding.templates import resolve_template
from grun.models.gates.calibration import logits_of_prompts, share_open
from grun.models.gates.features import thresholds_of
from grun.models.gates.guarantee import usual_place
from grun.models.loading.pretrained import load_adapter, load_model_and_tokenizer
from grun.models.row_encoder import RowEncoder
from support.material import Material, invented_rows, write_rows


@pytest.fixture(params=["default", "paper"])
def config(memorised: Material, tmp_path: Path, request: pytest.FixtureRequest) -> CalibrateConfig:
    settings: dict[str, Any] = {"model": str(memorised.model), "device": "cpu"}
    rows: dict[str, Any] = {"forget": [str(memorised.forget)], "retain": [str(memorised.retain)]}
    run: dict[str, Any] = {"output": str(tmp_path / "run"), "batch_size": 4, "steps": 6, "layers": "1,3"}
    run |= {"preset": request.param, "topic_layer": "none"}
    unlearn(UnlearnConfig(**settings, **rows, **run))
    normal = [{"prompt": row["question"]} for row in invented_rows("calm", 100)]
    file = write_rows(tmp_path / "normal.jsonl", normal)
    return CalibrateConfig(
        **settings,
        adapter=str(tmp_path / "run"),
        normal=[str(file)],
        forget=[str(memorised.forget)],
        output=str(tmp_path / "calibrated"),
        alpha=0.05,
        delta=0.1,
    )


def test_the_promise_is_kept_where_it_can_be_validation_subset(config: CalibrateConfig) -> None:
    target = calibrate(config)
    found = json.loads((target.parent / "calibration.json").read_text())
    assert found["versions"]["grun"] == grun.__version__
    assert found["machine"]["cores"] > 0
    assert (found["normal_prompts"], found["normal_prompts_needed"]) == (100, 45)
    assert found["normal_open"]["open"] <= found["normal_prompts_allowed_open"]
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model), str(target)).eval()
    gates = [gate for layer in model.base_model.runtime.layers for gate in layer.gates.values()]
    assert [float(gate.threshold) for gate in gates] == pytest.approx(found["thresholds"])
    before = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(config.model), str(Path(config.adapter) / "adapter")
    )
    for (name, one), other in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert calibrate(config) == target  # complete already


def test_a_prompt_below_the_threshold_gets_the_base_models_own_bits(config: CalibrateConfig) -> None:
    target = calibrate(replace(config, forget=[]))
    base: Any = AutoModelForCausalLM.from_pretrained(config.model).eval().requires_grad_(False)
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model), str(target)).eval()
    generator, shut = torch.Generator().manual_seed(0), 0
    for _ in range(20):
        ids = torch.randint(10, 60, (1, 7), generator=generator)
        settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "output_logits": True}
        settings["return_dict_in_generate"] = True
        settings["attention_mask"] = torch.ones_like(ids)
        found, expected = model.generate(ids, **settings), base.generate(ids, **settings)
        values = torch.cat([gates.values_BG for gates in model.base_model.last_gates.values()], dim=1)
        if not bool((values != 0).any()):
            shut += 1
            assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))
    assert shut > 0


def test_wrong_input_is_one_line(config: CalibrateConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match=r"--normal has 100 prompts, too few for --alpha 0\.01 with --delta 0\.05: 299"):
        calibrate(replace(config, alpha=0.01, delta=0.05))
    with pytest.raises(UserError, match="--normal is missing"):
        calibrate(replace(config, normal=[]))
    with pytest.raises(UserError, match="--adapter is missing"):
        calibrate(replace(config, adapter=""))
    with pytest.raises(UserError, match="alpha is 0.0, expected"):
        replace(config, alpha=0.0)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match="is empty"):
        calibrate(replace(config, normal=[str(empty)]))
    without = write_rows(tmp_path / "without.jsonl", [{"reply": "yes"}])
    with pytest.raises(UserError, match="lacks columns for prompt"):
        calibrate(replace(config, normal=[str(without)]))
    assert main(["calibrate", "--model", config.model, "--adapter", config.adapter, "--normal", str(empty)]) == 2
    assert "is empty" in capsys.readouterr().err


def test_an_adapter_without_a_gate_is_refused(config: CalibrateConfig, memorised: Material, tmp_path: Path) -> None:
    rows: dict[str, Any] = {"forget": [str(memorised.forget)], "retain": [str(memorised.retain)]}
    for adapt in ("reft", "lora"):
        run = UnlearnConfig(
            model=config.model, **rows, output=str(tmp_path / adapt), adapt=adapt, steps=2, device="cpu"
        )
        unlearn(replace(run, layers="1,3" if adapt == "reft" else None))
        with pytest.raises(UserError, match="has no gate"):
            calibrate(replace(config, adapter=str(tmp_path / adapt)))


def test_retain_rows_do_not_count(
    config: CalibrateConfig, memorised: Material, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("grun").propagate = True
    with pytest.raises(UserError, match="--normal has 0 prompts that are no retain rows of a gate, too few"):
        calibrate(replace(config, normal=[str(memorised.retain)], alpha=0.4, delta=0.4))
    both = [*config.normal, str(memorised.retain)]
    found = json.loads((calibrate(replace(config, normal=both)).parent / "calibration.json").read_text())
    assert found["normal_prompts"] == 100
    assert "normal prompts are left out: they are retain rows of a gate" in caplog.text
    copy = tmp_path / "copy.jsonl"
    shutil.copyfile(config.normal[0], copy)
    for again in (str(copy), config.normal[0]):
        with pytest.raises(UserError, match=rf"{Path(again).name}' holds the same rows as .*; give every prompt once"):
            calibrate(replace(config, normal=[*config.normal, again]))
    shutil.copytree(Path(config.adapter) / "adapter", tmp_path / "bare")
    calibrate(replace(config, adapter=str(tmp_path / "bare"), output=str(tmp_path / "other")))
    assert "The retain rows of" in caplog.text
    assert "make sure that --normal holds none of them" in caplog.text


def test_another_model_at_the_same_place_is_another_run(config: CalibrateConfig, tmp_path: Path) -> None:
    shutil.copytree(config.model, tmp_path / "model")
    config = replace(config, model=str(tmp_path / "model"))
    calibrate(config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="the content of its data differs"):
        calibrate(config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_promise_is_kept_in_whatever_batches_prompts_are_read(config: CalibrateConfig, dtype: str) -> None:
    target = calibrate(replace(config, dtype=dtype, alpha=0.2))
    found = json.loads((target.parent / "calibration.json").read_text())
    assert found["dtype"] == dtype
    base, tokenizer = load_model_and_tokenizer(config.model, dtype=dtype, device="cpu")
    model = load_adapter(base, str(target))
    normal = read_examples(config.normal[0], need_answers=False)
    for batch_size in (1, 5, 16, 25):
        rows = RowEncoder(tokenizer, resolve_template("auto", tokenizer), None, batch_size, torch.device("cpu"))
        for given in (normal, normal[::-1]):
            found_open = share_open(logits_of_prompts(model, rows, given), thresholds_of(model)).open
            assert found_open <= found["normal_prompts_allowed_open"]


def test_a_damaged_adapter_is_refused(config: CalibrateConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "adapter"
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole, known = weights.read_bytes(), settings.read_text()
    weights.write_bytes(whole[:500])
    with pytest.raises(UserError, match="cannot be loaded"):
        calibrate(config)
    weights.write_bytes(whole)
    save_file({name: value for name, value in load_file(weights).items() if "grun_gate" not in name}, weights)
    with pytest.raises(UserError, match="is damaged: some of its tensors are missing"):
        calibrate(config)
    weights.write_bytes(whole)
    for content in ("{}", "[]", '"x"', '{"peft_type": "NOPE"}', json.dumps({**json.loads(known), "members": [1]})):
        settings.write_text(content)
        with pytest.raises(UserError, match="cannot be loaded"):
            calibrate(config)
    settings.write_text(known)
    for places, words in (
        ([], "fewer than it has gates"),
        ("ab", "expected finite"),
        ([float("nan")], "expected finite"),
    ):
        settings.write_text(json.dumps({**json.loads(known), "gate_places": places}))
        with pytest.raises(UserError, match=words):
            calibrate(config)


def test_no_gate_opens_wider_than_it_was_learnt_to_and_calibrating_again_starts_from_there(
    config: CalibrateConfig, tmp_path: Path
) -> None:
    def calibrated(adapter: str, output: str, **options: Any) -> tuple[str, torch.Tensor]:
        made = calibrate(replace(config, adapter=adapter, output=str(tmp_path / output), forget=[], **options))
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model), str(made))
        return str(made), thresholds_of(model)

    folder = Path(config.adapter) / "adapter"
    learnt = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model), str(folder))
    place_G = usual_place(thresholds_of(learnt))
    first, threshold_G = calibrated(str(folder), "first")
    assert bool((threshold_G >= place_G).all())
    more = [{"prompt": row["question"]} for row in invented_rows("calmer", 100)]
    file = str(write_rows(tmp_path / "more.jsonl", more))
    shutil.copytree(first, tmp_path / "moved")  # away from the records of its run
    _, again_G = calibrated(str(tmp_path / "moved"), "again", normal=[file])
    _, fresh_G = calibrated(str(folder), "fresh", normal=[file])
    assert torch.equal(again_G, fresh_G)
