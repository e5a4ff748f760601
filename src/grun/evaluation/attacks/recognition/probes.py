"""Hidden states at the end of prompts, by which forgotten ones may be told from unknown ones."""

from __future__ import annotations

__all__ = ["probes"]

from contextlib import nullcontext

import numpy as np
import torch

from grun.evaluation.attacks import AttackMaterial, attacks
from grun.evaluation.attacks.opened import Opened
from grun.evaluation.attacks.separation import Features, Matrix
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
    found: list[Matrix | None] = [None] * len(rows)
    with evaluating(model), nullcontext() if opened.adapters else adapters_off(model), torch.no_grad():
        for numbers, batch in encoder.batches(rows):
            states: list[torch.Tensor] = []
            inputs = batch.model_inputs()
            if accepts_prompt_lengths(model) and opened.adapters:
                inputs = {**inputs, "prompt_lengths": batch.prompt_lengths_B}
            with observed_outputs(layer, states):
                model(**inputs, use_cache=False)
            first_B = batch.attention_mask_BT.int().argmax(1)
            for i, at in zip(numbers, (first_B + batch.prompt_lengths_B - 1).tolist(), strict=True):
                found[i] = states[0][numbers.index(i), at].float().cpu().numpy().astype(np.float64)
    return {"last layer": np.stack([one for one in found if one is not None])}
