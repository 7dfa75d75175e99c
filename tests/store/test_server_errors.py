"""A server that is away, slow, busy, old, or refuses: an error of zsvec, in time, without the key."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from contextvars import ContextVar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from qdrant_client import grpc as protocol

from tests.qdrant import Node as Server
from tests.qdrant import running_server
from tests.store.material import FINGERPRINTS, write_of
from tests.store.support import fast_folder, left_behind
from zsvec.errors import InvalidInputError, StoreError, StoreUnavailableError
from zsvec.inputs.answers import LateError, in_time
from zsvec.store import Store, open_store
from zsvec.store.catalog.schema import store_payload
from zsvec.store.names import record_id

KEY = "s3cr3t-k3y"
TIMEOUT = 1.0  # seconds, the shortest that the client knows
SHORT = 0.5  # seconds, for errors that come as soon as the time is over
PATIENT = 120.0  # seconds of a deadline that is not reached
AT_ONCE = 60.0  # seconds of a busy machine, and less than PATIENT

Answer = tuple[int, dict[str, str], bytes]


def ok(result: Any) -> Answer:
    return 200, {}, json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()


def error(status: int, message: str, **headers: str) -> Answer:
    body = json.dumps({"status": {"error": message}, "time": 0.0}).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


def root(version: str) -> Answer:
    return 200, {}, json.dumps({"title": "qdrant - vector search engine", "version": version}).encode()


class FakeQdrant:
    """Answers requests on the loopback, as a Qdrant that has no collections unless told otherwise.

    Attributes:
        url: URL of the server.
        answer: Gives the answer to a method and a path, or ``None`` for the usual one.
        drip: Answers a request in the place of that, by itself, and not before the end; if there is one.
        requests: Method, path and time of each request.
        keys: The API key of each request.
    """

    def __init__(self) -> None:
        self.answer: Callable[[str, str], Answer | None] = lambda method, path: None
        self.drip: Callable[[socket.socket, threading.Event], None] | None = None
        self.requests: list[tuple[str, str, float]] = []
        self.keys: list[str | None] = []
        self.stopped = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def respond(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.partition("?")[0]
                fake.requests.append((self.command, path, time.monotonic()))
                fake.keys.append(self.headers.get("api-key"))
                if fake.drip:
                    with suppress(OSError):  # the client has gone
                        fake.drip(self.connection, fake.stopped)
                    self.close_connection = True
                    return
                status, headers, body = fake.answer(self.command, path) or fake.usual(path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = respond  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server, self._beside = two_adjacent(lambda port: ThreadingHTTPServer(("127.0.0.1", port), Handler))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def usual(self, path: str) -> Answer:
        if path == "/":
            return root("1.19.2")
        if path.endswith("/exists"):
            return ok({"exists": False})
        return error(404, f"Not found: {path}")

    def first(self, answers: list[Answer], path: str = "/") -> None:
        """Give these answers to the first requests of a path."""
        remaining = iter(answers)
        self.answer = lambda _, asked: next(remaining, None) if asked == path else None

    def stall(self, method: str, path: str) -> None:
        """Do not answer before the end."""
        self.stopped.wait()

    def leave_beside(self) -> None:
        self._beside.close()

    def listen_beside(self) -> None:
        """Accepts connections on the next port, without answers."""
        self._beside.listen()

    def stop(self) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._beside.close()


def two_adjacent(serve: Callable[[int], ThreadingHTTPServer]) -> tuple[ThreadingHTTPServer, socket.socket]:
    """A server, and a socket that keeps the next port."""
    for _ in range(100):
        beside = socket.socket()
        beside.bind(("127.0.0.1", 0))
        try:
            return serve(beside.getsockname()[1] - 1), beside
        except OSError:  # the port before is taken
            beside.close()
    raise AssertionError("no two adjacent ports are free")


@pytest.fixture
def qdrant() -> Iterator[FakeQdrant]:
    fake = FakeQdrant()
    yield fake
    fake.stop()


@pytest.fixture
def another(qdrant: FakeQdrant) -> Iterator[FakeQdrant]:
    fake = FakeQdrant()
    yield fake
    fake.stop()


def opened(*urls: str, **options: Any) -> Store:
    return open_store(
        ",".join(urls),
        **{"namespace": "birds", "api_key": KEY, "timeout": PATIENT, "first_contact": PATIENT, **options},
    )


def refusal(url: str, act: Callable[[], Any], expected: type[StoreError], within: float) -> str:
    """The message of the error that an act must raise, in time."""
    start = time.monotonic()
    with pytest.raises(StoreError) as caught:
        act()
    assert time.monotonic() - start < within
    assert type(caught.value) is expected
    message = str(caught.value)
    assert url in message
    assert KEY not in message
    assert caught.value.__cause__ is None or KEY not in str(caught.value.__cause__)
    return message


def in_a_second(store: Store | None, url: str) -> None:
    """Reads the categories, or opens a store if none is open, within the shortest deadline."""
    if store is None:
        opened(url, timeout=TIMEOUT).close()
    else:
        with store.within(TIMEOUT):
            store.categories()


def test_rest_is_used_where_grpc_is_not_there(qdrant: FakeQdrant) -> None:
    with opened(qdrant.url) as store:
        assert store.categories() == []
    catalog = "/collections/birds__catalog"
    of_store, of_categories = (
        [f"{catalog}/cluster", f"{catalog}/points"],
        [f"{catalog}/cluster", f"{catalog}/points/scroll"],
    )
    assert [path for _, path, _ in qdrant.requests] == ["/", catalog, *of_store, *of_categories]
    assert qdrant.keys == [None, KEY, KEY, KEY, KEY, KEY]  # none before the server is known to be a Qdrant


def test_grpc_is_looked_for_beside_the_rest_port(qdrant: FakeQdrant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another port of the host, such as the usual one, may belong to another deployment."""
    asked: list[str] = []

    def spy(address: str, options: Any) -> grpc.Channel:
        asked.append(address)
        return insecure_channel(address, options)

    insecure_channel = grpc.insecure_channel
    monkeypatch.setattr(grpc, "insecure_channel", spy)
    opened(qdrant.url).close()
    assert asked == [f"127.0.0.1:{int(qdrant.url.rpartition(':')[2]) + 1}"]


