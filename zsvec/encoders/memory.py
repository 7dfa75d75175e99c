"""Memory that a network on a CPU frees and takes again at every step.

The GNU C library gives arrays of more than some MiB, and the end of its heap, back to the system as soon as they
are free, and the system has to clear every page of them for the next step: 3,500 page faults an image, by which
EfficientNet-Lite0 was 1.4 times slower. Whether it does depends on what the process has freed before.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Of mallopt(3):
_TRIM_THRESHOLD, _KEPT = -1, 2**28  # bytes at the end of the heap that are kept at most
_MMAP_THRESHOLD, _LARGEST = -3, 2**25  # bytes of the largest array that comes from the heap; more is not allowed
_SET_BY_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let the GNU C library keep up to 256 MiB that are free; elsewhere, and where its variables are set, nothing."""
    if sys.platform != "linux" or any(name in os.environ for name in _SET_BY_THE_USER):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_TRIM_THRESHOLD, _KEPT)
        set_option(_MMAP_THRESHOLD, _LARGEST)
