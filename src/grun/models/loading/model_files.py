"""Checks of a model's folder before a library reads it: damage is named with its file, and costs neither time nor memory."""

from __future__ import annotations

__all__ = ["check_model_files", "json_object", "tensor_shapes"]

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as progress

from grun.core.errors import UserError
from grun.models.loading.fit import Complete
from grun.models.loading.reading import counted, quiet, refusing

Shapes = Mapping[str, tuple[int, ...]]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
LFS = b"version https://git-lfs"
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "num_encoder_layers")
SIZES = (
    "hidden_size",
    "n_embd",
    "d_model",
    "vocab_size",
    "intermediate_size",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
)
NEVER_ZERO = ("hidden_size", "vocab_size")
NUMBERS = ("max_position_embeddings", "n_positions", "rms_norm_eps", "rope_theta")


def check_model_files(folder: Path, said: str) -> None:
    """Check the files of a model in a folder as far as that costs little.

    Args:
        folder: it has a `config.json`.
        said: how a message begins.

    Raises:
        UserError: naming the file, if one is missing, empty, cut off, a pointer of git-lfs or no JSON, if the index names
            shards or tensors that are not there, or if the tensors are not those of the model that `config.json` describes.
    """
    wrong = f"{said} cannot be loaded"
    config = json_object(folder / "config.json", wrong)
    if not isinstance(config.get("model_type", ""), str):
        raise UserError(f"{wrong}: {folder / 'config.json'} has model_type {config['model_type']!r}, expected a name.")
    for file in sorted(folder.glob("*.json")):
        if file.name in ("vocab.json", "added_tokens.json") or "token" in file.name or "config" in file.name:
            json_object(file, wrong)
    weights = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if weights is None:
        if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) or "transformers_weights" in config:
            return  # of names that a setting may give; the library says what it misses
        raise UserError(f"{wrong}: the folder holds no weights, expected model.safetensors; copy the whole model.")
    files = _shards(weights, wrong) if weights.suffix == ".json" else [weights]
    shapes = {name: shape for file in files for name, shape in tensor_shapes(file, wrong).items()}
    if weights.suffix == ".json":
        _check_index(weights, shapes, wrong)
    _check_sizes(config, len(shapes), f"{wrong}: {folder / 'config.json'}")
    if "auto_map" not in config and "quantization_config" not in config:
        _check_numbers([file for file in files if file.suffix == ".safetensors"], wrong)
        _check_fit(folder, shapes, said)


def json_object(file: Path, said: str, finite: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        file: the file.
        said: how a message begins.
        finite: refuse NaN and infinity.

    Raises:
        UserError: if the file cannot be read, or holds anything else.
    """
    content = _check_content(file, said)

    def refused(text: str) -> float:
        raise UserError(f"{said}: {file} holds {text}, expected finite numbers.")

    def number(text: str) -> float:
        return value if math.isfinite(value := float(text)) or not finite else refused(text)

    try:
        found = json.loads(content.decode(), parse_constant=refused if finite else None, parse_float=number)
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{said}: {file} is damaged: it is nested too deeply; copy the file again.") from error
    except ValueError as error:  # of the JSON, or of its encoding
        raise UserError(f"{said}: {file} is no JSON ({error}); it is damaged, copy the file again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{said}: {file} holds a {type(found).__name__}, expected an object with settings.")
    return found


def tensor_shapes(file: Path, said: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors or pickled file, by name; values are not read, and no pickled code is run.

    Raises:
        UserError: if the file cannot be read, is cut off or damaged, or a pickled one holds anything but named tensors.
    """
    _check_content(file, said, whole=False)
    if file.suffix != ".safetensors":
        with refusing(f"{said}: {file}"):
            held = torch.load(file, map_location="meta", weights_only=True)
        if not isinstance(held, dict) or not all(isinstance(tensor, Tensor) for tensor in held.values()):
            raise UserError(
                f"{said}: {file} holds a {type(held).__name__}, expected tensors by name; copy the file again."
            )
        return {str(name): tuple(tensor.shape) for name, tensor in held.items()}
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{said}: {file} cannot be read: it is truncated or damaged ({why}); copy the file again."
        ) from error


