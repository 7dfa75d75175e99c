"""Connections to a deployment: first contact, certificates, failover to the next node, and errors.

Every request is idempotent, and is repeated until a deadline while the server is unavailable, busy or slow (see
`is_transient`). Clients do not survive a fork, so each process opens new clients.
"""

from __future__ import annotations

import math
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import grpc
import httpx
from pydantic import HttpUrl, TypeAdapter, ValidationError
from qdrant_client import QdrantClient
from qdrant_client import grpc as protocol
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from zsvec.errors import InvalidInputError, LargeAnswerError, StoreError, StoreUnavailableError, shown
from zsvec.inputs.answers import LateError, Sockets, hooks
from zsvec.store.backends.base import Handle
from zsvec.store.backends.server.endpoint import Node, Request
from zsvec.store.backends.server.failures import (
    FAILURES,
    UNANSWERED,
    is_busy,
    is_missing,
    is_nonsense,
    is_refusal,
    is_too_large,
    is_transient,
    reason_of,
    tls_problem,
)
from zsvec.store.backends.server.limits import ANSWER_BYTES, answer_bytes

OLDEST = (1, 19)  # first version whose log keeps the outcome of a conditional write

_PATIENCE = 2  # initial time-out in seconds before the next of several nodes is tried
_PAUSE, _BUSY_PAUSE = 0.5, 5.0  # maximum seconds between two attempts, without an answer and after a rate limit
_SILENCE = (0.5, 2.0)  # minimum and maximum time-out of the gRPC port in seconds
_ROUND_TRIPS = 50  # time-out of the gRPC port within these limits, in round trips of the REST port
_GRPC_OPTIONS = {
    "grpc.compression_enabled_algorithms_bitset": 1,  # identity, since compressed floats are not smaller
    "grpc.max_receive_message_length": ANSWER_BYTES,
    # By default, gRPC waits up to two minutes before it connects again to a server that was away.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 500,
    "grpc.min_reconnect_backoff_ms": 2000,  # time-out of one attempt to connect, despite the name
    # By default, a new channel gets the connection of an old one to the same address, broken or not.
    "grpc.use_local_subchannel_pool": 1,
}

_URL = TypeAdapter(HttpUrl)
_T = TypeVar("_T")


