"""Loading adapters of any PEFT type, with errors that say what is wrong with them."""

from __future__ import annotations

__all__ = ["adapter_folder", "check_adapter_files", "load_adapter", "save_adapter"]

import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

import grun.models.tuner  # noqa: F401  (makes PEFT know GRUN adapters)
from grun.core.errors import UserError, nearest
from grun.core.hub import check_repository
from grun.core.storage.atomic_files import write_json
from grun.core.storage.weights import base_weights, check_same_base, not_finite
from grun.models.loading.model_files import json_object, tensor_shapes
from grun.models.loading.reading import counted, quiet, refusing
from grun.models.loading.restoring import Snapshot
from grun.models.tuner.config import GrunConfig
from grun.models.tuner.readers.lexical import WHOLE_NUMBERS

CONFIG = "adapter_config.json"
BASE_FILE = "base_model.json"  # beside adapters whose own configuration has no place for what it says
MISMATCH = re.compile(r"size mismatch for (\S+): .*? torch\.Size\((.*?)\) .*? torch\.Size\((.*?)\)")
CARD = files("grun.models.adaptations") / "model_card.md"
OWN = re.compile(r"\.(grun|lora)_")  # tensors of our adapters and of LoRA; those of other methods may be indices
ROOM = 1 << 16  # a size up to which there is room for a gate, whatever the weights hold
SIDES = ("rank", "r", "topic_width", "num_virtual_tokens")  # settings that are the length of a side of some tensor


def adapter_folder(directory: str) -> str:
    """The folder that holds an adapter, where the run that made it may have been named; a hub id stays as it is.

    Raises:
        UserError: if the directory holds no adapter.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise UserError(
            f"--adapter '{directory}' is a file, expected the folder of an adapter, or of the run that made it."
        )
    if not path.is_dir() or (path / CONFIG).is_file():
        return directory
    if not (path / "adapter" / CONFIG).is_file():
        raise UserError(f"--adapter '{directory}': the folder has no adapter_config.json.")
    return str(path / "adapter")


def load_adapter(model: PreTrainedModel, directory: str) -> PeftModel:
    """`model` with the adapter of any PEFT type in `directory`, in evaluation mode.

    Raises:
        UserError: if the directory holds no adapter, a damaged one, or one that was made for another base model; the model
            is then as it was.
    """
    folder, said = adapter_folder(directory), f"--adapter '{directory}'"
    if Path(folder).is_dir():
        check_adapter_files(Path(folder), said)
        _check_recorded_base(model, Path(folder), said)
    else:
        check_repository(folder, said)
    before = Snapshot(model)
    try:
        return _loaded(model, folder, said).eval()
    except UserError as error:
        before.restore()
        words = str(error)
        raise error if words.startswith(said) else UserError(f"{said} cannot be loaded: {words}") from error


def check_adapter_files(folder: Path, said: str) -> None:
    """Check the files of an adapter before PEFT reads them.

    Args:
        folder: it has an `adapter_config.json`.
        said: how a message begins.

    Raises:
        UserError: naming the file, if it is missing, damaged, or no adapter's; if settings are wrong, or describe a larger
            adapter than the weights are of; or if numbers are not finite.
    """
    said = f"{said} cannot be loaded"
    file = folder / CONFIG
    settings = json_object(file, said, finite=True)
    kind = settings.get("peft_type")
    known = [str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_CONFIG_MAPPING]
    if kind not in known:
        raise UserError(
            f"{said}: {file} has peft_type {kind!r}, expected a method that PEFT knows, such as GRUN or LORA."
            f"{nearest(str(kind), known)}"
        )
    if kind == "GRUN":
        fields = {field.name for field in dataclasses.fields(GrunConfig)}
        for name in settings.keys() - fields - {"peft_version"}:
            raise UserError(f"{said}: {file} has an unknown setting '{name}'.{nearest(name, fields)}")
    _check_against_weights(folder, settings, said)
    try:
        with refusing(f"{said}: {file}"), quiet():
            PeftConfig.from_pretrained(str(folder))
    except UserError as error:
        words = str(error)
        raise UserError(words if words.startswith(said) else f"{said}: {file}: {words}") from error


def _check_against_weights(folder: Path, settings: Mapping[str, Any], said: str) -> None:
    """Check that the weights of an adapter are there, and that its settings ask for no more room than they take."""
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.exists():
        if not (folder / WEIGHTS_NAME).exists():
            raise UserError(f"{said}: {folder} has no {SAFETENSORS_WEIGHTS_NAME}; copy the whole adapter.")
        file = folder / WEIGHTS_NAME
    shapes = tensor_shapes(file, said).values()
    longest = max((side for shape in shapes for side in shape), default=0)
    members = settings.get("members")
    for part in (settings, *(members.values() if isinstance(members, Mapping) else ())):
        for name, value in _sizes(part) if isinstance(part, Mapping) else ():
            if value > (longest if name == "r" else max(longest, ROOM)):
                raise UserError(
                    f"{said}: {folder / CONFIG} has {name} {value}, but the longest side of a tensor in {file.name} is "
                    f"{longest}; copy the whole adapter."
                )


def _sizes(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Sizes among the settings of an adapter, with their names; wrong values are no sizes."""
    idle = {"topic_width"} if settings.get("topic_layer") is None else set()
    if settings.get("members") is not None:
        return
    for name in ("gate_hidden", "topic_kept", "lexicon", *SIDES):
        value = settings.get(name)
        if name == "gate_hidden" and settings.get("gate", "mlp") != "mlp":
            continue
        for size in value if isinstance(value, list) else [value]:
            if isinstance(size, int) and name not in idle:
                yield name, size


