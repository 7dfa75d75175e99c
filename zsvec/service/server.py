"""The server process: uvicorn with graceful shutdown.

After SIGTERM or SIGINT, the readiness check fails, and each response closes the connection. The service accepts new
connections for one more second, so that load balancers notice the shutdown. Then the service stops accepting, responds
to the requests of accepted connections, and exits. Requests that take too long, such as an audit of a large store, are
abandoned. Abandoned work cannot damage the store, which survives a kill at any instant.
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
from zsvec.service.admission.bodies import PART_BYTES
from zsvec.service.admission.connections import CONNECTION, Connection, Connections

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

NOT_READY_NOTICE_S = 1.0
"""Seconds from the first failing readiness check until the service stops accepting connections."""
LAST_REQUESTS_S = 0.5
"""Seconds for new connections to send a first request, after the service stops accepting connections."""
LAST_RESPONSES_S = 7.0
"""Maximum seconds for the last responses at shutdown."""
IDLE_TIMEOUT_S = 65
"""Maximum seconds that a connection may be idle after a response. Proxies close idle connections earlier."""
SHUTDOWN_TIMEOUT_S = 9.5
"""Seconds from the signal until the process exits in any case."""
_OTHER_FILES = 256  # open files other than connections
_BACKLOG = 128  # connections that wait to be accepted
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_log = logging.getLogger(__name__)


class _Protocol(H11Protocol):
    """Adds a connection to `Connections`, and to the ``state`` of each request on the connection."""

    def __init__(self, server: Server) -> None:
        self._known = Connection()
        self._all = server.open_connections
        super().__init__(server.config, server.server_state, {**server.lifespan.state, CONNECTION: self._known})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(0)  # pauses writing until the buffer is empty
        super().connection_made(transport)
        self._all.add(self._known, transport)

    def data_received(self, data: bytes) -> None:
        self._all.hear(self._known)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.remove(self._known)


class Server(uvicorn.Server):
    """uvicorn with a different accept loop. `run` returns after a signal.

    uvicorn, hypercorn and granian close the listener right after a signal. Closing resets the connections in the
    backlog, so this server accepts them first.
    """

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=IDLE_TIMEOUT_S,
            proxy_headers=False,  # any client can send X-Forwarded-For
            timeout_graceful_shutdown=int(LAST_RESPONSES_S),
            loop="asyncio:SelectorEventLoop",
            lifespan="on",
            ws="none",
        )
        super().__init__(config)
        self._listener = listener
        self._ending: asyncio.Event = app.state.health.ending
        self.open_connections: Connections = app.state.connections
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references to tasks

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts the application, then accepts connections."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=[])
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)
        self._start(self._shut_down())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Starts a graceful shutdown. After a second signal, the shutdown does not wait for responses."""
        if not self.started:
            self.should_exit = True
            return
        self.force_exit = self._ending.is_set()
        self._loop.call_soon_threadsafe(self._ending.set)

    async def _shut_down(self) -> None:
        await self._ending.wait()
        timer = threading.Timer(SHUTDOWN_TIMEOUT_S, _exit)
        timer.daemon = True
        timer.start()
        await asyncio.sleep(NOT_READY_NOTICE_S)
        self._loop.remove_reader(self._listener)
        self._accept()  # accepts the backlog, which closing the listener would reset
        self._listener.close()
        await asyncio.sleep(LAST_REQUESTS_S)
        self.should_exit = True

    def _listen(self) -> None:
        if self._listener.fileno() >= 0 and not self._ending.is_set():
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_BACKLOG + 1):
            try:
                accepted, _ = self._listener.accept()
            except OSError as exc:
                if exc.errno in _EXHAUSTED and not self.open_connections.abort_one():
                    self._loop.remove_reader(self._listener)
                    self._loop.call_later(1.0, self._listen)
                return
            self._start(self._connect(accepted))

    async def _connect(self, accepted: socket.socket) -> None:
        with suppress(OSError):  # the client has disconnected
            await self._loop.connect_accepted_socket(lambda: _Protocol(self), accepted)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _raise_file_limit(connections: Connections) -> None:
    """Raises the limit of open files as far as allowed, and bounds the number of connections by that limit."""
    if resource is None:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY:
        connections.most = max(1, min(connections.most, files - _OTHER_FILES))


def _exit() -> None:
    _log.warning("shutdown timed out: work is still running, and is abandoned")
    logging.shutdown()
    os._exit(0)


def listening(host: str, port: int) -> socket.socket:
    """Returns a listening socket. Port 0 selects a free port.

    Raises:
        InvalidInputError: The address does not exist on this machine, or is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listener = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
        # Accepted connections inherit both options. Without TCP_NODELAY, the body of each response is 40 ms late.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # By default, Linux buffers megabytes that a client has not read, and reports the socket as writable only after
        # the client has read a third of them.
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * PART_BYTES)
    except (OSError, OverflowError, ValueError) as exc:
        raise InvalidInputError(
            f"cannot listen on {host!r}, port {port}: {exc}. Choose another address or port"
        ) from exc
    return listener


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Runs a service until SIGTERM or SIGINT."""
    _raise_file_limit(app.state.connections)
    Server(app, listener).run()


def log_to_stderr(formatter: logging.Formatter) -> None:
    """Logs to stderr in this format, from level INFO up. uvicorn, httpx and httpcore log from level WARNING up."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("uvicorn", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """Formats a log record as a JSON object on one line. Records of requests have additional fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "request", {}),
            **({"error": self.formatException(record.exc_info)} if record.exc_info else {}),
        }
        return json.dumps(line)
