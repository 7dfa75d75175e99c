"""Requests that do not end hold up no other of the same node, and end soon after their deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import grpc
import httpx
import pytest
from qdrant_client import QdrantClient

from tests.store.support import left_behind
from zsvec.errors import StoreUnavailableError
from zsvec.inputs.answers import LateError, Sockets, hooks
from zsvec.store import open_store
from zsvec.store.backends.server.endpoint import Node
from zsvec.store.backends.server.limits import answer_bytes

ENOUGH = 60.0  # seconds, also where the machine is busy
VERSION = "1.19.2"


class Client(QdrantClient):
    """A client that keeps connections, and tells when closed."""

    def __init__(self, url: str, sockets: Sockets) -> None:
        self.closed = threading.Event()
        super().__init__(
            url=url,
            check_compatibility=False,
            timeout=60,
            limits=httpx.Limits(),
            event_hooks=hooks(answer_bytes, sockets.watch),
        )

    def close(self, grpc_grace: float | None = None, **options: Any) -> None:
        super().close(grpc_grace, **options)
        self.closed.set()


class Held:
    """A request for the version that first waits."""

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
        try:
            return self._answer.result(ENOUGH)
        finally:
            self._pool.shutdown()

    def end(self) -> None:
        self.go_on.set()
        self._begun.result().join(ENOUGH)


class Server(ThreadingHTTPServer):
    """Answers with a version.

    Attributes:
        go_on: Ends the silence about the collection ``slow``, and the drip about ``drips``.
        slow: Whether a request for ``slow`` has come.
        connections: Number of connections so far.
    """

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.slow = threading.Event()
        self.connections = 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        body = f'{{"title": "qdrant", "version": "{VERSION}"}}'.encode()
        if "/slow/" in self.path:
            self.server.slow.set()
            self.server.go_on.wait()
            body = b'{"result": {"exists": true}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if "/drips" in self.path:
            self.close_connection = True
            drip(self.connection, self.server.go_on)
            return
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def drip(connection: socket.socket, until: threading.Event) -> None:
    """A byte now and then."""
    with suppress(OSError):  # the client has gone
        connection.sendall(b"HTTP/1.1 200 OK\r\nx-drip: ")
        while not until.wait(0.05):
            connection.sendall(b"x")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.go_on.set()
        found.shutdown()
        thread.join()


@pytest.fixture
def clients() -> list[Client]:
    """Those that were made."""
    return []


@pytest.fixture
def node(server: Server, clients: list[Client]) -> Iterator[Node]:
    def contact(_: float, sockets: Sockets) -> tuple[QdrantClient, bool]:
        clients.append(Client(server.url, sockets))
        return clients[-1], False

    found = Node(server.url, contact, ENOUGH)
    yield found
    found.close()


def version(client: QdrantClient, _: int | None) -> str:
    return client.info().version


def test_a_first_contact_that_does_not_end_holds_up_no_later_request(server: Server) -> None:
    ended = threading.Event()
    waits: Iterator[Callable[[], object]] = iter([ended.wait])
    made: list[Client] = []

    def contact(_: float, sockets: Sockets) -> tuple[QdrantClient, bool]:
        next(waits, lambda: None)()
        made.append(Client(server.url, sockets))
        return made[-1], False

    node = Node(server.url, contact, ENOUGH)
    with pytest.raises(LateError):
        node.ask(version, left=0.1)
    assert node.ask(version, left=ENOUGH) == VERSION
    good = made[0]
    ended.set()  # closes the late client alone
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


class Broken(grpc.RpcError, grpc.Call):  # type: ignore[misc]
    """The channel of a request has lost its connection."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE


Broken.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


def test_a_broken_channel_leaves_the_requests_in_progress_their_client(server: Server, clients: list[Client]) -> None:
    def contact(_: float, sockets: Sockets) -> tuple[QdrantClient, bool]:
        clients.append(Client(server.url, sockets))
        return clients[-1], True

    def breaks(*_: Any) -> None:
        raise Broken

    node = Node(server.url, contact, ENOUGH)
    node.ask(version, left=ENOUGH)
    in_time = Held(node, left=ENOUGH)
    with pytest.raises(Broken):
        node.ask(breaks, left=ENOUGH)
    assert node.ask(version, left=ENOUGH) == VERSION
    assert len(clients) == 2
    assert not clients[0].closed.is_set()
    in_time.go_on.set()
    assert in_time.answer() == VERSION
    assert clients[0].closed.is_set()
    assert not clients[1].closed.is_set()
    node.close()


def drips(client: QdrantClient, _: int | None) -> bool:
    return client.collection_exists("drips")


@pytest.mark.parametrize("before", [0, 1], ids=["new connection", "kept connection"])
def test_a_dripping_request_is_left_after_its_deadline(
    node: Node, server: Server, clients: list[Client], before: int
) -> None:
    for _ in range(before):
        node.ask(version, left=ENOUGH)
    with pytest.raises(LateError):
        node.ask(drips, left=0.2 if before else 5)  # seconds, of which a busy machine takes some to connect
    assert server.connections == 1
    assert not left_behind()
    assert clients[0].closed.is_set()
    assert node.ask(version, left=ENOUGH) == VERSION


def test_a_dripping_request_is_left_when_no_other_of_its_client_is_in_time(node: Node, server: Server) -> None:
    node.ask(version, left=ENOUGH)
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(node.ask, lambda client, _: client.collection_exists("slow"), left=ENOUGH)
        assert server.slow.wait(ENOUGH)
        with pytest.raises(LateError):
            node.ask(drips, left=0.2)
        server.go_on.set()
        assert beside.result()
    assert not left_behind()


def test_a_first_contact_that_drips_is_left(server: Server) -> None:
    def contact(_: float, sockets: Sockets) -> tuple[QdrantClient, bool]:
        client = Client(server.url, sockets)
        client.collection_exists("drips")
        return client, False

    node = Node(server.url, contact, ENOUGH)
    for _ in range(2):
        with pytest.raises(LateError):
            node.ask(version, left=0.2)
    assert not left_behind()


def test_a_dripping_health_check_is_left(server: Server) -> None:
    assert not Node(f"{server.url}/drips", lambda *_: pytest.fail("it is not contacted"), 1).is_well()
    assert not left_behind()


class Handshake(BaseRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):  # the client has gone
            self.request.recv(1)
            self.request.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KiB …
            while True:
                self.request.sendall(b"\x02")  # … byte by byte
                time.sleep(0.05)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_handshake_that_drips_is_left(scheme: str) -> None:
    """By `http://` too, where a silent server is probed for TLS."""
    with ThreadingTCPServer(("127.0.0.1", 0), Handshake) as server:
        server.daemon_threads = True  # end with their clients
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        try:
            with pytest.raises(StoreUnavailableError, match="did not answer within 1 s"):
                open_store(url, namespace="birds", timeout=1)
            assert not left_behind()
        finally:
            server.shutdown()
            thread.join()
