"""The memory that images take while they are decoded: one account for all threads of the process.

Who decodes an image says first how much it will take, and waits while others have too much. Nobody waits for more
while holding some, so nobody waits for ever.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from zsvec.errors import ImageError

DEFAULT = 512 * 2**20
"""Bytes that all images being decoded may take together, by default."""

_LARGE = 16 * 2**20


def _trim() -> None:
    """Return what is free to the system.

    The GNU C library keeps memory that a thread has freed, in that thread's heap, out of reach of the others: four
    threads had twice the memory that was taken.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


class Account:
    """What is taken of the memory, by all threads together. First come, first served."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew: in a forked process, threads that took memory or waited are not there."""
        self._taken = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, size: int, limit: int) -> Iterator[None]:
        """Wait until there is room, and take it.

        Args:
            size: Bytes.
            limit: Bytes that all may take together, as this one sees it.

        Raises:
            ImageError: It is more than all of it.
        """
        if size > limit:
            raise ImageError(
                f"decoding it would take {size:,} bytes, which is more than image_memory={limit:,}; "
                "scale it down, or raise that"
            )
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._taken + size <= limit)
                self._taken += size
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            if size >= _LARGE:
                _trim()
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


ACCOUNT = Account()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=ACCOUNT.clear)
