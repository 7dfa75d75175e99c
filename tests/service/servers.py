"""Services on real sockets, for raw requests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from tests.qdrant import DEADLINE, wait_until
from zsvec.classifier import Classifier
from zsvec.service import Keys, Limits, create_app
from zsvec.service.admission.bodies import Backpressure
from zsvec.service.admission.queue import Work
from zsvec.service.label_studio import LabelStudio
from zsvec.service.server import Server, listening


@dataclass
class Running:
    """A service that listens on the loopback."""

    app: FastAPI
    port: int
    connections: Collection[Any]

    @property
    def work(self) -> Work:
        work: Work = self.app.state.work
        return work

    @property
    def receiving(self) -> int:
        return self._backpressure().receiving

    @property
    def sending(self) -> int:
        return self._backpressure().sending

    def _backpressure(self) -> Backpressure:
        found: Any = self.app.middleware_stack
        while not isinstance(found, Backpressure):
            found = getattr(found, "app", None) or found._app
        return found

    def is_at_rest(self) -> bool:
        """Whether no request is at work."""
        return self.work.queued == self.work._tasks == self.receiving == 0

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def ask(self, request: bytes) -> bytes:
        """Sends a request on a new connection, and returns one answer."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_answer(connection)


def head(method: str, path: str, **headers: object) -> bytes:
    """The head of a request."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def read_answer(connection: socket.socket) -> bytes:
    """One answer, by its Content-Length."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = connection.recv(65536)
        if not part:
            return got
        got += part
    first, _, body = got.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in first.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        part = connection.recv(65536)
        if not part:
            break
        got, body = got + part, body + part
    return got


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@contextmanager
def running(
    classifier: Classifier,
    *,
    keys: Keys | None = None,
    limits: Limits | None = None,
    label_studio: LabelStudio | None = None,
) -> Iterator[Running]:
    """Runs a service within the block, and asserts that no request is left."""
    app = create_app(classifier, keys=keys, limits=limits, label_studio=label_studio)
    with listening("127.0.0.1", 0) as listener:
        server = Server(app, listener)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            wait_until(lambda: server.started)
            found = Running(app, listener.getsockname()[1], server.server_state.connections)
            found.ask(head("GET", "/health/live"))
            yield found
            wait_until(found.is_at_rest)
        finally:
            server.should_exit = True
            thread.join()
