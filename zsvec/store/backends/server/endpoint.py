"""One server of a deployment, with a client that is replaced when a request does not end or its channel is broken."""

from __future__ import annotations

import math
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import grpc
import httpx
from qdrant_client import QdrantClient

from zsvec.inputs.answers import AnswerError, LateError, Sockets, hooks, in_time
from zsvec.store.backends.server.failures import is_broken
from zsvec.store.backends.server.limits import answer_bytes

_WELL = 0.25  # time-out of the health check in seconds
_ABOUT = 1.0  # seconds by which a gRPC call may miss the deadline without a separate thread

_T = TypeVar("_T")
Request = Callable[[QdrantClient, int | None], _T]
"""The argument `request` of `zsvec.store.backends.server.connection.Connection.call`."""


class _Line:
    """A client of a node, with the requests in progress. The node replaces a `_Line` that is late or broken.

    Attributes:
        client: The client, or ``None`` before the first contact.
        sockets: Sockets of the client and of the first contact.
        speaks_grpc: Whether the client uses gRPC.
        waiting: Number of callers that wait for an answer.
        late: Future results of requests that missed their deadlines.
    """

    def __init__(self) -> None:
        self.client: QdrantClient | None = None
        self.sockets = Sockets()
        self.speaks_grpc = False
        self.waiting = 0
        self.late: list[Future[Any]] = []

    def close(self) -> None:
        """Shuts down the sockets, and closes the client once all late requests have ended."""
        self.sockets.shut_down()
        self._close_if_unused()
        for late in self.late:
            late.add_done_callback(self._close_if_unused)

    def _close_if_unused(self, _: Future[Any] | None = None) -> None:
        if self.client is not None and all(late.done() for late in self.late):
            self.client.close()


class Node:
    """One server of a deployment.

    Args:
        url: URL of the REST interface.
        contact: Called with a time-out in seconds and the `Sockets` that watch the client. Returns the client, and
            whether the client uses gRPC. May raise errors of the client, or StoreUnavailableError.
        patience: Time-out of the client, in seconds.
        verify: Trusted certificate authorities, in the format of httpx.

    Attributes:
        url: URL of the REST interface.
        patience: Time-out of the client, in seconds.
    """

    def __init__(
        self,
        url: str,
        contact: Callable[[float, Sockets], tuple[QdrantClient, bool]],
        patience: float,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self.url = url
        self.patience = patience
        self._contact = contact
        self._verify = verify if url.startswith("https:") else False  # creating a default context is slow
        self._line = _Line()
        self._lock = threading.Lock()

    @property
    def speaks_grpc(self) -> bool:
        """Whether the client uses gRPC. False before the first contact."""
        return self._line.speaks_grpc

    @property
    def client(self) -> QdrantClient:
        """The client. The first access makes the first contact."""
        return self._reached(self._line)

    def _reached(self, line: _Line) -> QdrantClient:
        if line.client is None:
            # Without the lock, since a server that sends slowly would block other threads.
            client, speaks_grpc = self._contact(self.patience, line.sockets)
            with self._lock:
                if line.client is None:
                    line.client, line.speaks_grpc = client, speaks_grpc
            if line.client is not client:  # another thread was faster
                client.close()
        return line.client

    def ask(self, request: Request[_T], *, left: float, seconds: float = math.inf) -> _T:
        """Returns the answer to a request.

        Args:
            request: The request; see `Connection.call`.
            left: Seconds until the deadline.
            seconds: Time-out of the request. If infinite, the time-out of the client applies.

        Raises:
            LateError: The whole answer did not arrive in time.
            ApiException: The request failed. All other errors of `FAILURES` are possible, too.
        """
        patience = None if seconds == math.inf else math.ceil(seconds)
        limit = self.patience if patience is None else seconds
        with self._lock:
            line = self._line
            line.waiting += 1
        try:
            if line.speaks_grpc and limit < left + _ABOUT:
                return request(self._reached(line), patience)
            answer: _T = in_time(
                lambda: request(self._reached(line), patience),
                min(limit, left),
                when_late=partial(self._replace, line),
            )
        except grpc.RpcError as exc:
            if is_broken(exc):
                self._replace(line)
            raise
        else:
            return answer
        finally:
            with self._lock:
                line.waiting -= 1
                unused = line is not self._line and not line.waiting
            if unused:
                line.close()

    def _replace(self, line: _Line, *late: Future[Any]) -> None:
        """Replaces a line, since its next request would get the connection of an endless request, or a broken one."""
        with self._lock:
            line.late += late
            if line is self._line:
                self._line = _Line()

    def is_well(self) -> bool:
        """Returns whether the node passes the health check of Qdrant, a request without the key."""
        sockets = Sockets()

        def say() -> bool:
            reading = hooks(answer_bytes, sockets.watch)
            with httpx.Client(timeout=_WELL, verify=self._verify, event_hooks=reading) as client:
                return client.get(f"{self.url}/healthz").is_success

        try:
            return in_time(say, _WELL, when_late=lambda _: sockets.shut_down())
        except (httpx.HTTPError, AnswerError, LateError):
            return False

    def close(self) -> None:
        """Closes the client."""
        if self._line.client is not None:
            self._line.client.close()
