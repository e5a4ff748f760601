"""grun: make a language model forget, without touching its weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from grun.core.deferred_registration import register_when_peft_is_imported

__version__ = "0.1.0"
__all__ = ["GrunConfig", "GrunModel", "UserError", "__version__"]

if TYPE_CHECKING:
    from grun.core.errors import UserError
    from grun.models.tuner.config import GrunConfig
    from grun.models.tuner.model import GrunModel

HOMES = {
    "GrunConfig": "grun.models.tuner.config",
    "GrunModel": "grun.models.tuner.model",
    "UserError": "grun.core.errors",
}

register_when_peft_is_imported()


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `import grun` (and the command line's help) stays fast."""
    if name not in HOMES:
        raise AttributeError(f"module 'grun' has no attribute '{name}'")
    return getattr(importlib.import_module(HOMES[name]), name)
