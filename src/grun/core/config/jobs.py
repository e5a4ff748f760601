"""The configuration of every job: one dataclass each, one documented field per setting.

These dataclasses are the only list of settings: command-line flags, keys of `--config file.yaml`, `settings.json` of a run
directory, validation and the documentation all come from them.
"""

from __future__ import annotations

__all__ = [
    "ChatConfig",
    "DataConfig",
    "DemoConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "JobConfig",
    "SweepConfig",
    "TrainConfig",
    "UnlearnConfig",
]

import dataclasses
from dataclasses import dataclass

from grun.core.config.schema import check_choice, check_range, option


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Settings that every job has."""

    seed: int = option(0, "Seed of everything random: initialisation, order, pairing, refusals.", minimum=0)
    device: str = option("auto", "Device to run on: auto, cpu, cuda, cuda:1, mps.")
    dtype: str = option("auto", "Data type of the base model's weights: auto (as saved), float32, bfloat16, float16.")
    trust_remote_code: bool = option(False, "Run model code that comes with a hub repository. Off for safety.")
    overwrite: bool = option(False, "Delete what another run left in the output directory.")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            check_range(f, getattr(self, f.name))
        check_choice("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))


@dataclass(frozen=True, kw_only=True)
class DataConfig(JobConfig):
    """Settings of jobs that read a benchmark or files."""

    benchmark: str | None = option(None, "Registered benchmark to take all splits from: fictional, tofu.")
    data_dir: str | None = option(None, "Folder with a local copy of the benchmark (tofu).")
    benchmark_options: dict[str, str] = option({}, "Options of the benchmark, as name=value (people=60).")
    template: str = option(
        "auto",
        "Prompt template: chat (the tokenizer's), qa (the paper's 'Question: ... Answer:'), or your own text with "
        "{prompt} in it. auto: chat if the tokenizer has a chat template, else qa.",
    )
    columns: dict[str, str] = option(
        {}, "Columns of your files, as field=column (prompt=frage); the same in all of them."
    )
    max_length: int | None = option(
        None,
        "Longest row, in tokens; longer ones are truncated and counted, running text is cut into pieces instead. "
        "Default: the model's context.",
        minimum=8,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """Settings of jobs that train."""

    batch_size: int = option(16, "Rows per step (and per side: as many forget as retain rows).", minimum=1)
    weight_decay: float = option(0.0, "AdamW weight decay.", minimum=0.0)
    trainer: dict[str, str] = option(
        {}, "Any setting of transformers' TrainingArguments, as name=value (bf16=true, report_to=tensorboard)."
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Settings of `grun finetune`: train the target model that is to forget."""

    output: str = option("target", "Directory to write the model, its tokenizer and the run's records to.")
    model: str | None = option(
        None, "Hub id or folder of the model to fine-tune. Without it a small one is trained from scratch."
    )
    data: list[str] = option([], "Files or hub ids to train on, instead of a benchmark.")
    split: str = option("full", "What to train on: full (forget and retain), or retain (the retain-only reference).")
    epochs: float | None = option(None, "Passes over the data. Default: 20 from scratch, 5 with --model.", minimum=0.01)
    learning_rate: float | None = option(
        None,
        "Peak learning rate (AdamW, cosine decay, short warm-up). Default: 4e-3 from scratch, 1e-5 with --model.",
        minimum=0.0,
    )
    hidden_size: int = option(128, "From scratch: hidden size.", minimum=8)
    layers: int = option(6, "From scratch: number of decoder layers.", minimum=1)
    heads: int = option(4, "From scratch: number of attention heads.", minimum=1)
    vocab_size: int = option(
        4096, "From scratch: size of the byte-pair vocabulary that is learnt from the data.", minimum=300
    )
    save_every: int = option(200, "Steps between checkpoints to resume from.", minimum=1)
    stop_loss: float | None = option(
        None, "Stop once an epoch's mean training loss is below this (nats per token).", minimum=0.0
    )


