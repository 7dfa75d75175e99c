"""A server with endless answers takes neither the memory nor the time of a store; large pages are read in parts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any

import grpc
import pytest
from qdrant_client import grpc as protocol

from tests import endless
from tests.generation.scripted import Reply, Scripted, Sent, scripted
from tests.store import http2
from tests.store.support import left_behind
from zsvec.errors import LargeAnswerError, StoreError, StoreUnavailableError
from zsvec.store import Store, open_store
from zsvec.store.backends.base import Where
from zsvec.store.backends.server import connection, limits
from zsvec.store.backends.server.backend import connect
from zsvec.store.backends.server.endpoint import Node
from zsvec.store.backends.server.limits import ANSWER_BYTES, SMALL_ANSWER_BYTES, Limits, size_of_point

PATIENCE_S = 60.0
ENDLESS: Mapping[str, endless.Reply] = dict([*endless.FLOODS.items(), *endless.HEAD_FLOODS.items()])
VERSION = {"title": "qdrant", "version": "1.19.2", "commit": "abc"}


def opened(url: str, **options: Any) -> Store:
    return open_store(url, **{"namespace": "birds", "timeout": PATIENCE_S, **options})


def opened_at_last(url: str, **options: Any) -> Store:
    """Opens a store with short deadlines, as often as a busy machine needs."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return opened(url, **options)
        except StoreUnavailableError:
            if time.monotonic() > end:
                raise


def refused(url: str, act: Callable[[], Any]) -> StoreError:
    start = time.monotonic()
    with endless.bounded_memory(), pytest.raises(StoreError) as caught:
        act()
    assert time.monotonic() - start < PATIENCE_S
    assert not left_behind()
    assert url in str(caught.value)
    return caught.value


def healthy(path: bytes, stopped: threading.Event) -> Iterator[bytes]:
    """Answers as a Qdrant without collections."""
    body = json.dumps(VERSION).encode()
    yield from endless.whole(body)(path, stopped) if path == b"/" else [b"HTTP/1.1 404 Not Found\r\n\r\n{}"]


# REST


@pytest.mark.parametrize("flood", endless.FLOODS)
@pytest.mark.parametrize("while_open", [False, True])
def test_an_answer_without_end_is_refused(flood: str, while_open: bool) -> None:
    with endless.serving(healthy) as server:
        store = opened(server.url) if while_open else None
        server.reply = endless.FLOODS[flood]
        refused(server.url, store.categories if store else lambda: opened(server.url))
        if flood in ("body", "chunks"):
            pages = 3 if while_open else 0  # of the catalog, asked for again in smaller parts
            assert server.sent < SMALL_ANSWER_BYTES + pages * ANSWER_BYTES + 20_000_000
        server.reply = healthy
        with store or opened(server.url) as recovered:
            assert recovered.categories() == []


@pytest.mark.parametrize("flood", ["body", "gzip"])
def test_a_page_without_end_is_refused(flood: str) -> None:
    def reply(path: bytes, stopped: threading.Event) -> Iterator[bytes]:
        yield from (endless.FLOODS[flood] if b"/scroll" in path else healthy)(path, stopped)

    with endless.serving(reply) as server, opened(server.url) as store:
        error = refused(server.url, store.categories)
    assert isinstance(error, LargeAnswerError)
    assert f"{ANSWER_BYTES:,} bytes" in str(error)


@pytest.mark.parametrize("flood", endless.HEAD_FLOODS)
@pytest.mark.parametrize("while_open", [False, True])
def test_a_head_without_end_is_given_up(flood: str, while_open: bool) -> None:
    with endless.serving(healthy) as server:
        store = opened_at_last(server.url, timeout=2) if while_open else None
        server.reply = endless.HEAD_FLOODS[flood]
        error = refused(server.url, store.categories if store else lambda: opened(server.url, timeout=2))
        assert isinstance(error, StoreUnavailableError)
        if store:
            store.close()


@pytest.mark.parametrize("flood", ENDLESS)
def test_a_node_with_an_endless_answer_is_not_well(flood: str) -> None:
    with endless.serving(ENDLESS[flood]) as server, endless.bounded_memory():
        assert not Node(server.url, lambda *_: pytest.fail("it is not contacted"), 1).is_well()
        assert not left_behind()


# gRPC

