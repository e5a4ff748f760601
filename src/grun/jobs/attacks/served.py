"""A model behind an address that speaks OpenAI's protocol: asked with prompts, it gives answers and nothing else."""

from __future__ import annotations

__all__ = ["Served", "served_evidence"]

import json
import os
import time
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError

from grun.core.config.attacking import AttackConfig
from grun.core.errors import RunsFailed, UserError
from grun.core.process.progress import Progress
from grun.core.records import Evidence, Example, RowEvidence
from grun.evaluation.measuring.evidence_store import EvidenceStore

KEY = "GRUN_API_KEY"
TRIES = 6  # of one question, before the address counts as out of order
LONGEST_WAIT = 300.0  # seconds
LARGEST = 10_000_000  # bytes of an answer that are read
BUSY, REFUSED, FORBIDDEN = (429, 500, 502, 503, 504), (400, 413, 422), (401, 403)
SHOWN = 200  # characters of what an address says, in messages
AGAIN = "What is measured is kept: run the same command to go on."


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an error: it would carry the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class Served:
    """A model at an address.

    Attributes:
        address: base of the protocol's paths, such as `http://localhost:8000/v1`.
        model: name of the model there.
        max_new_tokens: longest answer, in tokens.
        timeout: seconds to wait for one answer.
    """

    address: str
    model: str
    max_new_tokens: int
    timeout: float

    @classmethod
    def of(cls, config: AttackConfig) -> Served:
        """The model that settings name; without a name, the first that the address lists.

        Raises:
            UserError: if the address does not answer, or lists nothing.
        """
        found = cls(str(config.address).rstrip("/"), config.served_model or "", config.max_new_tokens, config.timeout)
        if found.model:
            return found
        listed = found._said("models", None)
        try:
            name = listed["data"][0]["id"]
        except (KeyError, IndexError, TypeError):
            name = None
        if not isinstance(name, str) or not name:
            raise UserError(f"{found._where} lists no model ({_short(listed)}); name it with --served-model.")
        return cls(found.address, name, found.max_new_tokens, found.timeout)

    def answer(self, row: Example) -> str | None:
        """The greedy answer to a row; None if the address refuses the prompt, for its length, say.

        Raises:
            UserError: if there is no answer, or one of another form.
        """
        turns = [{"role": role, "content": content} for role, content in (*row.turns, ("user", row.prompt))]
        asked = {"model": self.model, "messages": turns, "max_tokens": self.max_new_tokens, "temperature": 0}
        said = self._said("chat/completions", asked)
        if said is None:
            return None
        try:
            content = said["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = 0
        if content is not None and not isinstance(content, str):
            raise UserError(
                f"{self._where} answers '{_short(said)}', expected choices with a message and its content; "
                "is it the address of an OpenAI-compatible server, such as http://localhost:8000/v1?"
            )
        text = (content or "").encode("utf-8", "replace").decode()  # halves of characters are no text
        for stop in row.stops:
            text = text.partition(stop)[0]
        return text.strip()

    @property
    def _where(self) -> str:
        return f"--address '{self.address}'"

    def _said(self, path: str, asked: Any) -> Any:
        """What the address says to a request, as JSON; None if it refuses the request as such."""
        reason = ""
        for attempt in range(TRIES):
            wait = min(2.0**attempt, LONGEST_WAIT)
            try:
                return self._json(self._sent(path, asked))
            except HTTPError as error:
                body = _short(_body(error))
                if error.code in REFUSED and asked is not None:
                    return None
                if error.code in FORBIDDEN:
                    raise UserError(f"{self._where} refuses access ({error.code}: {body}); set {KEY}.") from error
                if error.code not in BUSY:
                    raise UserError(
                        f"{self._where} answers {path} with status {error.code} ({body}); expected the base address of an "
                        "OpenAI-compatible server, which often ends in /v1."
                    ) from error
                reason, wait = f"status {error.code}", _asked_wait(error.headers.get("Retry-After"), wait)
            except (OSError, HTTPException) as error:  # refused, unknown host, timeout, connection lost
                reason = str(getattr(error, "reason", None) or error or type(error).__name__)
            if attempt + 1 < TRIES:
                time.sleep(wait)
        raise UserError(
            f"{self._where} does not answer after {TRIES} tries: {_short(reason)}. Check the address and the server."
        )

    def _sent(self, path: str, asked: Any) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key.strip()}"
        data = None if asked is None else json.dumps(asked).encode()
        request = urllib.request.Request(f"{self.address}/{path}", data, headers)
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=self.timeout) as response:
            return bytes(response.read(LARGEST))

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self._where} answers '{_short(content)}', which is no JSON; is it the address of an OpenAI-compatible "
                "server, such as http://localhost:8000/v1?"
            ) from error


def served_evidence(
    served: Served, splits: dict[str, tuple[Example, ...]], store: EvidenceStore
) -> dict[str, Evidence]:
    """The answers to all rows by split, from the store as far as it has them.

    Rows that the address refuses have no answer.

    Raises:
        RunsFailed: if the address stops answering as it should; what was measured is kept.
    """
    try:
        return _evidence(served, splits, store)
    except UserError as error:
        raise RunsFailed(f"{error} {AGAIN}") from error


def _evidence(served: Served, splits: dict[str, tuple[Example, ...]], store: EvidenceStore) -> dict[str, Evidence]:
    found = {}
    with Progress(f"ask {served.model}", sum(map(len, splits.values())), "row") as progress:
        for name, examples in splits.items():
            rows = store.read(name, examples)
            if rows is None:
                answered = []
                for example in examples:
                    answered.append(RowEvidence(example, (), generated=served.answer(example)))
                    progress.update()
                rows = tuple(answered)
                store.write(name, rows)
            else:
                progress.update(len(examples))
            found[name] = Evidence(name, rows)
    return found


def _asked_wait(header: str | None, otherwise: float) -> float:
    """Seconds to wait, as a busy address asks for: a number or a date."""
    if header is None:
        return otherwise
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return otherwise
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else otherwise


def _body(error: HTTPError) -> bytes:
    try:
        return bytes(error.read(LARGEST))
    except (OSError, HTTPException):
        return b""


def _short(said: Any) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    return " ".join(text.split())[:SHOWN]
