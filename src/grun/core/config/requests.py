"""The configuration of jobs around removal requests; see `grun.core.config.jobs`."""

from __future__ import annotations

__all__ = [
    "CalibrateConfig",
    "CalibrateRequestsConfig",
    "CompareConfig",
    "ImportConfig",
    "LedgerConfig",
    "RequestConfig",
]

from dataclasses import dataclass
from typing import ClassVar

from grun.core.config.checks import MOST_SEED, check_fields
from grun.core.config.jobs import JobConfig, UnlearnConfig
from grun.core.config.schema import option
from grun.core.config.shared import DEVICE, MOST_SHARE


@dataclass(frozen=True, kw_only=True)
class RequestConfig(UnlearnConfig):
    """Settings of `grun request add`: those of `grun unlearn`, and the ledger that the request is written to."""

    MAIN: ClassVar[tuple[str, ...]] = ("ledger", "model", "retain", "objective", "why")

    ledger: str = option(
        "", "Directory of the ledger; it is made if it is not there yet.", group="request", form="path"
    )
    id: str | None = option(
        None, "Id of the request: lower-case letters, digits, dashes. Default: the next number.", group="request"
    )
    why: str = option("", "Reason of the request, in your own words.", group="request", form="words")
    keep_data: bool = option(
        False,
        "Keep the rows in the ledger, so that later requests and `verify` can measure whether they are still forgotten.",
        group="request",
    )


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(JobConfig):
    """Settings of `grun calibrate`: promise that normal prompts are left alone, and bound how many to forget pass."""

    MAIN: ClassVar[tuple[str, ...]] = ("model", "adapter", "normal", "forget", "output")

    output: str = option(
        "calibrated", "Directory to write the adapter and the run's records to.", group="run", form="path"
    )
    model: str = option("", "Hub id or folder of the base (target) model.", group="guarantee", form="path")
    adapter: str = option(
        "", "Adapter directory (or the run directory that holds it); it stays as it is.", group="guarantee", form="path"
    )
    normal: list[str] = option(
        [],
        "Files or hub ids of normal prompts, drawn as those to come will be; unlearning must not have seen them.",
        group="data",
        form="path",
    )
    forget: list[str] = option(
        [],
        "Files or hub ids of prompts to open for: the share that opens a gate is reported, and one adapter's gates are "
        "placed by them.",
        group="data",
        form="path",
    )
    paraphrases: list[str] = option(
        [],
        "Files or hub ids of prompts to forget in other words, which unlearning must not have seen: a bound on the share "
        "that opens no gate is reported.",
        group="data",
        form="path",
    )
    alpha: float = option(
        0.01,
        "Largest share of normal prompts that may open any gate.",
        group="guarantee",
        minimum=1e-6,
        maximum=MOST_SHARE,
    )
    miss_rate: float | None = option(
        None,
        "Largest share of prompts like those in paraphrases that may open no gate; half of them set the thresholds. "
        "Default: thresholds do not depend on them.",
        group="guarantee",
        minimum=1e-6,
        maximum=MOST_SHARE,
    )
    delta: float = option(
        0.05,
        "Probability that such a share is exceeded after all, for each of them.",
        group="guarantee",
        minimum=1e-9,
        maximum=0.5,
    )
    template: str = option("auto", "Prompt template, as in the other commands.", group="data", form="words")
    columns: dict[str, str] = option(
        {}, "Columns of your files, as field=column (prompt=frage); the same in all of them.", group="data"
    )
    max_length: int | None = option(
        None, "Longest row, in tokens. Default: the model's context.", group="data", minimum=8, maximum=10_000_000
    )
    batch_size: int = option(
        16, "Prompts are read in batches of four times this size.", group="machine", minimum=1, maximum=65_536
    )


@dataclass(frozen=True, kw_only=True)
class CalibrateRequestsConfig(CalibrateConfig):
    """Settings of `grun request calibrate`: the same promise for everything in force."""

    MAIN: ClassVar[tuple[str, ...]] = ("ledger", "model", "normal", "forget", "alpha")

    ledger: str = option("", "Directory of the ledger.", group="request", form="path")


@dataclass(frozen=True, kw_only=True)
class ImportConfig(JobConfig):
    """Settings of `grun import`: take over an adapter of the reference implementation."""

    MAIN: ClassVar[tuple[str, ...]] = ("checkpoint", "model", "output")

    checkpoint: str = option(
        "",
        "Directory of a checkpoint of the reference implementation (pyreft interventions).",
        group="run",
        form="path",
    )
    model: str = option("", "Hub id or folder of the base model that it was trained on.", group="run", form="path")
    output: str = option(
        "imported", "Directory to write the adapter and the run's records to.", group="run", form="path"
    )


@dataclass(frozen=True, kw_only=True)
class LedgerConfig:
    """Settings of the commands that look at a ledger, or change what is in force; none has all of them.

    A text that is missing here was not asked for; one that is empty is refused.
    """

    MAIN: ClassVar[tuple[str, ...]] = ("ledger",)

    ledger: str | None = option(None, "Directory of the ledger (to read, also a hub id).", group="request", form="path")
    id: str | None = option(None, "Id of the request.", group="request")
    output: str | None = option(None, "Directory to write the adapter to.", group="run", form="path")
    scale: float | None = option(
        None, "Factor of all edits. Default: 1.", group="method", minimum=0.0, maximum=1_000_000
    )
    model: str | None = option(None, "Base model, to compare with the ledger's.", group="method", form="path")
    data: list[str] = option([], "The rows of a request, as ID=FILE.", group="data", form="split")
    device: str | None = option(None, "Device to run on.", group="machine", pattern=DEVICE)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of `grun compare`: put evaluations side by side."""

    MAIN: ClassVar[tuple[str, ...]] = ("runs", "metrics", "splits")

    runs: list[str] = option(
        [],
        "Directories of evaluations; the others are compared with the first.",
        group="measuring",
        form="path",
    )
    metrics: list[str] = option([], "Only these metrics.", group="measuring", choices_from="metrics")
    splits: list[str] = option([], "Only these splits.", group="measuring")
    output: str | None = option(None, "Folder to write comparison.json and comparison.md to.", group="run", form="path")
    seed: int = option(0, "Seed of the bootstrap.", group="run", minimum=0, maximum=MOST_SEED)

    def __post_init__(self) -> None:
        check_fields(self)