def _check_content(file: Path, said: str, whole: bool = True) -> bytes:
    """The content of a file, or its beginning; it is not empty, and is the file itself."""
    if file.exists() and not file.is_file() and not file.is_dir():  # reading a pipe would wait for somebody to write
        raise UserError(f"{said}: {file} is no file; copy it again.")
    try:
        with file.open("rb") as stream:
            content = stream.read() if whole and file.suffix == ".json" else stream.read(len(LFS))
    except OSError as error:
        raise UserError(f"{said}: {file} cannot be read: {error.strerror or error}.") from error
    if not content.strip():
        raise UserError(f"{said}: {file} is empty; copy the file again.")
    if content.startswith(LFS):
        raise UserError(f"{said}: {file} is a pointer of git-lfs, not the file itself: run git lfs pull in its folder.")
    return content


def _check_numbers(files: Sequence[Path], said: str) -> None:
    """Check that weights which nothing describes as quantised are no whole numbers: they would be taken as they are."""
    for file in files:
        with safe_open(file, framework="pt") as opened:
            kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        whole = [
            name for name, kind in kinds.items() if name.endswith(".weight") and kind[0] in "IUB" and kind != "BF16"
        ]
        if whole:
            raise UserError(
                f"{said}: {file} holds whole numbers instead of weights, and config.json has no quantization_config: "
                f"{counted(whole)}; copy the whole model."
            )


def _shards(index: Path, said: str) -> list[Path]:
    """The files that an index names; all of them are there."""
    found = json_object(index, said).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) and name for name in found.values()):
        raise UserError(f"{said}: {index} has no weight_map with the file of every tensor; copy the file again.")
    files = [index.parent / name for name in sorted(set(found.values()))]
    for file in files:
        if file.resolve().parent != index.parent.resolve() and not file.is_symlink():
            raise UserError(f"{said}: {index} names '{file}', expected files of its own folder.")
        if not file.is_file():
            raise UserError(f"{said}: {index.name} names {file.name}, which is missing; copy the whole model.")
    return files


def _check_index(index: Path, shapes: Shapes, said: str) -> None:
    missing = sorted(json_object(index, said)["weight_map"].keys() - shapes.keys())
    if missing:
        raise UserError(
            f"{said}: {index.name} names tensors that are in none of its files: {counted(missing)}; copy the whole model."
        )


def _check_sizes(config: Mapping[str, Any], tensors: int, said: str) -> None:
    """Check sizes in a configuration and in that of its language model."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for name in (*LAYERS, *SIZES, *NUMBERS):
            value = part.get(name)
            if (
                value is None
                or isinstance(value, (list, dict))
                or (name in NUMBERS and isinstance(value, (int, float)))
            ):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < (name in NEVER_ZERO):
                expected = "a number" if name in NUMBERS else "a positive whole number"
                raise UserError(f"{said} has {name} {value!r}, expected {expected}.")
            if name in LAYERS and value > tensors:
                raise UserError(
                    f"{said} has {name} {value}, but the files hold {tensors} tensors in all: it is damaged, or files are "
                    "missing."
                )


def _check_fit(folder: Path, shapes: Shapes, said: str) -> None:
    """Check that the weights of a folder are those of the model that its `config.json` describes, without reading them.

    Neither takes memory: a far too large model is refused before there is room made for it.
    """
    shown = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        with quiet(), refusing(said):
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):
                empty = AutoModelForCausalLM.from_config(config)
            held = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            Complete(type(empty), said).from_pretrained(None, config=empty.config, state_dict=held, device_map="meta")
    finally:
        if shown:
            progress.enable_progress_bar()
