"""grun: make a language model forget, without touching its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grun._deferred import register_when_peft_is_imported

__version__ = "0.1.0"
__all__ = ["GrunConfig", "GrunModel", "UserError", "__version__"]

if TYPE_CHECKING:
    from grun.adapters.config import GrunConfig
    from grun.adapters.model import GrunModel
    from grun.errors import UserError


register_when_peft_is_imported()


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `import grun` (and the command line's help) stays fast."""
    import importlib

    homes = {"GrunConfig": "grun.adapters", "GrunModel": "grun.adapters", "UserError": "grun.errors"}
    if name not in homes:
        raise AttributeError(f"module 'grun' has no attribute '{name}'")
    home = importlib.import_module(homes[name])
    if homes[name] == "grun.adapters":
        home = importlib.import_module("grun.adapters." + ("config" if name == "GrunConfig" else "model"))
    return getattr(home, name)
