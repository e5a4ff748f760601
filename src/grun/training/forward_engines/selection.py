"""Choice of the forward engine of a run: from a cached prefix if that gives the same values, else on whole rows."""

from __future__ import annotations

__all__ = ["chosen_engine"]

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from grun.core.config.jobs import UnlearnConfig
from grun.core.storage.content_hash import content_of_model, subject_folder
from grun.models.adaptations import adaptations
from grun.models.encoding.encode import Encoded
from grun.models.forward import evaluating
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.base_model import decoder_layers
from grun.training.forward_engines.engine import ForwardEngine
from grun.training.forward_engines.plain import PlainEngine
from grun.training.forward_engines.prefix.engine import PrefixEngine
from grun.training.forward_engines.prefix.requirements import (
    CannotContinue,
    check_architecture,
    check_run,
    first_edited,
)
from grun.training.forward_engines.prefix.store import PartStore
from grun.training.loss.terms import Recipe

logger = logging.getLogger("grun")
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of log-probabilities; half precision has 8 or 11 bits
HALF_PRECISION = 0.25


def chosen_engine(
    config: UnlearnConfig,
    model: Any,
    rows: RowEncoder,
    recipe: Recipe,
    arguments: TrainingArguments,
    known: Sequence[Encoded],
) -> ForwardEngine:
    """The engine with a cached prefix, or the plain one if the prefix was switched off or is refused.

    The reason of a refusal is logged in one line.

    Args:
        config: of the job.
        model: adapted; its base model frozen, unless all of it is trained.
        rows: makes batches.
        recipe: the loss that is minimised.
        arguments: arguments of the trainer.
        known: rows to validate on; two of them are computed by both engines.
    """
    layers = decoder_layers(model.get_base_model() if hasattr(model, "get_base_model") else model)[1]
    observed = None if recipe.hidden_layer is None else layers[recipe.hidden_layer]
    plain = PlainEngine(model, rows, observed)
    if not config.prefix_cache or not adaptations.get(config.adapt).info.get("edits", False):
        return plain
    try:
        check_run(model, recipe.hidden_layer, arguments)
        check_architecture(model.get_base_model())
        prefix = PrefixEngine(model, rows, observed, _store(config, model, recipe))
        _check_values(prefix, plain, _shortest_and_longest(known))
    except CannotContinue as refusal:
        logger.info("Training runs whole rows through the whole model: %s.", refusal.reason)
        return plain
    return prefix


def _store(config: UnlearnConfig, model: Any, recipe: Recipe) -> PartStore:
    """Storage in memory, or in the folder for this model in `--cache-dir`."""
    if config.cache_dir is None:
        return PartStore()
    base = model.get_base_model()
    settings = {
        "layer": first_edited(model),
        "observed": recipe.hidden_layer,
        "dtype": base.dtype,
        "device": config.device,
    }
    found = subject_folder([content_of_model(base)], settings)
    return PartStore(None if found is None else Path(config.cache_dir).expanduser() / "prefix" / found.name)


def _shortest_and_longest(rows: Sequence[Encoded]) -> list[Encoded]:
    return sorted(rows, key=lambda row: len(row.input_ids))[:: max(1, len(rows) - 1)]


def _check_values(prefix: PrefixEngine, plain: PlainEngine, rows: Sequence[Encoded]) -> None:
    """Refuse a prefix engine whose log-probabilities of some rows differ from the plain engine's.

    Raises:
        CannotContinue: if they differ by more than rounding in the model's dtype.
    """
    model = plain.model
    with evaluating(model):
        prefix.add(rows)
        expected_N, found_N = (_logps(engine, model, rows, plain.encoder.device) for engine in (plain, prefix))
    gap = float((found_N - expected_N).abs().max())
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    if not gap <= TOLERANCE.get(dtype, HALF_PRECISION):
        raise CannotContinue(f"its architecture gives something else there (log-probabilities differ by {gap:.2g})")


def _logps(engine: ForwardEngine, model: nn.Module, rows: Sequence[Encoded], device: torch.device) -> Tensor:
    """Log-probabilities (N,) of the answer tokens of some rows."""
    inputs = {name: value.to(device) for name, value in engine.batch(rows).items()}
    return engine.signals(model, inputs, {"logps"}, with_grad=False).logps_N
