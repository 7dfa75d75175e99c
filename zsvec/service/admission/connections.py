"""Limits the number of open connections and the seconds of a request's head.

No ASGI server has settings for these limits. uvicorn closes connections that are idle after a response, but has no
timeout before a complete head; its ``limit_concurrency`` refuses new clients, with a key or without. hypercorn has no
limit, and granian stops accepting at the limit.
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
"""Seconds from the first byte of a head, or from the connection, to the end of the head."""
MAX_CONNECTIONS = 4096
"""Open connections, unless the system allows fewer."""
CONNECTION = "connection"
"""Name of the connection in the ``state`` of a request."""


@dataclass(eq=False, slots=True)
class Connection:
    """A connection with the ``state`` of the last request."""

    transport: Transport | None = None
    timer: TimerHandle | None = None  # while a head is incomplete
    requests: int = 0  # at work; with pipelining, two may overlap
    state: Mapping[str, Any] = field(default_factory=dict)

    def abort(self) -> None:
        """Aborts the connection, unless already lost."""
        if self.transport is not None:
            self.transport.abort()


class Connections:
    """The open connections of one event loop.

    Attributes:
        most: Maximum number of open connections.
    """

    def __init__(self) -> None:
        self.most = MAX_CONNECTIONS
        self._open: dict[Connection, None] = {}  # the oldest first

    def add(self, one: Connection, transport: Transport) -> None:
        """Adds a new connection; aborts another, or the new one, beyond the maximum."""
        one.transport = transport
        if len(self._open) < self.most or self.abort_one():
            self._open[one] = None
            one.timer = _abort_in(HEAD_TIMEOUT_S, transport)
        else:
            transport.abort()

    def remove(self, one: Connection) -> None:
        """Removes a lost connection."""
        self._open.pop(one, None)
        if one.timer is not None:
            one.timer.cancel()
        one.transport = one.timer = None
        one.state = {}

    def hear(self, one: Connection) -> None:
        """Starts the timeout of a head at the first bytes."""
        if one.timer is None and not one.requests and one.transport is not None:
            one.timer = _abort_in(HEAD_TIMEOUT_S, one.transport)

    def abort_one(self) -> bool:
        """Aborts the oldest connection without a key in the last request, or else the oldest idle connection.

        The oldest goes first, so that a new client has time to send a key.

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
        """Marks the connection of a request as busy within the block. Yields a function that aborts the connection."""
        one = scope.get("state", {}).get(CONNECTION)
        if one is None:  # another server than `zsvec.service.server`
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
                one.timer = _abort_in(HEAD_TIMEOUT_S, one.transport)  # bytes after the last bounded part


def _abort_in(seconds: float, transport: Transport) -> TimerHandle:
    return get_running_loop().call_later(seconds, transport.abort)
