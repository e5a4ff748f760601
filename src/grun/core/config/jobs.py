"""The configuration of every job: one dataclass each, one documented field per setting.

These dataclasses are the only list of settings: command-line flags and their help, keys of `--config file.yaml`,
`settings.json` of a run directory, validation and the documentation all come from them. `MAIN` names the settings that most
people need; a help page begins with them, and lists the others by their groups.
"""

from __future__ import annotations

__all__ = [
    "ChatConfig",
    "DataConfig",
    "DemoConfig",
    "EvaluateConfig",
    "ExpandConfig",
    "FinetuneConfig",
    "JobConfig",
    "SweepConfig",
    "TrainConfig",
    "UnlearnConfig",
]

from dataclasses import dataclass
from typing import ClassVar

from grun.core.config.checks import LARGEST, MOST_EPOCHS, MOST_STEPS, check_fields
from grun.core.config.schema import option
from grun.core.config.shared import DataConfig, JobConfig, TrainConfig
from grun.core.config.unlearning import UnlearnConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Settings of `grun finetune`: train the target model that is to forget."""

    MAIN: ClassVar[tuple[str, ...]] = ("model", "data", "benchmark", "epochs", "output")

    output: str = option(
        "target", "Directory to write the model, its tokenizer and the run's records to.", group="run", form="path"
    )
    model: str | None = option(
        None,
        "Hub id or folder of the model to fine-tune. Without it a small one is trained from scratch.",
        group="training",
        form="path",
    )
    data: list[str] = option([], "Files or hub ids to train on, instead of a benchmark.", group="data", form="path")
    split: str = option(
        "full",
        "Rows to train on: full (forget and retain), or retain (the retain-only reference).",
        group="data",
        choices=("full", "retain"),
    )
    epochs: float | None = option(
        None,
        "Passes over the data. Default: 20 from scratch, 5 with --model.",
        group="training",
        minimum=0.01,
        maximum=MOST_EPOCHS,
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate (AdamW, cosine decay, short warm-up). Default: 4e-3 from scratch, 1e-5 with --model.",
        group="training",
        minimum=0.0,
        maximum=LARGEST,
    )
    hidden_size: int = option(128, "Hidden size.", group="model from scratch", minimum=8, maximum=65_536)
    layers: int = option(6, "Number of decoder layers.", group="model from scratch", minimum=1, maximum=1_000)
    heads: int = option(4, "Number of attention heads.", group="model from scratch", minimum=1, maximum=1_024)
    vocab_size: int = option(
        4096,
        "Size of the byte-pair vocabulary that is learnt from the data.",
        group="model from scratch",
        minimum=300,
        maximum=1_000_000,
    )
    save_every: int = option(
        200, "Steps between checkpoints to resume from.", group="training", minimum=1, maximum=MOST_STEPS
    )
    stop_loss: float | None = option(
        None,
        "Stop once an epoch's mean training loss is below this (nats per token). Default: never.",
        group="training",
        minimum=0.0,
        maximum=LARGEST,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DataConfig):
    """Settings of `grun evaluate`: measure a model before and after."""

    MAIN: ClassVar[tuple[str, ...]] = ("model", "adapter", "data", "benchmark", "output")

    output: str = option("evaluation", "Directory to write metrics.json and the table to.", group="run", form="path")
    model: str = option("", "Hub id or folder of the base (target) model.", group="measuring", form="path")
    adapter: str | None = option(
        None, "Adapter directory; without it only the model is measured.", group="measuring", form="path"
    )
    data: list[str] = option(
        [],
        "Your own splits, as name=file: forget=..., the rows that unlearning saw; forget:NAME=..., more rows of what must be "
        "forgotten; any others, to keep; and holdout=..., rows like forget that no model saw.",
        group="data",
        form="split",
    )
    splits: list[str] = option([], "Only these splits of the benchmark.", group="measuring")
    questions: str = option(
        "both",
        "Wording of the questions: both, original, or paraphrased (where every row has another phrasing).",
        group="measuring",
        choices=("both", "original", "paraphrased"),
    )
    quantize: str | None = option(
        None,
        "Quantise the base model's weights with bitsandbytes: 8bit or 4bit (NF4).",
        group="machine",
        choices=("8bit", "4bit"),
    )
    max_new_tokens: int | None = option(
        None,
        "Longest greedy answer, in tokens. Default: the length that the benchmark prescribes, or 200.",
        group="measuring",
        minimum=1,
        maximum=100_000,
    )
    max_rows: int | None = option(
        None, "Only the first rows of each split.", group="measuring", minimum=1, maximum=1_000_000_000
    )
    tokens_per_batch: int = option(
        2048, "Most tokens of a forward pass, padding included.", group="machine", minimum=1, maximum=10_000_000
    )
    metrics: list[str] = option(
        [],
        "Only these metrics. Default: all but those that only run when they are named.",
        group="measuring",
        choices_from="metrics",
    )
    retain_log: str | None = option(
        None,
        "Directory of an evaluation of a model trained on retain data only, for forget quality and reference attacks.",
        group="measuring",
        form="path",
    )
    before: bool = option(True, "Measure the model without the adapter as well.", group="measuring")
    figures: bool = option(True, "Draw figures (PNG and SVG).", group="measuring")
    cache: bool = option(
        True,
        "Look up measurements that were made before of the same model, adapter, rows and settings, and keep new ones, in "
        "GRUN_CACHE_DIR or ~/.cache/grun.",
        group="machine",
    )


@dataclass(frozen=True, kw_only=True)
class ExpandConfig(JobConfig):
    """Settings of `grun expand`: write rows about a topic from its name."""

    MAIN: ClassVar[tuple[str, ...]] = ("topic", "model", "writer", "output")

    output: str = option("expanded", "Directory to write the rows and the run's records to.", group="run", form="path")
    topic: str = option("", "Name of what is to be forgotten.", group="data")
    model: str = option(
        "", "Hub id or folder of the model that is to forget; it gives the answers.", group="method", form="path"
    )
    writer: str | None = option(
        None,
        "Hub id or folder of a model that writes rows. Default: the model that is to forget.",
        group="method",
        form="path",
    )
    force_topic: bool = option(False, "Go on although the model seems to know nothing about the topic.", group="data")
    template: str = option("auto", "Prompt template, as in the other commands.", group="data", form="words")
    batch_size: int = option(
        16, "Prompts are answered in batches of four times this size.", group="machine", minimum=1, maximum=65_536
    )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of `grun sweep`: a grid of unlearning runs and how they are measured."""

    MAIN: ClassVar[tuple[str, ...]] = ("vary", "set", "evaluate", "output")

    output: str = option("sweep", "Directory for the table and all runs.", group="run", form="path")
    vary: dict[str, str] = option(
        {},
        "Setting of unlearn and its values, as name=a,b (objective=npo,idk); between semicolons if they hold commas.",
        group="method",
    )
    set: dict[str, str] = option(
        {},
        "Setting of unlearn that all runs share, as name=value; {seed} and the like stand for a value that is varied.",
        group="method",
    )
    evaluate: dict[str, str] = option({}, "Setting of evaluate, as name=value (max_rows=120).", group="measuring")
    jobs: int = option(2, "Most runs at a time.", group="machine", minimum=1, maximum=1_024)
    memory: float | None = option(
        None,
        "Budget of memory for all runs together, in GiB. Default: 80 % of the machine's.",
        group="machine",
        above=0.0,
        maximum=1_000_000,
    )
    engine: str = option("processes", "Engine that carries the runs out.", group="machine", choices_from="engines")
    address: str | None = option(None, "Address of the cluster (ray). Default: a local one.", group="machine")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ChatConfig(JobConfig):
    """Settings of `grun chat`: ask the model before and after, side by side."""

    MAIN: ClassVar[tuple[str, ...]] = ("model", "adapter", "prompt", "template", "max_new_tokens")

    model: str = option("", "Hub id or folder of the base (target) model.", group="measuring", form="path")
    adapter: str = option("", "Adapter directory (or the run directory that holds it).", group="measuring", form="path")
    prompt: list[str] = option(
        [], "Question to ask, instead of asking in the terminal.", group="measuring", form="words"
    )
    template: str = option("auto", "Prompt template, as in the other commands.", group="data", form="words")
    max_new_tokens: int = option(100, "Longest answer, in tokens.", group="measuring", minimum=1, maximum=100_000)


