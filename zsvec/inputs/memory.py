"""The memory that images take while they are decoded: one account for all threads of the process.

Who decodes an image says first how much it will take, and waits while others have too much. Nobody waits for more
while holding some, so nobody waits for ever: a thread that holds some, such as that of an encoder whose `preprocess`
reads another image, takes more at once.
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
"""Bytes that all images being decoded may take together, by default."""

_LARGE = 16 * 2**20


# Returns what is free to the system. The GNU C library keeps memory that a thread has freed, in that thread's heap, out
# of reach of the others: four threads had twice the memory that was taken.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


class Account:
    """What is taken of the memory, by all threads together. Whoever waits goes before those that come later."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew: in a forked process, threads that took memory or waited are not there."""
        self._turn = threading.Lock()
        self._taken = 0
        self._returned: SimpleQueue[int] = SimpleQueue()
        self._of_thread = threading.local()

    @property
    def taken(self) -> int:
        """Bytes that are taken."""
        with self._turn:
            self._count_returned()
            return self._taken

    def take(self, size: int, limit: int, held: ExitStack) -> None:
        """Wait until there is room, and take it until the end of a stack. Who holds some does not wait.

        Args:
            size: Bytes.
            limit: Bytes that all may take together, as this one sees it.
            held: At its end, the bytes are returned.

        Raises:
            ImageError: It is more than all of it.
        """
        if size > limit:
            raise ImageError(
                f"decoding it would take {size:,} bytes, which is more than image_memory={limit:,}; "
                "scale it down, or raise that"
            )
        own: list[int] = self._of_thread.__dict__.setdefault("held", [])  # another thread may end the stack
        if own:
            self._returned.put(-size)  # not in turn: whoever has that may wait for what this thread holds
        else:
            with self._turn:
                self._count_returned()
                while self._taken + size > limit:
                    self._taken -= self._returned.get()
                self._taken += size
        own.append(size)
        held.callback(own.remove, size)
        held.callback(self._returned.put, size)
        if size >= _LARGE and _malloc_trim is not None:
            held.callback(_malloc_trim, 0)  # and before that

    def _count_returned(self) -> None:
        with suppress(Empty):
            while True:
                self._taken -= self._returned.get_nowait()


ACCOUNT = Account()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=ACCOUNT.clear)