def test_rest_is_used_where_something_else_is_beside_it(qdrant: FakeQdrant) -> None:
    qdrant.listen_beside()
    start = time.monotonic()
    with opened(qdrant.url) as store:
        assert store.categories() == []
    assert time.monotonic() - start < AT_ONCE
    assert qdrant.requests[-1][1] == "/collections/birds__catalog/points/scroll"


class Eavesdropper(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers any call as a Qdrant of the same version, and records the metadata."""

    def __init__(self) -> None:
        self.metadata: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        self.metadata += [f"{name}: {value}" for name, value in details.invocation_metadata]
        reply = protocol.HealthCheckReply(version="1.19.2", commit="another")
        return grpc.unary_unary_rpc_method_handler(lambda *_: reply.SerializeToString())


def test_key_is_not_sent_to_the_next_port(qdrant: FakeQdrant) -> None:
    heard = Eavesdropper()
    beside = grpc.server(ThreadPoolExecutor(1), handlers=[heard])
    qdrant.leave_beside()
    beside.add_insecure_port(f"127.0.0.1:{int(qdrant.url.rpartition(':')[2]) + 1}")
    beside.start()
    with opened(qdrant.url) as store:
        assert store.categories() == []
    beside.stop(None)
    assert heard.metadata
    assert KEY not in "".join(heard.metadata)
    assert qdrant.requests[-1][1] == "/collections/birds__catalog/points/scroll"


def test_a_command_with_a_key_on_this_machine_prints_no_warning(qdrant: FakeQdrant) -> None:
    store = {"id": record_id("store"), "payload": store_payload(FINGERPRINTS, "small")}
    found = {"/points": [store], "/scroll": {"points": [store], "next_page_offset": None}}
    qdrant.answer = lambda _, path: next((ok(found[end]) for end in found if path.endswith(end)), None)
    command = [sys.executable, "-W", "always", "-m", "zsvec", "--store", qdrant.url, "list", "--json"]
    done = subprocess.run(command, env={**os.environ, "ZSVEC_API_KEY": KEY}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert KEY in qdrant.keys


def test_white_space_around_a_key_is_not_sent(qdrant: FakeQdrant) -> None:
    with open_store(qdrant.url, namespace="birds", api_key=f" {KEY}\n", timeout=PATIENT) as store:
        assert store.categories() == []
    assert set(qdrant.keys) <= {KEY, None}
    assert KEY in qdrant.keys


# Several nodes


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next node is asked after the shortest time that the client knows."""
    monkeypatch.setattr("zsvec.store.backends.server.connection._PATIENCE", 1)


def scrolls(fake: FakeQdrant) -> int:
    return sum(path.endswith("/scroll") for _, path, _ in fake.requests)


def test_next_node_is_asked_where_the_first_is_away(qdrant: FakeQdrant) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        start = time.monotonic()
        with opened(f"http://127.0.0.1:{silent.getsockname()[1]}", qdrant.url) as store:
            assert store.categories() == []
    assert time.monotonic() - start < AT_ONCE
    assert scrolls(qdrant) == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("while_open", [False, True])
def test_next_node_is_asked_where_one_does_not_answer(
    qdrant: FakeQdrant, another: FakeQdrant, while_open: bool
) -> None:
    if not while_open:
        qdrant.answer = qdrant.stall
    with opened(qdrant.url, another.url) as store:
        qdrant.answer = qdrant.stall
        start = time.monotonic()
        assert store.categories() == []
        assert time.monotonic() - start < AT_ONCE
        assert store.categories() == []
    assert scrolls(another) == 2  # stays with the node that answered
    assert time.monotonic() - start < AT_ONCE


@pytest.mark.usefixtures("impatient")
def test_slow_nodes_are_given_more_time(qdrant: FakeQdrant, another: FakeQdrant) -> None:
    def slow(method: str, path: str) -> Answer | None:
        if path.endswith("/scroll"):
            time.sleep(1.2)
        return None

    with opened(qdrant.url, another.url) as store:
        qdrant.answer = another.answer = slow
        assert store.categories() == []


def test_busy_node_is_not_left(qdrant: FakeQdrant, another: FakeQdrant) -> None:
    with opened(qdrant.url, another.url) as store:
        qdrant.first([error(429, "too many requests", Retry_After="1")], "/collections/birds__catalog/points/scroll")
        assert store.categories() == []
    assert not another.requests


def test_nodes_that_are_all_away() -> None:
    with socket.socket() as one, socket.socket() as two:
        urls = []
        for silent in (one, two):
            silent.bind(("127.0.0.1", 0))
            urls.append(f"http://127.0.0.1:{silent.getsockname()[1]}")
        message = refusal(
            ", ".join(urls), lambda: opened(*urls, timeout=TIMEOUT), StoreUnavailableError, within=AT_ONCE
        )
    assert "did not answer within 1 s" in message


def test_node_of_an_old_version(qdrant: FakeQdrant, another: FakeQdrant) -> None:
    """An old node would ignore conditions of writes."""
    another.answer = lambda *_: root("1.18.3")
    store = opened(qdrant.url, another.url)
    qdrant.answer = lambda *_: error(503, "going away")
    message = refusal(another.url, store.categories, StoreUnavailableError, within=AT_ONCE)
    assert f"{another.url} is Qdrant 1.18.3" in message


def test_a_node_of_an_old_version_is_found_by_a_check_up(qdrant: FakeQdrant, another: FakeQdrant) -> None:
    another.answer = lambda *_: root("1.18.3")
    with opened(qdrant.url, another.url) as store:
        good, bad = store.check_up()
    assert (good.ok, bad.ok) == (True, False)
    assert "is Qdrant 1.18.3" in bad.detail
    assert "upgrade it" in bad.advice


def test_one_of_several_urls_of_another_kind() -> None:
    with pytest.raises(InvalidInputError, match="'ftp://b'"):
        opened("http://a", "ftp://b")


# Away, slow, busy


def test_first_contact_does_not_take_as_long_as_an_operation() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        message = refusal(url, lambda: opened(url, first_contact=TIMEOUT), StoreUnavailableError, within=AT_ONCE)
    assert "did not answer within 1 s" in message


def test_server_that_is_away() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        message = refusal(url, lambda: opened(url, timeout=SHORT), StoreUnavailableError, within=AT_ONCE)
    assert "did not answer within 0.5 s" in message
    assert "check that it runs" in message


def test_server_that_goes_away(qdrant: FakeQdrant) -> None:
    store = opened(qdrant.url)
    qdrant.stop()
    with store.within(SHORT):
        message = refusal(qdrant.url, store.categories, StoreUnavailableError, within=AT_ONCE)
    assert "did not answer within 0.5 s" in message


@pytest.mark.parametrize("url", ["http://", "http://:6333", "http://host:port", "http://host:99999", "https:///path"])
def test_url_without_host_and_port(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        opened(url)
    assert repr(url) in str(caught.value)


def test_host_that_does_not_exist() -> None:
    url = "http://no-such-host.invalid:6333"
    assert "did not answer" in refusal(url, lambda: opened(url, timeout=SHORT), StoreUnavailableError, within=AT_ONCE)


@pytest.mark.parametrize("while_open", [False, True])
def test_server_that_is_slow(qdrant: FakeQdrant, while_open: bool) -> None:
    store = opened(qdrant.url) if while_open else None
    qdrant.answer = qdrant.stall
    message = refusal(qdrant.url, lambda: in_a_second(store, qdrant.url), StoreUnavailableError, within=AT_ONCE)
    assert "did not answer within 1 s" in message
    assert "ZSVEC_TIMEOUT" in message


@pytest.mark.parametrize("status", [401, 403])
def test_server_that_refuses_the_key(qdrant: FakeQdrant, status: int) -> None:
    store = opened(qdrant.url)
    qdrant.answer = lambda *_: error(status, "Invalid API key or JWT")
    for act in (store.categories, lambda: opened(qdrant.url)):
        message = refusal(qdrant.url, act, StoreUnavailableError, within=AT_ONCE)
        assert "Invalid API key or JWT" in message
        assert "ZSVEC_API_KEY" in message


@pytest.mark.parametrize("status", [403, 405])
def test_server_that_is_read_only(qdrant: FakeQdrant, status: int) -> None:
    def answer(method: str, path: str) -> Answer | None:
        is_read = method == "GET" or (method == "POST" and path.endswith(("/points", "/scroll")))
        if path == "/cluster":
            return ok({"status": "disabled"})
        return None if is_read else error(status, "this server is read-only")

    qdrant.answer = answer
    store = opened(qdrant.url)
    assert store.categories() == []
    message = refusal(qdrant.url, lambda: store.bind(FINGERPRINTS), StoreUnavailableError, within=AT_ONCE)
    assert "refuses this" in message
    assert "this server is read-only" in message


@pytest.mark.parametrize("version", ["1.18.3", "0.19.2"])
def test_server_of_an_old_version(qdrant: FakeQdrant, version: str) -> None:
    qdrant.answer = lambda *_: root(version)
    message = refusal(qdrant.url, lambda: opened(qdrant.url), StoreUnavailableError, within=AT_ONCE)
    assert version in message
    assert "1.19" in message


def test_server_of_a_new_version(qdrant: FakeQdrant) -> None:
    for version in ("1.19.0", "1.20.1", "2.0.0", "1.21.0-dev"):
        qdrant.answer = lambda _, path, version=version: root(version) if path == "/" else None  # type: ignore[misc]
        opened(qdrant.url).close()


def test_retry_after_of_a_busy_server_is_waited_for(qdrant: FakeQdrant) -> None:
    with open_store(qdrant.url, namespace="birds", timeout=PATIENT) as store:
        path = "/collections/birds__catalog/points/scroll"
        qdrant.requests.clear()
        qdrant.first([error(429, "too many requests", Retry_After="1")], path)
        assert store.categories() == []
    first, second = (when for _, asked, when in qdrant.requests if asked == path)
    assert 0.9 < second - first < AT_ONCE


@pytest.mark.parametrize("seconds", ["60", "3600", pytest.param("9" * 400, id="digits")])
def test_busy_server_that_asks_for_more_time_than_there_is(qdrant: FakeQdrant, seconds: str) -> None:
    qdrant.answer = lambda *_: error(429, "too many requests", Retry_After=seconds)
    message = refusal(qdrant.url, lambda: opened(qdrant.url, timeout=TIMEOUT), StoreUnavailableError, within=AT_ONCE)
    assert "too many requests" in message


ODD_WAITS = ["-1", "0", "x", "1.5", "nan", "inf", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 5000]


def test_a_busy_server_with_an_odd_retry_after_is_asked_again(qdrant: FakeQdrant) -> None:
    with open_store(qdrant.url, namespace="birds", timeout=PATIENT) as store:
        for wait in ODD_WAITS:
            busy = error(429, "too many requests", Retry_After=wait)
            qdrant.first([busy] * 2, "/collections/birds__catalog/points/scroll")
            assert store.categories() == []


def test_a_busy_server_with_an_odd_retry_after_is_not_hammered(
    qdrant: FakeQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.store.backends.server.connection.wait_random_exponential", lambda **_: lambda state: 0.2)
    with opened(qdrant.url) as store, store.within(SHORT):
        for wait in ODD_WAITS:
            qdrant.requests.clear()
            qdrant.answer = lambda *_, wait=wait: error(429, "too many requests", Retry_After=wait)  # type: ignore[misc]
            message = refusal(qdrant.url, store.categories, StoreUnavailableError, within=AT_ONCE)
            assert len(message) < 500
            assert len(qdrant.requests) <= 3


@pytest.mark.parametrize("said", [["too", "many"], {"too": "many"}, 7, "too many" * 100_000], ids=type)
def test_busy_server_that_says_anything(qdrant: FakeQdrant, said: Any) -> None:
    qdrant.answer = lambda *_: (429, {"Retry-After": "60"}, json.dumps({"status": {"error": said}}).encode())
    with pytest.raises(StoreUnavailableError) as caught:
        opened(qdrant.url, timeout=SHORT)
    assert len(str(caught.value)) < 500


def test_passing_failure_is_tried_again(qdrant: FakeQdrant) -> None:
    with open_store(qdrant.url, namespace="birds", timeout=PATIENT) as store:
        for status in (408, 429, 500, 502, 503, 504):
            qdrant.first([error(status, "passing")] * 2, "/collections/birds__catalog/points/scroll")
            assert store.categories() == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failure_that_stays(qdrant: FakeQdrant, status: int) -> None:
    qdrant.answer = lambda *_: error(status, "out of order")
    message = refusal(qdrant.url, lambda: opened(qdrant.url, timeout=5), StoreUnavailableError, within=AT_ONCE)
    assert "out of order" in message
    assert len(qdrant.requests) > 1


def test_failure_that_no_repetition_mends(qdrant: FakeQdrant) -> None:
    store = opened(qdrant.url)
    qdrant.requests.clear()
    qdrant.answer = lambda *_: error(400, "Wrong input: vector dimension")
    message = refusal(qdrant.url, store.categories, StoreError, within=AT_ONCE)
    assert "Wrong input: vector dimension" in message
    assert max(Counter(path for _, path, _ in qdrant.requests).values()) == 1


@pytest.mark.parametrize(
    "body",
    [
        *(b"<html>Welcome to nginx!</html>", b"", b"{", b'{"hello": 1}', b"[]", b"\xff\xfe\x00"),
        pytest.param(b'{"version": ' + b"1" * 5000 + b', "result": {"x": ' + b"1" * 5000 + b"}}", id="digits"),
        pytest.param(b"[" * 100_000, id="depth"),
    ],
)
def test_server_that_is_no_qdrant(qdrant: FakeQdrant, body: bytes) -> None:
    store = opened(qdrant.url)
    qdrant.answer = lambda *_: (200, {}, body)
    for act in (store.categories, lambda: opened(qdrant.url)):
        message = refusal(qdrant.url, act, StoreUnavailableError, within=AT_ONCE)
        assert "is it a Qdrant?" in message


def test_version_that_is_no_version(qdrant: FakeQdrant) -> None:
    qdrant.answer = lambda *_: root("latest")
    message = refusal(qdrant.url, lambda: opened(qdrant.url), StoreUnavailableError, within=AT_ONCE)
    assert "'latest'" in message


@pytest.mark.parametrize("version", ["1" * 5000 + ".1", "1." + "9" * 5000, "9" * 100_000, "1.15" + "x" * 100_000])
def test_a_long_version_is_no_version(qdrant: FakeQdrant, version: str) -> None:
    qdrant.answer = lambda *_: root(version)
    message = refusal(qdrant.url, lambda: opened(qdrant.url), StoreUnavailableError, within=AT_ONCE)
    assert len(message) < 500


def test_redirection_is_not_followed(qdrant: FakeQdrant) -> None:
    qdrant.answer = lambda *_: (302, {"Location": "http://127.0.0.1:9/"}, b"")
    assert "302" in refusal(qdrant.url, lambda: opened(qdrant.url), StoreError, within=AT_ONCE)


# Dripping: a byte now and then, for ever. Time-outs between two bytes never end this.

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
PAUSE = 0.1  # seconds between two bytes


def silence(connection: socket.socket, stopped: threading.Event) -> None:
    stopped.wait()


def dripping(before: bytes, drop: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def drip(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(before)
        while not stopped.wait(PAUSE):
            connection.sendall(drop)

    return drip


drips = pytest.mark.parametrize(
    "drip",
    [
        silence,
        dripping(HEAD + b"x-drip: ", b"x"),
        dripping(HEAD + b"content-length: 1000000\r\n\r\n", b" "),
        dripping(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["silence", "head", "body", "chunks"],
)


@drips
@pytest.mark.parametrize("while_open", [False, True])
def test_a_dripping_server_ends_no_call_late(qdrant: FakeQdrant, drip: Any, while_open: bool) -> None:
    store = opened(qdrant.url) if while_open else None
    qdrant.drip = drip
    late = refusal(qdrant.url, lambda: in_a_second(store, qdrant.url), StoreUnavailableError, within=AT_ONCE)
    assert "did not answer within 1 s" in late
    assert not left_behind()
    qdrant.drip = None
    with store or opened(qdrant.url) as recovered:
        assert recovered.categories() == []


@drips
@pytest.mark.usefixtures("impatient")
def test_next_node_is_asked_where_one_drips(qdrant: FakeQdrant, another: FakeQdrant, drip: Any) -> None:
    with opened(qdrant.url, another.url) as store:
        qdrant.drip = drip
        start = time.monotonic()
        assert store.categories() == []
        assert time.monotonic() - start < AT_ONCE
    assert scrolls(another)


@drips
def test_a_check_up_ends_with_a_dripping_node(qdrant: FakeQdrant, another: FakeQdrant, drip: Any) -> None:
    with opened(qdrant.url, another.url) as store:
        another.drip = drip
        start = time.monotonic()
        with store.within(5):  # seconds, of which the node that answers has enough
            found = {finding.what: finding.ok for finding in store.check_up()}
        assert time.monotonic() - start < AT_ONCE
    assert found == {f"node {qdrant.url}": True, f"node {another.url}": False}


class Proxy:
    """Both ports of a server, passed on byte by byte while dripping.

    Attributes:
        url: URL of the REST interface.
        drips: Whether the proxy drips.
    """

    def __init__(self, server: Server) -> None:
        self.drips = threading.Event()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        first = int(server.url.rpartition(":")[2])
        self._listening = two_listening()
        self.url = f"http://127.0.0.1:{self._listening[0].getsockname()[1]}"
        for number, listening in enumerate(self._listening):
            self._run(self._accept, listening, first + number)

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self, listening: socket.socket, port: int) -> None:
        with suppress(OSError), ExitStack() as stack:  # until closed
            while True:
                near = stack.enter_context(listening.accept()[0])
                far = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                stack.callback(near.shutdown, socket.SHUT_RDWR)
                stack.callback(far.shutdown, socket.SHUT_RDWR)
                self._run(self._pump, near, far)
                self._run(self._pump, far, near)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while said := source.recv(65536):
                while said:
                    dripping = self.drips.is_set() and not self._stopped.wait(PAUSE)
                    target.sendall(said[:1] if dripping else said)
                    said = said[1:] if dripping else b""
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._stopped.set()
        self.drips.clear()
        for listening in self._listening:
            listening.shutdown(socket.SHUT_RDWR)
            listening.close()
        for thread in self._threads:
            thread.join()


def two_listening() -> list[socket.socket]:
    """On two adjacent ports."""
    for _ in range(100):
        first = socket.create_server(("127.0.0.1", 0))
        try:
            return [first, socket.create_server(("127.0.0.1", first.getsockname()[1] + 1))]
        except OSError:  # the port is taken
            first.close()
    raise AssertionError("no two adjacent ports are free")


def test_a_real_server_behind_a_proxy_that_drips() -> None:
    """By gRPC, after a first contact by REST."""
    with (
        fast_folder() as folder,
        running_server(folder) as server,
        closing(Proxy(server)) as proxy,
        open_store(proxy.url, namespace="birds", timeout=PATIENT) as store,
    ):
        store.bind(FINGERPRINTS)
        proxy.drips.set()
        with store.within(TIMEOUT):
            for act in (store.categories, lambda: store.write([write_of("wolf", ["1"])])):
                message = refusal(proxy.url, act, StoreUnavailableError, within=AT_ONCE)
                assert "did not answer within 1 s" in message
        message = refusal(
            proxy.url,
            lambda: opened(proxy.url, api_key=None, timeout=TIMEOUT, first_contact=TIMEOUT),
            StoreUnavailableError,
            within=AT_ONCE,
        )
        assert "did not answer within 1 s" in message
        proxy.drips.clear()
        assert store.categories() == []


def test_a_late_call_is_left() -> None:
    """As a name that is looked up for as long as the system likes."""
    ended = threading.Event()
    late: list[Any] = []
    with pytest.raises(LateError):
        in_time(ended.wait, 0.05, when_late=late.append)
    ended.set()
    assert late[0].result(AT_ONCE) is True


def test_a_call_in_time_returns_and_raises() -> None:
    variable = ContextVar("variable", default=1)
    variable.set(2)
    assert in_time(variable.get, AT_ONCE) == 2
    with pytest.raises(ZeroDivisionError):
        in_time(lambda: 1 / 0, AT_ONCE)

    def own() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        in_time(own, AT_ONCE)
