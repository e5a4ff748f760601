"""Several processes: two with half the batch each learn what one learns with all of it. Real launches, gloo on the CPU."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grun.cli.main import main
from support.launching import TORCHRUN, launch
from support.material import Material

ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def unlearn(material: Material, output: Path, batch_size: int, *more: str) -> list[str]:
    paths = {"model": material.model, "forget": material.forget, "retain": material.retain, "output": output}
    flags = [part for name, value in paths.items() for part in (f"--{name}", str(value))]
    return ["unlearn", *flags, "--batch-size", str(batch_size), "--steps", "8", "--device", "cpu", *more]


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        (TORCHRUN, ["--objective", "npo", "--layers", "1,3", "--preset", "paper"]),
        (TORCHRUN, ["--objective", "pdu", "--adapt", "lora", "--dual-warmup", "1", "--retain-bound", "0.01"]),
        # AdamW would turn the rounding noise of gradients that are zero into whole steps
        (ACCELERATE, ["--objective", "rmu", "--adapt", "full", "--trainer", "optim=sgd", "--learning-rate", "0.1"]),
    ],
    ids=["torchrun-npo-grun", "torchrun-pdu-lora", "accelerate-rmu-full"],
)
def test_two_processes_with_half_the_batch_equal_one(
    memorised: Material, tmp_path: Path, launcher: list[str], settings: list[str]
) -> None:
    launch(["-m", "grun"], unlearn(memorised, tmp_path / "one", 4, *settings))
    launch([*launcher, "-m", "grun"], unlearn(memorised, tmp_path / "two", 2, *settings))
    assert_same_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("sharded", [False, True])
def test_gates_for_topics_are_the_same_in_every_process(memorised: Material, tmp_path: Path, sharded: bool) -> None:
    settings = ["--objective", "idk", "--layers", "1,3", "--topic-layer", "1", "--evaluate-every", "4"]
    launch(["-m", "support.few_prompts"], unlearn(memorised, tmp_path / "one", 4, *settings))
    program = "support.pretend_accelerators" if sharded else "support.few_prompts"
    launch([*TORCHRUN, "-m", program], unlearn(memorised, tmp_path / "two", 2, *settings), **(FSDP if sharded else {}))
    assert_same_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("adapt", ["grun", "lora"])
def test_sharded_parameters_learn_the_same(memorised: Material, tmp_path: Path, adapt: str) -> None:
    """FSDP, with the best state loaded at the end."""
    settings = ["--evaluate-every", "4", "--adapt", adapt, "--objective", "dpo"]
    settings += ["--layers", "1,3", "--topic-layer", "none"] if adapt == "grun" else []
    launch(["-m", "grun"], unlearn(memorised, tmp_path / "one", 4, *settings))
    launch(
        [*TORCHRUN, "-m", "support.pretend_accelerators"], unlearn(memorised, tmp_path / "two", 2, *settings), **FSDP
    )
    assert_same_weights(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_learns_the_same(memorised: Material, tmp_path: Path, stage: int) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    automatic = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": zero, **dict.fromkeys(automatic, "auto")}))
    settings = ["--layers", "1,3", "--preset", "paper"]
    launch(["-m", "grun"], unlearn(memorised, tmp_path / "one", 4, *settings))
    sharded = [*settings, "--trainer", f"deepspeed={file}"]
    launch([*TORCHRUN, "-m", "grun"], unlearn(memorised, tmp_path / "two", 2, *sharded))
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def assert_same_weights(first: Path, second: Path) -> None:
    """Equal up to a few per cent of one step: Adam blows up what rounding does to a gradient near zero."""
    one, two = (load_file(next(run.glob("*/*model.safetensors"))) for run in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=5e-5, rtol=0, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"RANK": ""}, "RANK is ''"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, but not MASTER_ADDR"),
        ({"LOCAL_RANK": "0", "RANK": "0"}, "LOCAL_RANK is set, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_a_part_of_a_launch_is_refused(
    environment: dict[str, str],
    said: str,
    material: Material,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Such variables are left by shells and scripts; libraries would wait, or end in a traceback."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    common = ["--model", str(material.model), "--output", str(tmp_path / "out")]
    rows = {"unlearn": "--forget", "finetune": "--data"}
    for command, flag in rows.items():
        assert main([command, *common, flag, str(material.forget)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
