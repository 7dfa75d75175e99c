"""Process-wide choices of the command line: threads, memory, streams and warnings. The library makes none.

Idle threads of OpenBLAS and libgomp spin for a shorter time before they sleep, and the GNU C library keeps freed
memory; `zsvec docs architecture` has the variables and their effects. OpenBLAS reads its variable when numpy is first
imported, libgomp when torch is. Bytes of file names that are not UTF-8, and characters outside the encoding of a
stream, are escaped, and so are control characters in the log. A warning is one line, without the place in the code.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import sys
import warnings

from zsvec.errors import harmless, without_password

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
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    warnings.formatwarning = lambda message, *_, **__: f"zsvec: {harmless(without_password(str(message)))}\n"
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(HarmlessFormatter())
    _keep_freed_memory()


class HarmlessFormatter(logging.Formatter):
    """Escapes control characters and masks passwords of URLs: a message is one line; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of the base class
        """Returns the message on one line."""
        return harmless(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message, and the traceback, if any, on further lines."""
        return harmless(without_password(super().format(record)), but="\n")


def _keep_freed_memory() -> None:
    if sys.platform != "linux" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(*_M_TRIM_THRESHOLD)
        mallopt(*_M_MMAP_THRESHOLD)