def _check_recorded_base(model: PreTrainedModel, folder: Path, said: str) -> None:
    """Check that an adapter was made for the weights of this model, before PEFT changes the model."""
    settings, text = json_object(folder / CONFIG, said), model.config.get_text_config()
    if settings.get("num_layers") not in (None, text.num_hidden_layers):
        return  # GRUN says what differs
    recorded = settings.get("base_weights")
    if recorded is None and (folder / BASE_FILE).is_file():
        recorded = json_object(folder / BASE_FILE, said).get("base_weights")
    if recorded is not None and not (isinstance(recorded, str) and len(recorded.split(" ")) == 4):
        raise UserError(
            f"{said} cannot be loaded: base_weights of {folder} is {recorded!r}, expected the digest of a model's weights; "
            "copy the whole adapter."
        )
    if recorded is not None:
        check_same_base(model, recorded, settings.get("base_model_name_or_path"), said)


def save_adapter(adapted: PeftModel, folder: Path, **others: Any) -> None:
    """Write an adapter, and beside it which weights it was made for if its configuration does not say so.

    Args:
        adapted: a model with one adapter.
        folder: it exists.
        others: further arguments of `save_pretrained`.
    """
    with quiet():  # PEFT warns where it cannot find the base model's vocabulary: for GGUF files
        adapted.save_pretrained(str(folder), **others)
    if adapted.peft_type == "GRUN":
        _write_card(folder)
    if adapted.peft_type != "GRUN" and (found := base_weights(adapted.get_base_model())) is not None:
        write_json(folder / BASE_FILE, {"base_weights": found})


def _write_card(folder: Path) -> None:
    """Put what a GRUN adapter does and does not protect against behind the metadata that PEFT has written."""
    file = folder / "README.md"
    card = ModelCard.load(file) if file.is_file() else ModelCard("")
    card.text = CARD.read_text(encoding="utf-8")
    card.save(file)


def _loaded(model: PreTrainedModel, folder: str, said: str) -> PeftModel:
    with refusing(said), quiet():
        tensors = load_peft_weights(folder, device="cpu")
    if (wrong := not_finite(tensors)) is not None:
        raise UserError(f"{said} cannot be used: its tensor {wrong} holds NaN or infinity; copy the adapter again.")
    own = {name: tensor for name, tensor in tensors.items() if OWN.search(name)}
    whole = sorted(name for name, it in own.items() if it.is_floating_point() == name.endswith(WHOLE_NUMBERS))
    if whole:
        raise UserError(
            f"{said} is damaged: whole numbers stand for weights, or weights for whole numbers: {counted(whole)}; copy the "
            "adapter again."
        )
    try:
        with refusing(said), quiet():
            warnings.filterwarnings("error", message=".*missing adapter keys")  # PEFT would go on with random ones
            adapted = PeftModel.from_pretrained(model, folder)
    except UserError as error:
        raise _explained(error, said) from error
    _check_used(adapted, tensors, said)
    return adapted


def _explained(error: UserError, said: str) -> UserError:
    """What PEFT says of missing tensors and of other shapes, in short; any other error as it is."""
    cause = str(error.__cause__)
    if isinstance(error.__cause__, UserWarning):
        missing = re.findall(r"'([^']+\.[^']+)'", cause)
        return UserError(
            f"{said} is damaged: some of its tensors are missing: {counted(missing)}; copy the whole adapter."
        )
    if wrong := [f"{name} {saved} instead of {own}" for name, saved, own in MISMATCH.findall(cause)]:
        return UserError(
            f"{said} does not fit: its settings and the model need tensors of other shapes: {counted(wrong)}; copy the whole "
            "adapter, and load it on the model that it was made for."
        )
    return error


def _check_used(adapted: PeftModel, tensors: Mapping[str, Tensor], said: str) -> None:
    """Check that PEFT has used all tensors of an adapter."""
    prefix = getattr(adapted.base_model, "prefix", None)
    if not isinstance(prefix, str) or adapted.active_peft_config.is_prompt_learning:
        return
    with refusing(said), quiet():
        result: Any = set_peft_model_state_dict(adapted, dict(tensors))
    unused = sorted(result.unexpected_keys)
    if unused:
        raise UserError(
            f"{said} does not fit: its settings and the model leave no place for tensors of it: {counted(unused)}; copy the "
            "whole adapter, and load it on the model that it was made for."
        )
