"""Recipes: the loss that the settings of a job ask for. Combinations that cannot work are refused."""

from __future__ import annotations

__all__ = ["freeze_unreached", "recipe_of", "resolved_hidden_layer"]

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import UserError
from grun.core.records import Batch
from grun.models.adaptations import adaptations
from grun.models.forward import gates_of_last_call, side_signals
from grun.models.tuner.base_model import decoder_layers, layer_index, parsed_layer
from grun.training.loss.terms import Recipe, Weights, steering_direction
from grun.training.objectives import needs_of, objective_options, objectives, retain_losses

WEIGHTS_LAYER = 0.22  # hidden layer if weights are trained: layer 7 of 32, as in RMU


def recipe_of(config: UnlearnConfig) -> Recipe:
    """The loss that a job minimises, before the model is known.

    Args:
        config: settings of the job, presets filled in.

    Raises:
        UserError: for an unknown objective, retain loss or option, or a combination that cannot work.
    """
    entry = objectives.get(config.objective)
    retain = retain_losses.get(config.retain_loss or entry.info["retain"])
    bounded = config.retain_bound is not None or entry.info.get("constrained", False)
    if bounded and retain.name == "none":
        raise UserError(
            f"--retain-loss is none, but objective '{entry.name}' bounds the retain loss (--retain-bound): choose ce, kl or "
            "mse."
        )
    if bounded and config.retain_bound is None and retain.name != "ce":
        raise UserError(
            f"--retain-bound is missing: with --retain-loss {retain.name} there is no usual bound; give the largest "
            "acceptable loss."
        )
    return Recipe(
        objective=partial(entry.target, **objective_options(entry, config.objective_options)),
        retain_loss=retain.target,
        needs=needs_of(entry, retain),
        weights=Weights(
            forget=_given(config.forget_weight, entry.info.get("forget_weight", 1.0)),
            retain=_given(config.retain_weight, entry.info.get("retain_weight", 1.0)),
            gate=0.0 if config.fit_gate_first else (config.gate_weight or 0.0),
            forget_class=config.gate_class_weight,
            warmup=config.gate_warmup,
        ),
    )


def resolved_hidden_layer(recipe: Recipe, config: UnlearnConfig, model: nn.Module) -> Recipe:
    """The recipe with its hidden layer and steering direction, if its loss reads hidden states.

    Raises:
        UserError: if the layer is out of range, or a layer was given although the loss reads no hidden states.
    """
    looks = any("hidden" in quantities for quantities in recipe.needs.values())
    if not looks:
        if config.hidden_layer is not None:
            raise UserError(
                f"--hidden-layer is {config.hidden_layer}, but neither objective '{config.objective}' nor its retain loss "
                "looks at hidden states; rmu and mse do."
            )
        return recipe
    count = len(decoder_layers(model)[1])
    edits = adaptations.get(config.adapt).info.get("edits", False)
    if config.hidden_layer is not None:
        layer = _layer_from(config.hidden_layer, count, "--hidden-layer")
    elif edits:
        layer = max(_layer_from(text, count, "--layers") for text in str(config.layers).split(","))
    else:
        layer = _layer_from(str(WEIGHTS_LAYER), count, "--hidden-layer")
    size = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    return replace(recipe, hidden_layer=layer, steering_D=steering_direction(size, config.seed).to(model.device))  # type: ignore[arg-type]


def freeze_unreached(model: Any, recipe: Recipe, batch: Batch) -> None:
    """Freeze parameters that the loss cannot reach because it only reads the output of a lower layer.

    They would not change in any case, but several processes wait for the gradients of all trained parameters.

    Args:
        model: the adapted model.
        recipe: the loss that is minimised.
        batch: any rows.

    Raises:
        UserError: if an edit is among them, which would keep its random initial values.
    """
    if recipe.reads_tokens or recipe.hidden_layer is None:
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer = decoder_layers(base)[1][recipe.hidden_layer]
    reached = _reached(side_signals(model, batch, wanted={"hidden"}, layer=layer).hidden_ND)
    gates = gates_of_last_call(model) if recipe.weights.gate else None
    if gates is not None:
        reached |= _reached(gates[0])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in reached:
            continue
        if ".grun_edit." in name:
            raise UserError(
                f"--hidden-layer is {recipe.hidden_layer}, but --layers edits layers above it, which the loss cannot reach: "
                "lower --layers, or raise --hidden-layer."
            )
        parameter.requires_grad = False


def _reached(values: Tensor) -> set[int]:
    """Identities of the parameters that a tensor depends on."""
    nodes, seen, found = [values.grad_fn], set[Any](), set[int]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        nodes += [following for following, _ in node.next_functions]
    return found


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _layer_from(text: str, num_layers: int, flag: str) -> int:
    """The index of a layer given on the command line as an index or as a fraction of depth.

    Raises:
        UserError: naming the flag, if it is neither, or out of range.
    """
    value = parsed_layer(text, flag)
    in_range = 0.0 < value <= 1.0 if isinstance(value, float) else 0 <= value < num_layers
    if not in_range:
        raise UserError(
            f"{flag} is {text}, but the model has {num_layers} layers (0 to {num_layers - 1}; or a fraction of depth)."
        )
    return layer_index(value, num_layers)