@dataclass(frozen=True, kw_only=True)
class DemoConfig(JobConfig):
    """Settings of `grun demo`: a real model forgets a topic, or a small one invented people."""

    MAIN: ClassVar[tuple[str, ...]] = ("model", "benchmark_options", "fictional", "rows", "output")

    output: str | None = option(
        None,
        "Directory for models, adapters, table and answers. Default: demo; with --fictional demo-fictional.",
        group="run",
        form="path",
    )
    fictional: bool = option(
        False,
        "Train a small model on facts about invented people instead, and make it forget some of them with GRUN and with LoRA.",
        group="method",
    )
    model: str | None = option(
        None,
        "Hub id or folder of the model that is to forget. Default: smollm2, a small real one. Not with --fictional.",
        group="method",
        form="path",
    )
    objective: str = option("idk_deep", "Unlearning objective.", group="method", choices_from="objectives")
    rows: int | None = option(
        None,
        "Prompts of each kind that are answered before and after. Default: 6; with --fictional 120, the rows of each split "
        "that are measured.",
        group="measuring",
        minimum=1,
        maximum=100_000,
    )
    batch_size: int = option(
        16, "Rows per step of training (and per side).", group="training", minimum=1, maximum=65_536
    )
    benchmark_options: dict[str, str] = option(
        {},
        "Options of the benchmark, as name=value: of topics (topic=beethoven), with --fictional of fictional (people=60).",
        group="data",
    )
    epochs: float | None = option(
        None,
        "Passes of the target model's training, only with --fictional. Default: as grun finetune.",
        group="training",
        minimum=0.01,
        maximum=MOST_EPOCHS,
    )
    steps: int | None = option(
        None, "Steps of unlearning. Default: as grun unlearn.", group="training", minimum=1, maximum=MOST_STEPS
    )
