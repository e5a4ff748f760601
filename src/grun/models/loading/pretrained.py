"""Loading base models, with errors that say what is wrong with the path."""

from __future__ import annotations

__all__ = ["adapter_folder", "found_files", "load_adapter", "load_model_and_tokenizer", "resolve_device"]

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grun.core.errors import UserError
from grun.core.hub import check_repository
from grun.core.storage.weights import WRITTEN_OUT
from grun.models.loading.adapters import adapter_folder, load_adapter
from grun.models.loading.fit import Complete, check_decoder, check_finite
from grun.models.loading.gguf_header import check_gguf
from grun.models.loading.model_files import check_model_files
from grun.models.loading.packaged import PACKAGED
from grun.models.loading.reading import quiet, refusing
from grun.models.loading.sources import ModelSource, model_source


def resolve_device(device: str) -> torch.device:
    """The device to run on; `auto` is the first accelerator, or the CPU.

    Raises:
        UserError: if torch does not know the device or it is not there.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is None:
            return torch.device("cpu")
        local = os.environ.get("LOCAL_RANK")  # set by accelerate launch and torchrun: one device for every process
        return accelerator if local is None else torch.device(accelerator.type, int(local))
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device is '{device}', which cannot be used here: {reason}") from error
    return resolved


def load_model_and_tokenizer(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    quantize: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode, and its tokenizer, from a hub id, a folder, or the run that made it.

    Only safetensors weights are read, unless the folder has nothing but a legacy `.bin` (then with `weights_only=True`, the
    default of transformers).

    Args:
        name: see `model_source`.
        dtype: of the weights; `auto` as they were saved, float32 for a GGUF file.
        device: see `resolve_device`.
        trust_remote_code: run code that comes with a hub repository.
        quantize: `8bit` (LLM.int8) or `4bit` (NF4): linear layers are quantised by bitsandbytes as they are loaded.

    Raises:
        UserError: if there is no such file, folder or hub model, it is damaged or incomplete, or it holds no causal language
            model with finite weights.
    """
    source = model_source(name)
    if source.gguf_file is not None and quantize is not None:
        raise UserError(f"--quantize is {quantize}, but --model '{name}' is a GGUF file, which is quantised already.")
    said, place = f"--model '{name}'", resolve_device(device)
    common = {"trust_remote_code": trust_remote_code, **found_files(source, said)}
    with quiet():
        with refusing(f"{said}: its tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source.place, **common)
        with refusing(said):
            if quantize is not None:
                config = AutoConfig.from_pretrained(source.place, **common)
                common |= {"quantization_config": _quantization(quantize, dtype, config), "device_map": {"": place}}
            kind = Complete(AutoModelForCausalLM, said)
            model: Any = kind.from_pretrained(source.place, dtype=_dtype(dtype, source), **common)
        if source.gguf_file is not None:
            _forget_quantization(model, source)
        placed: Any = _in_full_precision(model) if quantize is not None else model.to(place)
        check_finite(placed, said)
        check_decoder(placed.eval(), tokenizer, said)
    return placed, tokenizer


def found_files(source: ModelSource, said: str) -> dict[str, Any]:
    """Check the files of a model before anything reads them.

    Args:
        source: where they are.
        said: how a message begins.

    Returns:
        Further arguments of `from_pretrained`.

    Raises:
        UserError: if they are damaged, or no folder, and no repository of the hub that can be had now.
    """
    folder = Path(source.place)
    if not folder.is_dir():
        online = check_repository(source.place, said, known=PACKAGED)
        return source.arguments if online else {"local_files_only": True, **source.arguments}
    if source.gguf_file is None:
        check_model_files(folder, said)
        return source.arguments
    try:
        check_gguf(folder / source.gguf_file)
    except (OSError, ValueError) as error:
        raise UserError(f"{said}: {source.gguf_file} is truncated or damaged: {error}; copy the file again.") from error
    return source.arguments


def _dtype(asked: str, source: ModelSource) -> str:
    """The data type of weights; those of a GGUF file are written out, and were never saved in another one."""
    return "float32" if asked == "auto" and source.gguf_file is not None else asked


def _forget_quantization(model: Any, source: ModelSource) -> None:
    """Make a model whose quantised weights were written out an ordinary one, and name the file that it came from."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method"):
        if name in model.__dict__:
            delattr(model, name)
    model.is_quantized = False
    setattr(model, WRITTEN_OUT, True)
    model.name_or_path = model.config.name_or_path = source.path


def _quantization(quantize: str, dtype: str, config: PretrainedConfig) -> BitsAndBytesConfig:
    """How to quantise; 4-bit weights are multiplied in the data type of the model.

    Raises:
        UserError: without bitsandbytes.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"--quantize {quantize} needs bitsandbytes: pip install 'grun-llm[quantize]'.")
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = getattr(torch, dtype) if dtype != "auto" else config.dtype or torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _in_full_precision(model: PreTrainedModel) -> PreTrainedModel:
    """Keep bitsandbytes from its kernel for some CPUs: it multiplies in bfloat16 whatever it is told."""
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
