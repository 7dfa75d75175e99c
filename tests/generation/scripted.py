"""A server with scripted replies that records requests and headers, for cases beyond `fake_openai`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Sent:
    """A received request."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """A reply; a ``body`` other than bytes is sent as JSON."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Scripted:
    """A running server.

    Attributes:
        base: Address.
        url: Base URL for a client.
        seen: Received requests, in order.
    """

    base: str
    seen: list[Sent] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.base}/v1"


@contextmanager
def scripted(respond: Callable[[Scripted, Sent], Reply]) -> Iterator[Scripted]:
    """Serves the replies of `respond` on the loopback."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = Sent(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            served.seen.append(sent)
            reply = respond(served, sent)
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **reply.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Scripted(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def chat(content: Any, **usage: int) -> Reply:
    """An answer of a language model; another content than text is sent as JSON."""
    text = content if isinstance(content, str) else json.dumps(content)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Reply({"id": "chatcmpl-1", "choices": [choice], "usage": usage or None})


def pictures(*images: Mapping[str, Any], **usage: int) -> Reply:
    """An answer of an image model."""
    return Reply({"data": list(images), "usage": usage or None}, headers={"x-request-id": "req-1"})
