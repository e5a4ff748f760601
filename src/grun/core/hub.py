"""What can be known about a hub id before a library asks the hub for it, with all its retries."""

from __future__ import annotations

__all__ = ["check_repository", "is_cached", "nearest_folder", "reachable"]

import difflib
import os
from collections.abc import Collection
from pathlib import Path
from threading import Thread

from grun.core.errors import UserError

TIMEOUT = 5.0  # seconds for an answer of any kind


def reachable(timeout: float = TIMEOUT) -> bool:
    """Check whether the hub answers; False in offline mode (`HF_HUB_OFFLINE`).

    Args:
        timeout: seconds to wait, the look-up of the name included.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    answers: list[bool] = []
    asking = Thread(target=lambda: answers.append(_answers(constants.ENDPOINT, timeout)), daemon=True)
    asking.start()  # in a thread, since no timeout of a request bounds the look-up of a name
    asking.join(timeout)
    return bool(answers and answers[0])


def _answers(endpoint: str, timeout: float) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=timeout)
    except Exception:  # whatever a proxy, a certificate or a missing network leads the client to
        return False
    return True


def is_cached(name: str, repo_type: str = "model") -> bool:
    """Check whether files of a hub repository are in the cache of the hub, or of the package `datasets`.

    Args:
        name: the hub id.
        repo_type: `model` or `dataset`.
    """
    from huggingface_hub import constants

    places = [Path(constants.HF_HUB_CACHE) / f"{repo_type}s--{name.replace('/', '--')}"]
    if repo_type == "dataset":
        own = os.environ.get("HF_DATASETS_CACHE") or str(Path(constants.HF_HOME) / "datasets")
        places.append(Path(own).expanduser() / name.lower().replace("/", "___"))
        places.append(Path(own).expanduser() / name.replace("/", "___"))
    return any(place.is_dir() for place in places)


def check_repository(name: str, said: str, repo_type: str = "model", known: Collection[str] = ()) -> bool:
    """Check that what is no path here can be a hub repository, before a library looks for it.

    Args:
        name: what the user gave, which is neither a file nor a folder.
        said: how a message begins: the flag and what was given, `--model 'x/y'`.
        repo_type: `model` or `dataset`.
        known: names that mean something else, for a hint.

    Returns:
        Whether the hub answers; False if it does not, but files of the repository are in the cache.

    Raises:
        UserError: if the name is no hub id, or the hub does not answer and the cache has nothing of that name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    hint = nearest_folder(name, known)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"{said} cannot be loaded: there is no such file or folder, and it is no hub id.{hint}"
        ) from error
    if reachable():
        return True
    if is_cached(name, repo_type):
        return False
    raise UserError(
        f"{said} cannot be loaded: there is no such folder, the hub cannot be reached, and its cache holds nothing of "
        f"that name.{hint}"
    )


def nearest_folder(name: str, known: Collection[str] = ()) -> str:
    """`" Did you mean 'x'?"` for a path that is there, or a known name, spelt almost like `name`; or an empty string."""
    given = Path(name).expanduser()
    found = Path(given.anchor)
    parts = given.relative_to(given.anchor).parts
    for part in parts:
        if not (found / part).exists():
            part = _alike(part, found, known if len(parts) == 1 else ())
        if not part:
            return ""
        found /= part
    return f" Did you mean '{found}'?" if found != Path() else ""


def _alike(part: str, folder: Path, known: Collection[str]) -> str:
    """The entry of a folder, or the known name, that is spelt most like a part of a path; empty if none is."""
    try:
        names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:
        names = []
    entries = {name.lower(): name for name in (*names, *known)}
    found = difflib.get_close_matches(part.lower(), sorted(entries), n=1, cutoff=0.5)
    return entries[found[0]] if found else ""