class Connection(Handle):
    """A connection to a deployment. Requests go to one node, and to the next node if there is no answer.

    Args:
        location: Name of the deployment in messages.
        timeout: Deadline of one request, in seconds.
        nodes: Nodes of the deployment, at least one.

    Attributes:
        location: Name of the deployment in messages.
        nodes: Nodes of the deployment.
        when_away: Called before the next attempt if the present node, or a node that the present node asked, did not
            answer.
    """

    def __init__(self, location: str, timeout: float, nodes: Sequence[Node]) -> None:
        super().__init__(location)
        self.location = location
        self.nodes = nodes
        self.when_away: Callable[[], None] = lambda: None
        self._timeout = timeout
        self._asked = 0  # index of the present node
        self._patience = ContextVar("patience", default=math.inf)  # time-out in seconds of requests in this context

    @property
    def deadline(self) -> float:
        """Deadline of a request that this thread makes, in seconds."""
        return min(self._timeout, self._patience.get())

    @property
    def node(self) -> Node:
        """The present node, which requests go to."""
        self.check()
        return self.nodes[self._asked]

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """See `zsvec.store.backends.base.Backend.within`."""
        before = self._patience.set(seconds)
        try:
            yield
        finally:
            self._patience.reset(before)

    def call(
        self, request: Request[_T], *, missing: Any = None, before: Callable[[float], None] = lambda until: None
    ) -> _T:
        """Returns the answer to a request. Repeats the request after transient failures until the deadline.

        Args:
            request: Called with the client of a node and a time-out in seconds. ``None`` means the client's default.
            missing: Answer if the collection does not exist; by default a missing collection is an error.
            before: Called before each attempt with the deadline on the clock of `time.monotonic`, in seconds. If the
                callback fails, the attempt fails.

        Raises:
            StoreUnavailableError: The server did not answer in time, refused the request, gave an unreadable answer, or
                has no valid TLS.
            LargeAnswerError: The answer is too large.
            StoreError: The request failed for another reason.
        """
        self.check()
        deadline = self.deadline
        until = time.monotonic() + deadline
        heard: list[Any] = []  # outcomes of attempts
        retrying = Retrying(
            retry=retry_if_exception(is_transient),
            stop=stop_before_delay(deadline),
            wait=self._wait,
            before_sleep=lambda state: heard.append(state.outcome),
            reraise=True,
        )
        try:
            for attempt in retrying:
                with attempt:
                    answer: _T = self._ask(request, attempt.retry_state.attempt_number, until, before)
                    return answer
        except FAILURES as exc:
            if isinstance(exc, ValueError):  # gRPC raises this if another thread closed the connection
                self.check()
            if missing is not None and is_missing(exc):
                return cast("_T", missing)
            # If the last attempt had no time left, the previous failure tells more.
            told = heard[-1].exception() if heard and isinstance(exc, LateError) else exc
            raise self.error(told, deadline) from exc
        raise AssertionError("tenacity ends with an answer or an error")

    def close(self) -> None:
        """Closes the clients of all nodes, unless this process was forked after opening them."""
        if not self.forked:
            super().close()
            for node in self.nodes:
                node.close()

    def _ask(self, request: Request[_T], attempt: int, until: float, before: Callable[[float], None]) -> _T:
        # The time-out doubles each time that all nodes were tried twice, since all nodes may be slow.
        turn = _PATIENCE * 2 ** ((attempt - 1) // (2 * len(self.nodes))) if len(self.nodes) > 1 else math.inf
        seconds = min(turn, self._patience.get())
        node = self._asked
        try:
            before(until)
            node = self._asked
            return self.nodes[node].ask(request, left=until - time.monotonic(), seconds=seconds)
        except UNANSWERED as exc:
            if is_transient(exc) and not is_busy(exc):
                self.when_away()
                self._asked = self._well(node + 1)
            raise

    def turn(self) -> None:
        """Switches to the next healthy node if the present node is not healthy."""
        self._asked = self._well(self._asked)

    def another(self) -> Node:
        """Returns the next healthy node after the present node."""
        self.check()
        return self.nodes[self._well(self._asked + 1)]

    def all_well(self, number: int) -> bool:
        """Returns whether this connection has at least `number` nodes, and all nodes are healthy."""
        return len(self.nodes) >= number and all(node.is_well() for node in self.nodes)

    def _well(self, first: int) -> int:
        # A single node is used whether healthy or not.
        if len(self.nodes) == 1:
            return 0
        order = [(first + step) % len(self.nodes) for step in range(len(self.nodes))]
        return next((node for node in order if self.nodes[node].is_well()), order[0])

    def _wait(self, state: RetryCallState) -> float:
        """Returns the pause in seconds before the next attempt.

        A busy server sets the pause by Retry-After. Otherwise the pause is 0 until each node was tried once, and then a
        random backoff.
        """
        exc = state.outcome.exception() if state.outcome else None
        if isinstance(exc, ResourceExhaustedResponse) and exc.retry_after_s > 0:
            return float(min(exc.retry_after_s, self.deadline))  # an int may be too large for a float
        if state.attempt_number < len(self.nodes):
            return 0.0
        longest = _BUSY_PAUSE if exc and is_busy(exc) else _PAUSE
        return wait_random_exponential(multiplier=0.1, max=longest)(state)

    def error(self, exc: BaseException, deadline: float) -> StoreError:
        """Returns the error of zsvec for one of `FAILURES`. `deadline` is the time allowed, in seconds."""
        reason = reason_of(exc)
        if is_too_large(exc):
            return LargeAnswerError(
                f"the server at {self.location} gives an answer that is too large ({reason}): check that it is a "
                "Qdrant, and that no point of its collections is that large"
            )
        if is_nonsense(exc):
            return StoreUnavailableError(
                f"the server at {self.location} gives an answer that cannot be read ({reason}): is it a Qdrant?"
            )
        if is_refusal(exc):
            return StoreUnavailableError(
                f"the server at {self.location} refuses this ({reason}): give a key that may do it, by ZSVEC_API_KEY"
            )
        if problem := tls_problem(exc):
            return StoreUnavailableError(f"the server at {self.location} cannot be talked to in private: {problem}")
        if is_transient(exc):
            return StoreUnavailableError(
                f"the server at {self.location} did not answer within {deadline:g} s ({reason}): check that it runs "
                "and that the URL is right, or allow more time with ZSVEC_TIMEOUT"
            )
        return StoreError(f"the server at {self.location} failed: {reason}")


def connect(
    urls: Sequence[str], api_key: str | None, ca_certificate: Path | None, timeout: float, first_contact: float
) -> Connection:
    """See `zsvec.store.backends.server.backend.connect`."""
    for url in urls:
        _address(url)
    api_key = None if api_key is None else _sendable(api_key)
    alone = len(urls) == 1
    options: dict[str, Any] = {"check_compatibility": False, "grpc_options": _GRPC_OPTIONS}
    ports: dict[str, int] = {}  # gRPC ports that were found, by URL
    authorities = ca_certificate or os.environ.get("SSL_CERT_FILE")
    if authorities and any(url.startswith("https:") for url in urls):
        options |= _authorities(Path(authorities))

    patience = timeout if alone else _PATIENCE

    def contact(url: str, seconds: float, sockets: Sockets) -> tuple[QdrantClient, bool]:
        # Making a default context takes longer than all else here.
        ours = options if url.startswith("https:") else {**options, "verify": False}
        # A server that has just started may answer by REST a moment before it answers by gRPC.
        port = ports.get(url) or _grpc_port(url, {**ours, "timeout": first_contact if alone else _PATIENCE}, sockets)
        if port is not None:
            ports[url] = port
        client = QdrantClient(
            url=url,
            # Not as `api_key`, which warns of any http:// URL. The settings decide which servers may get the key.
            headers=None if api_key is None else {"api-key": api_key},
            timeout=max(1, round(seconds)),
            grpc_port=port or 0,
            prefer_grpc=port is not None,
            event_hooks=hooks(answer_bytes, sockets.watch),
            **{**ours, "grpc_options": dict(ours["grpc_options"])},  # the client modifies this dict
        )
        return client, port is not None

    nodes = [Node(url, partial(contact, url), patience, options.get("verify", True)) for url in urls]
    connection = Connection(", ".join(urls), timeout, nodes)
    with connection.within(first_contact):
        connection.call(lambda client, _: client)
    return connection


def _grpc_port(url: str, options: Mapping[str, Any], sockets: Sockets) -> int | None:
    """Returns the port after the REST port if the same server speaks gRPC there, else ``None``.

    No request contains the key.

    Raises:
        StoreUnavailableError: The server is too old, or is not a Qdrant.
    """
    reading = hooks(answer_bytes, sockets.watch)
    with closing(QdrantClient(url=url, event_hooks=reading, **{**options, "grpc_options": None})) as rest:
        start = time.monotonic()
        try:
            found = rest.info()
        except ResponseHandlingException as exc:
            if isinstance(exc.source, httpx.TransportError) and url.startswith("http:") and _speaks_tls(url, sockets):
                raise ResponseHandlingException(ssl.SSLError("it speaks TLS: give it as https://")) from exc
            raise
        patience = min(max(_SILENCE[0], _ROUND_TRIPS * (time.monotonic() - start)), _SILENCE[1])
    check_version(url, found.version)
    # The default gRPC port is never tried, since it may belong to another server on this host.
    host, port = _address(url)
    beside = _version_beside(f"{host}:{port + 1}", options, url, patience)
    return port + 1 if beside == (found.version, found.commit or "") else None


def _version_beside(address: str, options: Mapping[str, Any], url: str, patience: float) -> tuple[str, str] | None:
    """Returns version and commit of the Qdrant at a gRPC port, or ``None`` if no Qdrant answers. Sends no key."""
    if url.startswith("https:"):
        trusted = grpc.ssl_channel_credentials(options["grpc_options"].get("root_certificates"))
        channel = grpc.secure_channel(address, trusted, list(_GRPC_OPTIONS.items()))
    else:
        channel = grpc.insecure_channel(address, list(_GRPC_OPTIONS.items()))
    try:
        stub = protocol.QdrantStub(channel)  # type: ignore[no-untyped-call]
        said = stub.HealthCheck(protocol.HealthCheckRequest(), timeout=patience)
    except grpc.RpcError:  # the port has no server, or a server that is not a Qdrant
        return None
    finally:
        channel.close()
    return said.version, said.commit


def check_version(url: str, version: str) -> None:
    """Checks that a server keeps the outcome of conditional writes, also after a crash.

    Before 1.19, a server that replays its log decides conditional writes again. The data may have changed since.

    Raises:
        StoreUnavailableError: The server is too old, or is not a Qdrant.
    """
    number = re.fullmatch(r"(\d{1,9})\.(\d{1,9})(?!\d).{0,50}", version)
    if not number:
        raise StoreUnavailableError(f"the server at {url} says that its version is {shown(version)}: is it a Qdrant?")
    if tuple(map(int, number.groups())) < OLDEST:
        raise StoreUnavailableError(
            f"the server at {url} is Qdrant {version}, which can bring back a rejected commit after a crash; zsvec "
            f"needs {OLDEST[0]}.{OLDEST[1]} or later: upgrade the server"
        )


def _sendable(key: str) -> str:
    """Returns a key without surrounding white space.

    Raises:
        InvalidInputError: The key has characters that cannot be sent. Without this check, httpx or gRPC would raise an
            error that quotes the key.
    """
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidInputError(
            "the key of the store has characters that cannot be sent (line breaks, or none of ASCII): give it anew, by "
            "api_key or ZSVEC_API_KEY"
        )
    return key


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 6333
        _URL.validate_python(url)
    except ValueError as exc:
        reason = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else exc
        raise InvalidInputError(f"the store {url!r} is no URL: {reason}") from exc
    if not host:
        raise InvalidInputError(f"the store {url!r} names no host: give one, such as http://localhost:6333")
    return host, port


# Certificates


def _authorities(file: Path) -> dict[str, Any]:
    """Returns client options that make REST and gRPC trust the certificate authorities in a file."""
    try:
        return {
            "verify": ssl.create_default_context(cafile=file),
            "grpc_options": {**_GRPC_OPTIONS, "root_certificates": file.read_bytes()},
        }
    except (OSError, ssl.SSLError) as exc:
        raise InvalidInputError(f"the file of certificates {str(file)!r} cannot be read: {exc}") from exc


def _speaks_tls(url: str, sockets: Sockets) -> bool:
    """Returns whether the port of a URL completes a TLS handshake, with any certificate."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(_address(url), _SILENCE[1]) as plain, plain.dup() as same:
            sockets.add(same)  # a duplicate, since wrap_socket detaches `plain`
            with anybody.wrap_socket(plain):
                return True
    except OSError:  # includes ssl.SSLError
        return False
