"""One server of a deployment: its client, and the next client where that one is stuck."""

from __future__ import annotations

import math
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import httpx
from qdrant_client import QdrantClient

from zsvec.inputs.answers import AnswerError, hooks
from zsvec.inputs.deadline import LateError, in_time
from zsvec.inputs.sockets import Sockets
from zsvec.store.backends.server.limits import answer_bytes

_WELL = 0.25  # seconds within which a node that is well says so
_ABOUT = 1.0  # seconds by which the deadline of a gRPC call may be missed, so that it needs no thread that waits for it

_T = TypeVar("_T")
Request = Callable[[QdrantClient, int | None], _T]
"""As `zsvec.store.backends.server.connection.Connection.call` has it."""


class _Line:
    """A client of a node, from before its first contact until nobody uses it any more.

    Attributes:
        client: ``None`` before the first contact.
        sockets: Of that, and of the first contact.
        speaks_grpc: Whether it does.
        waiting: How many requests are in time.
        late: What the threads of the others end with.
    """

    def __init__(self) -> None:
        self.client: QdrantClient | None = None
        self.sockets = Sockets()
        self.speaks_grpc = False
        self.waiting = 0
        self.late: list[Future[Any]] = []

    def close(self) -> None:
        """Let go of the connection, of which nothing is waited for any more."""
        self.sockets.shut_down()
        for late in self.late:
            late.add_done_callback(self._close_if_unused)

    def _close_if_unused(self, _: Future[Any]) -> None:
        if self.client is not None and all(late.done() for late in self.late):
            self.client.close()


class Node:
    """One server of a deployment.

    Args:
        url: Of its REST interface.
        contact: Gives a client of it that waits for so many seconds, with these sockets, and whether that speaks gRPC.
            It may raise the client's errors.
        patience: How long its client waits for an answer, in seconds.
        verify: Whom to believe that it is this node, as httpx takes it.

    Attributes:
        url: Of its REST interface.
        patience: How long its client waits for an answer, in seconds.
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
        self._verify = verify if url.startswith("https:") else False  # to make a context of all authorities takes long
        self._line = _Line()
        self._lock = threading.Lock()

    @property
    def speaks_grpc(self) -> bool:
        """Whether it does, as far as is known."""
        return self._line.speaks_grpc

    @property
    def client(self) -> QdrantClient:
        """Its client, made at the first contact."""
        return self._reached(self._line)

    def _reached(self, line: _Line) -> QdrantClient:
        if line.client is None:
            client, speaks_grpc = self._contact(self.patience, line.sockets)  # not under the lock: it may drip
            with self._lock:
                if line.client is None:
                    line.client, line.speaks_grpc = client, speaks_grpc
            if line.client is not client:  # another thread was faster
                client.close()
        return line.client

    def ask(self, request: Request[_T], *, left: float, seconds: float = math.inf) -> _T:
        """What it answers, in time.

        Args:
            request: As `Connection.call` has it.
            left: Seconds of the deadline.
            seconds: For the request; infinite: as the client is made.

        Raises:
            ApiException: Among others of `FAILURES`: there was no whole answer in time.
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
                when_late=partial(self._forget, line),
            )
            return answer
        finally:
            with self._lock:
                line.waiting -= 1
                unused = line is not self._line and not line.waiting
            if unused:
                line.close()

    def _forget(self, line: _Line, late: Future[Any]) -> None:
        """Make another client: the connection of a request that does not end is in the pool of this one."""
        with self._lock:
            if line.speaks_grpc and line is self._line:
                return
            line.late.append(late)
            if line is self._line:
                self._line = _Line()

    def is_well(self) -> bool:
        """Whether it says so at once; it needs no key for that."""
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
        """Let go of the connection."""
        if self._line.client is not None:
            self._line.client.close()
