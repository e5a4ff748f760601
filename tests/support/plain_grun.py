"""GRUN in plain torch, one unpadded row at a time: what the adapter is compared with. Imports nothing of the package."""

from __future__ import annotations

__all__ = ["orthonormal_columns", "plain_grun", "plain_topic_logit"]

import math
from typing import Any

import torch
from torch import Tensor


def orthonormal_columns(a_DR: Tensor) -> Tensor:
    """Gram-Schmidt in float64, column by column."""
    done: list[Tensor] = []
    for a_D in a_DR.double().unbind(1):
        for q_D in done:
            a_D = a_D - (q_D @ a_D) * q_D
        done.append(a_D / a_D.norm())
    return torch.stack(done, 1)


def plain_topic_logit(gate: dict[str, Tensor], h_TD: Tensor, nearest: int) -> Tensor:
    """Logit of a gate for topics on the states of one prompt, token by token and in float64; `gate` holds its tensors."""
    gate = {name: value.double() for name, value in gate.items()}
    attention, projected = [], []
    for h_D in h_TD.double().unbind(0):
        scaled_D = h_D / math.sqrt(sum(float(x) ** 2 for x in h_D) / len(h_D))
        attention.append(float(gate["attention"] @ scaled_D))
        projected.append(gate["projection"] @ scaled_D + gate["offset"])
    weight_T = torch.tensor(attention, dtype=torch.float64).softmax(0)
    mean_K = sum(weight * x_K for weight, x_K in zip(weight_T, projected, strict=True))
    assert isinstance(mean_K, Tensor)
    unit_K = mean_K / mean_K.norm()
    closeness = []
    for kept in ("forget", "normal"):
        cosines = sorted((float(unit_K @ (e_K / e_K.norm())) for e_K in gate[kept]), reverse=True)[:nearest]
        closeness.append(sum(cosines) / len(cosines))
    return gate["scale"] * (closeness[0] - closeness[1]) + gate["bias"]


def _readers(state: dict[str, Tensor], root: str, last: int, config: Any, gates: dict[int, Any]) -> tuple[Any, Any]:
    """Functions that put logit and threshold of a gate for names and of one for topics into `gates`, by layer.

    With them go the logits up to every token; a token after the prompt counts in calls without gradients.
    """

    def read(layer: int, h_TD: Tensor) -> None:
        goes_on = (
            config.gate_reads == "prompt" and config.edit_from == "last_prompt_on" and config.gate_layer is not None
        )
        goes_on = goes_on and not torch.is_grad_enabled()
        x = h_TD[last : last + 1] if config.gate_reads == "last" else h_TD if goes_on else h_TD[: last + 1]
        name = f"{root}.{layer}.grun_gate"
        depth = sum(f"{name}.layers.{i}.weight" in state for i in range(9))
        for i in range(depth):
            x = x @ state[f"{name}.layers.{i}.weight"].T.to(x) + state[f"{name}.layers.{i}.bias"].to(x)
            x = x.relu() if i + 1 < depth else x
            if i == 0:  # a detector that fired stays fired for a few tokens
                x = torch.stack([x[max(0, t + 1 - config.window) : t + 1].amax(0) for t in range(len(x))])
        prompt = x[: last + 1].max()
        later = [x[: t + 1].max() if goes_on else prompt for t in range(len(h_TD))]
        gates[layer] = (prompt, state[f"{name}.threshold"], torch.stack(later))

    def read_topic(h_TD: Tensor) -> None:
        name = f"{root}.{config.topic_layer}.grun_gate."
        gate = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
        logit = plain_topic_logit(gate, h_TD[: last + 1], config.topic_nearest)
        gates[config.topic_layer] = (logit.to(h_TD), gate["threshold"], logit.to(h_TD).expand(len(h_TD)))

    return read, read_topic


def plain_grun(
    model: Any, state: dict[str, Tensor], ids_T: Tensor, prompt_length: int, config: Any
) -> tuple[Tensor, list[Tensor]]:
    """Logits (T, V) of one row and its gate logits, from a base model and an adapter's checkpoint."""
    root = min(state, key=len).split(".grun_")[0].rpartition(".")[0]
    last, hooks = prompt_length - 1, []
    gates: dict[int, Any] = {}

    read, read_topic = _readers(state, root, last, config, gates)

    def before(module: Any, args: Any, kwargs: Any) -> None:
        read(config.gate_layer, (args[0] if args else kwargs["hidden_states"])[0])

    def before_topic(module: Any, args: Any, kwargs: Any) -> None:
        read_topic((args[0] if args else kwargs["hidden_states"])[0])

    def after(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            h_TD = (output[0] if isinstance(output, tuple) else output)[0]
            if config.gate != "none" and config.gate_layer is None:
                read(layer, h_TD)
            shared = (config.gate_layer, config.topic_layer)
            deciding = [layer] if config.gate_layer is None else [one for one in shared if one is not None]
            opened = [gates[one] for one in deciding if config.gate != "none"]
            used = [(prompt.expand_as(later) if prompt > limit else later, limit) for prompt, limit, later in opened]
            values = [logit_T.sigmoid() * (logit_T > limit) for logit_T, limit in used]
            value_T = torch.stack(values).amax(0) if values else torch.ones(len(h_TD))
            edit = {key: state[f"{root}.{layer}.grun_edit.{key}"].to(h_TD) for key in ("rotation", "weight", "bias")}
            r_RD = orthonormal_columns(edit["rotation"]).T.to(h_TD)
            phi_TD = torch.stack([r_RD.T @ (edit["weight"] @ h_D + edit["bias"] - r_RD @ h_D) for h_D in h_TD])
            columns_T = torch.arange(len(h_TD))
            where_T = columns_T >= last if config.edit_from == "last_prompt_on" else columns_T == last
            new = (h_TD + (value_T * where_T)[:, None] * phi_TD)[None]
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    layers = model.get_submodule(root.removeprefix("base_model.model."))
    if config.gate != "none" and config.gate_layer is not None:
        hooks.append(layers[config.gate_layer].register_forward_pre_hook(before, with_kwargs=True))
    if config.topic_layer is not None:
        hooks.append(layers[config.topic_layer].register_forward_pre_hook(before_topic, with_kwargs=True))
    hooks += [layers[layer].register_forward_hook(after(layer)) for layer in config.layers]
    try:
        return model(input_ids=ids_T[None]).logits[0], [logit for logit, *_ in gates.values()]
    finally:
        for hook in hooks:
            hook.remove()
