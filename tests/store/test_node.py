"""Requests that do not end hold up no other of the same node."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from qdrant_client import QdrantClient

from zsvec.store.server.deadline import LateError
from zsvec.store.server.node import Node

ENOUGH = 10.0  # seconds, also where the machine is busy
VERSION = "1.18.3"


class Client(QdrantClient):
    """One that tells when it is closed."""

    def __init__(self, url: str) -> None:
        self.closed = threading.Event()
        super().__init__(url=url, check_compatibility=False)

    def close(self, grpc_grace: float | None = None, **options: Any) -> None:
        super().close(grpc_grace, **options)
        self.closed.set()


class Held:
    """A request that waits until it may go on, and then asks for the version."""

    def __init__(self, node: Node, left: float) -> None:
        self.go_on = threading.Event()
        self._node, self._left = node, left
        self._begun: Future[threading.Thread] = Future()
        self._pool = ThreadPoolExecutor(1)
        self._answer = self._pool.submit(node.ask, self._request, left=left)
        self._begun.result(ENOUGH)

    def _request(self, client: QdrantClient, _: int | None) -> str:
        self._begun.set_result(threading.current_thread())
        self.go_on.wait()
        return client.info().version

    def answer(self) -> str:
        """Whatever has become of it."""
        try:
            return self._answer.result(ENOUGH)
        finally:
            self._pool.shutdown()

    def end(self) -> None:
        """Let its thread go on, to the end."""
        self.go_on.set()
        self._begun.result().join(ENOUGH)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f'{{"title": "qdrant", "version": "{VERSION}"}}'.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def clients() -> list[Client]:
    """Those that were made."""
    return []


@pytest.fixture
def node(url: str, clients: list[Client]) -> Iterator[Node]:
    def contact(_: float) -> tuple[QdrantClient, bool]:
        clients.append(Client(url))
        return clients[-1], False

    found = Node(url, contact, ENOUGH)
    yield found
    found.close()


def version(client: QdrantClient, _: int | None) -> str:
    return client.info().version


def test_a_first_contact_that_does_not_end_holds_up_no_later_request(url: str) -> None:
    ended = threading.Event()
    waits: Iterator[Callable[[], object]] = iter([ended.wait])
    made: list[Client] = []

    def contact(_: float) -> tuple[QdrantClient, bool]:
        next(waits, lambda: None)()
        made.append(Client(url))
        return made[-1], False

    node = Node(url, contact, ENOUGH)
    with pytest.raises(LateError):
        node.ask(version, left=0.1)
    assert node.ask(version, left=ENOUGH) == VERSION
    good = made[0]
    ended.set()  # what the late one has made is closed, and not the other
    while len(made) < 2:
        ended.wait(0.01)
    assert made[1].closed.wait(ENOUGH)
    assert not good.closed.is_set()
    assert node.ask(version, left=ENOUGH) == VERSION
    node.close()


def test_two_late_requests_of_one_client_leave_the_next_client_alone(node: Node, clients: list[Client]) -> None:
    one, other = Held(node, left=0.1), Held(node, left=0.5)
    with pytest.raises(LateError):
        one.answer()
    third = Held(node, left=2 * ENOUGH)  # by a new client
    with pytest.raises(LateError):
        other.answer()
    one.end()
    other.end()
    third.go_on.set()
    assert third.answer() == VERSION
    assert clients[0].closed.wait(ENOUGH)
    assert len(clients) == 2


def test_a_late_request_leaves_those_that_are_in_time_their_client(node: Node, clients: list[Client]) -> None:
    in_time, late = Held(node, left=2 * ENOUGH), Held(node, left=0.1)
    with pytest.raises(LateError):
        late.answer()
    late.end()
    assert not clients[0].closed.is_set()
    in_time.go_on.set()
    assert in_time.answer() == VERSION
    assert clients[0].closed.wait(ENOUGH)
