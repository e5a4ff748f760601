"""What is said while a command runs: own messages, and none of libraries about themselves."""

from __future__ import annotations

__all__ = ["quiet"]

import logging
import os
import warnings

from grun.core.process.environment import is_first_process
from grun.core.process.progress import can_draw_bars
from grun.core.process.terminal import one_line


class _SafeFormatter(logging.Formatter):
    """Messages in one line each, in which what came from data is shown as text."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = one_line(record.message)
        return super().formatMessage(record)


def quiet(handler: logging.Handler) -> None:
    """Show own messages as plain lines, and no messages of libraries about themselves.

    Args:
        handler: that shows own messages.
    """
    logger = logging.getLogger("grun")
    handler.setFormatter(_SafeFormatter("grun: %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if is_first_process() else logging.ERROR)
    logger.propagate = False
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports every cast and every missing kernel
    for name in ("TRANSFORMERS_VERBOSITY", "HF_DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "0" if can_draw_bars() else "1")  # of libraries; see `Progress`
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|transformers|peft")
