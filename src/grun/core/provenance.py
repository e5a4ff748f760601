"""Provenance of a record: versions, the commit of the code, and the machine.

Every record of a run or a result holds it, so that a number can be traced to the code and the machine that gave it. Two runs
may be the same whatever their provenance is.
"""

from __future__ import annotations

__all__ = ["PROVENANCE", "provenance"]

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from grun.core import CODE, __version__
from grun.core.process.threads import threads_in_use

PROVENANCE = ("versions", "machine", "commit")  # keys in a record
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "datasets")
GIT_SECONDS = 5.0  # most time for a question to git
CPU_INFO = Path("/proc/cpuinfo")


def provenance() -> dict[str, Any]:
    """Versions, machine and, if the package is run from a checkout, its commit.

    Returns:
        `versions`: of grun, Python and the libraries, by name.
        `machine`: `platform`, `processor`, `cores`, `memory_gib`, and `accelerators`, the names of those that torch can use;
        left out as long as torch is not imported, or if its driver does not work; `threads` on the processor and their
        `wait_policy`, likewise.
        `commit`: `id`, and `changed`: True if files of the package differ from it. Left out where there is no git, or
        the package is not run from a checkout.
    """
    found: dict[str, Any] = {
        "versions": dict(_versions()),
        "machine": {**_machine(), **_accelerators(), **threads_in_use()},
    }
    if (commit := _commit()) is not None:
        found["commit"] = {"id": commit[0], "changed": commit[1]}
    return found


@cache
def _versions() -> dict[str, str]:
    versions = {"grun": __version__, "python": platform.python_version()}
    return versions | {name: metadata.version(name) for name in PACKAGES}


@cache
def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _processor() -> str:
    """The processor's model, or at least its architecture: Python gives no more than that on Linux."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _accelerators() -> dict[str, list[str]]:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    try:
        if not torch.accelerator.is_available():
            return {"accelerators": []}
        kind = torch.accelerator.current_accelerator().type
        name_of = getattr(getattr(torch, kind, None), "get_device_name", lambda _: kind)
        return {"accelerators": [name_of(i) for i in range(torch.accelerator.device_count())]}
    except RuntimeError:  # a run on the processor must not fail because of a broken driver
        return {}


@cache
def _commit() -> tuple[str, bool] | None:
    """The commit that the package's own files belong to, and whether they were changed since.

    A package that is installed into an environment may lie inside the user's repository, which does not track its files.
    """
    if _git("ls-files", "--error-unmatch", "--", "__init__.py") is None:
        return None
    status = _git("status", "--porcelain=v2", "--branch", "--untracked-files=all", "--", ".")
    lines = (status or "").splitlines()
    commits = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    if not commits or commits[0] == "(initial)":
        return None
    return commits[0], any(not line.startswith("#") for line in lines)


def _git(*arguments: str) -> str | None:
    """The answer of git about the package's folder, whatever the working directory is; None if there is none."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(CODE), *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},  # status must not write to the index
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
