"""The settings of `grun unlearn`; see `grun.core.config.jobs`."""

from __future__ import annotations

__all__ = ["UnlearnConfig"]

from dataclasses import dataclass
from typing import ClassVar

from grun.core.config.checks import LARGEST, MOST_EPOCHS, MOST_STEPS
from grun.core.config.schema import option
from grun.core.config.shared import TrainConfig


@dataclass(frozen=True, kw_only=True)
class UnlearnConfig(TrainConfig):
    """Settings of `grun unlearn`: learn an adapter that makes the model forget."""

    MAIN: ClassVar[tuple[str, ...]] = ("model", "forget", "retain", "objective", "output")

    output: str = option(
        "unlearned", "Directory to write the adapter and the run's records to.", group="run", form="path"
    )
    model: str = option("", "Hub id or folder of the model that is to forget.", group="method", form="path")
    forget: list[str] = option([], "Files or hub ids of rows to forget.", group="data", form="path")
    retain: list[str] = option(
        [],
        "Files or hub ids of rows to keep. Default: ordinary prompts that come with grun.",
        group="data",
        form="path",
    )
    topic: str | None = option(
        None,
        "Name of what is to be forgotten, instead of --forget: rows are written from it first, as by grun expand, into the "
        "folder 'topic' of --output.",
        group="data",
    )
    force_topic: bool = option(False, "Go on although the model seems to know nothing about the topic.", group="data")
    writer: str | None = option(
        None,
        "Hub id or folder of a model that writes rows about the topic. Default: the model that is to forget.",
        group="data",
        form="path",
    )
    neighbours: list[str] = option(
        [],
        "Files or hub ids of prompts about close topics that must stay: gates learn to stay shut for them. Answers are not "
        "needed.",
        group="data",
        form="path",
    )
    objective: str = option("idk_deep", "Unlearning objective.", group="method", choices_from="objectives")
    adapt: str = option("grun", "Way of adapting the model.", group="method", choices_from="adaptations")
    preset: str = option(
        "default",
        "Values of the settings that show no default: default, or paper (the published setting).",
        group="method",
    )
    rank: int | None = option(
        None, "Rank of the edit (lora: of the update).", group="method", minimum=1, maximum=65_536
    )
    layers: str | None = option(
        None,
        "Layers to edit, comma-separated: indices (20,25,31) or fractions of depth (0.65,0.8,1.0).",
        group="method",
    )
    edit_from: str | None = option(
        None, "Tokens to edit: last_prompt_only, or last_prompt_on (generated ones too).", group="method"
    )
    retain_loss: str | None = option(
        None,
        "Loss on retain rows. Default: the one that the objective is published with.",
        group="method",
        choices_from="retain_losses",
    )
    forget_weight: float | None = option(
        None, "Weight of the forget term. Default: the objective's.", group="method", minimum=0.0, maximum=LARGEST
    )
    retain_weight: float | None = option(
        None, "Weight of the retain term. Default: the objective's.", group="method", minimum=0.0, maximum=LARGEST
    )
    retain_bound: float | None = option(
        None,
        "Largest acceptable retain loss: its weight becomes a dual variable that grows while the loss is larger. Default: "
        "none; for pdu 1.1 times the base model's loss.",
        group="method",
        minimum=0.0,
        maximum=LARGEST,
    )
    dual_step: float = option(1.0, "Step size of the dual variable.", group="method", minimum=0.0, maximum=LARGEST)
    dual_warmup: float = option(
        5.0,
        "Passes over the forget rows before the dual variable moves.",
        group="method",
        minimum=0.0,
        maximum=MOST_EPOCHS,
    )
    hidden_layer: str | None = option(
        None,
        "Layer whose output rmu and mse look at: index (7) or fraction of depth (0.22). Default: the last edited layer; "
        "lora, dora, full: 0.22 of depth.",
        group="method",
    )
    refusals: str | None = option(
        None,
        "File of refusals, one per line, drawn at random for every row and pass. Default: a sentence that comes with grun, in "
        "the language of the question.",
        group="method",
        form="path",
    )
    alternatives: str | None = option(
        None,
        "Alternative answers (altpo, untaught): column (alternative_answers of your file), perturbed (TOFU's), generate (the "
        "model makes them up), or unknown (the model's about names that nobody has). Default: column; untaught: unknown.",
        group="method",
        choices=("column", "perturbed", "generate", "unknown"),
    )
    objective_options: dict[str, str] = option(
        {}, "Keyword arguments of the objective, as name=value (beta=0.1).", group="method"
    )
    gate: str | None = option(None, "Gate for names: lexical (reads text), mlp, linear, or none.", group="gate")
    gate_reads: str | None = option(
        None, "Tokens that the gate reads: last (last prompt token) or prompt (every prompt token).", group="gate"
    )
    gate_scope: str | None = option(
        None,
        "What a lexical gate opens for: asked (names that are asked about) or mentioned (names that stand anywhere).",
        group="gate",
    )
    gate_layer: int | None = option(
        None,
        "Layer whose input one shared gate reads (0: the embeddings); -1: a gate at each edited layer.",
        group="gate",
        minimum=-1,
        maximum=10_000,
    )
    topic_layer: str | None = option(
        None,
        "Layer whose input a second gate reads, which recognises topics in words that it was never shown: index (12) or "
        "fraction of depth (0.4); none leaves it out.",
        group="gate",
    )
    fit_gate_first: bool | None = option(
        None, "Fit the gate to convergence before the edit is trained, and freeze it.", group="gate"
    )
    calibrate: bool | None = option(
        None, "Set the gate's threshold on withheld retain rows; below it the gate is exactly 0.", group="gate"
    )
    false_positive_rate: float = option(
        0.005, "Share of withheld normal prompts that may open a gate.", group="gate", minimum=0.0, maximum=1.0
    )
    gate_weight: float | None = option(
        None,
        "Weight of the gate's cross-entropy when gate and edit are trained together.",
        group="gate",
        minimum=0.0,
        maximum=LARGEST,
    )
    gate_class_weight: float = option(
        1.0, "Weight of forget prompts in the gate's cross-entropy.", group="gate", minimum=0.0, maximum=LARGEST
    )
    gate_warmup: int = option(
        0,
        "Steps over which the forget and retain terms grow to their weights while the gate learns.",
        group="gate",
        minimum=0,
        maximum=MOST_STEPS,
    )
    shut_for: list[str] = option(
        [],
        "Files of gate features that runs with --keep-features wrote: the gate learns to stay shut for their prompts.",
        group="gate",
        form="path",
    )
    keep_features: bool = option(
        False,
        "Keep the features that the gate reads of the forget prompts, for later runs to stay shut for. They give the "
        "prompts away: at the embeddings, every token can be read off.",
        group="gate",
    )
    steps: int | None = option(
        None,
        "Optimiser steps, exactly so many unless --patience is given. Default: until nothing gets better, 200 at most.",
        group="training",
        minimum=1,
        maximum=MOST_STEPS,
    )
    epochs: float | None = option(
        None, "Passes over the forget rows, instead of steps.", group="training", minimum=0.01, maximum=MOST_EPOCHS
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate (AdamW; linear decay over a fixed number of steps, else constant).",
        group="training",
        minimum=0.0,
        maximum=LARGEST,
    )
    withhold: float = option(
        0.2, "Share of the retain subjects set aside for validation.", group="training", minimum=0.0, maximum=0.9
    )
    evaluate_every: int | None = option(
        None,
        "Steps between validations, each a candidate for the best state.",
        group="training",
        minimum=1,
        maximum=MOST_STEPS,
    )
    patience: int | None = option(
        None,
        "Stop after so many validations without a better state. Default: 2; never if --steps or --epochs is given.",
        group="training",
        minimum=1,
        maximum=MOST_STEPS,
    )
    prefix_cache: bool = option(
        True,
        "Compute once whatever is the same in every step (grun, reft): the same losses and gradients, several times faster.",
        group="machine",
    )
    cache_dir: str | None = option(
        None,
        "Folder for the prefix cache, shared between runs on the same model and rows. Default: memory.",
        group="machine",
        form="path",
    )
