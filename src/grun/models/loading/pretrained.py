"""Loading base models and adapters, with errors that say what is wrong with the path."""

from __future__ import annotations

__all__ = ["adapter_folder", "load_adapter", "load_model_and_tokenizer", "resolve_device"]

import importlib.util
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import grun.models.tuner  # noqa: F401  (makes PEFT know GRUN adapters)
from grun.core.errors import UserError
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
        UserError: if there is no such file, folder or hub model, or it holds no causal language model.
    """
    source = model_source(name)
    if source.gguf_file is not None and quantize is not None:
        raise UserError(f"--quantize is {quantize}, but --model '{name}' is a GGUF file, which is quantised already.")
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code, **source.arguments}
    place = resolve_device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.place, **common)
        if quantize is not None:
            config = AutoConfig.from_pretrained(source.place, **common)
            common |= {"quantization_config": _quantization(quantize, dtype, config), "device_map": {"": place}}
        model = AutoModelForCausalLM.from_pretrained(source.place, dtype=_dtype(dtype, source), **common)
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, OSError) or (source.gguf_file is None and isinstance(error, ValueError)):
            raise UserError(f"--model '{name}' cannot be loaded: {reason}") from error
        if source.gguf_file is None:
            raise
        # The reader of GGUF files raises whatever a damaged header leads it to.
        raise UserError(
            f"--model '{name}': {source.gguf_file} is truncated or damaged, or of a kind that transformers cannot read "
            f"({type(error).__name__}: {reason})."
        ) from error
    if source.gguf_file is not None:
        _forget_quantization(model, source)
    placed: Any = _in_full_precision(model) if quantize is not None else model.to(place)  # type: ignore[arg-type]
    return placed.eval(), tokenizer


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


def adapter_folder(directory: str) -> str:
    """The folder that holds an adapter, where the run that made it may have been named; a hub id stays as it is.

    Raises:
        UserError: if the directory holds no adapter.
    """
    path = Path(directory)
    if not path.is_dir() or (path / "adapter_config.json").is_file():
        return directory
    if not (path / "adapter" / "adapter_config.json").is_file():
        raise UserError(f"--adapter '{directory}': the folder has no adapter_config.json.")
    return str(path / "adapter")


def load_adapter(model: PreTrainedModel, directory: str) -> PeftModel:
    """`model` with the adapter of any PEFT type in `directory`, in evaluation mode.

    Raises:
        UserError: if the directory holds no adapter, a damaged one, or one that was made for another base model.
    """
    folder = adapter_folder(directory)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")  # PEFT would go on with random ones
            return PeftModel.from_pretrained(model, folder).eval()
    except UserError:
        raise
    except UserWarning as error:
        raise UserError(f"--adapter '{directory}' is damaged: some of its tensors are missing.") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--adapter '{directory}' cannot be loaded: {reason}") from error
    except (KeyError, TypeError, AttributeError) as error:  # of settings that are no adapter's
        raise UserError(
            f"--adapter '{directory}' cannot be loaded: its adapter_config.json holds no settings of an adapter that PEFT "
            f"knows ({type(error).__name__}: {' '.join(str(error).split())})."
        ) from error
