"""What the command line changes in its own process: threads, memory, streams and the form of warnings.

The library changes nothing process-wide: these are choices of the program, and the command line is one. The first three
make it faster and change no result.

**Threads.** After a matrix product, threads of OpenBLAS spin for tens of milliseconds while they wait for the next
one, and take the cores from the network that runs meanwhile: a product of microseconds cost a batch of
EfficientNet-Lite0 a fifth of its speed on two cores. ``OPENBLAS_THREAD_TIMEOUT`` is that time as a power of two of
clock cycles, 26 by default. OpenBLAS reads it when numpy is first imported.

Threads of OpenMP spin, too, whenever they wait for each other within a network: up to 300,000 times by libgomp, which
torch from PyPI brings for Linux. Beside processes that kept two cores busy, a stream kept 0.14 to 0.35 of its speed,
and with 10,000 0.32 to 0.41. What that costs on quiet cores is not settled: from nothing to a quarter in five runs;
1,000 cost a fifth in one. libgomp reads ``GOMP_SPINCOUNT`` when torch is imported.

**Memory.** The GNU C library returns large arrays (from 128 KiB to 32 MiB up, depending on what has been freed
before) and the ends of its heaps to the system as soon as they are free, and the system clears every page again for
the next step of a network: 3,500 page faults an image, which made EfficientNet-Lite0 1.4 times slower.

**The end.** Python looks through all that a process has imported for garbage once more before it ends, a sixth of the
time of `zsvec list`. What was opened is closed before.

**Streams and warnings.** Bytes of file names that are no text, and characters that a terminal cannot show, are passed
on escaped. A warning is one line, without the place in the code.

A program that uses zsvec as a library gets the same from its environment, set before Python starts:

```
OPENBLAS_THREAD_TIMEOUT=18 GOMP_SPINCOUNT=10000 MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=33554432
```
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from zsvec.errors import without_password

# C0 and C1 controls, separators of lines, marks of direction, and bytes that are no text.
_OBEYED = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_SPINNING_VARIABLE, _SPINNING_CYCLES = "OPENBLAS_THREAD_TIMEOUT", "18"
_OPENMP_SPINNING = ("GOMP_SPINCOUNT", "10000")  # how many times a thread looks for its work before it sleeps
_OPENMP_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
_MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
# mallopt(3): the option's number and its value
_M_TRIM_THRESHOLD = (-1, 2**28)  # free bytes at the end of a heap that are kept at most
_M_MMAP_THRESHOLD = (-3, 2**25)  # bytes of the largest array that comes from a heap; glibc itself goes no higher


def prepare_process() -> None:
    """Make the choices above, for the whole process.

    To be called before numpy is imported. A variable of OpenBLAS, OpenMP or of the C library that the user has set is
    respected, and other systems and C libraries are left as they are.
    """
    os.environ.setdefault(_SPINNING_VARIABLE, _SPINNING_CYCLES)
    if not any(name in os.environ for name in _OPENMP_VARIABLES):
        os.environ.update([_OPENMP_SPINNING])
    atexit.register(_end_at_once)
    # File names may be any bytes, and a terminal of another encoding must not stop an answer.
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    warnings.formatwarning = lambda message, *_, **__: f"zsvec: {harmless(without_password(str(message)))}\n"
    _keep_freed_memory()


def harmless(text: str, *, but: str = "") -> str:
    """A text in which what a terminal would obey is visible: controls, escape sequences, changes of direction.

    Args:
        text: Of names and paths, which may be anything.
        but: Characters to leave.
    """
    return _OBEYED.sub(lambda found: found[0] if found[0] in but else repr(found[0])[1:-1], text)


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for BLAS and OpenMP, so that figures are the same each time.

    Threads add up in any order, and t-SNE makes much of the last digit.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def _end_at_once() -> None:
    if "torch" not in sys.modules:  # a library that it brings would print what is left as leaks
        gc.freeze()


def _keep_freed_memory() -> None:
    if sys.platform != "linux" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(*_M_TRIM_THRESHOLD)
        mallopt(*_M_MMAP_THRESHOLD)
