"""Process-wide settings of the command line: threads, memory, streams and warnings. The library changes none of them.

- Idle threads of OpenBLAS and libgomp spin for a shorter time before they sleep. OpenBLAS reads its environment
  variable when numpy is first imported, libgomp when torch is first imported.
- The GNU C library keeps freed memory. `zsvec docs architecture` lists all variables and their effects.
- stdin accepts file names that are not UTF-8. stdout escapes characters that its encoding lacks.
- The log escapes control characters. A warning is printed on one line, without its place in the code.
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
_OPENMP_SPINNING = ("GOMP_SPINCOUNT", "10000")  # number of spins before an idle thread sleeps
_OPENMP_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
_MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
# Numbers and values of options of mallopt(3)
_M_TRIM_THRESHOLD = (-1, 2**28)  # maximum free bytes at the end of a heap; more are returned to the system
_M_MMAP_THRESHOLD = (-3, 2**25)  # minimum bytes of an array with a separate memory mapping; glibc's maximum


def prepare_process() -> None:
    """Applies the settings of this module. Must be called before numpy is imported.

    Keeps variables of OpenBLAS, OpenMP and the C library that the user has set.
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
    logging.getLogger("zsvec.classifier.opening").setLevel(logging.ERROR)  # commands offer exports themselves
    _keep_freed_memory()


class HarmlessFormatter(logging.Formatter):
    """Escapes control characters and masks passwords in URLs. Messages become one line; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overrides a method of the base class
        """Returns the message on one line."""
        return harmless(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message, followed by the lines of the traceback, if any."""
        return harmless(without_password(super().format(record)), but="\n")


def _keep_freed_memory() -> None:
    if sys.platform != "linux" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(*_M_TRIM_THRESHOLD)
        mallopt(*_M_MMAP_THRESHOLD)
