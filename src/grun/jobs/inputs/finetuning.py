"""Rows that a target model is trained on."""

from __future__ import annotations

__all__ = ["load_rows"]

from grun.core.config.jobs import FinetuneConfig
from grun.core.errors import UserError
from grun.core.records import Example
from grun.data.benchmarks import load_benchmark
from grun.data.examples import read_examples


def load_rows(config: FinetuneConfig) -> list[Example]:
    """The rows to train on.

    Raises:
        UserError: for missing or contradictory settings, or unreadable data.
    """
    if bool(config.benchmark) == bool(config.data):
        found = (
            "were both given; take the rows from one of them" if config.data else "are both missing: give one of them"
        )
        raise UserError(f"--benchmark and --data {found}.")
    if config.data:
        if config.split != "full":
            raise UserError(f"--split is '{config.split}', but files have no splits; leave it out, or use --benchmark.")
        return [row for source in config.data for row in read_examples(source, columns=config.columns)]
    data = load_benchmark(
        config.benchmark or "", data_dir=config.data_dir, seed=config.seed, options=config.benchmark_options
    )
    names = {"full": data.full, "retain": tuple(name for name in data.full if name != data.forget)}
    rows = [row for name in names[config.split] for row in data.splits[name]]
    if not rows:
        raise UserError(
            f"--benchmark {config.benchmark} has nothing to train a target model on: it asks for what pretrained models know; "
            "give one to grun unlearn."
        )
    return rows
