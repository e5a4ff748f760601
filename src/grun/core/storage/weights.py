"""Weights: whether they are finite, and which weights an adapter was made for."""

from __future__ import annotations

__all__ = ["WRITTEN_OUT", "base_weights", "check_same_base", "not_finite", "other_weights"]

import hashlib
import math
from collections.abc import Mapping

import torch
import transformers
from torch import Tensor, nn

from grun.core.errors import UserError

SAMPLES = 4096  # values of each tensor that are looked at
DIGITS = 24
ORDINARY = "weights"
WRITTEN_OUT = "written_out_of_quantised_weights"  # attribute of a model whose quantised weights were written out


def base_weights(model: nn.Module) -> str | None:
    """A short text on the weights of a model, whatever adapters are on it.

    Its parts are the kind of the weights, the version of transformers, a hash of the names and shapes of all parameters,
    and a hash of up to 4096 evenly spaced values of each, rounded to bfloat16: float32 and bfloat16 copies of the same
    weights agree. Weights in float16 and those written out of a quantised file are of kinds of their own, since they are
    rounded otherwise.

    Returns:
        None if the weights cannot be compared: they are quantised, or not all in this process (meta device, ZeRO-3, FSDP).
    """
    added = tuple(f"{place}.{part}." for place, module in model.named_modules() for part in _added_by_adapters(module))
    named = ((name, tensor) for name, tensor in model.named_parameters() if not name.startswith(added))
    own = {canonical: tensor for name, tensor in named if (canonical := _canonical(name))}
    if not own or any(_is_elsewhere(tensor) or not tensor.is_floating_point() for tensor in own.values()):
        return None
    structure, values = hashlib.sha256(), hashlib.sha256()
    for name in sorted(own):
        tensor = own[name].detach()
        structure.update(f"{name} {tuple(tensor.shape)}\n".encode())
        values.update(_sampled(tensor).view(torch.int16).cpu().numpy().tobytes())
    kind = ORDINARY
    if getattr(model, WRITTEN_OUT, False):
        kind = "written-out"
    elif any(tensor.dtype == torch.float16 for tensor in own.values()):
        kind = "float16"
    version = ".".join(transformers.__version__.split(".")[:2])
    return " ".join([kind, version, structure.hexdigest()[:DIGITS], values.hexdigest()[:DIGITS]])


def check_same_base(model: nn.Module, recorded: str | None, name: str | None, said: str = "this adapter") -> str | None:
    """Check that a model has the weights that an adapter was made for, as far as the two can be compared.

    They cannot where nothing is recorded (by earlier versions), where the weights are of another kind, and where the names
    and shapes of parameters differ but the versions of transformers do too.

    Args:
        model: the base model; adapters on it do not matter.
        recorded: `base_weights` of the model that the adapter was made for.
        name: of that model.
        said: how a message begins.

    Returns:
        What to record: the weights of this model if nothing was recorded.

    Raises:
        UserError: if the model certainly has other weights.
    """
    found = base_weights(model)
    if recorded is None or found is None:
        return recorded or found
    if other_weights(found, recorded):
        made_for = f"'{name}'" if name else "another model"
        how = " of the same shape" if found.split(" ")[2] == recorded.split(" ")[2] else ""
        own = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        raise UserError(
            f"{said} was made for the weights of {made_for}, but '{own}' is another model{how}: name the model that the "
            "adapter was made for with --model."
        )
    return recorded


def other_weights(one: str, other: str) -> bool:
    """Check whether two texts of `base_weights` are certainly of different weights."""
    (kind, version, structure, values), parts = one.split(" "), other.split(" ")
    if len(parts) != 4 or kind != parts[0]:
        return False
    return values != parts[3] if structure == parts[2] else version == parts[1]


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinity; None if there is none.

    A gate that was not calibrated has a threshold of minus infinity.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta or bool(tensor.isfinite().all()):
            continue
        if not (name.endswith("threshold") and bool((tensor.isfinite() | (tensor == -math.inf)).all())):
            return name
    return None


def _added_by_adapters(module: nn.Module) -> tuple[str, ...]:
    """Names of the parts of a layer of PEFT that hold parameters of adapters, whatever their kind."""
    return tuple(getattr(module, "adapter_layer_names", ()))


def _canonical(name: str) -> str:
    """The name of a parameter as it is without adapters; empty for a parameter of an adapter."""
    parts = [part for part in name.split(".") if part not in ("base_layer", "original_module")]
    if any(part.startswith(("grun_", "lora_")) or part == "modules_to_save" for part in parts):
        return ""
    return ".".join(parts)


def _is_elsewhere(tensor: Tensor) -> bool:
    sharded = hasattr(tensor, "ds_id") or hasattr(tensor, "device_mesh") or getattr(tensor, "_is_flat_param", False)
    return tensor.is_meta or tensor.numel() == 0 or sharded


def _sampled(tensor: Tensor) -> Tensor:
    """Evenly spaced values in bfloat16, in the order in which they lie in memory; never a copy of the whole tensor."""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.contiguous().reshape(-1)
    step = max(1, flat.numel() // SAMPLES)
    return flat[::step][:SAMPLES].to(torch.bfloat16).contiguous()
