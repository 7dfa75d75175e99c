"""Clients that read responses slowly or not at all, and clients that hold connections, do not block others."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tests.qdrant import DEADLINE, wait_until
from tests.service.servers import Running, head, read_answer, running, status
from tests.service.support import KEYS, READ, WRITE, Limits
from zsvec.classifier import Classifier
from zsvec.service.admission import bodies, connections
from zsvec.service.admission.bodies import PART_BYTES
from zsvec.service.pages import live

LARGE = 8 * 2**20  # more than the kernel buffers
TIMEOUT = 0.5
READER_TIMEOUT = 2.0  # of clients that read; a busy machine may stand still for a while


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "WRITE_TIMEOUT_S", TIMEOUT)


def add_large(app: FastAPI) -> None:
    """Adds a route with a large response, and a route with an endless stream."""

    async def large(request: Request) -> Response:
        return Response(bytes(int(request.query_params.get("size", LARGE))))

    async def endless() -> Any:
        while True:
            yield bytes(1000)
            await asyncio.sleep(0)

    app.add_route("/v1/large", large, methods=["GET", "HEAD"])
    app.add_route("/v1/endless", lambda _: StreamingResponse(endless()))


def connect(service: Running) -> socket.socket:
    """A connection with a small receive buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", service.port))
    return connection