ATTACKS = {
    "message": http2.endless_message,
    "messages": http2.endless_messages,
    "metadata": http2.endless_metadata,
    "compressed": lambda call: http2.compressed_message(endless.bomb())(call),
}
VICTIM = """
import resource, sys
import qdrant_client.grpc, zsvec.store.backends.server.backend, zsvec.store.catalog.catalog
from zsvec.errors import StoreError
from zsvec.store import open_store

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_store(sys.argv[1], namespace="birds", timeout=2).categories()
except StoreError as error:
    print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@contextmanager
def beside_rest(reply: Callable[[Scripted, Sent], Reply]) -> Iterator[tuple[Scripted, socket.socket]]:
    """Serves REST, and listens on the next port."""
    for _ in range(100):
        with scripted(reply) as rest:
            try:
                beside = socket.create_server(("127.0.0.1", int(rest.base.rpartition(":")[2]) + 1))
            except OSError:  # the port belongs to another process
                continue
            with beside:
                yield rest, beside
            return
    raise AssertionError("no two adjacent ports are free")


def root_only(server: Scripted, sent: Sent) -> Reply:
    return Reply(VERSION) if sent.path == "/" else Reply({}, 404)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_message_without_end_is_refused(attack: str) -> None:
    done = attacked(attack)
    assert done.returncode == 0, done.stderr
    error, growth = done.stdout.split()
    assert error in ("StoreUnavailableError", "LargeAnswerError")
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(growth) * unit < endless.TOO_MUCH_MEMORY


def attacked(attack: str) -> subprocess.CompletedProcess[str]:
    """Runs a victim of a store that answers well once, and then attacks."""
    said = protocol.HealthCheckReply(title="qdrant", version="1.19.2", commit="abc").SerializeToString()
    with beside_rest(root_only) as (rest, beside):
        answers = chain([http2.message(said)], repeat(ATTACKS[attack]))
        thread = threading.Thread(target=http2.serve, args=(beside, answers))
        thread.start()
        try:
            return subprocess.run(
                [sys.executable, "-c", VICTIM, rest.base], capture_output=True, text=True, timeout=120, check=False
            )
        finally:
            beside.shutdown(socket.SHUT_RDWR)
            thread.join()


# Pages


POINTS = 300
PAYLOAD = {"gen": "x" * 1000}


class Points(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers scrolls by gRPC, and knows no collection otherwise.

    Attributes:
        limits: Of the scrolls.
    """

    def __init__(self) -> None:
        self.limits: list[int] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method.endswith("/HealthCheck"):
            reply = protocol.HealthCheckReply(title="qdrant", version="1.19.2", commit="abc")
            return grpc.unary_unary_rpc_method_handler(lambda *_: reply.SerializeToString())
        if details.method.endswith("/Scroll"):
            return grpc.unary_unary_rpc_method_handler(self._scroll)
        return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(grpc.StatusCode.NOT_FOUND, "none"))

    def _scroll(self, asked: bytes, _: grpc.ServicerContext) -> bytes:
        request = protocol.ScrollPoints.FromString(asked)
        self.limits.append(request.limit)
        first = request.offset.num
        last = min(first + request.limit, POINTS)
        response = protocol.ScrollResponse(
            result=[
                protocol.RetrievedPoint(
                    id=protocol.PointId(num=number), payload={"gen": protocol.Value(string_value=PAYLOAD["gen"])}
                )
                for number in range(first, last)
            ]
        )
        if last < POINTS:
            response.next_page_offset.num = last
        return response.SerializeToString()


@pytest.fixture(params=["rest", "grpc"])
def pages(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[int]]]:
    """Returns the URL of a server of points, and the limits of the scrolls that it gets."""
    asked: list[int] = []

    def reply(server: Scripted, sent: Sent) -> Reply:
        if not sent.path.partition("?")[0].endswith("/scroll"):
            return root_only(server, sent)
        scroll = json.loads(sent.body)
        asked.append(scroll["limit"])
        first = scroll.get("offset") or 0
        last = min(first + scroll["limit"], POINTS)
        points = [{"id": number, "payload": PAYLOAD} for number in range(first, last)]
        return Reply({"result": {"points": points, "next_page_offset": last if last < POINTS else None}})

    with beside_rest(reply) as (rest, beside):
        if request.param == "rest":
            yield rest.base, asked
            return
        port = beside.getsockname()[1]
        beside.close()
        handler = Points()
        server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
        assert server.add_insecure_port(f"127.0.0.1:{port}") == port
        server.start()
        yield rest.base, handler.limits
        server.stop(None).wait()


def test_a_page_that_is_too_large_is_read_in_parts(
    pages: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 100_000  # of some 90 points
    monkeypatch.setattr(limits, "ANSWER_BYTES", bound)
    monkeypatch.setitem(connection._GRPC_OPTIONS, "grpc.max_receive_message_length", bound)
    url, asked = pages
    backend = connect([url], timeout=PATIENCE_S)
    for _ in range(2):
        ids = [place for page in backend.scroll("birds__images", Where()) for place in page.ids]
        assert ids == [str(number) for number in range(POINTS)]
    assert asked[:5] == [1000, 500, 250, 125, 62]
    assert set(asked[5:]) == {62}  # the size that fits is remembered
    backend.close()


def test_a_point_that_is_too_large_is_an_error(pages: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ANSWER_BYTES", 500)
    monkeypatch.setitem(connection._GRPC_OPTIONS, "grpc.max_receive_message_length", 500)
    url, asked = pages
    backend = connect([url], timeout=PATIENCE_S)
    with pytest.raises(LargeAnswerError, match=f"{url}.* too large") as caught:
        list(backend.scroll("birds__images", Where()))
    assert "500" in str(caught.value)
    assert asked[-1] == 1
    backend.close()


def test_a_point_that_could_not_be_read_is_not_written() -> None:
    fits = {"metadata": "é" * 19_000_000}
    assert 38_000_000 < size_of_point(4, fits) < ANSWER_BYTES
    with pytest.raises(StoreError, match="at most 40,000,000 bytes"):
        size_of_point(4, {"metadata": "x" * ANSWER_BYTES})


def test_halved_limits() -> None:
    halves = [Limits()]
    while halves[-1].halved() != halves[-1]:
        halves.append(halves[-1].halved())
    assert [(size.page, size.queries, size.records) for size in halves[:3]] == [
        (1000, 64, 10_000),
        (500, 32, 5000),
        (250, 16, 2500),
    ]
    assert (halves[-1].page, halves[-1].queries, halves[-1].records) == (1, 1, 1)
    assert Limits().halved(2) == halves[2]
    assert Limits().halved(3) == halves[2].halved()
