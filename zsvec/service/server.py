"""The process of a service: uvicorn, which ends so that nobody who was let in goes without an answer.

After SIGTERM or SIGINT the service says at once that it is not ready, and takes connections for a moment longer: those
who send them look seldom. Each answer closes its connection from then on. Then it takes no connections, waits another
moment for the requests of those that it has taken, answers what it has, and ends. What is still at work then, such as
an audit of a large store, is given up: a store is safe against a kill at any instant.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from zsvec.errors import InvalidInputError
from zsvec.service.admission.backpressure import PART_BYTES
from zsvec.service.admission.connections import CONNECTION, Connection, Connections

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
IDLE_TIMEOUT_S = 65
"""Seconds that a connection may be idle after an answer: longer than proxies keep theirs."""
GIVEN_UP = 9.5
"""Seconds from the signal until what is at work is given up."""
_OTHER_FILES = 256  # that the process may need beside its connections
_BACKLOG = 128  # connections that wait to be taken
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


_log = logging.getLogger(__name__)


class _Protocol(H11Protocol):
    """Tells `Connections` of a connection, which its requests name in their state."""

    def __init__(self, server: Server) -> None:
        self._known = Connection()
        self._all = server.open_connections
        super().__init__(server.config, server.server_state, {**server.lifespan.state, CONNECTION: self._known})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a head."""
        transport.set_write_buffer_limits(0)  # writing is paused as long as anything is left in the buffer
        super().connection_made(transport)
        self._all.add(self._known, transport)

    def data_received(self, data: bytes) -> None:
        """Takes bytes."""
        self._all.hear(self._known)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""
        super().connection_lost(exc)
        self._all.remove(self._known)


class Server(uvicorn.Server):
    """uvicorn, for connections that are taken here. `run` returns after a signal.

    uvicorn closes its listener right after a signal, and no setting changes that. It resets the connections that wait
    to be taken then, as hypercorn and granian do.

    Args:
        app: The service.
        listener: Takes connections; it is closed by a signal.
    """

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=IDLE_TIMEOUT_S,
            proxy_headers=False,  # connections are known by the address that they come from
            timeout_graceful_shutdown=int(LAST_ANSWERS),
            loop="asyncio:SelectorEventLoop",
            lifespan="on",
            ws="none",
        )
        super().__init__(config)
        self._listener = listener
        self._ending: asyncio.Event = app.state.health.ending
        self.open_connections: Connections = app.state.connections
        self._tasks: set[asyncio.Task[None]] = set()  # else nobody would hold them

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the application, then takes connections."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=[])
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._take_connections)
        self._start(self._end_once_told())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends, by a signal; at once by a second one."""
        if not self.started:
            self.should_exit = True
            return
        self.force_exit = self._ending.is_set()
        self._loop.call_soon_threadsafe(self._ending.set)

    async def _end_once_told(self) -> None:
        await self._ending.wait()
        timer = threading.Timer(GIVEN_UP, _give_up)
        timer.daemon = True
        timer.start()
        await asyncio.sleep(NOTICE)
        self._loop.remove_reader(self._listener)
        self._take_connections()  # those that wait: closing the listener would reset them
        self._listener.close()
        await asyncio.sleep(LAST_REQUESTS)
        self.should_exit = True

    def _listen(self) -> None:
        if self._listener.fileno() >= 0 and not self._ending.is_set():
            self._loop.add_reader(self._listener, self._take_connections)

    def _take_connections(self) -> None:
        """Takes the connections that wait."""
        for _ in range(_BACKLOG + 1):
            try:
                accepted, _ = self._listener.accept()
            except OSError as exc:
                if exc.errno in _NO_ROOM and not self.open_connections.abort_one():
                    self._loop.remove_reader(self._listener)
                    self._loop.call_later(1.0, self._listen)
                return
            self._start(self._serve_connection(accepted))

    async def _serve_connection(self, accepted: socket.socket) -> None:
        with suppress(OSError):  # the client has left already
            await self._loop.connect_accepted_socket(lambda: _Protocol(self), accepted)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _allow_files(connections: Connections) -> None:
    """Lets this process have as many open files as it may, and no more connections than there are files for them."""
    if resource is None:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY:
        connections.most = max(1, min(connections.most, files - _OTHER_FILES))


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
        dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listener = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
        # Connections inherit both options. Without the first, each answer waits 40 ms for its body.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Linux takes megabytes that a client does not read, and says only after a third of them that it has read.
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * PART_BYTES)
    except (OSError, OverflowError, ValueError) as exc:
        raise InvalidInputError(f"nothing can listen on {host!r}, port {port}: {exc}; choose others") from exc
    return listener


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Run a service until a signal ends it."""
    _allow_files(app.state.connections)
    Server(app, listener).run()


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