@dataclass(frozen=True, kw_only=True)
class UnlearnConfig(TrainConfig):
    """Settings of `grun unlearn`: learn an adapter that makes the model forget."""

    output: str = option("unlearned", "Directory to write the adapter and the run's records to.")
    model: str = option("", "Hub id or folder of the model that is to forget.")
    forget: list[str] = option([], "Files or hub ids of what to forget.")
    retain: list[str] = option([], "Files or hub ids of what to keep.")
    objective: str = option("npo", "Unlearning objective.")
    adapt: str = option("grun", "How the model is adapted: grun, reft (ungated), lora, dora, full.")
    preset: str = option("default", "Starting point of the settings below: default, or paper (the published setting).")
    steps: int | None = option(None, "Optimiser steps. Default: as the preset says.", minimum=1)
    epochs: float | None = option(None, "Passes over the forget rows, instead of steps.", minimum=0.01)
    learning_rate: float | None = option(None, "Peak learning rate (AdamW, linear decay).", minimum=0.0)
    retain_loss: str | None = option(
        None, "Loss on retain rows: ce, kl, mse or none. Default: the one that the objective is published with."
    )
    forget_weight: float | None = option(None, "Weight of the forget term. Default: the objective's.", minimum=0.0)
    retain_weight: float | None = option(None, "Weight of the retain term. Default: the objective's.", minimum=0.0)
    retain_bound: float | None = option(
        None,
        "Largest acceptable retain loss: its weight becomes a dual variable that grows while the loss is larger. Default: "
        "none; for pdu 1.1 times the base model's loss.",
        minimum=0.0,
    )
    dual_step: float = option(1.0, "Step size of the dual variable.", minimum=0.0)
    dual_warmup: float = option(5.0, "Passes over the forget rows before the dual variable moves.", minimum=0.0)
    gate_weight: float | None = option(
        None, "Weight of the gate's cross-entropy when gate and edit are trained together.", minimum=0.0
    )
    gate_class_weight: float = option(1.0, "Weight of forget prompts in the gate's cross-entropy.", minimum=0.0)
    gate_warmup: int = option(
        0, "Steps over which the forget and retain terms grow to their weights while the gate learns.", minimum=0
    )
    hidden_layer: str | None = option(
        None,
        "Layer whose output rmu and mse look at: index (7) or fraction of depth (0.22). Default: the last edited layer; "
        "lora, dora, full: 0.22 of depth.",
    )
    refusals: str | None = option(None, "File of refusals, one per line. Default: those that come with grun.")
    alternatives: str = option(
        "column",
        "Alternative answers (altpo): column (alternative_answers of your file), perturbed (TOFU's), or generate (the model "
        "makes them up).",
    )
    objective_options: dict[str, str] = option({}, "Keyword arguments of the objective, as name=value (beta=0.1).")
    rank: int | None = option(None, "Rank of the edit (lora: of the update).", minimum=1)
    layers: str | None = option(
        None, "Layers to edit, comma-separated: indices (20,25,31) or fractions of depth (0.65,0.8,1.0)."
    )
    gate: str | None = option(None, "Gate: linear or mlp.")
    gate_reads: str | None = option(
        None, "What the gate reads: last (last prompt token) or prompt (every prompt token)."
    )
    gate_layer: int | None = option(
        None, "Layer whose input one shared gate reads (0: the embeddings); -1: a gate at each edited layer."
    )
    edit_from: str | None = option(None, "Tokens to edit: last_prompt_only, or last_prompt_on (generated ones too).")
    fit_gate_first: bool | None = option(None, "Fit the gate to convergence before the edit is trained, and freeze it.")
    calibrate: bool | None = option(
        None, "Set the gate's threshold on withheld retain rows; below it the gate is exactly 0."
    )
    false_positive_rate: float = option(
        0.01, "Share of withheld normal prompts that may open a gate.", minimum=0.0, maximum=1.0
    )
    shut_for: list[str] = option(
        [],
        "Files of gate features that runs with --keep-features wrote: the gate learns to stay shut for their prompts.",
    )
    keep_features: bool = option(
        False,
        "Keep what the gate reads of the forget prompts, for later runs to stay shut for. It gives the prompts away: at the "
        "embeddings, every token can be read off.",
    )
    withhold: float = option(0.2, "Share of the retain subjects set aside for validation.", minimum=0.0, maximum=0.9)
    evaluate_every: int | None = option(
        None, "Steps between validations, each a candidate for the best state.", minimum=1
    )
    prefix_cache: bool = option(
        True,
        "Compute what is the same in every step once (grun, reft): the same losses and gradients, several times faster.",
    )
    cache_dir: str | None = option(
        None, "Folder to keep that in, shared between runs on the same model and rows. Default: memory."
    )
    patience: int | None = option(
        None, "Stop after so many validations without a better state. Default: never.", minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("alternatives", self.alternatives, ("column", "perturbed", "generate"))


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DataConfig):
    """Settings of `grun evaluate`: measure a model before and after."""

    output: str = option("evaluation", "Directory to write metrics.json and the table to.")
    model: str = option("", "Hub id or folder of the base (target) model.")
    adapter: str | None = option(None, "Adapter directory; without it only the model is measured.")
    data: list[str] = option(
        [],
        "Your own splits, as name=file: forget=..., any others, and holdout=..., rows like forget that no model saw.",
    )
    splits: list[str] = option([], "Only these splits of the benchmark.")
    questions: str = option(
        "both", "How to ask: both, original, or paraphrased (where every row has another phrasing)."
    )
    quantize: str | None = option(None, "Quantise the base model's weights with bitsandbytes: 8bit or 4bit (NF4).")
    max_new_tokens: int | None = option(
        None, "Longest greedy answer, in tokens. Default: what the benchmark prescribes, or 200.", minimum=1
    )
    max_rows: int | None = option(None, "Only the first rows of each split.", minimum=1)
    tokens_per_batch: int = option(2048, "Most tokens of a forward pass, padding included.", minimum=1)
    metrics: list[str] = option([], "Only these metrics.")
    retain_log: str | None = option(
        None,
        "Directory of an evaluation of a model trained on retain data only, for forget quality and reference attacks.",
    )
    before: bool = option(True, "Measure the model without the adapter as well.")
    figures: bool = option(True, "Draw figures (PNG and SVG).")
    cache: bool = option(
        True,
        "Look up what was measured before of the same model, adapter, rows and settings, and keep it for later, in "
        "GRUN_CACHE_DIR or ~/.cache/grun.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("questions", self.questions, ("both", "original", "paraphrased"))
        if self.quantize is not None:
            check_choice("quantize", self.quantize, ("8bit", "4bit"))


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of `grun sweep`: a grid of unlearning runs and what they are measured on."""

    output: str = option("sweep", "Directory for the table and all runs.")
    vary: dict[str, str] = option(
        {},
        "Setting of unlearn and its values, as name=a,b (objective=npo,idk); between semicolons if they hold commas.",
    )
    set: dict[str, str] = option(
        {}, "Setting of unlearn that all runs share, as name=value; {seed} and the like stand for what is varied."
    )
    evaluate: dict[str, str] = option({}, "Setting of evaluate, as name=value (max_rows=120).")
    jobs: int = option(2, "Most runs at a time.", minimum=1)
    memory: float | None = option(
        None, "Budget of memory for all runs together, in GiB. Default: 80 % of the machine's.", minimum=0.0
    )
    engine: str = option("processes", "What carries the runs out: processes (of this machine) or ray (a cluster).")
    address: str | None = option(None, "Address of the cluster (ray). Default: a local one.")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            check_range(f, getattr(self, f.name))


@dataclass(frozen=True, kw_only=True)
class ChatConfig(JobConfig):
    """Settings of `grun chat`: ask the model before and after, side by side."""

    model: str = option("", "Hub id or folder of the base (target) model.")
    adapter: str = option("", "Adapter directory (or the run directory that holds it).")
    prompt: list[str] = option([], "Question to ask, instead of asking in the terminal; may be repeated.")
    template: str = option("auto", "Prompt template, as in the other commands.")
    max_new_tokens: int = option(100, "Longest answer, in tokens.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class DemoConfig(JobConfig):
    """Settings of `grun demo`: learn, forget with GRUN and with LoRA, and compare."""

    output: str = option("demo", "Directory for the models, the adapters and the table.")
    objective: str = option("npo", "Unlearning objective, the same for GRUN and for LoRA.")
    rows: int = option(120, "Rows of each split to measure.", minimum=1)
    batch_size: int = option(16, "Rows per step of training (and per side).", minimum=1)
    benchmark_options: dict[str, str] = option({}, "Options of the benchmark, as name=value (people=60).")
    epochs: float | None = option(
        None, "Passes of the target model's training. Default: as grun finetune.", minimum=0.01
    )
    steps: int | None = option(None, "Steps of unlearning. Default: as the presets say.", minimum=1)
