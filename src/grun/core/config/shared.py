"""Settings that several jobs share; see `grun.core.config.jobs`."""

from __future__ import annotations

__all__ = ["DEVICE", "DataConfig", "JobConfig", "MOST_SHARE", "TrainConfig"]

from dataclasses import dataclass
from typing import ClassVar

from grun.core.config.checks import LARGEST, MOST_SEED, check_fields, check_rows
from grun.core.config.schema import option

DEVICE = r"(?!meta)[a-z]+(:[0-9]{1,3})?", "auto, cpu, cuda, cuda:1 or mps"  # a meta device holds no numbers
MOST_SHARE = 0.5  # of prompts that a calibration may leave on the wrong side


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Settings that every job has."""

    MAIN: ClassVar[tuple[str, ...]] = ()

    seed: int = option(
        0,
        "Seed of everything random: initialisation, order, pairing, refusals.",
        group="run",
        minimum=0,
        maximum=MOST_SEED,
    )
    device: str = option(
        "auto",
        "Device to run on: auto, cpu, cuda, cuda:1, mps.",
        group="machine",
        pattern=DEVICE,
    )
    dtype: str = option(
        "auto",
        "Data type of the base model's weights: auto (as saved), float32, bfloat16, float16.",
        group="machine",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    trust_remote_code: bool = option(
        False, "Run model code that comes with a hub repository. Off for safety.", group="machine"
    )
    overwrite: bool = option(False, "Delete the other run in the output directory.", group="run")

    def __post_init__(self) -> None:
        check_fields(self)
        steps, batch_size = getattr(self, "steps", None), getattr(self, "batch_size", None)
        if steps is not None and batch_size is not None:
            check_rows(steps * batch_size, {"--steps": steps, "--batch-size": batch_size})


@dataclass(frozen=True, kw_only=True)
class DataConfig(JobConfig):
    """Settings of jobs that read a benchmark or files."""

    benchmark: str | None = option(None, "Benchmark to take all splits from.", group="data", choices_from="benchmarks")
    data_dir: str | None = option(
        None, "Folder with a local copy of the benchmark. Default: the hub.", group="data", form="path"
    )
    benchmark_options: dict[str, str] = option({}, "Options of the benchmark, as name=value (people=60).", group="data")
    template: str = option(
        "auto",
        "Prompt template: chat (the tokenizer's), qa (the paper's 'Question: ... Answer:'), or your own text with "
        "{prompt} in it. auto: chat if the tokenizer has a chat template, else qa.",
        group="data",
        form="words",
    )
    columns: dict[str, str] = option(
        {}, "Columns of your files, as field=column (prompt=frage); the same in all of them.", group="data"
    )
    max_length: int | None = option(
        None,
        "Longest row, in tokens; longer ones are truncated and counted, running text is cut into pieces instead. "
        "Default: the model's context.",
        group="data",
        minimum=8,
        maximum=10_000_000,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """Settings of jobs that train."""

    batch_size: int = option(
        16, "Rows per step (and per side: as many forget as retain rows).", group="training", minimum=1, maximum=65_536
    )
    weight_decay: float = option(0.0, "AdamW weight decay.", group="training", minimum=0.0, maximum=LARGEST)
    trainer: dict[str, str] = option(
        {},
        "Any setting of transformers' TrainingArguments, as name=value (bf16=true, report_to=tensorboard).",
        group="training",
    )
