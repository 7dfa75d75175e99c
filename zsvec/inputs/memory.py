"""Memory budget of images that are being decoded, shared by all threads of the process.

Decoders reserve memory first, and block while the budget is exhausted. A thread that already has a reservation does not
block again, because that could deadlock: for example, the `preprocess` of an encoder may read another image.
`zsvec.inputs.encoded` computes how much memory an image takes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Protocol

from zsvec.errors import ImageError

DEFAULT = 512 * 2**20
"""Default budget, in bytes."""

_TRIM_BYTES = 16 * 2**20

# Returns freed memory to the system. glibc keeps freed memory in the heap of each thread, where other threads cannot
# use it: four threads took twice the reserved memory.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


class Idle(Protocol):
    """A decoded image that waits for more use."""

    def reclaim(self) -> None:
        """Frees the image and its reservation, unless it is in use again. Must not wait for an `Account`."""
        ...


class Account:
    """Memory reservations of all threads, made one at a time: small images cannot overtake a large one that waits."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drops all reservations. In a forked process, the threads that made the reservations do not exist."""
        self._turn = threading.Lock()
        self._taken = 0
        self._returned: SimpleQueue[int] = SimpleQueue()
        self._of_thread = threading.local()
        self._idle: set[Idle] = set()
        self._is_short = False

    @property
    def taken(self) -> int:
        """Number of reserved bytes."""
        with self._turn:
            self._count_returned()
            return self._taken

    def take(self, size: int, limit: int, held: ExitStack) -> None:
        """Blocks until enough memory is free, and reserves it. A thread that has a reservation does not block.

        If memory is short, idle images are freed first.

        Args:
            size: Number of bytes.
            limit: Budget for all threads, in bytes.
            held: Stack that releases the memory when it is closed, in any thread.

        Raises:
            ImageError: `size` is above `limit`.
        """
        if size > limit:
            raise ImageError(
                f"decoding it would take {size:,} bytes, which is more than image_memory={limit:,}; "
                "scale it down, or raise that"
            )
        own = self._own()
        if own:
            self._returned.put(-size)  # without the lock, whose holder may wait for this thread
        else:
            with self._turn:
                self._count_returned()
                while self._taken + size > limit:
                    self._is_short = True  # before the idle images are listed, so that a later one wakes this thread
                    for idle in tuple(self._idle):
                        idle.reclaim()
                    self._taken -= self._returned.get()
                self._is_short = False
                self._taken += size
        self.join(held)
        held.callback(self._returned.put, size)
        if size >= _TRIM_BYTES and _malloc_trim is not None:
            held.callback(_malloc_trim, 0)  # callbacks run in reverse order: trims before the memory is released

    def join(self, held: ExitStack) -> None:
        """Counts the calling thread as one that has a reservation, until the stack is closed."""
        own, reservation = self._own(), object()
        own.add(reservation)
        held.callback(own.discard, reservation)  # maybe in another thread

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Counts the reservations that outlast the block as no thread's, so that the calling thread may block again."""
        own = self._own()
        before = set(own)
        try:
            yield
        finally:
            own.intersection_update(before)

    def offer(self, idle: Idle) -> None:
        """Lets threads that need memory free an image. An image may be offered again."""
        self._idle.add(idle)
        if self._is_short:
            self._returned.put(0)  # wakes the thread that waits

    def withdraw(self, idle: Idle) -> None:
        """Ends the offer of an image."""
        self._idle.discard(idle)

    def _own(self) -> set[object]:
        own: set[object] = self._of_thread.__dict__.setdefault("held", set())
        return own

    def _count_returned(self) -> None:
        with suppress(Empty):
            while True:
                self._taken -= self._returned.get_nowait()


ACCOUNT = Account()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=ACCOUNT.clear)
