"""A server of chat completions on this machine, which says what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What is sent: a status, headers, and bytes or something to be written as JSON."""

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class ChatServer:
    """A running server.

    Attributes:
        address: base of its paths.
        asked: what it was asked, in order, with the header `Authorization` under `key`.
    """

    address: str
    asked: list[dict[str, Any]]


def completion(text: Any) -> dict[str, Any]:
    """An answer as the protocol has it."""
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


@contextmanager
def chat_server(reply: Callable[[dict[str, Any]], Reply], listed: Any = None) -> Iterator[ChatServer]:
    """A server inside the block.

    Args:
        reply: what it says to the body of a question.
        listed: what it says to `/models`; None lists one.
    """
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            models = {"data": [{"id": "the-model"}]} if listed is None else listed
            self._send(models if isinstance(models, Reply) else Reply(models))

        def do_POST(self) -> None:  # noqa: N802
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"key": self.headers.get("Authorization"), "path": self.path})
            self._send(reply(body))

        def _send(self, said: Reply) -> None:
            content = said.content if isinstance(said.content, bytes) else json.dumps(said.content).encode()
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield ChatServer(f"http://127.0.0.1:{server.server_port}/v1", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
