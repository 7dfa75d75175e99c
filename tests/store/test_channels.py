"""Channels of gRPC: their options, and a new one after a request that a channel has lost."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from qdrant_client import grpc as protocol

from tests.store.test_server_errors import KEY, PATIENT, SHORT, FakeQdrant, error, opened
from zsvec.errors import StoreUnavailableError
from zsvec.store.backends.server import connection as module

POOL = 3  # channels of a client
AUTHORITY = trustme.CA()


class Beside(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The gRPC of a `FakeQdrant`, which has no collections.

    Attributes:
        failures: Codes of the next calls, except of health checks.
        keys: The API key of each call.
    """

    def __init__(self) -> None:
        self.failures: list[grpc.StatusCode] = []
        self.keys: list[str | None] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        self.keys.append(dict(details.invocation_metadata).get("api-key"))

        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if not details.method.endswith("/HealthCheck"):
                context.abort(self.failures.pop(0) if self.failures else grpc.StatusCode.NOT_FOUND, "said by the test")
            return bytes(protocol.HealthCheckReply(version="1.19.2", commit="").SerializeToString())

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def beside(fake: FakeQdrant, credentials: grpc.ServerCredentials | None = None) -> Iterator[Beside]:
    """Serves gRPC on the port after that of REST."""
    handler = Beside()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handler])
    fake.leave_beside()
    address = f"127.0.0.1:{int(fake.url.rpartition(':')[2]) + 1}"
    if credentials:
        server.add_secure_port(address, credentials)
    else:
        server.add_insecure_port(address)
    server.start()
    yield handler
    server.stop(None).wait()


@pytest.fixture
def qdrant() -> Iterator[FakeQdrant]:
    fake = FakeQdrant()
    yield fake
    fake.stop()


class Channels:
    """All channels that were opened, in order.

    Attributes:
        options: The options of each.
        closed: Numbers of the closed ones.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: list[dict[str, Any]] = []
        self.closed: set[int] = set()
        for place in (grpc, grpc.aio):
            for name in ("insecure_channel", "secure_channel"):
                monkeypatch.setattr(place, name, self._spied(getattr(place, name)))

    def _spied(self, opened: Callable[..., Any]) -> Callable[..., Any]:
        def spy(address: str, *arguments: Any) -> Any:
            options = next(given for given in arguments if isinstance(given, list))
            number = len(self.options)
            self.options.append(dict(options))
            channel = opened(address, *arguments)
            close = channel.close

            def closing() -> None:
                self.closed.add(number)
                close()

            channel.close = closing
            return channel

        return spy


@pytest.fixture
def channels(monkeypatch: pytest.MonkeyPatch) -> Channels:
    return Channels(monkeypatch)


def assert_returns_soon(options: dict[str, Any]) -> None:
    assert 0 < options["grpc.initial_reconnect_backoff_ms"] <= options["grpc.max_reconnect_backoff_ms"] <= 1000
    assert 1000 <= options["grpc.min_reconnect_backoff_ms"] <= 5000  # the time-out of an attempt
    assert options["grpc.use_local_subchannel_pool"] == 1


def test_every_channel_connects_again_soon(qdrant: FakeQdrant, channels: Channels) -> None:
    with beside(qdrant) as by_grpc, opened(qdrant.url) as store:
        assert store.categories() == []
        assert KEY in by_grpc.keys
    assert len(channels.options) == 1 + POOL  # of the look at the port, and of the client
    for options in channels.options:
        assert_returns_soon(options)
    assert len(channels.closed) == len(channels.options)


def test_every_encrypted_channel_connects_again_soon(qdrant: FakeQdrant, channels: Channels, tmp_path: Path) -> None:
    certificate = AUTHORITY.issue_cert("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    qdrant._server.socket = context.wrap_socket(qdrant._server.socket, server_side=True)
    qdrant.url = qdrant.url.replace("http:", "https:")
    pair = certificate.private_key_pem.bytes(), b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with (
        beside(qdrant, grpc.ssl_server_credentials([pair])) as by_grpc,
        opened(qdrant.url, ca_certificate=tmp_path / "ca.pem") as store,
    ):
        assert store.categories() == []
        assert KEY in by_grpc.keys
    assert len(channels.options) == 1 + POOL
    for options in channels.options:
        assert_returns_soon(options)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_a_broken_channel_is_replaced(qdrant: FakeQdrant, channels: Channels, code: grpc.StatusCode) -> None:
    with beside(qdrant) as by_grpc, opened(qdrant.url) as store:
        assert store.categories() == []
        by_grpc.failures = [code, code]
        rest = len(qdrant.requests)
        assert store.categories() == []
        assert not by_grpc.failures
        assert len(channels.options) == 1 + 3 * POOL
        assert channels.closed == set(range(1 + 2 * POOL))
        assert not any(path == "/" for _, path, _ in qdrant.requests[rest:])  # the port is known
        for options in channels.options:
            assert_returns_soon(options)
    assert len(channels.closed) == len(channels.options)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_channel_that_brings_an_error_stays(qdrant: FakeQdrant, channels: Channels, code: grpc.StatusCode) -> None:
    with beside(qdrant) as by_grpc, opened(qdrant.url) as store:
        assert store.categories() == []
        by_grpc.failures = [code]
        assert store.categories() == []
        assert len(channels.options) == 1 + POOL


def test_a_server_that_starts_again_is_asked_by_grpc_although_rest_comes_first(qdrant: FakeQdrant) -> None:
    with beside(qdrant):
        store = opened(qdrant.url)
    with store:
        with store.within(SHORT), pytest.raises(StoreUnavailableError):
            store.categories()
        with beside(qdrant) as by_grpc:
            assert store.categories() == []
            assert by_grpc.keys


@pytest.mark.parametrize(
    ("answer", "longest"), [(error(503, "away"), 0.5), (error(500, "away"), 0.5), (error(429, "too many"), 5.0)]
)
def test_a_server_without_an_answer_is_asked_again_soon_and_a_busy_one_later(
    qdrant: FakeQdrant, answer: Any, longest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def wait(*, multiplier: float, max: float) -> Callable[[Any], float]:  # noqa: A002 - the name of tenacity
        pauses.append(max)
        return lambda _: multiplier

    monkeypatch.setattr(module, "wait_random_exponential", wait)
    with opened(qdrant.url, timeout=PATIENT) as store:
        qdrant.first([answer] * 2, "/collections/birds__catalog/points/scroll")
        assert store.categories() == []
    assert pauses == [longest] * 2
