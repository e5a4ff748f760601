"""Hidden states at the end of prompts, by which forgotten ones may be told from unknown ones."""

from __future__ import annotations

__all__ = ["probes"]

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from grun.evaluation.attacks import AttackMaterial, attacks
from grun.evaluation.attacks.opened import Opened
from grun.evaluation.attacks.separation import Features
from grun.models.forward import (
    accepts_prompt_lengths,
    adapters_off,
    evaluating,
    language_model,
    observed_outputs,
)
from grun.models.tuner.base_model import decoder_layers


@attacks.register(
    "probes",
    source="arXiv 2309.17410",
    measures="recognition",
    access="weights",
    needs=("unknown",),
    references=("before", "retain_only"),
)
def probes(material: AttackMaterial, opened: Opened) -> Features:
    """Probe hidden states at the last token of the prompts, above all edits (Patil et al.).

    Linear probes tell forgotten prompts from unknown ones (`--unknown`). They are fitted to one half of the rows, and judged
    on the other.
    """
    encoder, model = opened.encoder, opened.model
    rows = encoder.encode([*material.forget, *material.unknown])
    layer = decoder_layers(language_model(model))[1][-1]
    found_ND = np.zeros(0)
    with evaluating(model), nullcontext() if opened.adapters else adapters_off(model), torch.no_grad():
        for numbers, batch in encoder.batches(rows):
            states: list[Tensor] = []
            told = {"prompt_lengths": batch.prompt_lengths_B} if accepts_prompt_lengths(model) else {}
            with observed_outputs(layer, states):
                model(**batch.model_inputs(), **told, use_cache=False)
            h_BTD = states[-1].float().cpu()
            put_before = h_BTD.shape[1] - batch.input_ids_BT.shape[1]  # by an adapter that is itself a prompt
            last_B = batch.prompt_lengths_B.cpu() - 1 + put_before
            last_BD = h_BTD[torch.arange(len(numbers)), last_B].numpy().astype(np.float64)
            found_ND = found_ND if found_ND.size else np.zeros((len(rows), last_BD.shape[1]))
            found_ND[numbers] = last_BD
    return {"last layer": found_ND}
