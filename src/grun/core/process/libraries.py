"""Messages of libraries about themselves: warnings, log lines and bars that are for developers, not for users of grun."""

from __future__ import annotations

__all__ = ["LIBRARIES", "quiet_libraries"]

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from grun.core.process.progress import can_draw_bars

# Import names; warnings that name a module of grun are theirs too, given on behalf of their caller.
LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "fsspec",
    "gguf",
    "httpx",
    "huggingface_hub",
    "kernels",
    "lm_eval",
    "matplotlib",
    "multiprocess",
    "numpy",
    "peft",
    "py3langid",
    "pyarrow",
    "rouge_score",
    "scipy",
    "tokenizers",
    "torch",
    "torchao",
    "transformers",
    "trl",
)
_MODULES = rf"({'|'.join((*LIBRARIES, 'grun'))})(\.|$)"


@contextmanager
def quiet_libraries(*, imported: bool = True) -> Iterator[None]:
    """Inside, libraries say nothing about themselves but errors; afterwards filters and levels are as they were before.

    Warnings of the user's own code, and of loggers whose level the user has chosen, are shown as ever. It is a decorator too.

    Args:
        imported: import transformers, which sets the level of its logger when it is imported.
    """
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=_MODULES)
        before = _raised(loggers)
        try:
            if imported:
                importlib.import_module("transformers")
                before |= _raised(loggers)  # of transformers, the level that it was imported with
            with _no_bars(imported):
                yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


def _raised(loggers: list[logging.Logger]) -> dict[str, int]:
    """Raise levels that nobody has lowered to errors; the levels before, by name of the logger."""
    before = {one.name: one.level for one in loggers if one.getEffectiveLevel() == logging.WARNING}
    for name in before:
        logging.getLogger(name).setLevel(logging.ERROR)
    return before


@contextmanager
def _no_bars(imported: bool) -> Iterator[None]:
    """Inside, the libraries of Hugging Face write no bars to a file or pipe."""
    if not imported or can_draw_bars():
        yield
        return
    control = importlib.import_module("transformers.utils.logging")
    hub = importlib.import_module("huggingface_hub.utils")
    shown, hub_shown = control.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    control.disable_progress_bar()  # the hub's bars, too
    try:
        yield
    finally:
        if shown:
            control.enable_progress_bar()
        if not hub_shown:
            hub.disable_progress_bars()
        elif not shown:
            hub.enable_progress_bars()
