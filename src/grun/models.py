"""Loading base models and adapters, with errors that say what is wrong with the path."""

from __future__ import annotations

__all__ = ["load_adapter", "load_model_and_tokenizer", "resolve_device"]

import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import grun.adapters  # noqa: F401  (makes PEFT know GRUN adapters)
from grun.errors import UserError


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
    name: str, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode, and its tokenizer, from a hub id, a folder, or the run that made it.

    Only safetensors weights are read, unless the folder has nothing but a legacy `.bin` (then with `weights_only=True`, the
    default of transformers).

    Raises:
        UserError: if there is no such folder or hub model, or it holds no causal language model.
    """
    if not name:
        raise UserError("--model is missing: give the hub id or the folder of the model.")
    path = Path(name)
    looks_local = path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise UserError(f"--model '{name}': there is no such folder.")
    if looks_local and not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"  # the run that made it was named
        name = str(path)
    if looks_local and not (path / "config.json").is_file():
        raise UserError(f"--model '{name}': the folder has no config.json, so it holds no Hugging Face model.")
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **common)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **common)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--model '{name}' cannot be loaded: {reason}") from error
    placed: Any = model.to(resolve_device(device))  # type: ignore[arg-type]
    return placed.eval(), tokenizer


def load_adapter(model: PreTrainedModel, directory: str) -> PeftModel:
    """`model` with the adapter of any PEFT type in `directory`, in evaluation mode.

    Raises:
        UserError: if the directory holds no adapter, or one that was made for another base model.
    """
    path = Path(directory)
    if path.is_dir() and not (path / "adapter_config.json").is_file():
        inner = path / "adapter"
        if not (inner / "adapter_config.json").is_file():
            raise UserError(f"--adapter '{directory}': the folder has no adapter_config.json.")
        directory = str(inner)
    try:
        return PeftModel.from_pretrained(model, directory).eval()
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--adapter '{directory}' cannot be loaded: {reason}") from error