def length(connection: socket.socket, request: bytes) -> int:
    """Sends a request, and counts the bytes of the response."""
    connection.sendall(request)
    begun = b""
    while b"\r\n\r\n" not in begun:
        begun += connection.recv(65536)
    told, _, first = begun.partition(b"\r\n\r\n")
    [said] = [int(line[15:]) for line in told.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    got = len(first)
    while got < said and (part := connection.recv(2**20)):
        got += len(part)
    return got


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "path", ["/v1/large", "/v1/endless", "/v1/large HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/large"]
)
def test_a_client_that_reads_nothing_is_disconnected(
    classifier: Classifier, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running(classifier) as service, connect(service) as connection:
        add_large(service.app)
        connection.sendall(head("GET", path))
        wait_until(lambda: len(service.connections) == 1)
        wait_until(lambda: not service.connections)
        wait_until(lambda: service.sending == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.usefixtures("impatient")
def test_a_client_that_sends_requests_and_reads_nothing_is_disconnected(classifier: Classifier) -> None:
    """Small responses together fill every buffer."""
    with running(classifier) as service, connect(service) as connection:
        with pytest.raises((ConnectionError, TimeoutError)):
            for _ in range(100_000):
                connection.sendall(head("GET", "/v1/openapi.json"))
        wait_until(lambda: not service.connections)


@pytest.mark.usefixtures("impatient")
def test_the_unread_end_of_a_response_keeps_no_connection(classifier: Classifier) -> None:
    """The application has returned and the server has closed; the rest stays in the buffer."""
    with running(classifier) as service, connect(service) as connection:
        add_large(service.app)
        for size in range(100_000, 700_000, 20_000):  # for some size, the last part does not fit
            connection.sendall(head("GET", f"/v1/large?size={size}"))
        wait_until(lambda: not service.connections)


@pytest.mark.usefixtures("impatient")
def test_a_client_that_drips_is_disconnected(classifier: Classifier) -> None:
    with running(classifier) as service, connect(service) as connection:
        add_large(service.app)
        connection.sendall(head("GET", "/v1/large"))
        begun, got = time.monotonic(), 0
        with pytest.raises(ConnectionError):
            while time.monotonic() - begun < DEADLINE:
                part = connection.recv(512)
                if not part:
                    raise ConnectionResetError
                got += len(part)
                time.sleep(0.02)
        assert got < LARGE / 10
        wait_until(lambda: not service.connections)


def test_a_slow_client_gets_the_whole_response(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "WRITE_TIMEOUT_S", READER_TIMEOUT)
    with running(classifier) as service, connect(service) as connection:
        add_large(service.app)
        connection.sendall(head("GET", "/v1/large"))
        begun, got, pauses = time.monotonic(), 0, 0
        while got < LARGE:
            part = connection.recv(65536)
            assert part
            got += len(part)
            if got // PART_BYTES > pauses:  # a pause for each part, far below the timeout of a part
                pauses += 1
                time.sleep(2 * READER_TIMEOUT / (LARGE // PART_BYTES))
        assert time.monotonic() - begun > 2 * READER_TIMEOUT


def test_responses_of_any_size_are_complete(classifier: Classifier) -> None:
    with running(classifier) as service, service.connect() as connection:
        add_large(service.app)
        for size in (0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, LARGE):
            assert length(connection, head("GET", f"/v1/large?size={size}")) == size
        connection.sendall(head("HEAD", f"/v1/large?size={LARGE}") + head("GET", "/health/live"))
        assert f"content-length: {LARGE}".encode() in connection.recv(65536)
        wait_until(lambda: service.sending == 0)


def test_unread_responses_have_a_budget(classifier: Classifier) -> None:
    """The oldest response is aborted; the newest is always sent."""
    with running(classifier, limits=Limits(sending_bytes=4 * LARGE)) as service, ExitStack() as stack:
        add_large(service.app)

        def holds(size: int) -> bool:
            return service.sending == size

        slow: list[socket.socket] = []
        for number in range(1, 8):
            slow.append(stack.enter_context(connect(service)))
            slow[-1].sendall(head("GET", "/v1/large"))
            wait_until(partial(holds, LARGE * min(number, 4)))
        wait_until(lambda: len(service.connections) == 4)
        reads = stack.enter_context(service.connect())
        assert length(reads, head("GET", "/v1/large")) == LARGE
        assert length(reads, head("GET", f"/v1/large?size={5 * LARGE}")) == 5 * LARGE
        wait_until(lambda: service.sending == 0)
        for connection in slow:
            with pytest.raises(ConnectionError):
                while connection.recv(65536):
                    pass
                raise ConnectionResetError


def test_events_end_for_a_client_that_does_not_read_only(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "WRITE_TIMEOUT_S", READER_TIMEOUT)
    monkeypatch.setattr(live, "_EVENT_INTERVAL_S", 0.001)
    monkeypatch.setattr(live.Live, "_read", lambda *_: "x" * 10_000)
    with running(classifier) as service, service.connect() as reads, connect(service) as idles:
        for connection in (reads, idles):
            connection.sendall(head("GET", "/live/events"))
        wait_until(lambda: service.app.state.live._watchers == 2)
        got = 0

        def one_is_left() -> bool:
            nonlocal got
            got += len(reads.recv(65536))
            return service.app.state.live._watchers == 1

        wait_until(one_is_left)
        before, begun = got, time.monotonic()
        while time.monotonic() - begun < 2 * READER_TIMEOUT:
            got += len(reads.recv(65536))
        assert got > before + 10_000
        assert len(service.connections) == 1
    assert service.app.state.live._watchers == 0


# Connections


def ask_with(connection: socket.socket, key: str, path: str = "/v1/info") -> int:
    connection.sendall(head("GET", path, Authorization=f"Bearer {key}"))
    return status(read_answer(connection))


def is_disconnected(connection: socket.socket) -> bool:
    """Whether the connection is closed."""
    try:
        connection.sendall(head("GET", "/health/live"))
        return not read_answer(connection)
    except ConnectionError:
        return True


def test_a_head_that_does_not_end_times_out(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", TIMEOUT)
    with running(classifier) as service:
        for requests in range(3):
            with service.connect() as connection:
                for _ in range(requests):
                    connection.sendall(head("GET", "/health/live"))
                    assert status(read_answer(connection)) == 200
                connection.sendall(b"GET /health/live HTTP/1.1\r\nHost:")
                with suppress(ConnectionError):
                    assert not connection.recv(65536)


def test_idle_connections_and_forwarded_requests_outlive_the_timeout_of_a_head(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", TIMEOUT)
    with running(classifier, keys=KEYS) as service, service.connect() as connection:
        for _ in range(2):
            headers = {"Authorization": f"Bearer {READ}", "X_Forwarded_For": "203.0.113.7"}
            connection.sendall(head("GET", "/v1/categories", **headers))
            assert status(read_answer(connection)) == 200
            time.sleep(2 * TIMEOUT)


def as_body(key: str, content: bytes, *, length: int) -> bytes:
    """A request that classifies, with the start of its body."""
    headers = {"Authorization": f"Bearer {key}", "Content_Type": "image/png", "Content_Length": length}
    return head("POST", "/v1/classify", **headers) + content


def test_connections_without_a_key_give_way(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent ones, ones that request open paths, and ones that send an endless body."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    with running(classifier, keys=KEYS) as service, ExitStack() as stack:
        known = [stack.enter_context(service.connect()) for _ in range(2)]
        assert [ask_with(one, key) for one, key in zip(known, (READ, WRITE), strict=True)] == [200, 200]
        for number in range(40):
            stranger = stack.enter_context(service.connect())
            if number % 3 == 1:
                stranger.sendall(head("GET", "/health/live"))
                assert status(read_answer(stranger)) == 200
            elif number % 3 == 2:
                stranger.sendall(head("POST", "/login", Content_Length=1000) + b"x")
        wait_until(lambda: len(service.connections) <= 8)
        assert [ask_with(one, key) for one, key in zip(known, (READ, WRITE), strict=True)] == [200, 200]
        for _ in range(6):
            newcomer = stack.enter_context(service.connect())
            assert ask_with(newcomer, READ) == 200
            known.append(newcomer)
        assert [ask_with(one, READ) for one in known] == [200] * 8
        with service.connect() as one_more:  # beyond the maximum, all with a key: the oldest gives way
            assert ask_with(one_more, WRITE) == 200
            assert [ask_with(one, READ) for one in known[1:]] == [200] * 7
            assert is_disconnected(known[0])


def test_connections_with_a_key_and_a_request_do_not_give_way(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 4)
    with running(classifier, keys=KEYS) as service, ExitStack() as stack:
        at_work = [stack.enter_context(service.connect()) for _ in range(4)]
        for one in at_work:
            one.sendall(as_body(READ, bytes(10), length=20))
        wait_until(lambda: service.receiving == 40)
        with service.connect() as one_more:
            assert is_disconnected(one_more)
        for one in at_work:
            one.sendall(bytes(10))
        assert [status(read_answer(one)) for one in at_work] == [200] * 4


def test_many_new_connections_stay_within_the_maximum(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    with running(classifier) as service, ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(service.connect())
        wait_until(lambda: len(service.connections) == 8)
        assert status(service.ask(head("GET", "/health/live"))) == 200
