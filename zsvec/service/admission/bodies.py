"""Backpressure: limits the size, speed and memory of request and response bodies.

ASGI servers have no timeouts for bodies. A server buffers a whole part of a response, and waits before the next part
until the client has read the buffer. Small parts therefore limit the buffer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsvec.service.admission.connections import Connections
from zsvec.service.admission.queue import Limits
from zsvec.service.auth.guard import is_open
from zsvec.service.problems import Answer, Problem

_log = logging.getLogger(__name__)

PART_BYTES = 2**16
"""Maximum number of bytes in a part of a response."""
WRITE_TIMEOUT_S = 30.0
"""Maximum seconds for a client to read one part of a response."""
_MAX_OPEN_BYTES = 2**16  # of a body at paths that need no key
_MIN_BYTES_PER_S = 4096  # mean speed of a body, beyond the first `Limits.stall_timeout_s` seconds
_LINGER_S = 5.0  # to read the rest of a refused body, so that the client can read the refusal


class Backpressure:
    """Refuses request bodies that are too large or too slow, and disconnects clients that do not read responses.

    All request bodies share one memory budget, and a body beyond the budget is refused. All responses share another
    budget. Beyond that budget, the connection with the oldest response is aborted. The newest response is always sent,
    so that clients that do not read cannot block other clients.

    Attributes:
        receiving: Body bytes received so far by all requests in progress.
        sending: Bytes of the responses, or pieces of responses, that are being sent.
    """

    def __init__(self, app: ASGIApp, limits: Limits, connections: Connections, answer: Answer) -> None:
        self._app = app
        self._answer = answer
        self._connections = connections
        self._pending: dict[_Exchange, int] = {}  # bytes of responses, the oldest first
        self.limits = limits
        self.receiving = 0
        self.sending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._connections.asking(scope) as abort:
            exchange = _Exchange(self, scope, receive, send, abort)
            try:
                exchange.check_size(_stated_length(Headers(scope=scope)))
                await self._app(scope, exchange.receive, exchange.send)
            except Problem as problem:
                await self._answer(scope, problem)(scope, exchange.receive, exchange.send)
            finally:
                self.receiving -= exchange.received

    @contextmanager
    def held(self, exchange: _Exchange, size: int) -> Iterator[None]:
        """Reserves bytes of the response budget within the block. Aborts the oldest responses to make room."""
        while self._pending and self.sending + size > self.limits.sending_bytes:
            oldest = next(iter(self._pending))
            self.sending -= self._pending.pop(oldest)
            oldest.abort()
        self._pending[exchange] = size
        self.sending += size
        try:
            yield
        finally:
            self.sending -= self._pending.pop(exchange, 0)


class _Exchange:
    def __init__(
        self, owner: Backpressure, scope: Scope, receive: Receive, send: Send, abort: Callable[[], None]
    ) -> None:
        self._owner = owner
        self._receive, self._send, self._abort = receive, send, abort
        most = owner.limits.body_bytes
        self._max_bytes = min(most, _MAX_OPEN_BYTES) if is_open(scope["path"]) else most
        self._ended = self._refused = self._aborted = False
        self._waited = 0.0
        self.received = 0

    async def receive(self) -> Message:
        """Returns the next part of the body. Raises a Problem for a body that the limits do not allow."""
        if self._ended:
            return await self._receive()
        timeout = self._owner.limits.stall_timeout_s
        left = timeout + self.received / _MIN_BYTES_PER_S - self._waited
        begun = time.monotonic()
        try:
            async with asyncio.timeout(min(timeout, left)):
                message = await self._receive()
        except TimeoutError:
            detail = f"the body stalled or was too slow, got {self.received:,} bytes: send the request again"
            raise self._refusal(408, detail) from None
        self._waited += time.monotonic() - begun
        self._ended = not message.get("more_body", False)
        size = len(message.get("body", b""))
        self.check_size(self.received + size)
        # Content-Length reserves no memory. Otherwise, clients that send nothing could block other clients.
        if self._owner.receiving + size > self._owner.limits.receiving_bytes:
            raise self._refusal(429, "too many bodies are being received: try again soon")
        self.received += size
        self._owner.receiving += size
        return message

    def check_size(self, size: int) -> None:
        """Raises a Problem for a body that is too large."""
        if size > self._max_bytes:
            hint = "send fewer images at once, or smaller ones"
            raise self._refusal(413, f"the body must have at most {self._max_bytes:,} bytes: {hint}")

    def _refusal(self, status: int, detail: str) -> Problem:
        self._refused = True
        return Problem(status, detail)

    async def send(self, message: Message) -> None:
        """Sends a message, and splits a body into parts. The last message waits until the client has read all parts."""
        if message["type"] != "http.response.body":
            if self._refused:
                MutableHeaders(scope=message)["Connection"] = "close"
            await self._write(message)
            return
        body: bytes = message.get("body", b"")
        with self._owner.held(self, len(body) if len(body) > PART_BYTES else 0):
            for start in range(0, len(body), PART_BYTES):
                part = body[start : start + PART_BYTES]
                await self._write({"type": "http.response.body", "body": part, "more_body": True})
        if not message.get("more_body", False):
            if self._refused and not self._ended:
                await self._discard()
            await self._write({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, message: Message) -> None:
        if self._aborted:
            return
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._send(message)
        except TimeoutError:
            _log.info("a client did not read the response: the connection is aborted")
            self.abort()
            await asyncio.sleep(0)  # lets the server notice the abort before the application returns

    def abort(self) -> None:
        self._aborted = True
        self._abort()

    async def _discard(self) -> None:
        """Reads the rest of the body. Otherwise, closing resets the connection, and the client loses the response."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (await self._receive()).get("more_body"):
                    pass


def _stated_length(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length[:19]) if length.isdecimal() and "transfer-encoding" not in headers else 0
