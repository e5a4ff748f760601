"""What third-party readers say of files that they cannot read, as one line for people."""

from __future__ import annotations

__all__ = ["counted", "quiet", "reason", "refusing"]

import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from grun.core.errors import UserError

LONGEST = 300  # characters of a library's own words
OBJECTS = (
    "it holds Python objects other than tensors, which are never loaded since loading them could run code; ask for "
    "the weights as safetensors"
)
READERS = ("transformers", "bitsandbytes", "peft", "kernels", "huggingface_hub.utils._http")


@contextmanager
def refusing(said: str) -> Iterator[None]:
    """Context around a third-party reader: whatever it raises becomes one line, except errors that are such lines already.

    Args:
        said: how the line begins, with the flag and what was given.

    Raises:
        UserError: for any error of the reader. Memory that runs out on an accelerator stays what it is.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of a reader in Rust, which is no Exception
        if not (isinstance(error, Exception) or panic) or isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(f"{said} cannot be loaded: {reason(error)}.") from error


def reason(error: BaseException) -> str:
    """An error of a library in one line, without its advice to run what a file holds."""
    text = " ".join(str(error).split())
    if (known := _known(error, text)) is not None:
        return known
    text = (text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} ...").rstrip(".")
    if isinstance(error, (OSError, ValueError)) and text:
        return text
    return f"it is damaged, or of a kind that cannot be read ({type(error).__name__}{': ' if text else ''}{text})"


def _known(error: BaseException, text: str) -> str | None:
    """What some errors mean, in our words."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return OBJECTS
    if isinstance(error, EOFError) or "PytorchStreamReader" in text:
        return "it is truncated or damaged; copy the file again"
    if text.startswith("Unrecognized configuration class"):
        return "transformers has no decoder (causal language model) of its kind; name a model that writes text"
    meanings = {
        RecursionError: "it is nested too deeply",
        MemoryError: "there is not enough memory for what it asks for",
    }
    return next((meaning for kind, meaning in meanings.items() if isinstance(error, kind)), None)


def counted(names: Sequence[str]) -> str:
    """The number of some names, and the first few."""
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


@contextmanager
def quiet() -> Iterator[None]:
    """Context in which readers do not warn: what they warn of is checked by us, or is no matter of the user's."""
    loggers = [logging.getLogger(name) for name in READERS]
    before = [(logger, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in before:
            logger.setLevel(level)
