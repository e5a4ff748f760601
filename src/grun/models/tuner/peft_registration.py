"""Registration of GRUN with PEFT; no other module touches PEFT's tables.

`peft.register_peft_method` refuses names outside its enumeration, so a method outside PEFT cannot use it. The tables behind
it are keyed by a string enumeration and accept a plain string.
"""

from __future__ import annotations

__all__ = ["PEFT_TYPE", "register_with_peft"]

from peft import mapping

from grun.models.tuner.config import GrunConfig
from grun.models.tuner.model import GrunModel

PEFT_TYPE = "GRUN"


def register_with_peft() -> None:
    """Register `GrunConfig` for `get_peft_model`, `PeftModel.from_pretrained` and the rest of PEFT. Safe to call again.

    Raises:
        RuntimeError: if another package has registered the name.
    """
    taken = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(PEFT_TYPE)  # type: ignore[call-overload]
    if taken is not None and taken is not GrunConfig:
        raise RuntimeError(f"PEFT already has a method called {PEFT_TYPE}: {taken.__module__}.{taken.__qualname__}")
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = GrunConfig  # type: ignore[index]
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = GrunModel  # type: ignore[index]
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = GrunModel.prefix  # type: ignore[index]
