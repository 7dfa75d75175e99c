"""The process of a service: uvicorn, which ends so that nobody who was let in goes without an answer.

After SIGTERM or SIGINT the service says at once that it is not ready, and takes connections for a moment longer: those
who send them look seldom. Each answer closes its connection from then on. Then it takes no connections, waits another
moment for the requests of those that it has taken, answers what it has, and ends. What is still at work then, such as
an audit of a large store, is given up: a store is safe against a kill at any instant.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from zsvec.errors import InvalidInputError
from zsvec.service.admission.answers import ABORT, PART_BYTES

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

NOTICE = 1.0
"""Seconds between not being ready and taking no connections."""
LAST_REQUESTS = 0.5
"""Seconds for the requests of connections that were taken."""
LAST_ANSWERS = 7.0
"""Seconds for the answers to what was let in."""
GIVEN_UP = 9.5
"""Seconds from the signal until what is at work is given up."""
HEAD = 20.0
"""Seconds until the head of a request has come."""
WRITE_TIMEOUT_S = 30.0
"""Seconds in which a client must take the part of an answer that was sent last."""
_MOST = 4096  # connections at once, as far as the system lets the process have so many
_OTHER_FILES = 256  # that the process may need beside them
_BACKLOG = 128  # connections that wait to be taken; asyncio says of each one that the system refuses
_IDLE = 65  # seconds that a connection may be idle: longer than proxies keep theirs


_log = logging.getLogger(__name__)


class _Connection(H11Protocol):
    """Bounds how long clients may take to ask and to read, and how many connections there are.

    uvicorn has no time-out before a request is there, and none for its answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        self._since = self.loop.time()
        self._due: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(0)  # writing is paused as long as anything is left in the buffer
        self.app_state = {**self.app_state, ABORT: transport.abort}
        super().connection_made(transport)
        self._expect()
        if len(self.connections) > _most_connections():
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self._due is None and not self._has_request():
            self._expect()
        super().data_received(data)
        if self._has_request():
            self._forget()

    def pause_writing(self) -> None:
        """Starts the time-out of a client that has not read everything."""
        super().pause_writing()
        self._unread = self.loop.call_later(WRITE_TIMEOUT_S, self._give_up)

    def resume_writing(self) -> None:
        """Ends the time-out: the client has read everything."""
        super().resume_writing()
        self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._forget()
        self._stop_waiting()
        super().connection_lost(exc)

    def _make_room(self) -> None:
        """Aborts the oldest connection whose last request had no key, or else the oldest without a request.

        New connections keep their place longest, so that a client with a key has time to show the key. If all others
        have a key and a request at work, this one is aborted.
        """
        others = [one for one in self.connections if isinstance(one, _Connection) and one is not self]
        without_key = [one for one in others if not one._has_key()]
        idle = [one for one in others if not one._has_request()]
        given_up = min(without_key or idle or [self], key=lambda one: one._since)
        self.connections.discard(given_up)  # the end itself comes later, and others are taken meanwhile
        given_up.transport.abort()

    def _has_key(self) -> bool:
        return self.scope is not None and self.scope["state"].get("key") is not None

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self) -> None:
        self._due = self.loop.call_later(HEAD, self.transport.close)

    def _forget(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _give_up(self) -> None:
        _log.info("a client did not read its answer: its connection is closed")
        self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class _Server(uvicorn.Server):
    """Says that it is ending before it does."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End, by a signal; at once by a second one."""
        if self.app.state.health.ending.is_set():
            self.force_exit = True
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self.app.state.health.ending.is_set():
            self.app.state.health.ending.set()
            _after(GIVEN_UP, _give_up)
            self._loop.call_later(NOTICE, self._stop)

    def _stop(self) -> None:
        # asyncio drops a connection that it has taken, and not begun to serve, when its server is closed.
        for server in self.servers:
            for listener in server.sockets:
                self._loop.remove_reader(listener.fileno())
        self._loop.call_soon(self._close)

    def _close(self) -> None:
        for server in self.servers:
            for listener in server.sockets:
                self._take_last(listener.fileno())
            server.close()
        self._loop.call_later(LAST_REQUESTS, setattr, self, "should_exit", True)

    def _take_last(self, listener: int) -> None:
        """Take the connections that wait: closing what listens would reset them, and the requests that they have."""
        with suppress(BlockingIOError), socket.socket(fileno=os.dup(listener)) as waiting:
            while True:
                taken = self._loop.connect_accepted_socket(self._protocol, waiting.accept()[0])
                self._last.add(self._loop.create_task(taken))

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes it for a connection."""
        kind: Any = self.config.http_protocol_class
        made: asyncio.Protocol = kind(self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made

    async def run_until_ended(self, app: FastAPI, sockets: list[socket.socket]) -> None:
        self.app, self._loop = app, asyncio.get_running_loop()
        self._last: set[asyncio.Task[Any]] = set()  # else nobody would hold them
        await self.serve(sockets)


def _allow_files() -> None:
    """Let this process have as many open files as it may."""
    if resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _most_connections() -> int:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource is not None else _MOST
    return max(1, min(_MOST, files - _OTHER_FILES)) if files > 0 else _MOST


def _after(seconds: float, action: Callable[[], None]) -> None:
    """Do something later in a thread, unless the process has ended by then."""
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def _give_up() -> None:
    _log.warning("something is still at work: it is given up, so that the service ends in time")
    logging.shutdown()
    os._exit(0)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Name or address.
        port: 0: any that is free.

    Raises:
        InvalidInputError: There is no such address here, or it is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # asyncio lets only sockets send at once that name their protocol; else each answer waits 40 ms for its body.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        with ExitStack() as stack:
            stack.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Linux takes megabytes that a client does not read, and says only after a third of them that it has read.
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * PART_BYTES)
            listener.bind(address)
            listener.listen(_BACKLOG)
            stack.pop_all()
    except (OSError, OverflowError, ValueError) as exc:
        raise InvalidInputError(f"nothing can listen on {host!r}, port {port}: {exc}; choose others") from exc
    return listener


def configuration(app: FastAPI) -> uvicorn.Config:
    """How uvicorn runs a service."""
    return uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=int(LAST_ANSWERS),
        http=_Connection,
        backlog=_BACKLOG,
        lifespan="on",
        ws="none",
    )


def serve(app: FastAPI, sockets: list[socket.socket]) -> None:
    """Run a service until a signal ends it."""
    _allow_files()
    asyncio.run(_Server(configuration(app)).run_until_ended(app, sockets))


def log_to_stderr(*, as_json: bool) -> None:
    """Write logs to stderr, a line each.

    Args:
        as_json: As JSON, one object a line.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("uvicorn", "httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """A record as one line of JSON: when, how grave, what; and the facts of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "request", {}),
            **({"error": self.formatException(record.exc_info)} if record.exc_info else {}),
        }
        return json.dumps(line)
