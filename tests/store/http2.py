"""A gRPC server on the loopback with frames that a test writes."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, WINDOW_UPDATE, CONTINUATION = 0, 1, 4, 8, 9
END_HEADERS, END_STREAM, ACKNOWLEDGED = 4, 1, 1
INITIAL_WINDOW_SIZE = 4
FRAME_BYTES = 16384


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def field(name: bytes, value: bytes) -> bytes:
    """Returns a header that is neither indexed nor compressed, of at most 126 bytes each."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


RESPONSE = b"\x88" + field(b"content-type", b"application/grpc")  # :status 200


class Call:
    """A call that is answered frame by frame."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._windows = {0: 65535, 1: 65535}
        self._room = threading.Condition()
        self.stream = 1

    def read(self) -> bytes:
        """Reads a frame of the client, and returns its kind."""
        head = self._exactly(9)
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        body = self._exactly(size)
        stream = int.from_bytes(head[5:], "big")
        with self._room:
            if kind == WINDOW_UPDATE:
                self._windows[stream] = self._windows.get(stream, 65535) + int.from_bytes(body, "big")
            elif kind == SETTINGS and not flags & ACKNOWLEDGED:
                for place in range(0, size, 6):
                    name, value = struct.unpack(">HI", body[place : place + 6])
                    if name == INITIAL_WINDOW_SIZE:
                        self._windows[1] += value - 65535
                self._connection.sendall(frame(SETTINGS, ACKNOWLEDGED, 0, b""))
            self._room.notify_all()
        return bytes([kind])

    def send(self, kind: int, flags: int, body: bytes) -> None:
        """Sends a frame once the flow control window has room."""
        if kind == DATA:
            with self._room:
                while min(self._windows[0], self._windows[self.stream]) < len(body):
                    if not self._room.wait(30):
                        raise OSError("the client has no room")
                self._windows[0] -= len(body)
                self._windows[self.stream] -= len(body)
        self._connection.sendall(frame(kind, flags, self.stream, body))

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = self._connection.recv(size - len(found))
            if not part:
                raise OSError("the client has gone")
            found += part
        return found


def serve(listening: socket.socket, answers: Iterator[Callable[[Call], None]]) -> None:
    """Answers one call per connection, each with the next answer, until the socket is shut down."""
    with suppress(OSError):
        for answer in answers:
            connection, _ = listening.accept()
            threading.Thread(target=_serve, args=(connection, answer), daemon=True).start()


def _serve(connection: socket.socket, answer: Callable[[Call], None]) -> None:
    with connection, suppress(OSError):
        call = Call(connection)
        call._exactly(len(PREFACE))
        connection.sendall(frame(SETTINGS, 0, 0, b""))
        while call.read() != bytes([DATA]):
            pass
        reader = threading.Thread(target=_read_all, args=(call,), daemon=True)
        reader.start()
        answer(call)
        reader.join(60)  # closing a socket with unread bytes resets the connection


def _read_all(call: Call) -> None:
    with suppress(OSError):
        while True:
            call.read()


# Answers


def message(body: bytes) -> Callable[[Call], None]:
    """Returns an answer of one message."""

    def answer(call: Call) -> None:
        call.send(HEADERS, END_HEADERS, RESPONSE)
        call.send(DATA, 0, b"\0" + len(body).to_bytes(4, "big") + body)
        call.send(HEADERS, END_HEADERS | END_STREAM, field(b"grpc-status", b"0"))

    return answer


def compressed_message(packed: bytes) -> Callable[[Call], None]:
    """Returns an answer of one gzipped message."""

    def answer(call: Call) -> None:
        call.send(HEADERS, END_HEADERS, RESPONSE + field(b"grpc-encoding", b"gzip"))
        message = b"\1" + len(packed).to_bytes(4, "big") + packed
        for start in range(0, len(message), FRAME_BYTES):
            call.send(DATA, 0, message[start : start + FRAME_BYTES])

    return answer


def endless_message(call: Call) -> None:
    """Sends a message of four gigabytes."""
    call.send(HEADERS, END_HEADERS, RESPONSE)
    call.send(DATA, 0, b"\0\xff\xff\xff\xff")
    for block in repeat(bytes(FRAME_BYTES)):
        call.send(DATA, 0, block)


def endless_messages(call: Call) -> None:
    """Sends small messages without end instead of one."""
    call.send(HEADERS, END_HEADERS, RESPONSE)
    for block in repeat(b"\0\0\0\0\0" * 3000):
        call.send(DATA, 0, block)


def endless_metadata(call: Call) -> None:
    """Sends headers without end."""
    call.send(HEADERS, 0, RESPONSE)
    for block in repeat(field(b"x-endless", b"x" * 100) * 140):
        call.send(CONTINUATION, 0, block)
