"""The configuration of `grun attack`; see `grun.core.config.jobs`."""

from __future__ import annotations

__all__ = ["AttackConfig"]

from dataclasses import dataclass
from typing import ClassVar

from grun.core.config.schema import option
from grun.core.config.shared import DataConfig


@dataclass(frozen=True, kw_only=True)
class AttackConfig(DataConfig):
    """Settings of `grun attack`: ask for what was forgotten in many ways, and for ordinary things beside it."""

    MAIN: ClassVar[tuple[str, ...]] = ("model", "adapter", "forget", "attacks", "output")

    output: str = option("attacked", "Directory to write attacks.json and the table to.", group="run", form="path")
    model: str = option("", "Hub id or folder of the base (target) model.", group="measuring", form="path")
    adapter: str | None = option(
        None,
        "Adapter directory, or the folder of a whole model that was made to forget.",
        group="measuring",
        form="path",
    )
    ledger: str | None = option(
        None,
        "Directory of a ledger instead of an adapter: everything in force is attacked.",
        group="request",
        form="path",
    )
    address: str | None = option(
        None,
        "Address of an OpenAI-compatible server that runs the model after unlearning (http://localhost:8000/v1); --model is "
        "then the target, and may be left out.",
        group="measuring",
        pattern=(r"https?://[^\s/?#]+(/[^\s?#]*)?", "http://host:port/v1"),
    )
    served_model: str | None = option(
        None, "Name of the model at --address. Default: the first that it lists.", group="measuring"
    )
    timeout: float = option(
        120.0, "Seconds to wait for one answer of --address.", group="machine", above=0.0, maximum=86_400
    )
    forget: list[str] = option(
        [], "Files or hub ids of the rows that were to be forgotten, with true answers.", group="data", form="path"
    )
    retain: list[str] = option(
        [],
        "Files or hub ids of ordinary rows, to see what attacks do to other answers. Default: ordinary prompts that come "
        "with grun, with the model's own answers.",
        group="data",
        form="path",
    )
    unknown: list[str] = option(
        [],
        "Files or hub ids of rows like those to forget that no model was taught: what was forgotten must look like them. "
        "Default: the hold-out rows of the benchmark, where it has some.",
        group="data",
        form="path",
    )
    retain_only: str | None = option(
        None,
        "Hub id or folder of a model that was trained without the rows to forget: what it gives away is no leak.",
        group="measuring",
        form="path",
    )
    attacks: list[str] = option(
        [],
        "Only these attacks, also as a,b. Default: all that the rows allow, but for those that train or search (see the "
        "documentation of attacks).",
        group="measuring",
        choices_from="attacks",
    )
    samples: int = option(
        0,
        "Answers that are drawn besides to every plain question, and to ten rows by every leak attack, of which the one that "
        "says most counts. 0: none.",
        group="measuring",
        minimum=0,
        maximum=1_000,
    )
    temperature: float = option(
        1.0, "Temperature of answers that are drawn.", group="measuring", minimum=0.01, maximum=100.0
    )
    search_steps: int = option(
        50,
        "Steps of attacks that search for an input with the weights at hand.",
        group="measuring",
        minimum=1,
        maximum=1_000_000,
    )
    rows: int = option(
        40,
        "Rows of either kind to attack with, at equal distances.",
        group="measuring",
        minimum=1,
        maximum=1_000_000,
    )
    quantize: str | None = option(
        None,
        "Quantise the base model's weights with bitsandbytes: 8bit or 4bit (NF4).",
        group="machine",
        choices=("8bit", "4bit"),
    )
    max_new_tokens: int = option(64, "Longest answer, in tokens.", group="measuring", minimum=1, maximum=100_000)
    tokens_per_batch: int = option(
        2048, "Most tokens of a forward pass, padding included.", group="machine", minimum=1, maximum=10_000_000
    )
    cache: bool = option(
        True,
        "Look up measurements that were made before of the same model, adapter, probes and settings, and keep new ones, in "
        "GRUN_CACHE_DIR or ~/.cache/grun.",
        group="machine",
    )
