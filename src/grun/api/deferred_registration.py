"""Registration with PEFT as soon as both packages are imported, in either order; `import grun` stays fast."""

from __future__ import annotations

__all__ = ["register_when_peft_is_imported"]

import importlib
import importlib.util
import logging
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

KERNELS = "bitsandbytes.backends.cpu.ops"  # PEFT imports it, and it warns of a kernel that it can do without
MISSING_KERNEL = "Failed to load CPU gemm_4bit_forward"


def register_when_peft_is_imported() -> None:
    """Register GRUN with PEFT now if PEFT is loaded already, else right after its first import."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


def _register() -> None:
    if "grun.models.tuner.peft_registration" not in sys.modules:  # else it is being imported, and registers itself
        importlib.import_module("grun.models.tuner")


class _AfterPeft(MetaPathFinder):
    """Finder that finds `peft` as usual, once, and runs the registration after its code."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("peft")
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                logging.getLogger(KERNELS).addFilter(lambda record: MISSING_KERNEL not in record.getMessage())
                run(module)
                _register()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
