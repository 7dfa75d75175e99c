"""Memory that a network on a CPU frees and takes again at every step.

The GNU C library gives large arrays (from 128 KiB to 32 MiB up, by what has been freed before), and the end of its
heaps, back to the system as soon as they are free, and the system has to clear every page of them for the next step:
3,500 page faults an image, by which EfficientNet-Lite0 was 1.4 times slower.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Of mallopt(3):
_TRIM_THRESHOLD, _KEPT = -1, 2**28  # bytes at the end of a heap that are kept at most
_MMAP_THRESHOLD, _LARGEST = -3, 2**25  # bytes of the largest array that comes from a heap: what glibc itself goes to
_SET_BY_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let the GNU C library keep what is freed, for the whole process.

    Nothing happens with another C library, and where one of its variables is set.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _SET_BY_THE_USER):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_TRIM_THRESHOLD, _KEPT)
        set_option(_MMAP_THRESHOLD, _LARGEST)
