"""Sockets of HTTP clients, so that another thread can end what waits for them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakSet


class Sockets:
    """The sockets of some clients.

    They are shut down and not closed: the number of a closed socket may be another's before its thread has seen that.
    """

    def __init__(self) -> None:
        self._known: WeakSet[socket.socket] = WeakSet()
        self._over = False
        self._lock = threading.Lock()

    def add(self, one: socket.socket) -> None:
        """Shut this down too, now or when it is time."""
        with self._lock:
            self._known.add(one)
            over = self._over
        if over:
            _shut_down(one)

    def shut_down(self) -> None:
        """End what waits for them, and for those that will be opened."""
        with self._lock:
            self._over = True
            known = list(self._known)
        for one in known:
            _shut_down(one)

    def watch(self, request: Any) -> None:
        """Gets to know the sockets that are opened for a request of `httpx` or `httpx2`."""
        opened: list[socket.socket] = []

        def note(event: str, told: Mapping[str, Any]) -> None:
            step = event.partition(".")[2]
            if step == "start_tls.started":  # ssl takes the number away from the socket, and gives a new one at the end
                opened.append(opened[-1].dup())
                self.add(opened[-1])
            elif step in ("start_tls.complete", "start_tls.failed"):
                opened.pop().close()
            if step in ("connect_tcp.complete", "start_tls.complete"):
                opened.append(told["return_value"].get_extra_info("socket"))
                self.add(opened[-1])

        request.extensions["trace"] = note


def _shut_down(one: socket.socket) -> None:
    with suppress(OSError):  # it was closed meanwhile
        socket.socket.shutdown(one, socket.SHUT_RDWR)  # that of ssl.SSLSocket is not for another thread
