"""Process-wide choices of the command line: threads, memory, streams and warnings. The library makes none.

They make the command line faster, and change no result.

**Threads.** Idle threads of OpenBLAS spin for up to 2^26 clock cycles after a matrix product, and take the cores from
the network that runs meanwhile: EfficientNet-Lite0 lost a fifth of its speed on two cores. OpenBLAS reads
``OPENBLAS_THREAD_TIMEOUT`` when numpy is first imported.

Idle threads of libgomp, which torch from PyPI brings for Linux, spin up to 300,000 times. Beside processes that kept
two cores busy, a stream kept 0.14 to 0.35 of its speed, and with 10,000 spins 0.32 to 0.41; the cost on quiet cores was
between nothing and a quarter in five runs. libgomp reads ``GOMP_SPINCOUNT`` when torch is imported.

**Memory.** The GNU C library returns freed arrays to the system, which clears every page again for the next layer of a
network: 3,500 page faults an image made EfficientNet-Lite0 1.4 times slower.

**Exit.** The last garbage collection of Python took a sixth of the time of `zsvec list`.

**Streams and warnings.** Bytes of file names that are not UTF-8, and characters outside the encoding of a stream, are
escaped. A warning is one line, without the place in the code.

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

# C0 and C1 controls, line separators, bidirectional controls, and surrogates.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_SPINNING_VARIABLE, _SPINNING_CYCLES = "OPENBLAS_THREAD_TIMEOUT", "18"
_OPENMP_SPINNING = ("GOMP_SPINCOUNT", "10000")  # spins of an idle thread before it sleeps
_OPENMP_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
_MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
# mallopt(3): the option's number and its value
_M_TRIM_THRESHOLD = (-1, 2**28)  # free bytes at the end of a heap
_M_MMAP_THRESHOLD = (-3, 2**25)  # bytes of the largest array in a heap; the maximum of glibc


def prepare_process() -> None:
    """Makes the choices above. Must be called before numpy is imported.

    Variables of OpenBLAS, OpenMP and the C library that the user has set are respected.
    """
    os.environ.setdefault(_SPINNING_VARIABLE, _SPINNING_CYCLES)
    if not any(name in os.environ for name in _OPENMP_VARIABLES):
        os.environ.update([_OPENMP_SPINNING])
    atexit.register(_end_at_once)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    warnings.formatwarning = lambda message, *_, **__: f"zsvec: {harmless(without_password(str(message)))}\n"
    _keep_freed_memory()


def harmless(text: str, *, but: str = "") -> str:
    """Returns text with control characters and bidirectional controls escaped, except those in `but`."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in but else repr(found[0])[1:-1], text)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Limits BLAS and OpenMP to one thread: t-SNE amplifies the rounding differences of several."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def _end_at_once() -> None:
    if "torch" not in sys.modules:  # a library of torch would report the remaining objects as leaks
        gc.freeze()


def _keep_freed_memory() -> None:
    if sys.platform != "linux" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(*_M_TRIM_THRESHOLD)
        mallopt(*_M_MMAP_THRESHOLD)
