"""Where the files of a base model are: a folder, a hub repository, or one GGUF file in either."""

from __future__ import annotations

__all__ = ["ModelSource", "model_source"]

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grun.core.errors import UserError
from grun.models.loading.packaged import PACKAGED, packaged_file

SUFFIX = ".gguf"
MAGIC = b"GGUF"


@dataclass(frozen=True)
class ModelSource:
    """Files of a base model.

    Attributes:
        place: folder or hub id, as transformers takes it.
        gguf_file: name of the GGUF file in it that holds the model; None for an ordinary model.
    """

    place: str
    gguf_file: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Further arguments of every `from_pretrained` of transformers."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}

    @property
    def path(self) -> str:
        """The file or folder, or the hub id: one text that names the model."""
        if self.gguf_file is None:
            return self.place
        folder = Path(self.place)
        return str(folder / self.gguf_file) if folder.is_dir() else f"{self.place}:{self.gguf_file}"


def model_source(name: str) -> ModelSource:
    """The files that a model's name means.

    Args:
        name: a folder, the directory of the run that made the model, a hub id, a GGUF file, a folder with one inside,
            `hub-id:file.gguf`, or one of `PACKAGED`.

    Raises:
        UserError: if there is no such file or folder, or it is not clear which of several GGUF files is meant.
    """
    if not name:
        raise UserError("--model is missing: give the hub id or the folder of the model.")
    if name in PACKAGED and not Path(name).exists():
        name = str(packaged_file(name))
    path = Path(name).expanduser()
    if path.suffix == SUFFIX and (path.is_file() or ":" not in name):
        return _gguf(path, name)
    if name.endswith(SUFFIX) and not path.is_dir():
        repository, _, file = name.partition(":")
        return ModelSource(repository, file)
    looks_local = path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if not looks_local:
        return ModelSource(name)
    if not path.is_dir():
        raise UserError(f"--model '{name}': there is no such folder.")
    if (path / "config.json").is_file():
        return ModelSource(str(path))
    if (path / "model" / "config.json").is_file():  # the run that made it
        return ModelSource(str(path / "model"))
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        found = ", ".join(file.name for file in files)
        raise UserError(f"--model '{name}': the folder holds {len(files)} GGUF files ({found}); name one of them.")
    if not files:
        raise UserError(
            f"--model '{name}': the folder has no config.json and no GGUF file, so it holds no Hugging Face model."
        )
    return _gguf(files[0], name)


def _gguf(file: Path, name: str) -> ModelSource:
    """A GGUF file that is there and begins as one."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(MAGIC))
    except OSError as error:
        raise UserError(f"--model '{name}' cannot be read: {error.strerror or error}.") from error
    if start != MAGIC:
        raise UserError(f"--model '{name}': {file.name} is no GGUF file: it begins with {start!r}, expected {MAGIC!r}.")
    return ModelSource(str(file.parent), file.name)
