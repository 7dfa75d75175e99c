"""Limits the size and the time of HTTP responses.

An HTTP client reads as many bytes as a server sends, and decompresses them to any size. Its timeout restarts with every
byte that arrives, and does not include the name lookup. A ``charset`` may name a codec that takes minutes for a few MB,
such as punycode. `hooks` limits the size of each response and decodes text as UTF-8. `in_time` sets a deadline for a
whole exchange. At the deadline, `Sockets` shuts down the connections. All three work with `httpx` and with `httpx2`,
the successor that newer versions of `openai` use.
"""

from __future__ import annotations

import socket
import sys
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

_T = TypeVar("_T")
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # detected from the first bytes
_ENCODINGS = ("gzip", "deflate")


class AnswerError(Exception):
    """A response is too large, or cannot be decompressed."""


class AnswerTooLargeError(AnswerError):
    """A response is larger than its limit."""


class LateError(Exception):
    """No complete response arrived by the deadline."""


def in_time(
    act: Callable[[], _T], seconds: float, *, when_late: Callable[[Future[_T]], None] = lambda future: None
) -> _T:
    """Calls a function with a deadline; returns its result, or raises its error.

    Args:
        act: Function that runs in another thread, with the context variables of the caller. After the deadline, nothing
            waits for that thread.
        seconds: Seconds until the deadline.
        when_late: Called at the deadline with the future of the thread's result. May shut down the socket that the
            thread waits for.

    Raises:
        LateError: The function did not return by the deadline.
    """
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as exc:  # noqa: BLE001 - the caller raises it
            future.set_exception(exc)

    threading.Thread(target=copy_context().run, args=(run,), name="zsvec-in-time", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # finished at the last moment, or raised TimeoutError itself
            return future.result()
        when_late(future)
        raise LateError(f"timed out: no whole answer within {seconds:.3g} s") from None


class Sockets:
    """The sockets of HTTP clients. Any thread can shut down the sockets, which ends blocked reads.

    Sockets are shut down instead of closed. The operating system may reuse the file descriptor of a closed socket
    before the reading thread notices.
    """

    def __init__(self) -> None:
        self._known: WeakSet[socket.socket] = WeakSet()
        self._over = False
        self._lock = threading.Lock()

    def add(self, one: socket.socket) -> None:
        """Adds a socket; shuts it down at once if `shut_down` was called before."""
        with self._lock:
            self._known.add(one)
            over = self._over
        if over:
            _shut_down(one)

    def shut_down(self) -> None:
        """Shuts down all sockets, and each socket that is added later."""
        with self._lock:
            self._over = True
            known = list(self._known)
        for one in known:
            _shut_down(one)

    def watch(self, request: Any) -> None:
        """Adds the sockets that are opened for a request of `httpx` or `httpx2`."""
        opened: list[socket.socket] = []

        def note(event: str, told: Mapping[str, Any]) -> None:
            step = event.partition(".")[2]
            if step == "start_tls.started":  # the handshake detaches the socket, and returns a new one
                opened.append(opened[-1].dup())
                self.add(opened[-1])
            elif step in ("start_tls.complete", "start_tls.failed"):
                opened.pop().close()
            if step in ("connect_tcp.complete", "start_tls.complete"):
                opened.append(told["return_value"].get_extra_info("socket"))
                self.add(opened[-1])

        request.extensions["trace"] = note


def _shut_down(one: socket.socket) -> None:
    with suppress(OSError):  # closed meanwhile
        socket.socket.shutdown(one, socket.SHUT_RDWR)  # ssl.SSLSocket.shutdown is not thread-safe


def hooks(most: Callable[[str], int], watch: Callable[[Any], None]) -> Mapping[str, list[Callable[..., Any]]]:
    """Returns ``event_hooks`` for an HTTP client. The hooks read each response completely before the client does.

    If a response is too large or cannot be decompressed, the client raises `AnswerError`. Headers need no hook, because
    `httpcore` limits them to 100 KiB.

    Args:
        most: Function that maps the URL path of a request to the maximum size of the response in bytes. The limit
            applies before and after decompression.
        watch: Called with each request, such as `Sockets.watch`.
    """
    return {"request": [_ask_for_identity, watch], "response": [partial(_read_whole, most)]}


def _ask_for_identity(request: Any) -> None:
    request.headers["accept-encoding"] = "identity"


def _read_whole(most: Callable[[str], int], response: Any) -> None:
    bound = most(response.request.url.path)
    announced = response.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > bound:
        raise _too_large(bound)
    unpack = _unpacker(response.headers.get("content-encoding", "identity").strip().lower())
    body = bytearray()  # a list of small parts would take many times as much memory
    received = 0
    for part in response.stream:
        received += len(part)
        body += unpack(part, bound - len(body) + 1)
        if max(received, len(body)) > bound:
            del body, part  # the traceback of the error keeps this frame alive
            raise _too_large(bound)
    response.stream.close()
    response.headers.pop("content-encoding", None)
    package = sys.modules[type(response).__module__.partition(".")[0]]  # httpx or httpx2
    response.stream = package.ByteStream(bytes(body))
    response.encoding = "utf-8"  # not the charset of the header


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
    if encoding in ("identity", ""):
        return lambda part, most: part
    if encoding not in _ENCODINGS:
        raise AnswerError(f"the answer is compressed as {encoding[:40]!r}, although identity was requested")
    unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)

    def unpack(part: bytes, most: int) -> bytes:
        if unpacker.eof:
            raise AnswerError("the compressed answer goes on after its end")
        try:
            return unpacker.decompress(part, most)
        except zlib.error as exc:
            raise AnswerError(f"the compressed answer cannot be read: {exc}") from exc

    return unpack


def _too_large(bound: int) -> AnswerTooLargeError:
    return AnswerTooLargeError(f"the answer has more than {bound:,} bytes")
