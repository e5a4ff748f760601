"""What settings alone show to be wrong, before anything is read or loaded."""

from __future__ import annotations

__all__ = ["check_evaluation", "check_unlearning"]

from grun.core.config.jobs import DataConfig, EvaluateConfig, UnlearnConfig
from grun.core.errors import UserError
from grun.data.benchmarks import benchmark_options
from grun.evaluation.metrics import metrics
from grun.models.adaptations import adaptations, with_presets
from grun.training.loss.recipe import recipe_of
from grun.training.trainer_settings import parsed_settings

MISSING_MODEL = "--model is missing: give the hub id or the folder of the model."


def check_unlearning(config: UnlearnConfig) -> None:
    """Refuse a job that its settings alone rule out.

    Raises:
        UserError: naming the setting.
    """
    filled = with_presets(config)
    recipe_of(filled)
    adaptations.get(config.adapt).info.get("check", lambda config: None)(filled)
    parsed_settings(config.trainer)
    _check_benchmark(config)
    if not config.model:
        raise UserError(MISSING_MODEL)
    if not (config.forget or config.benchmark or config.topic):
        raise UserError("--forget is missing: give a file of what to forget, or --topic, or --benchmark.")


def check_evaluation(config: EvaluateConfig) -> None:
    """Refuse an evaluation that its settings alone rule out.

    Raises:
        UserError: naming the setting.
    """
    for name in config.metrics:
        metrics.get(name)
    _check_benchmark(config)


def _check_benchmark(config: DataConfig) -> None:
    if config.benchmark is not None:
        benchmark_options(config.benchmark, data_dir=config.data_dir, options=config.benchmark_options)
