"""The open connections of the server, and which of them are aborted.

No setting of a server does this. uvicorn closes connections that are idle after an answer, but has no timeout before
the first request and none for the rest of a head. Its ``limit_concurrency`` refuses whoever comes last, with a key or
without. hypercorn has no limit; granian stops to take connections at its limit. None of them lets an application
end a connection.
"""

from __future__ import annotations

from asyncio import TimerHandle, Transport, get_running_loop
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from starlette.types import Scope

HEAD_TIMEOUT_S = 20.0
"""Seconds until the head of a request has come, from its first byte; of the first request, from the connection."""
MAX_CONNECTIONS = 4096
"""Open connections, unless the system allows fewer."""


@dataclass(eq=False, slots=True)
class _Connection:
    """A connection with the state of its last request."""

    transport: Transport
    timer: TimerHandle | None  # of a head that has not come
    requests: int = 0  # at work; the next one may begin before the last one has returned
    state: Mapping[str, Any] = field(default_factory=dict)


class Connections:
    """The open connections of one event loop. One is aborted if a head does not come, or if there are too many.

    Attributes:
        most: Connections that may be open at once.
    """

    def __init__(self) -> None:
        self.most = MAX_CONNECTIONS
        self._open: dict[tuple[Any, ...], _Connection] = {}  # by the client's address, the oldest first

    def add(self, client: tuple[Any, ...], transport: Transport) -> None:
        """Add a connection, which has made no request yet.

        Args:
            client: Address of the client, as servers name it in the ``scope`` of a request.
            transport: The connection's.
        """
        self._open.pop(client, None)  # an earlier connection from the same port
        if len(self._open) >= self.most:
            self._open = {address: one for address, one in self._open.items() if not _is_lost(one.transport)}
        if len(self._open) < self.most or self.abort_one():
            self._open[client] = _Connection(transport, _abort_in(HEAD_TIMEOUT_S, transport))
        else:
            transport.abort()

    def hear(self, client: tuple[Any, ...]) -> None:
        """Expect the rest of a head, of which bytes have come from this client."""
        one = self._open.get(client)
        if one is not None and one.timer is None and not one.requests:
            one.timer = _abort_in(HEAD_TIMEOUT_S, one.transport)

    def abort_one(self) -> bool:
        """Abort the oldest connection whose last request had no key, or else the oldest without a request at work.

        New connections keep their place longest, so that a client with a key has time to show the key.

        Returns:
            Whether there was such a connection.
        """
        without_key = (client for client, one in self._open.items() if one.state.get("key") is None)
        idle = (client for client, one in self._open.items() if not one.requests)
        client = next(chain(without_key, idle), None)
        if client is None:
            return False
        self._open.pop(client).transport.abort()
        return True

    @contextmanager
    def asking(self, scope: Scope) -> Iterator[Callable[[], None]]:
        """A request whose head has come is answered within the block. Yields what aborts its connection."""
        one = self._open.get(tuple(scope.get("client") or ()))
        if one is None:  # of a server that does not add its connections
            yield lambda: None
            return
        if one.timer is not None:
            one.timer.cancel()
            one.timer = None
        one.state = scope.setdefault("state", {})
        one.requests += 1
        try:
            yield one.transport.abort
        finally:
            one.requests -= 1


def _is_lost(transport: Transport) -> bool:
    return transport.is_closing() and not transport.get_write_buffer_size()


def _abort_in(seconds: float, transport: Transport) -> TimerHandle:
    return get_running_loop().call_later(seconds, transport.abort)
