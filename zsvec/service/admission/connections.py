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


CONNECTION = "connection"
"""Name in the ``state`` of a request of its connection."""


@dataclass(eq=False, slots=True)
class Connection:
    """A connection with the state of its last request."""

    transport: Transport | None = None
    timer: TimerHandle | None = None  # of a head that has not come
    requests: int = 0  # at work; the next one may begin before the last one has returned
    state: Mapping[str, Any] = field(default_factory=dict)

    def abort(self) -> None:
        """Abort the connection, if it is not lost."""
        if self.transport is not None:
            self.transport.abort()


class Connections:
    """The open connections of one event loop. One is aborted if a head does not come, or if there are too many.

    Attributes:
        most: Connections that may be open at once.
    """

    def __init__(self) -> None:
        self.most = MAX_CONNECTIONS
        self._open: dict[Connection, None] = {}  # the oldest first

    def add(self, one: Connection, transport: Transport) -> None:
        """Add a connection, which has made no request yet."""
        one.transport = transport
        if len(self._open) < self.most or self.abort_one():
            self._open[one] = None
            one.timer = _abort_in(HEAD_TIMEOUT_S, transport)
        else:
            transport.abort()

    def remove(self, one: Connection) -> None:
        """Remove a connection that is lost."""
        self._open.pop(one, None)
        if one.timer is not None:
            one.timer.cancel()
        one.transport = one.timer = None
        one.state = {}

    def hear(self, one: Connection) -> None:
        """Expect the rest of a head, of which bytes have come."""
        if one.timer is None and not one.requests and one.transport is not None:
            one.timer = _abort_in(HEAD_TIMEOUT_S, one.transport)

    def abort_one(self) -> bool:
        """Abort the oldest connection whose last request had no key, or else the oldest without a request at work.

        New connections keep their place longest, so that a client with a key has time to show the key.

        Returns:
            Whether there was such a connection.
        """
        without_key = (one for one in self._open if one.state.get("key") is None)
        idle = (one for one in self._open if not one.requests)
        one = next(chain(without_key, idle), None)
        if one is None:
            return False
        del self._open[one]
        one.abort()
        return True

    @contextmanager
    def asking(self, scope: Scope) -> Iterator[Callable[[], None]]:
        """A request whose head has come is answered within the block. Yields what aborts its connection."""
        one = scope.get("state", {}).get(CONNECTION)
        if one is None:  # of a server that does not add its connections
            yield lambda: None
            return
        if one.timer is not None:
            one.timer.cancel()
            one.timer = None
        one.state = scope["state"]
        one.requests += 1
        try:
            yield one.abort
        finally:
            one.requests -= 1
            if not one.requests and one.transport is not None and one.transport.get_write_buffer_size():
                one.timer = _abort_in(HEAD_TIMEOUT_S, one.transport)  # what is sent behind the bounds of answers


def _abort_in(seconds: float, transport: Transport) -> TimerHandle:
    return get_running_loop().call_later(seconds, transport.abort)
