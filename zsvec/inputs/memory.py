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
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue

from zsvec.errors import ImageError

DEFAULT = 512 * 2**20
"""Default budget, in bytes."""

_TRIM_BYTES = 16 * 2**20

# Returns freed memory to the system. glibc keeps freed memory in the heap of each thread, where other threads cannot
# use it: four threads took twice the reserved memory.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


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

    @property
    def taken(self) -> int:
        """Number of reserved bytes."""
        with self._turn:
            self._count_returned()
            return self._taken

    def take(self, size: int, limit: int, held: ExitStack) -> None:
        """Blocks until enough memory is free, and reserves it. A thread that has a reservation does not block.

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
        own: list[int] = self._of_thread.__dict__.setdefault("held", [])  # another thread may close the stack
        if own:
            self._returned.put(-size)  # without the lock, whose holder may wait for this thread
        else:
            with self._turn:
                self._count_returned()
                while self._taken + size > limit:
                    self._taken -= self._returned.get()
                self._taken += size
        own.append(size)
        held.callback(own.remove, size)
        held.callback(self._returned.put, size)
        if size >= _TRIM_BYTES and _malloc_trim is not None:
            held.callback(_malloc_trim, 0)  # callbacks run in reverse order: trims before the memory is released

    def _count_returned(self) -> None:
        with suppress(Empty):
            while True:
                self._taken -= self._returned.get_nowait()


ACCOUNT = Account()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=ACCOUNT.clear)
