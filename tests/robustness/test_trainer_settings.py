"""Settings of --trainer that cannot work here, or would upload: one line that names them, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import TrainingArguments

from grun.cli.main import main
from grun.core.errors import UserError
from grun.training.trainer_settings import OWN_FLAGS, REFUSED, naming_trainer, parsed_settings
from support.material import Material

NUMBERS = {
    name
    for name, field in TrainingArguments.__dataclass_fields__.items()
    if field.type in (int, float, "int | None", "float | None", int | None, float | None) and name not in OWN_FLAGS
}
TOO_LARGE = "9" * 40
UPLOADING = ["push_to_hub=true", "hub_token=x", "hub_model_id=a/b", "hub_strategy=end", "hub_private_repo=true"]
UPLOADING += ["hub_always_push=true", "trackio_space_id=a/b", "hub_revision=main"]
BY_VALUE = [
    "adam_beta1=2", "adam_beta1=-1", "adam_epsilon=-1", "optim=nonsense", "lr_scheduler_type=nonsense", "bf16=maybe",
    "dataloader_num_workers=-1", "dataloader_num_workers=100000", "logging_steps=0", "logging_steps=-1",
    "gradient_accumulation_steps=0", "gradient_accumulation_steps=-1", "gradient_accumulation_steps=1e26",
    "max_grad_norm=nan", "max_grad_norm=-1", "warmup_steps=inf", "warmup_steps=-1", "warmup_ratio=5", "label_names=x",
    "label_smoothing_factor=0.1", "remove_unused_columns=true", "ddp_backend=nonsense", "debug=nonsense",
    "debug=underflow_overflow", "parallelism_config=x", "output_dir=/tmp", "logging_dir=/tmp", "save_only_model=true",
    "local_rank=3", "data_seed=-1", "data_seed=4294967296", "save_total_limit=0", "log_level=loud", "run_name=\0",
    "run_name= ", "nonsense=1", "length_column_name=x", "fp16", "=1",
]  # fmt: skip
BY_TRIAL = [
    "tf32=true", "fsdp=full_shard", "deepspeed=x", "optim=galore_adamw", "optim_args=x", "lr_scheduler_kwargs=x",
    'lr_scheduler_kwargs={"a": 1}', "torch_compile_backend=nonsense", "torch_compile_mode=nonsense",
    "accelerator_config=x", 'accelerator_config={"a": 1}', "report_to=nowhere", "report_to=mlflow",
    "dataloader_persistent_workers=true", "save_strategy=no", "dataloader_prefetch_factor=2", "eval_strategy=no",
]  # fmt: skip


assert len(NUMBERS) > 15, "types of settings are declared in another way"


def run(job: str, material: Material, output: Path, setting: str) -> int:
    given = {
        "unlearn": [
            "--forget",
            material.forget,
            "--retain",
            material.retain,
            "--layers",
            "1,3",
            "--topic-layer",
            "none",
        ],
        "finetune": ["--data", material.retain],
    }[job]
    common = ["--model", material.model, "--output", output, "--device", "cpu", "--trainer", setting]
    length = ["--steps", 2] if job == "unlearn" else ["--epochs", 1]
    return main([job, *map(str, [*given, *common, *length])])


def assert_one_line(setting: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("grun: ")]
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert "--trainer" in lines[-1]
    assert setting.partition("=")[0] in lines[-1]
    assert len(lines[-1]) < 900
    assert not output.exists()


@pytest.mark.parametrize("job", ["unlearn", "finetune"])
@pytest.mark.parametrize("setting", [*UPLOADING, *BY_VALUE])
def test_values_that_are_refused_before_anything_is_read(
    job: str, setting: str, material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(job, Material(Path("absent"), Path("absent"), Path("absent")), tmp_path / "run", setting) == 2
    assert_one_line(setting, tmp_path / "run", capsys)


@pytest.mark.parametrize("setting", BY_TRIAL)
def test_values_that_only_fail_when_a_trainer_is_made_or_runs(
    setting: str, material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: value for name, value in os.environ.items() if "ACCELERATE" in name}
    job = "finetune" if setting in BY_TRIAL[:14:2] else "unlearn"
    assert run(job, material, tmp_path / "run", setting) == 2
    assert_one_line(setting, tmp_path / "run", capsys)
    after = {name: value for name, value in os.environ.items() if "ACCELERATE" in name}
    assert after == before, "the next run of this process would read it"


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_every_number_is_finite_and_bounded(name: str) -> None:
    for value in ("nan", "inf", "-inf", TOO_LARGE, "-" + TOO_LARGE, "many", "9" * 5000):
        with pytest.raises(UserError, match=rf"--trainer {name}"):
            parsed_settings({name: value})


def test_uploads_are_refused_with_the_reason() -> None:
    for setting in UPLOADING:
        name, _, value = setting.partition("=")
        with pytest.raises(UserError, match="grun uploads nothing"):
            parsed_settings({name: value})
    assert parsed_settings({"push_to_hub": "false"}) == {"push_to_hub": False}
    assert set(REFUSED) <= TrainingArguments.__dataclass_fields__.keys()


def test_a_fault_without_settings_of_the_user_stays_what_it_is() -> None:
    with pytest.raises(KeyError), naming_trainer({}):
        raise KeyError("x")
    with pytest.raises(UserError, match="optim=sgd cannot work here: KeyError"), naming_trainer({"optim": "sgd"}):
        raise KeyError("x")


@pytest.mark.parametrize("setting", ["lr_scheduler_type=reduce_lr_on_plateau", "optim=sgd"])
def test_settings_that_work_are_not_refused(
    setting: str, material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("unlearn", material, tmp_path / "run", setting) == 0
