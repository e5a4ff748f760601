"""The configuration of jobs around removal requests; see `grun.core.config.jobs`."""

from __future__ import annotations

__all__ = ["CalibrateConfig", "CalibrateRequestsConfig", "ImportConfig", "RequestConfig"]

from dataclasses import dataclass

from grun.core.config.jobs import JobConfig, UnlearnConfig
from grun.core.config.schema import option


@dataclass(frozen=True, kw_only=True)
class RequestConfig(UnlearnConfig):
    """Settings of `grun request add`: those of `grun unlearn`, and where the request is written down."""

    ledger: str = option("", "Directory of the ledger; it is made if it is not there yet.")
    id: str | None = option(None, "Id of the request: lower-case letters, digits, dashes. Default: the next number.")
    why: str = option("", "Why, in your own words.")
    keep_data: bool = option(
        False, "Keep the rows in the ledger, so that later requests and `verify` can measure what is still forgotten."
    )


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(JobConfig):
    """Settings of `grun calibrate`: promise that normal prompts are left alone."""

    output: str = option("calibrated", "Directory to write the adapter and the run's records to.")
    model: str = option("", "Hub id or folder of the base (target) model.")
    adapter: str = option("", "Adapter directory (or the run directory that holds it); it stays as it is.")
    normal: list[str] = option(
        [], "Files or hub ids of normal prompts, drawn as those to come will be; unlearning must not have seen them."
    )
    forget: list[str] = option(
        [],
        "Files or hub ids of prompts to open for: how many do is reported, and one adapter's gates are placed by them.",
    )
    alpha: float = option(0.01, "Largest share of normal prompts that may open any gate.", minimum=1e-6, maximum=0.5)
    delta: float = option(0.05, "Probability with which that may turn out wrong.", minimum=1e-9, maximum=0.5)
    template: str = option("auto", "Prompt template, as in the other commands.")
    columns: dict[str, str] = option(
        {}, "Columns of your files, as field=column (prompt=frage); the same in all of them."
    )
    max_length: int | None = option(None, "Longest row, in tokens. Default: the model's context.", minimum=8)
    batch_size: int = option(16, "Prompts are read in batches of four times this size.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class CalibrateRequestsConfig(CalibrateConfig):
    """Settings of `grun request calibrate`: the same promise for everything in force."""

    ledger: str = option("", "Directory of the ledger.")


@dataclass(frozen=True, kw_only=True)
class ImportConfig(JobConfig):
    """Settings of `grun import`: take over what the reference implementation has trained."""

    checkpoint: str = option("", "Directory of a checkpoint of the reference implementation (pyreft interventions).")
    model: str = option("", "Hub id or folder of the base model that it was trained on.")
    output: str = option("imported", "Directory to write the adapter and the run's records to.")
