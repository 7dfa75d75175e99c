"""Limits the number of open connections, and the time to receive a request head.

No ASGI server has suitable settings. uvicorn closes connections that are idle after a response, but has no timeout for
an incomplete head. ``limit_concurrency`` of uvicorn refuses new clients, even with a valid key. hypercorn does not
limit connections. granian stops accepting connections at its limit.
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
"""Maximum seconds to receive a request head: from the connection on, or for later requests, from the first byte."""
MAX_CONNECTIONS = 4096
"""Maximum number of open connections, unless the system allows fewer."""
CONNECTION = "connection"
"""Key of the connection in the ``state`` of a request."""


@dataclass(eq=False, slots=True)
class Connection:
    """An open connection. `state` is the ASGI state of the last request."""

    transport: Transport | None = None
    timer: TimerHandle | None = None  # while a head is incomplete
    requests: int = 0  # in progress; with pipelining, two may overlap
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
        """Adds a connection. At the maximum, calls `abort_one`; if this returns false, aborts the new connection."""
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
        """Starts the timeout for a request head when bytes arrive and no request is in progress."""
        if one.timer is None and not one.requests and one.transport is not None:
            one.timer = _abort_in(HEAD_TIMEOUT_S, one.transport)

    def abort_one(self) -> bool:
        """Aborts the oldest connection whose last request had no key, or else the oldest idle connection.

        The oldest connection goes first, so that a new client has time to send a key.

        Returns:
            Whether a connection was aborted.
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
        if one is None:  # under a server other than `zsvec.service.server`
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
                one.timer = _abort_in(HEAD_TIMEOUT_S, one.transport)  # the client has not read everything yet


def _abort_in(seconds: float, transport: Transport) -> TimerHandle:
    return get_running_loop().call_later(seconds, transport.abort)
