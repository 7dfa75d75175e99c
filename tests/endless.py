"""Servers on the loopback with endless answers, or answers that grow in the memory of the reader."""

from __future__ import annotations

import gzip
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import repeat
from socketserver import BaseRequestHandler, ThreadingTCPServer

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n"
BLOCK = 1 << 20
PAUSE_S = 0.05
TOO_MUCH_MEMORY = 300 << 20

Reply = Callable[[bytes, threading.Event], Iterator[bytes]]
"""Gives the parts of an answer, for the path of a request and the end of the server."""


def repeated(head: bytes, block: bytes) -> Reply:
    """Returns a reply that repeats a block, as fast as the client reads."""

    def reply(path: bytes, stopped: threading.Event) -> Iterator[bytes]:
        yield head
        yield from repeat(block)

    return reply


def dripping(head: bytes, drop: bytes) -> Reply:
    """Returns a reply that sends a few bytes now and then."""

    def reply(path: bytes, stopped: threading.Event) -> Iterator[bytes]:
        yield head
        while not stopped.wait(PAUSE_S):
            yield drop

    return reply


def whole(body: bytes, *headers: bytes) -> Reply:
    """Returns a reply with a body of a known length."""
    head = b"\r\n".join([OK + b"content-length: %d" % len(body), *headers, b"", b""])
    return lambda path, stopped: iter([head, body])


@cache
def bomb() -> bytes:
    """Returns a gibibyte of zeros, compressed by gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    parts = [packer.compress(bytes(BLOCK)) for _ in range(1024)]
    return b"".join([*parts, packer.flush()])


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


FLOODS: Mapping[str, Reply] = {
    "body": repeated(OK + b"\r\n", b" " * BLOCK),
    "chunks": repeated(CHUNKED + b"\r\n", chunk(b" " * BLOCK)),
    "length": repeated(OK + b"content-length: 9000000000\r\n\r\n", b" " * BLOCK),
    "gzip": lambda *_: whole(bomb(), b"content-encoding: gzip")(*_),
    "gzip twice": lambda *_: whole(gzip.compress(bomb()), b"content-encoding: gzip, gzip")(*_),
    "after gzip": repeated(OK + b"content-encoding: gzip\r\n\r\n" + gzip.compress(b"{}"), b" " * BLOCK),
}
"""Answers whose bodies are too large."""

HEAD_FLOODS: Mapping[str, Reply] = {
    "header": repeated(OK + b"x-endless: ", b"x" * BLOCK),
    "headers": repeated(OK, b"x-endless: 1\r\n" * 10_000),
    "informational": repeated(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000),
    "chunk extension": repeated(CHUNKED + b"\r\n1;", b"x" * BLOCK),
    "trailers": repeated(CHUNKED + b"\r\n0\r\n", b"x-endless: 1\r\n" * 10_000),
}
"""Answers whose heads, or what is like one, do not end."""

DRIPS: Mapping[str, Reply] = {
    "silence": dripping(b"", b""),
    "head": dripping(OK + b"x-drip: ", b"x"),
    "body": dripping(OK + b"content-length: 1000000\r\n\r\n", b" "),
    "chunks": dripping(CHUNKED + b"\r\n", chunk(b" ")),
}
"""Answers that arrive too slowly."""


class Server(ThreadingTCPServer):
    """Answers each request of HTTP by a reply.

    Attributes:
        reply: Of the next request.
        sent: Bytes of answers that the system took.
        url: URL of the server.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.sent = 0
        self.stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        self.request.settimeout(120)
        with suppress(OSError):  # the client has gone
            for part in self.server.reply(self._path(), self.server.stopped):
                self.request.sendall(part)
                self.server.sent += len(part)
                if self.server.stopped.is_set():
                    return
            self.request.shutdown(socket.SHUT_WR)

    def _path(self) -> bytes:
        with self.request.makefile("rb") as request:
            path: bytes = request.readline().split(b" ")[1]
            size = 0
            while line := request.readline().strip():
                name, _, value = line.lower().partition(b":")
                size = int(value) if name == b"content-length" else size
            request.read(size)
        return path


@contextmanager
def serving(reply: Reply) -> Iterator[Server]:
    """Serves a reply on the loopback."""
    with Server(reply) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


@contextmanager
def bounded_memory(most: int = TOO_MUCH_MEMORY) -> Iterator[None]:
    """Fails if the objects of Python that a block makes take more bytes than `most` at once."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak >> 20} MiB"
