"""grun: make a language model forget, without touching its weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from grun.api.deferred_registration import register_when_peft_is_imported
from grun.core import __version__

__all__ = [
    "AttackResult",
    "CalibrateResult",
    "CompareResult",
    "EvaluateResult",
    "Example",
    "ExpandResult",
    "FinetuneResult",
    "GrunConfig",
    "GrunModel",
    "Interrupted",
    "Ledger",
    "Signals",
    "TrainingDiverged",
    "UnlearnResult",
    "UserError",
    "__version__",
    "attack",
    "calibrate",
    "compare",
    "evaluate",
    "expand",
    "finetune",
    "unlearn",
]

if TYPE_CHECKING:
    from grun.api.attacking import AttackResult
    from grun.api.jobs import attack, calibrate, compare, evaluate, expand, finetune, unlearn
    from grun.api.ledger import Ledger
    from grun.api.results import (
        CalibrateResult,
        CompareResult,
        EvaluateResult,
        ExpandResult,
        FinetuneResult,
        UnlearnResult,
    )
    from grun.core.errors import Interrupted, TrainingDiverged, UserError
    from grun.core.records import Example, Signals
    from grun.models.tuner.config import GrunConfig
    from grun.models.tuner.model import GrunModel

_HOMES = {
    "grun.api.attacking": ("AttackResult",),
    "grun.api.jobs": ("attack", "calibrate", "compare", "evaluate", "expand", "finetune", "unlearn"),
    "grun.api.ledger": ("Ledger",),
    "grun.api.results": (
        "CalibrateResult",
        "CompareResult",
        "EvaluateResult",
        "ExpandResult",
        "FinetuneResult",
        "UnlearnResult",
    ),
    "grun.core.errors": ("Interrupted", "TrainingDiverged", "UserError"),
    "grun.core.records": ("Example", "Signals"),
    "grun.models.tuner.config": ("GrunConfig",),
    "grun.models.tuner.model": ("GrunModel",),
}

register_when_peft_is_imported()


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `import grun` (and the command line's help) stays fast."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'grun' has no attribute '{name}'")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
