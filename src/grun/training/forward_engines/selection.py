"""Which way training goes: on from a cached prefix, where that is the same, or through the whole model on whole rows."""

from __future__ import annotations

__all__ = ["PlainPath", "TrainingPath", "chosen_path"]

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from grun.core.config.jobs import UnlearnConfig
from grun.core.distributed import world
from grun.core.storage.content_hash import content_of_model, subject_folder
from grun.models.adaptations import adaptations
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.forward import adapters_off, evaluating, side_signals
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.model import decoder_layers
from grun.training.forward_engines.base_references import base_model_references
from grun.training.forward_engines.prefix.cache import PrefixCache, first_edited
from grun.training.forward_engines.prefix.store import PartStore
from grun.training.loss.terms import Recipe

logger = logging.getLogger("grun")
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of log-probabilities; half precision has 8 or 11 bits
HALF_PRECISION = 0.25


class TrainingPath(Protocol):
    """What a run asks about its rows."""

    facts: dict[str, float]

    def references(self, rows: Sequence[Encoded], drawn: Collection[int], wanted: Collection[str]) -> Any:
        """Quantities of the base model by name, one tensor per row; empty for rows that are not drawn."""

    def base_probability(self, rows: Sequence[Encoded]) -> float:
        """Mean answer probability under the base model."""

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """The same under the adapted model."""


@dataclass
class PlainPath:
    """Whole rows through the whole model."""

    model: nn.Module
    rows: RowEncoder
    observed: nn.Module | None
    facts: dict[str, float] = field(default_factory=dict)

    def references(
        self, rows: Sequence[Encoded], drawn: Collection[int], wanted: Collection[str]
    ) -> dict[str, list[Tensor]]:
        """As the protocol says."""
        return base_model_references(self.rows, self.model, rows, drawn, wanted, self.observed)

    def base_probability(self, rows: Sequence[Encoded]) -> float:
        """As the protocol says."""
        with adapters_off(self.model), evaluating(self.model):
            return self.rows.probability(self.model, rows)

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """As the protocol says."""
        return self.rows.probability(model, rows)


def chosen_path(
    config: UnlearnConfig,
    model: Any,
    rows: RowEncoder,
    recipe: Recipe,
    arguments: TrainingArguments,
    known: Sequence[Encoded],
) -> PlainPath | PrefixCache:
    """The cached prefix, unless it cannot be or gives something else; then the plain path, with one line that says why.

    Args:
        config: of the job.
        model: adapted; its base model frozen, unless all of it is trained.
        rows: makes batches.
        recipe: what is minimised.
        arguments: of the trainer.
        known: rows that are looked at in any case; two of them are computed both ways.
    """
    layers = decoder_layers(model.get_base_model() if hasattr(model, "get_base_model") else model)[1]
    observed = None if recipe.hidden_layer is None else layers[recipe.hidden_layer]
    plain = PlainPath(model, rows, observed)
    if not config.prefix_cache or not adaptations.get(config.adapt).info.get("edits", False):
        return plain
    reason = _obstacle(model, recipe, arguments)
    if reason is None:
        prefix = PrefixCache(model, rows, observed, _store(config, model, recipe))
        reason = _difference(
            prefix, plain, sorted(known, key=lambda row: len(row.input_ids))[:: max(1, len(known) - 1)]
        )
        if reason is None:
            return prefix
    logger.info("Training runs whole rows through the whole model: %s.", reason)
    return plain


def _store(config: UnlearnConfig, model: Any, recipe: Recipe) -> PartStore:
    """Memory, or the folder for this model in `--cache-dir`."""
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


def _obstacle(model: Any, recipe: Recipe, arguments: TrainingArguments) -> str | None:
    """Why the prefix cannot be cached, in words."""
    first = first_edited(model)
    dropped = next((m.p for m in model.get_base_model().modules() if isinstance(m, nn.Dropout) and m.p > 0), 0.0)
    if world() > 1:
        return "several processes share it"
    if dropped > 0:
        return f"the base model has dropout ({dropped:g}), so nothing in it stays the same"
    if arguments.gradient_checkpointing:
        return "activation checkpointing was asked for"
    if recipe.hidden_layer is not None and recipe.hidden_layer < first:
        return f"the loss looks at layer {recipe.hidden_layer}, below the first edited one, {first}"
    return None


def _difference(prefix: PrefixCache, plain: PlainPath, rows: Sequence[Encoded]) -> str | None:
    """Compute some rows both ways; how the cached one fails or differs, in words."""
    model = prefix.model
    batch = collate(rows, plain.rows.pad).to(plain.rows.device)
    with evaluating(model):
        expected_N = side_signals(model, batch, with_grad=False).logps_N
        try:
            prefix.add(rows)
            found_N = prefix.signals(prefix.batch(rows).to(plain.rows.device), {"logps"}, with_grad=False).logps_N
        except (
            AttributeError,
            IndexError,
            KeyError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            return f"its architecture cannot begin in the middle ({type(error).__name__}: {reason})"
    gap = float((found_N - expected_N).abs().max())
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    allowed = TOLERANCE.get(dtype, HALF_PRECISION)
    return (
        None
        if gap <= allowed
        else f"its architecture gives something else there (log-probabilities differ by {gap:.2g})"
    )
