"""What can be known about a hub id before a library asks the hub for it, with all its retries."""

from __future__ import annotations

__all__ = ["check_repository", "is_cached", "nearest_folder", "reachable"]

import os
from pathlib import Path
from threading import Thread

from grun.core.errors import UserError, nearest

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


def check_repository(name: str, said: str, repo_type: str = "model") -> bool:
    """Check that what is no path here can be a hub repository, before a library looks for it.

    Args:
        name: what the user gave, which is neither a file nor a folder.
        said: how a message begins: the flag and what was given, `--model 'x/y'`.
        repo_type: `model` or `dataset`.

    Returns:
        Whether the hub answers; False if it does not, but files of the repository are in the cache.

    Raises:
        UserError: if the name is no hub id, or the hub does not answer and the cache has nothing of that name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"{said}: there is no such file or folder, and it is no hub id.{nearest_folder(name)}"
        ) from error
    if reachable():
        return True
    if is_cached(name, repo_type):
        return False
    raise UserError(
        f"{said}: there is no such folder here, the hub cannot be reached, and its cache holds nothing of that "
        f"name.{nearest_folder(name)}"
    )


def nearest_folder(name: str) -> str:
    """`" Did you mean 'x'?"` for a path that is there and is spelt almost like `name`, or an empty string."""
    found = Path("/") if name.startswith("/") else Path()
    for part in Path(name).expanduser().parts:
        if part == "/":
            continue
        if (found / part).exists():
            found /= part
            continue
        try:
            hint = nearest(part, sorted(entry.name for entry in found.iterdir() if not entry.name.startswith(".")))
        except OSError:
            return ""
        if not hint:
            return ""
        found /= hint.split("'")[1]
    return f" Did you mean '{found}'?" if found.parts else ""
