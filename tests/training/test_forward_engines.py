"""Forward engines in whole runs: a cached prefix learns what whole rows learn, and a refusal says why in one line."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grun.core.config.jobs import UnlearnConfig
from grun.jobs.unlearn import unlearn
from grun.training.forward_engines.prefix import engine as prefix_engine
from grun.training.forward_engines.prefix.building import base_model_parts
from grun.training.forward_engines.prefix.engine import PrefixEngine
from support.material import Material
from support.tiny_models import tiny_model, tiny_tokenizer


def run(material: Material, output: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"steps": 6, "layers": "1,3", "batch_size": 4, "evaluate_every": 3, "device": "cpu"}
    settings |= {"topic_layer": "none", **changes}
    given: dict[str, Any] = {
        "forget": [str(material.forget)],
        "retain": [str(material.retain)],
        "model": str(material.model),
    }
    return unlearn(UnlearnConfig(output=str(output), **{**given, **settings})).parent


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def facts(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "npo"},
        {"objective": "npo", "preset": "paper"},
        {"objective": "idk", "retain_loss": "kl", "edit_from": "last_prompt_only"},
        # AdamW would turn the rounding noise of gradients that are nearly zero into whole steps
        {"objective": "gd", "adapt": "reft", "trainer": {"optim": "sgd"}, "learning_rate": 0.1},
        {"objective": "rmu", "gate_layer": 1, "fit_gate_first": False, "calibrate": False},
        {"objective": "undial", "gate_reads": "prompt", "gate_layer": -1, "fit_gate_first": False, "calibrate": False},
        {"objective": "pdu", "dual_warmup": 1.0, "retain_bound": 0.01},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_a_run_from_the_cached_prefix_learns_what_a_plain_one_learns(
    memorised: Material, tmp_path: Path, settings: dict
) -> None:
    cached, plain = (
        run(memorised, tmp_path / "one", **settings),
        run(memorised, tmp_path / "two", prefix_cache=False, **settings),
    )
    one, two = adapter(cached), adapter(plain)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=0, msg=partial("{}: {}".format, name))
    assert facts(cached)["prefix_cache"]["rows"] > 0
    assert 0 <= facts(cached)["prefix_cache"]["padding_share"] < 1
    assert "prefix_cache" not in facts(plain)
    for name, value in facts(plain)["validation"].items():
        assert facts(cached)["validation"][name] == pytest.approx(value, abs=1e-3)


def test_runs_share_a_folder(memorised: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"cache_dir": str(tmp_path / "shared"), "objective": "npo"}
    one = run(memorised, tmp_path / "one", **shared)
    passes: list[int] = []
    real = base_model_parts

    def counting(model, rows, *others, **more):
        passes.append(len(rows))
        return real(model, rows, *others, **more)

    monkeypatch.setattr(prefix_engine, "base_model_parts", counting)
    two = run(memorised, tmp_path / "two", **shared)
    assert passes == []
    assert adapter(one).keys() == adapter(two).keys()
    assert all(torch.equal(adapter(one)[name], adapter(two)[name]) for name in adapter(one))
    run(memorised, tmp_path / "three", **shared, dtype="bfloat16")
    assert passes, "weights of another data type have states of their own"


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arch", "changes", "settings", "reason"),
    [
        ("gpt2", {"resid_pdrop": 0.1}, {}, "the base model has dropout (0.1)"),
        ("llama", {}, {"trainer": {"activation_checkpointing": "true"}}, "activation checkpointing was asked for"),
        (
            "llama",
            {},
            {"objective": "rmu", "hidden_layer": "2", "layers": "3"},
            "looks at layer 2, below the first edited",
        ),
    ],
    ids=["dropout", "checkpointing", "below"],
)
def test_what_cannot_be_cached_says_why_in_one_line(
    memorised: Material,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    arch: str,
    changes: dict,
    settings: dict,
    reason: str,
) -> None:
    caplog.set_level(logging.INFO, "grun")
    model = saved(tmp_path / "target", tiny_model(arch, **changes))
    if reason.startswith("looks"):
        from grun.core.errors import UserError

        with pytest.raises(UserError):  # nothing that is trained reaches that layer
            run(memorised, tmp_path / "out", model=str(model), **settings)
        return
    found = run(memorised, tmp_path / "out", model=str(model), steps=2, **settings)
    assert "prefix_cache" not in facts(found)
    lines = [record.message for record in caplog.records if "whole model" in record.message]
    assert len(lines) == 1
    assert reason in lines[0]


def test_an_architecture_that_gives_something_else_takes_the_plain_engine(
    memorised: Material, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "grun")
    real = PrefixEngine.signals

    def wrong(self, *args, **kwargs):
        side = real(self, *args, **kwargs)
        side.quantities["logps"].add_(0.01)
        return side

    monkeypatch.setattr(PrefixEngine, "signals", wrong)
    found = run(memorised, tmp_path / "out", steps=2)
    assert "prefix_cache" not in facts(found)
    assert "log-probabilities differ by 0.01" in caplog.text


def test_an_error_of_the_cached_prefix_is_no_refusal(
    memorised: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self, *args, **kwargs):
        raise TypeError("no such argument\nand more")

    monkeypatch.setattr(PrefixEngine, "signals", failing)
    with pytest.raises(TypeError, match="no such argument"):
        run(memorised, tmp_path / "other", steps=2)


def test_a_resumed_run_reads_the_gates_of_its_checkpoint(memorised: Material, tmp_path: Path) -> None:
    """The gates are frozen and their answers kept: they must be those of the run that was interrupted."""
    from transformers import TrainerCallback

    from grun.core.errors import Interrupted
    from grun.jobs.unlearn import unlearn

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 4:
                raise KeyboardInterrupt

    settings: dict[str, Any] = {"steps": 6, "layers": "1,3", "batch_size": 4, "evaluate_every": 3, "device": "cpu"}
    given: dict[str, Any] = {"forget": [str(memorised.forget)], "retain": [str(memorised.retain)]}
    given |= {"model": str(memorised.model), "topic_layer": "none"}
    config = UnlearnConfig(output=str(tmp_path / "broken"), **given, **settings)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        unlearn(config, callbacks=[Stop()])
    unlearn(config)
    whole = run(memorised, tmp_path / "whole")
    a, b = adapter(tmp_path / "broken"), adapter(whole)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_base_model_is_as_it_was(memorised: Material, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(memorised.model, copy)
    run(memorised, tmp_path / "out", model=str(copy))
    one, two = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (copy, memorised.model))
    assert all(torch.equal(one[name], two[name]) for name in one)
