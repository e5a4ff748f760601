"""`grun import`: adapters that the reference implementation of GRUN has trained (a directory of pyreft interventions)."""

from __future__ import annotations

__all__ = ["import_reference"]

import re
import time
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

from grun.core.config.requests import ImportConfig
from grun.core.errors import UserError
from grun.core.storage.atomic_files import atomic_directory, sha256
from grun.core.storage.claims import claims_output, keeps
from grun.core.storage.run_directory import RunDirectory
from grun.models.gates.features import held_gates
from grun.models.loading.adapters import save_adapter
from grun.models.loading.loaded import load
from grun.models.loading.reading import reason
from grun.models.tuner.config import GrunConfig

FILE = re.compile(r"intkey_layer\.(\d+)\.comp\.block_output\.unit\.pos\.nunit\.1#0\.bin")
EXPECTED = "files intkey_layer.<layer>.comp.block_output.unit.pos.nunit.1#0.bin"
EDIT = ("weight", "bias", "rotate_layer")
INNER = "intervenable_model"  # where step checkpoints hold them


@keeps("nothing but its settings is there yet")
@claims_output
def import_reference(config: ImportConfig) -> Path:
    """Write what the reference implementation has trained as an adapter: the same gates and edits at the same place.

    Pickled files are read with `weights_only=True`: nothing in them is run.

    Returns:
        The directory of the adapter.

    Raises:
        UserError: if the directory holds no such interventions, they are broken, or do not fit the model.
    """
    if not config.checkpoint:
        raise UserError(f"--checkpoint is missing: give the directory with {EXPECTED}.")
    files = _files(config.checkpoint)
    states = {layer: _read(file) for layer, file in files.items()}
    digests = " ".join(sha256(file) for file in files.values())
    run = RunDirectory.open(config.output, config, "import", config.overwrite, data=digests)
    target = run.path / "adapter"
    if run.is_complete and target.is_dir():
        return target
    started = time.monotonic()
    settings = _settings(states, files)
    model = load(config.model, config).model
    width, found = model.config.get_text_config().hidden_size, next(iter(states.values()))["weight"].shape[1]
    if width != found:
        raise UserError(
            f"'{config.checkpoint}' is for a hidden size of {found}, but --model '{config.model}' has {width}."
        )
    adapted: Any = get_peft_model(model, GrunConfig.paper(**settings, base_model_name_or_path=config.model))
    run.start()
    with torch.no_grad():
        for layer, part in held_gates(adapted, "default"):
            _fill(layer.edits[part], layer.gates[part], states[layer.index])
    with atomic_directory(target) as directory:
        save_adapter(adapted, directory)
    run.mark_complete(time.monotonic() - started)
    return target


def _files(checkpoint: str) -> dict[int, Path]:
    """Files by layer."""
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        raise UserError(f"'{checkpoint}': there is no such directory; expected one with {EXPECTED}.")
    for where in (folder, folder / INNER):
        found = {int(m[1]): file for file in where.glob("*.bin") if (m := FILE.fullmatch(file.name))}
        if found:
            return dict(sorted(found.items()))
    raise UserError(f"'{checkpoint}' holds no interventions of the reference implementation; expected {EXPECTED}.")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of pickled files raises whatever damaged bytes lead it to
        why = reason(error) if file.stat().st_size else "it is empty"
        raise UserError(f"{file} cannot be read as tensors: {why}.") from error
    missing = [name for name in EDIT if not isinstance(state, dict) or name not in state]
    if missing:
        raise UserError(f"{file} has no {missing[0]}; expected {', '.join(EDIT)} and gate_func.*.")
    if not any(name.startswith("gate_func.") for name in state):
        raise UserError(f"{file} has no gate_func.*: it is a plain ReFT intervention, not one of GRUN.")
    used = {name: tensor for name, tensor in state.items() if name in EDIT or name.startswith("gate_func.")}
    for name, tensor in used.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise UserError(f"{file}: {name} holds no finite numbers.")
    _check_shapes(file, used)
    return {name: tensor.float() for name, tensor in used.items()}


def _check_shapes(file: Path, state: dict[str, Tensor]) -> None:
    """Raise if the tensors of a layer are not those of an edit and of a gate for hidden states of one size."""
    if state["weight"].ndim != 2:
        raise UserError(f"{file}: weight has shape {tuple(state['weight'].shape)}, expected (rank, hidden size).")
    rank, width = state["weight"].shape
    expected: dict[str, tuple[int, ...]] = {"weight": (rank, width), "bias": (rank,), "rotate_layer": (width, rank)}
    inner = width
    names = _gate_names(state)
    for name in names:
        rows = 1 if name == names[-1] else (state[f"{name}.weight"].shape or (0,))[0]
        expected |= {f"{name}.weight": (rows, inner), f"{name}.bias": (rows,)}
        inner = rows
    for name, shape in expected.items():
        found = tuple(state[name].shape) if name in state else None
        if found != shape or 0 in shape:
            raise UserError(
                f"{file}: {name} {'is missing' if found is None else f'has shape {found}'}, expected {shape}."
            )
    if not names or state.keys() - expected.keys():
        raise UserError(f"{file} holds no gate that is a plain network: {', '.join(sorted(state))}.")
    if torch.linalg.matrix_rank(state["rotate_layer"].float()) < rank:
        raise UserError(f"{file}: rotate_layer has a rank below {rank}, so it is no rotation.")


def _settings(states: dict[int, dict[str, Tensor]], files: dict[int, Path]) -> dict[str, Any]:
    """What all layers have in common."""
    shapes = {layer: [tuple(weight.shape) for weight, _ in _gate(state)] for layer, state in states.items()}
    edits = {layer: tuple(state["weight"].shape) for layer, state in states.items()}
    first = next(iter(states))
    for layer in states:
        if (shapes[layer], edits[layer]) != (shapes[first], edits[first]):
            raise UserError(
                f"{files[layer]} has other shapes than {files[first].name}; expected the same at every layer."
            )
    hidden = [rows for rows, _ in shapes[first][:-1]]
    gate: dict[str, Any] = {"gate": "mlp", "gate_hidden": hidden} if hidden else {"gate": "linear"}
    return {"rank": edits[first][0], "layers": list(states), **gate}


def _gate_names(state: dict[str, Tensor]) -> list[str]:
    """Names of the gate's layers, in order; a linear gate has no number."""
    if "gate_func.weight" in state:
        return ["gate_func"]
    numbers = sorted(int(name.split(".")[1]) for name in state if re.fullmatch(r"gate_func\.\d+\.weight", name))
    return [f"gate_func.{i}" for i in numbers]


def _gate(state: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of the gate's layers, in order."""
    return [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in _gate_names(state)]


def _fill(edit: Any, gate: Any, state: dict[str, Tensor]) -> None:
    edit.rotation.copy_(state["rotate_layer"])
    edit.weight.copy_(state["weight"])
    edit.bias.copy_(state["bias"])
    for layer, (weight, bias) in zip(gate.layers, _gate(state), strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
