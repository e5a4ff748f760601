"""A base model with everything that jobs need beside it: the one place where jobs load models."""

from __future__ import annotations

__all__ = ["GivenModel", "LoadedModel", "content_if_given", "load"]

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grun.core.config.jobs import JobConfig
from grun.core.errors import UserError
from grun.core.process.threads import fit_threads
from grun.core.python_objects import python_object
from grun.core.storage.content_hash import content_of_model, content_of_weights
from grun.models.encoding.templates import Template, resolve_template
from grun.models.forward import longest_row
from grun.models.loading.fit import check_decoder, check_finite
from grun.models.loading.pretrained import load_model_and_tokenizer
from grun.models.loading.restoring import Snapshot
from grun.models.row_encoder import RowEncoder

BATCH_SIZE = 16


@dataclass(frozen=True)
class GivenModel:
    """A model that the caller has loaded already, with its tokenizer; see `grun.core.python_objects`.

    Every job gets it as the caller had it, whatever an earlier one put into it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    before: Snapshot

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GivenModel:
        """A model in its present state."""
        return cls(model, tokenizer, Snapshot(model))

    def check(self, said: str) -> None:
        """Check that the model is a decoder with finite weights that fits its tokenizer.

        Args:
            said: how a message begins.

        Raises:
            UserError: if it is not.
        """
        check_finite(self.model, said)
        check_decoder(self.model, self.tokenizer, said)


@dataclass(frozen=True)
class LoadedModel:
    """A base model in evaluation mode, and how rows of text are written for it.

    Attributes:
        model: on its device.
        encoder: tokenizer, template, longest row, and batches on the model's device.
        was_given: the caller has loaded it, so its folder says nothing certain about its weights.
    """

    model: PreTrainedModel
    encoder: RowEncoder
    was_given: bool = False

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model."""
        return self.encoder.tokenizer

    @property
    def template(self) -> Template:
        """How prompts are written."""
        return self.encoder.template

    @property
    def max_length(self) -> int | None:
        """Longest row in tokens; None if neither the settings nor the model name one."""
        return self.encoder.max_length

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.encoder.device

    @cached_property
    def content(self) -> str | None:
        """Hash or revision that tells this model from all others; None if neither is known."""
        return content_of_weights(self.model) if self.was_given else content_of_model(self.model)


def load(
    name: str,
    config: JobConfig,
    *,
    template: str = "auto",
    max_length: int | None = None,
    batch_size: int = BATCH_SIZE,
    quantize: str | None = None,
) -> LoadedModel:
    """Load the model that a job asks for, or take the one that the caller has loaded; that one stays on its device.

    Args:
        name: hub id or folder, or a name that stands for a `GivenModel`.
        config: dtype, device and whether code of a hub repository may run.
        template: prompt template, see `resolve_template`.
        max_length: longest row asked for, in tokens; the model's context bounds it.
        batch_size: rows of a training batch and side.
        quantize: `8bit` or `4bit`, see `load_model_and_tokenizer`.

    Raises:
        UserError: if there is no such model, the template does not fit its tokenizer, or a loaded model is to be quantised.
    """
    given: GivenModel | None = python_object(name)
    model: Any
    if given is None:
        model, tokenizer = load_model_and_tokenizer(
            name,
            dtype=config.dtype,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
            quantize=quantize,
        )
        fit_threads(model.num_parameters(), model.device.type)
    elif quantize is not None:
        raise UserError(
            f"--quantize is {quantize}, but the model is loaded already: load it quantised, or give its name."
        )
    else:
        given.before.restore()
        given.check(f"model '{name}'")
        model, tokenizer = given.model.eval(), given.tokenizer
    written = resolve_template(template, tokenizer)
    encoder = RowEncoder(tokenizer, written, longest_row(model, max_length), batch_size, model.device)
    return LoadedModel(model, encoder, given is not None)


def content_if_given(name: str) -> str:
    """A hash of the weights of the model that a name stands for; empty for an ordinary name, whose files say enough."""
    given: GivenModel | None = python_object(name)
    return "" if given is None else content_of_weights(given.model)
