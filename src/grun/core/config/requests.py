"""The configuration of jobs around removal requests; see `grun.core.config.jobs`."""

from __future__ import annotations

__all__ = ["CalibrateConfig", "CalibrateRequestsConfig", "ImportConfig", "RequestConfig"]

from dataclasses import dataclass
from typing import ClassVar

from grun.core.config.jobs import JobConfig, UnlearnConfig
from grun.core.config.schema import option


@dataclass(frozen=True, kw_only=True)
class RequestConfig(UnlearnConfig):
    """Settings of `grun request add`: those of `grun unlearn`, and the ledger that the request is written to."""

    MAIN: ClassVar[tuple[str, ...]] = ("ledger", "model", "retain", "objective", "why")

    ledger: str = option("", "Directory of the ledger; it is made if it is not there yet.", group="request")
    id: str | None = option(
        None, "Id of the request: lower-case letters, digits, dashes. Default: the next number.", group="request"
    )
    why: str = option("", "Reason of the request, in your own words.", group="request")
    keep_data: bool = option(
        False,
        "Keep the rows in the ledger, so that later requests and `verify` can measure whether they are still forgotten.",
        group="request",
    )


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(JobConfig):
    """Settings of `grun calibrate`: promise that normal prompts are left alone."""

    MAIN: ClassVar[tuple[str, ...]] = ("model", "adapter", "normal", "forget", "output")

    output: str = option("calibrated", "Directory to write the adapter and the run's records to.", group="run")
    model: str = option("", "Hub id or folder of the base (target) model.", group="guarantee")
    adapter: str = option(
        "", "Adapter directory (or the run directory that holds it); it stays as it is.", group="guarantee"
    )
    normal: list[str] = option(
        [],
        "Files or hub ids of normal prompts, drawn as those to come will be; unlearning must not have seen them.",
        group="data",
    )
    forget: list[str] = option(
        [],
        "Files or hub ids of prompts to open for: the share that opens a gate is reported, and one adapter's gates are "
        "placed by them.",
        group="data",
    )
    alpha: float = option(
        0.01,
        "Largest share of normal prompts that may open any gate.",
        group="guarantee",
        minimum=1e-6,
        maximum=0.5,
    )
    delta: float = option(
        0.05, "Probability that this share is exceeded after all.", group="guarantee", minimum=1e-9, maximum=0.5
    )
    template: str = option("auto", "Prompt template, as in the other commands.", group="data")
    columns: dict[str, str] = option(
        {}, "Columns of your files, as field=column (prompt=frage); the same in all of them.", group="data"
    )
    max_length: int | None = option(
        None, "Longest row, in tokens. Default: the model's context.", group="data", minimum=8
    )
    batch_size: int = option(16, "Prompts are read in batches of four times this size.", group="machine", minimum=1)


@dataclass(frozen=True, kw_only=True)
class CalibrateRequestsConfig(CalibrateConfig):
    """Settings of `grun request calibrate`: the same promise for everything in force."""

    MAIN: ClassVar[tuple[str, ...]] = ("ledger", "model", "normal", "forget", "alpha")

    ledger: str = option("", "Directory of the ledger.", group="request")


@dataclass(frozen=True, kw_only=True)
class ImportConfig(JobConfig):
    """Settings of `grun import`: take over an adapter of the reference implementation."""

    MAIN: ClassVar[tuple[str, ...]] = ("checkpoint", "model", "output")

    checkpoint: str = option(
        "", "Directory of a checkpoint of the reference implementation (pyreft interventions).", group="run"
    )
    model: str = option("", "Hub id or folder of the base model that it was trained on.", group="run")
    output: str = option("imported", "Directory to write the adapter and the run's records to.", group="run")
